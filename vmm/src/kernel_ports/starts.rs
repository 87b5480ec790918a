//! Starts of the bus master as events: the kernel notes that a guest wrote a start value, wakes the event loop, and lets
//! the guest go on (KVM API, 4.59 KVM_IOEVENTFD).
#![expect(unsafe_code, reason = "an eventfd has no borrowed form of its own")]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use devices::ide::kernel_ports::START_VALUES;
use kvm_ioctls::{IoEventAddress, VmFd};
use rustix::event::{PollFd, PollFlags, Timespec};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The events of both channels, one for each value that starts.
pub struct Starts {
    events: [[EventFd; START_VALUES.len()]; 2],
    /// Held from looking at the events until the starts are in the devices.
    taking: Mutex<()>,
}

impl Starts {
    /// Events that no port raises yet.
    pub fn new() -> anyhow::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK).context("Cannot make an eventfd");
        Ok(Self {
            events: [[event()?, event()?], [event()?, event()?]],
            taking: Mutex::new(()),
        })
    }

    /// All of them, for an event loop.
    pub fn events(&self) -> impl Iterator<Item = &EventFd> {
        self.events.iter().flatten()
    }

    /// Has a write of a start value to `port` raise `channel`'s events.
    pub fn register(&self, vm: &VmFd, channel: usize, port: u16) -> Result<(), kvm_ioctls::Error> {
        for (event, value) in self.events[channel].iter().zip(START_VALUES) {
            vm.register_ioevent(event, &IoEventAddress::Pio(u64::from(port)), value)?;
        }
        Ok(())
    }

    /// The opposite. What is not registered is let be.
    pub fn unregister(&self, vm: &VmFd, channel: usize, port: u16) {
        for (event, value) in self.events[channel].iter().zip(START_VALUES) {
            if let Err(error) = vm.unregister_ioevent(event, &IoEventAddress::Pio(u64::from(port)), value) {
                tracing::debug!(port, %error, "ioeventfd not taken back");
            }
        }
    }

    /// Gives `start` the starts that were made since the last call: channel and value, each once. Whoever asks meanwhile waits, and finds
    /// the starts in the devices afterwards, not on their way there.
    pub fn take(&self, mut start: impl FnMut(usize, u8)) {
        let _taking = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let [[a, b], [c, d]] = &self.events;
        let mut polled = [a, b, c, d].map(|event| {
            // SAFETY: the event is open for as long as `self` is borrowed, which is longer than this list lives.
            let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
            PollFd::from_borrowed_fd(fd, PollFlags::IN)
        });
        // Mostly there is none, which one system call tells for all. If it fails, the answer is in the events themselves.
        let known = rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok();
        let channels = (0..2).flat_map(|channel| START_VALUES.map(|value| (channel, value)));
        for ((channel, value), (event, polled)) in channels.zip(self.events().zip(&polled)) {
            if (!known || !polled.revents().is_empty()) && event.read().is_ok() {
                start(channel, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_asks_while_a_start_is_on_its_way_finds_it_in_the_device() {
        let starts = Starts::new().unwrap();
        let (on_its_way, seen) = mpsc::channel();
        let in_device = AtomicBool::new(false);
        starts.events[1][0].write(1).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                starts.take(|channel, value| {
                    assert_eq!((channel, value), (1, START_VALUES[0]));
                    on_its_way.send(()).unwrap();
                    thread::sleep(Duration::from_millis(20));
                    in_device.store(true, Ordering::SeqCst);
                });
            });
            seen.recv().unwrap();
            starts.take(|_, _| panic!("it was taken already"));
            assert!(in_device.load(Ordering::SeqCst));
        });
    }
}
