//! How other threads wake the engine's: by an eventfd that is written at most once while the engine sleeps, and not at all while it works.
//!
//! A wake-up must not get lost between a look for work and the sleep after it. So there is an order on both sides:
//!
//! - who has work stores it first, and then [rings](Doorbell::ring);
//! - the engine [answers](Doorbell::answer) first, and then looks for work. When it has found none it [dozes](Doorbell::doze), and
//!   looks *once more*, at everything, before it really sleeps.
//!
//! Between the two sides each stores before it looks (with a full barrier between), so at least one sees what the other stored: either the
//! engine's last look finds the work, or the ringer finds the engine dozing and writes to the eventfd. That is read in the next answer
//! and never at another time, so what it announces has not been looked at yet when it is gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, fence};

use rustix::event::EventfdFlags;

/// The engine sleeps, or is about to; who rings must wake it.
const DOZING: u8 = 0;
/// Somebody wakes it.
const RUNG: u8 = 1;
/// The engine looks for work, and will look at everything once more.
const AWAKE: u8 = 2;

/// Wakes the engine's thread.
pub(crate) struct Doorbell {
    event_fd: OwnedFd,
    state: AtomicU8,
    /// A ringer had not written yet when the engine read. Only the engine's thread uses this.
    unread: AtomicBool,
}

impl Doorbell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            event_fd: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            state: AtomicU8::new(DOZING),
            unread: AtomicBool::new(false),
        })
    }

    /// Wakes the engine, after work for it was stored. From any thread.
    pub(crate) fn ring(&self) {
        fence(Ordering::SeqCst);
        let was = self
            .state
            .compare_exchange(DOZING, RUNG, Ordering::SeqCst, Ordering::SeqCst);
        if was.is_ok() {
            // It cannot fail: the counter is read before it is written again.
            let _ = rustix::io::write(&self.event_fd, &1u64.to_ne_bytes());
        }
    }

    /// Takes note of a ring, before the engine looks for work. From now on nobody rings.
    pub(crate) fn answer(&self) {
        let rung = self.state.swap(AWAKE, Ordering::SeqCst) == RUNG;
        if rung || self.unread.load(Ordering::Relaxed) {
            let mut counter = [0; 8];
            let read = rustix::io::read(&self.event_fd, &mut counter);
            self.unread.store(read.is_err(), Ordering::Relaxed);
        }
    }

    /// Asks for rings again, before the engine looks for work a last time.
    pub(crate) fn doze(&self) {
        self.state.store(DOZING, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}

impl AsFd for Doorbell {
    /// Readable when it was rung.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event_fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::thread;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec};

    use super::*;

    /// How long a ring may take to arrive before it counts as lost.
    const STANDSTILL: Duration = Duration::from_secs(300);

    fn wait(bell: &Doorbell) -> bool {
        let patience = Timespec::try_from(STANDSTILL).expect("fits");
        let mut fds = [PollFd::new(bell, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&patience)).expect("can be waited on") > 0
    }

    #[test]
    fn no_ring_is_lost_between_a_look_and_the_sleep_after_it() {
        const ITEMS: u64 = 20_000;
        let (bell, stored) = (
            Arc::new(Doorbell::new().expect("an eventfd")),
            Arc::new(AtomicU64::new(0)),
        );
        let ringers: Vec<_> = (0..2)
            .map(|_| {
                let (bell, stored) = (bell.clone(), stored.clone());
                thread::spawn(move || {
                    for _ in 0..ITEMS {
                        stored.fetch_add(1, Ordering::Relaxed);
                        bell.ring();
                    }
                })
            })
            .collect();
        let mut taken = 0;
        while taken < 2 * ITEMS {
            assert!(wait(&bell), "a ring was lost after {taken} items");
            bell.answer();
            loop {
                let found = stored.load(Ordering::Relaxed);
                if found == taken {
                    bell.doze();
                    if stored.load(Ordering::Relaxed) == taken {
                        break;
                    }
                    bell.answer();
                }
                taken = found;
            }
        }
        for ringer in ringers {
            ringer.join().expect("rings");
        }
    }

    #[test]
    fn an_engine_that_is_awake_is_not_rung_and_sleeps_in_silence() {
        let bell = Doorbell::new().expect("an eventfd");
        bell.ring();
        bell.ring();
        bell.answer();
        bell.ring();
        bell.doze();
        let mut fds = [PollFd::new(&bell, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&now)).expect("can be waited on"), 0);
    }
}
