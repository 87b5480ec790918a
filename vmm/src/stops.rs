//! Pausing a machine: its vCPUs stand still, everything else goes on.
//!
//! A drive whose error policy says `stop` pauses the machine until somebody has seen to the cause (made space, say) and says
//! go on: SIGCONT, or Ctrl-A c on the console. Then the drive makes its request again.
//!
//! A vCPU looks at [`Stops::is_paused`] each time before it enters the guest, and a kick makes it leave (see [`crate::kick`]). While
//! paused, the guest's clock and its CPUs' time-stamp counters stand still, too (the vCPU's thread sees to its own), so
//! that no driver's time-out runs meanwhile.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use devices::ide::error_policy::Stop;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::kick::VcpuThread;

/// Why a machine is paused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A drive's request waits, as its error policy says.
    Drive(Stop),
    /// Somebody asked for it.
    Asked,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Drive(Stop { slot, error, no_space }) => {
                let hint = if *no_space { " (the host has no space left)" } else { "" };
                write!(f, "disk {slot}: {error}{hint}")
            }
            Reason::Asked => f.write_str("as asked"),
        }
    }
}

/// Pauses and resumes all vCPUs of a machine. Shared between threads.
pub struct Stops {
    paused: AtomicBool,
    state: Mutex<State>,
    resumed: Condvar,
    /// Written when there is something to say.
    wake: EventFd,
}

#[derive(Default)]
struct State {
    threads: Vec<VcpuThread>,
    /// Why the machine is paused; the last reason counts.
    reason: Option<Reason>,
    /// Reasons that were not yet said.
    unsaid: Vec<Reason>,
}

impl Stops {
    /// A machine that runs.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            paused: AtomicBool::new(false),
            state: Mutex::default(),
            resumed: Condvar::new(),
            wake: EventFd::new(EFD_NONBLOCK).context("Cannot make an eventfd")?,
        })
    }

    /// Whether vCPUs are to stay out of the guest.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Pauses the machine. Whoever waits for [`Stops::event`] says `reason`. Does not wait for the vCPUs, so it may be called
    /// with a device locked that they are about to lock.
    pub fn pause(&self, reason: Reason) {
        let mut state = self.lock();
        state.reason = Some(reason.clone());
        state.unsaid.push(reason);
        // First the flag, then the kicks: a vCPU that was kicked looks at the flag.
        self.paused.store(true, Ordering::SeqCst);
        state.threads.iter().for_each(VcpuThread::kick);
        drop(state);
        if let Err(error) = self.wake.write(1) {
            tracing::debug!(%error, "event loop not woken");
        }
    }

    /// Lets the vCPUs go on. Returns whether they were paused.
    pub fn resume(&self) -> bool {
        let mut state = self.lock();
        state.reason = None;
        let was_paused = self.paused.swap(false, Ordering::SeqCst);
        self.resumed.notify_all();
        was_paused
    }

    /// Why the machine is paused, if it is.
    pub fn reason(&self) -> Option<Reason> {
        self.lock().reason.clone()
    }

    /// Readable when [`Stops::take_reasons`] has something new.
    pub fn event(&self) -> &EventFd {
        &self.wake
    }

    /// Why the machine was paused, each reason once.
    pub fn take_reasons(&self) -> Vec<Reason> {
        // Nothing to read is fine: then there is no news.
        let _ = self.wake.read();
        std::mem::take(&mut self.lock().unsaid)
    }

    /// Makes the calling thread, which runs a vCPU that can be kicked, one that [`Stops::pause`] kicks.
    pub fn enlist(&self) {
        self.lock().threads.push(VcpuThread::current());
    }

    /// The opposite, before the thread ends.
    pub fn dismiss(&self) {
        let current = VcpuThread::current();
        self.lock().threads.retain(|thread| *thread != current);
    }

    /// Returns when the machine is not paused.
    pub fn wait_until_resumed(&self) {
        let mut state = self.lock();
        while self.is_paused() {
            state = self.resumed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn a_paused_machine_waits_says_why_once_and_goes_on() {
        let stops = Arc::new(Stops::new().expect("eventfd"));
        let reason = Reason::Drive(Stop {
            slot: "hda",
            error: "no".to_owned(),
            no_space: true,
        });
        assert_eq!(reason.to_string(), "disk hda: no (the host has no space left)");
        stops.pause(reason.clone());
        assert!(stops.is_paused());
        assert_eq!(stops.reason(), Some(reason.clone()));
        assert_eq!(stops.take_reasons(), [reason]);
        assert!(stops.take_reasons().is_empty());
        let waiting = {
            let stops = stops.clone();
            thread::spawn(move || stops.wait_until_resumed())
        };
        assert!(stops.resume());
        waiting.join().expect("no panic");
        assert!(!stops.resume());
        assert_eq!(stops.reason(), None);
    }
}
