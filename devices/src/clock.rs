//! Time as the devices see it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A clock that never goes back. Shared between threads.
pub trait Clock: Send + Sync {
    /// Time since some instant in the past, which is the same for every call.
    fn now(&self) -> Duration;
}

/// The host's monotonic clock, from when it was made.
#[derive(Debug)]
pub struct MonotonicClock(Instant);

impl Default for MonotonicClock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock for MonotonicClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A clock that moves only when it is told to: for tests.
#[derive(Debug, Default)]
pub struct ManualClock(Mutex<Duration>);

impl ManualClock {
    /// Lets time pass.
    pub fn advance(&self, time: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += time;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
