//! Starts of the bus master as events: the kernel notes that a guest wrote a start value, wakes the event loop, and lets
//! the guest go on (KVM API, 4.59 KVM_IOEVENTFD).
#![expect(unsafe_code, reason = "an eventfd has no borrowed form of its own")]

use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::Context;
use devices::ide::kernel_ports::START_VALUES;
use kvm_ioctls::{IoEventAddress, VmFd};
use rustix::event::{PollFd, PollFlags, Timespec};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The events of both channels, one for each value that starts.
pub struct Starts([[EventFd; START_VALUES.len()]; 2]);

impl Starts {
    /// Events that no port raises yet.
    pub fn new() -> anyhow::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK).context("Cannot make an eventfd");
        Ok(Self([[event()?, event()?], [event()?, event()?]]))
    }

    /// All of them, for an event loop.
    pub fn events(&self) -> impl Iterator<Item = &EventFd> {
        self.0.iter().flatten()
    }

    /// Has a write of a start value to `port` raise `channel`'s events.
    pub fn register(&self, vm: &VmFd, channel: usize, port: u16) -> Result<(), kvm_ioctls::Error> {
        for (event, value) in self.0[channel].iter().zip(START_VALUES) {
            vm.register_ioevent(event, &IoEventAddress::Pio(u64::from(port)), value)?;
        }
        Ok(())
    }

    /// The opposite. What is not registered is let be.
    pub fn unregister(&self, vm: &VmFd, channel: usize, port: u16) {
        for (event, value) in self.0[channel].iter().zip(START_VALUES) {
            if let Err(error) = vm.unregister_ioevent(event, &IoEventAddress::Pio(u64::from(port)), value) {
                tracing::debug!(port, %error, "ioeventfd not taken back");
            }
        }
    }

    /// The starts that were made since the last call, each channel and value once.
    pub fn take(&self) -> impl Iterator<Item = (usize, u8)> {
        // Mostly there is none, which one system call tells for all.
        let raised = self.is_any_raised();
        self.0.iter().enumerate().flat_map(move |(channel, events)| {
            let values = events.iter().zip(START_VALUES);
            values.filter_map(move |(event, value)| (raised && event.read().is_ok()).then_some((channel, value)))
        })
    }

    fn is_any_raised(&self) -> bool {
        let [[a, b], [c, d]] = &self.0;
        let mut poll = [a, b, c, d].map(|event| {
            // SAFETY: the event is open for as long as `self` is borrowed, which is longer than this list lives.
            let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
            PollFd::from_borrowed_fd(fd, PollFlags::IN)
        });
        // If the question fails, the answer is in the events themselves.
        rustix::event::poll(&mut poll, Some(&Timespec::default())).map_or(true, |raised| raised > 0)
    }
}
