//! No wake-up is lost: whoever waits on the engine's descriptor and polls when it is readable gets every request done.
//!
//! Nothing here is judged by time; the minutes that a wait takes at most only turn a standstill into a failure.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use disk::{Aio, Buffer, Command, CreateOptions, Disk, Engine, EngineOptions, Format, OpenOptions, Request};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec};

const STANDSTILL: Duration = Duration::from_secs(300);
const DISK_BYTES: u64 = 64 << 20;
const THREADS: u64 = 4;

/// How many requests have not been answered.
#[derive(Default)]
struct Outstanding {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Outstanding {
    fn submit(self: &Arc<Self>, disk: &dyn Disk, command: Command) {
        *self.count.lock().expect("not poisoned") += 1;
        let outstanding = self.clone();
        let done = Box::new(move |result: Result<(), _>| {
            result.unwrap_or_else(|error| panic!("{error}"));
            *outstanding.count.lock().expect("not poisoned") -= 1;
            outstanding.changed.notify_all();
        });
        disk.submit(Request { command, done });
    }

    fn count(&self) -> usize {
        *self.count.lock().expect("not poisoned")
    }

    /// Waits, on another thread than the engine's.
    fn wait(&self) {
        let count = self.count.lock().expect("not poisoned");
        let waited = self.changed.wait_timeout_while(count, STANDSTILL, |count| *count > 0);
        let (count, timeout) = waited.expect("not poisoned");
        assert!(!timeout.timed_out(), "{count} requests were never answered");
    }
}

fn image(directory: &Path) -> OpenOptions {
    let path = directory.join("disk.qcow2");
    let metadata = CreateOptions::new(DISK_BYTES).metadata().expect("valid");
    std::fs::write(&path, metadata).expect("written");
    OpenOptions::new(path, Format::Qcow2)
}

/// Waits as an event loop does, and polls, until `is_done`.
fn run_until(engine: &Engine, is_done: impl Fn() -> bool) {
    let patience = Timespec::try_from(STANDSTILL).expect("fits");
    while !is_done() {
        let mut fds = [PollFd::from_borrowed_fd(engine.event_fd(), PollFlags::IN)];
        let ready = rustix::event::poll(&mut fds, Some(&patience)).expect("can be waited on");
        assert!(ready > 0, "the engine has something to do and does not say so");
        engine.poll();
    }
}

/// Requests in a part of the disk that belongs to one thread.
fn random_command(rng: &mut SmallRng, part: u64) -> Command {
    let sectors = rng.random_range(1..=8);
    let part_sectors = DISK_BYTES / THREADS / 512;
    let offset = (part * part_sectors + rng.random_range(0..part_sectors - sectors)) * 512;
    let buffer = Buffer::zeroed(sectors as usize * 512);
    match rng.random_range(0..8) {
        0 => Command::Flush,
        1..4 => Command::Write { offset, buffer },
        _ => Command::Read { offset, buffer },
    }
}

fn tiny_bursts_from_many_threads(aio: Aio, rounds: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Engine::new(EngineOptions { aio }).expect("an engine");
    let disk = engine
        .open(&image(directory.path()))
        .unwrap_or_else(|error| panic!("{error}"));
    let finished = AtomicUsize::new(0);
    thread::scope(|scope| {
        for part in 0..THREADS {
            let (disk, finished) = (&disk, &finished);
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(part);
                let outstanding = Arc::new(Outstanding::default());
                for round in 0..rounds {
                    for _ in 0..rng.random_range(1..=3) {
                        outstanding.submit(&**disk, random_command(&mut rng, part));
                    }
                    // Now and then the bursts run into each other.
                    if round % 4 != 3 {
                        outstanding.wait();
                    }
                }
                outstanding.wait();
                finished.fetch_add(1, Ordering::Release);
                // Wakes the loop below, so that it sees that.
                outstanding.submit(&**disk, Command::Flush);
            });
        }
        run_until(&engine, || finished.load(Ordering::Acquire) == THREADS as usize);
    });
    engine.close().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn tiny_bursts_from_many_threads_are_all_answered_by_io_uring() {
    tiny_bursts_from_many_threads(Aio::IoUring, 500);
}

#[test]
fn tiny_bursts_from_many_threads_are_all_answered_by_threads() {
    tiny_bursts_from_many_threads(Aio::Threads, 500);
}

/// More requests at once than the ring has room for completions: the kernel keeps the rest until it is asked for them.
fn one_great_burst(aio: Aio) {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = Engine::new(EngineOptions { aio }).expect("an engine");
    let disk = engine
        .open(&image(directory.path()))
        .unwrap_or_else(|error| panic!("{error}"));
    let outstanding = Arc::new(Outstanding::default());
    let whole = Buffer::from_slice(&vec![7; 4 << 20]);
    outstanding.submit(
        &*disk,
        Command::Write {
            offset: 0,
            buffer: whole,
        },
    );
    run_until(&engine, || outstanding.count() == 0);
    for sector in 0..8192 {
        let buffer = Buffer::zeroed(512);
        outstanding.submit(
            &*disk,
            Command::Read {
                offset: sector * 512,
                buffer,
            },
        );
    }
    run_until(&engine, || outstanding.count() == 0);
    engine.close().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_burst_larger_than_the_completion_queue_is_answered_by_io_uring() {
    one_great_burst(Aio::IoUring);
}

#[test]
fn a_burst_larger_than_the_completion_queue_is_answered_by_threads() {
    one_great_burst(Aio::Threads);
}
