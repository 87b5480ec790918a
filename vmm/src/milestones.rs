//! The two moments of a start that a user feels: the guest runs, and the guest speaks.

use std::sync::Once;
use std::time::Instant;

/// Logs each milestone once, at level info, in milliseconds since the process started.
pub struct Milestones {
    start: Instant,
    guest_runs: Once,
    guest_speaks: Once,
}

impl Milestones {
    /// Counts from `start`.
    pub fn since(start: Instant) -> Self {
        Self {
            start,
            guest_runs: Once::new(),
            guest_speaks: Once::new(),
        }
    }

    /// The first vCPU is about to enter the guest.
    pub fn guest_runs(&self) {
        self.guest_runs.call_once(|| self.log("guest runs"));
    }

    /// The guest sent its first byte to the console.
    pub fn guest_speaks(&self) {
        self.guest_speaks
            .call_once(|| self.log("first byte on the guest's console"));
    }

    fn log(&self, milestone: &str) {
        let milliseconds = self.start.elapsed().as_micros() as f64 / 1000.0;
        tracing::info!("{milestone} after {milliseconds:.1} ms");
    }
}
