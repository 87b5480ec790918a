//! The one switch that ends a virtual machine, whoever turns it: the guest, the user, a signal or a failure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use devices::power::PowerControl;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::exit_code::Ending;

/// Remembers the first ending, tells the vCPUs to stop and wakes the event loop.
pub struct PowerSwitch {
    ending: Mutex<Option<Ending>>,
    off: AtomicBool,
    wake: EventFd,
}

impl PowerSwitch {
    /// A machine that is on.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            ending: Mutex::new(None),
            off: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK).context("Cannot make an eventfd")?,
        })
    }

    /// Ends the machine. Only the first ending counts.
    pub fn end(&self, ending: Ending) {
        let mut first = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            tracing::debug!("{ending}");
            *first = Some(ending);
        }
        drop(first);
        self.off.store(true, Ordering::SeqCst);
        if let Err(error) = self.wake.write(1) {
            // Full means that it is readable, which is all that is wanted.
            tracing::debug!(%error, "event loop not woken");
        }
    }

    /// Whether the machine has ended.
    pub fn is_off(&self) -> bool {
        self.off.load(Ordering::SeqCst)
    }

    /// Readable once the machine has ended.
    pub fn event(&self) -> &EventFd {
        &self.wake
    }

    /// How the machine ended, if it did.
    pub fn take_ending(&self) -> Option<Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl PowerControl for PowerSwitch {
    fn power_off(&self) {
        self.end(Ending::PowerOff);
    }

    fn reset(&self) {
        self.end(Ending::Reset);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ending_counts() {
        let switch = PowerSwitch::new().expect("eventfd");
        assert!(!switch.is_off());
        switch.reset();
        switch.power_off();
        assert!(switch.is_off());
        assert!(matches!(switch.take_ending(), Some(Ending::Reset)));
    }
}
