//! The one descriptor that an event loop waits on: readable as long as the engine has something to do.
//!
//! It stands for three others, none of which announces anything only once: the doorbell, the ring (readable while completions are
//! there), and a timer for metadata that has been dirty for long. An idle engine's timer is off.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// What the engine waits for.
pub(crate) struct Readiness {
    all: OwnedFd,
    timer: OwnedFd,
    /// When the timer rings, if it is on.
    due: Cell<Option<Instant>>,
}

impl Readiness {
    /// Nothing to wait for but a timer that is off.
    pub(crate) fn new() -> io::Result<Self> {
        let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let readiness = Self {
            all,
            timer,
            due: Cell::new(None),
        };
        readiness.add(readiness.timer.as_fd())?;
        Ok(readiness)
    }

    /// Waits for this, too.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        epoll::add(&self.all, fd, EventData::new_u64(0), EventFlags::IN)?;
        Ok(())
    }

    /// Sets the timer, or turns it off.
    pub(crate) fn set_timer(&self, due: Option<Instant>) {
        if self.due.get() == due {
            return;
        }
        // All zeros is off; what is due already still rings.
        let wait = due.map(|due| {
            due.saturating_duration_since(Instant::now())
                .max(Duration::from_nanos(1))
        });
        let setting = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(wait.unwrap_or_default()).unwrap_or_default(),
        };
        match timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting) {
            Ok(_) => self.due.set(due),
            Err(error) => tracing::error!(%error, "the write-back timer cannot be set"),
        }
    }

    /// Whether the timer has rung. It is off then.
    pub(crate) fn timer_rang(&self) -> bool {
        let rang = self.due.get().is_some_and(|due| due <= Instant::now());
        if rang {
            self.set_timer(None);
        }
        rang
    }
}

impl AsFd for Readiness {
    /// Readable when there is something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.all.as_fd()
    }
}
