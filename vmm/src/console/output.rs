//! Console output: taken from the vCPUs at once, written by a thread of its own.
//!
//! A guest prints a byte per port access. Writing each to a terminal or a pipe would cost a system call per byte, and a reader
//! that does not read would block a vCPU with the serial port locked, and then the event loop that brings input.
//! So bytes are collected here, and a vCPU that is far ahead waits outside of all locks.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use crate::milestones::Milestones;
use crate::power::PowerSwitch;

/// How many bytes may wait before vCPUs are held back.
const BACKLOG_LIMIT: usize = 64 << 10;

/// How often a vCPU that is held back looks whether the machine is off.
const LOOK_AROUND: Duration = Duration::from_millis(50);

/// After this long without a byte taken, what still waits at the end is given up.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// Where console output goes.
pub struct Output {
    state: Mutex<State>,
    changed: Condvar,
    /// Bytes that wait or are being written.
    backlog: AtomicUsize,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The target failed: everything else is thrown away.
    broken: bool,
}

impl Output {
    /// Starts the thread that writes to `target`.
    pub fn start(target: Box<dyn Write + Send>) -> anyhow::Result<Arc<Self>> {
        let output = Arc::new(Self {
            state: Mutex::default(),
            changed: Condvar::new(),
            backlog: AtomicUsize::new(0),
        });
        let shared = output.clone();
        // It ends with the process: it may sit in a write that nobody takes.
        thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || shared.write_to(target))
            .context("Cannot start the console's thread")?;
        Ok(output)
    }

    /// A writer for a serial port. It never blocks.
    pub fn writer(self: &Arc<Self>, milestones: Arc<Milestones>) -> OutputWriter {
        OutputWriter {
            output: self.clone(),
            milestones,
        }
    }

    /// Adds `bytes`.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if state.broken || bytes.is_empty() {
            return;
        }
        let was_empty = state.waiting.is_empty();
        state.waiting.extend_from_slice(bytes);
        self.backlog.fetch_add(bytes.len(), Ordering::SeqCst);
        drop(state);
        if was_empty {
            self.changed.notify_all();
        }
    }

    /// Returns when the backlog is small, or when the machine is off. Called by vCPUs, with no lock held.
    pub fn wait_for_room(&self, power: &PowerSwitch) {
        if self.backlog.load(Ordering::SeqCst) < BACKLOG_LIMIT {
            return;
        }
        let mut state = self.lock();
        while self.backlog.load(Ordering::SeqCst) >= BACKLOG_LIMIT && !power.is_off() {
            (state, _) = self
                .changed
                .wait_timeout(state, LOOK_AROUND)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all is written. Gives up when nothing moves any more.
    pub fn drain(&self) {
        let mut state = self.lock();
        loop {
            let left = self.backlog.load(Ordering::SeqCst);
            if left == 0 {
                return;
            }
            let (next, timeout) = self
                .changed
                .wait_timeout(state, LAST_WAIT)
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            if timeout.timed_out() && self.backlog.load(Ordering::SeqCst) == left {
                tracing::warn!("{left} bytes of console output were not taken and are lost");
                return;
            }
        }
    }

    /// The thread.
    fn write_to(&self, mut target: Box<dyn Write + Send>) {
        loop {
            let mut state = self.lock();
            while state.waiting.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let bytes = std::mem::take(&mut state.waiting);
            drop(state);
            let outcome = self.write_all(&mut target, &bytes);
            if let Err(error) = outcome {
                tracing::warn!("Console output is lost from here on: {error}");
                let mut state = self.lock();
                state.broken = true;
                state.waiting.clear();
                self.backlog.store(0, Ordering::SeqCst);
                drop(state);
                self.changed.notify_all();
                return;
            }
        }
    }

    fn write_all(&self, target: &mut dyn Write, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match target.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    // Under the lock, so that a waiter cannot miss it between its look and its wait.
                    let state = self.lock();
                    self.backlog.fetch_sub(count, Ordering::SeqCst);
                    drop(state);
                    self.changed.notify_all();
                }
                // Whoever shares the descriptor may have made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        target.flush()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The serial port's end of an [`Output`].
pub struct OutputWriter {
    output: Arc<Output>,
    milestones: Arc<Milestones>,
}

impl Write for OutputWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.milestones.guest_speaks();
        self.output.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Hands what is written to a channel; fails once the other end is gone.
    struct Channel(mpsc::SyncSender<Vec<u8>>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .send(bytes.to_vec())
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_arrive_in_order_and_drain_waits_for_the_last() {
        let (sender, receiver) = mpsc::sync_channel(1 << 10);
        let output = Output::start(Box::new(Channel(sender))).expect("thread");
        let expected: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for byte in &expected {
            output.push(&[*byte]);
        }
        output.drain();
        assert_eq!(receiver.try_iter().flatten().collect::<Vec<u8>>(), expected);
    }

    #[test]
    fn a_vcpu_far_ahead_waits_until_the_machine_is_off() {
        // Nobody receives, and the channel takes nothing unasked.
        let (sender, _receiver) = mpsc::sync_channel(0);
        let output = Output::start(Box::new(Channel(sender))).expect("thread");
        let power = Arc::new(PowerSwitch::new().expect("eventfd"));
        output.push(&vec![0; BACKLOG_LIMIT]);
        let (done_sender, done) = mpsc::channel();
        let waiter = {
            let (output, power) = (output.clone(), power.clone());
            thread::spawn(move || {
                output.wait_for_room(&power);
                done_sender.send(power.is_off()).expect("the test waits");
            })
        };
        power.end(crate::exit_code::Ending::PowerOff);
        assert!(done.recv().expect("the waiter returns"));
        waiter.join().expect("no panic");
    }

    #[test]
    fn a_reader_that_is_gone_loses_output_and_blocks_nobody() {
        let (sender, receiver) = mpsc::sync_channel(0);
        drop(receiver);
        let output = Output::start(Box::new(Channel(sender))).expect("thread");
        output.push(&vec![0; 2 * BACKLOG_LIMIT]);
        output.drain();
        let power = PowerSwitch::new().expect("eventfd");
        output.wait_for_room(&power);
    }
}
