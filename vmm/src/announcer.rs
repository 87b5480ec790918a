//! Events on their way to the clients of the control socket, from any thread.

use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::qmp::Event;

/// Events that wait at most; a guest can make more than anybody reads.
const MAX_WAITING: usize = 1024;

/// Takes events from whoever has one, and wakes the event loop, which tells them.
pub struct Announcer {
    /// `None`: nobody would listen.
    waiting: Option<Mutex<Vec<Event>>>,
    wake: EventFd,
}

impl Announcer {
    /// `listening`: whether there is a control socket.
    pub fn new(listening: bool) -> anyhow::Result<Self> {
        Ok(Self {
            waiting: listening.then(Mutex::default),
            wake: EventFd::new(EFD_NONBLOCK).context("Cannot make an eventfd")?,
        })
    }

    /// Tells of an event, soon.
    pub fn announce(&self, event: Event) {
        let Some(waiting) = &self.waiting else { return };
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() == MAX_WAITING {
            return;
        }
        waiting.push(event);
        drop(waiting);
        if let Err(error) = self.wake.write(1) {
            // Full means that it is readable, which is all that is wanted.
            tracing::debug!(%error, "event loop not woken");
        }
    }

    /// Readable when there are events.
    pub fn event(&self) -> &EventFd {
        &self.wake
    }

    /// The events since the last call.
    pub fn take(&self) -> Vec<Event> {
        // Nothing to read is fine: then there is no news.
        let _ = self.wake.read();
        let waiting = self.waiting.as_ref();
        waiting.map_or_else(Vec::new, |waiting| {
            std::mem::take(&mut *waiting.lock().unwrap_or_else(PoisonError::into_inner))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_taken_once_and_not_without_end() {
        let announcer = Announcer::new(true).expect("eventfd");
        for _ in 0..2 * MAX_WAITING {
            announcer.announce(Event::Stop);
        }
        assert_eq!(announcer.take().len(), MAX_WAITING);
        assert!(announcer.take().is_empty());
        let deaf = Announcer::new(false).expect("eventfd");
        deaf.announce(Event::Stop);
        assert!(deaf.take().is_empty());
    }
}
