//! Interrupt lines into KVM's in-kernel interrupt controllers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use devices::interrupt::InterruptLine;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An ISA interrupt line as an irqfd: each rising edge is one pulse on the PIC and on the I/O APIC, and costs
/// one `write` wherever it comes from (KVM API, 4.75 KVM_IRQFD).
pub struct EdgeLine {
    irqfd: EventFd,
    gsi: u32,
    high: AtomicBool,
}

impl EdgeLine {
    /// A line to the global system interrupt `gsi`.
    pub fn new(vm: &VmFd, gsi: u32) -> anyhow::Result<Self> {
        let irqfd = EventFd::new(EFD_NONBLOCK).context("Cannot make an eventfd")?;
        vm.register_irqfd(&irqfd, gsi)
            .with_context(|| format!("KVM refuses an irqfd for interrupt {gsi}"))?;
        Ok(Self {
            irqfd,
            gsi,
            high: AtomicBool::new(false),
        })
    }
}

impl InterruptLine for EdgeLine {
    fn raise(&self) {
        if self.high.swap(true, Ordering::SeqCst) {
            return;
        }
        // The kernel consumes the counter at once, so it can only fail where the VM is gone already.
        if let Err(error) = self.irqfd.write(1) {
            tracing::debug!(gsi = self.gsi, %error, "interrupt lost");
        }
    }

    fn lower(&self) {
        self.high.store(false, Ordering::SeqCst);
    }
}

/// A PCI interrupt line, by level, on the I/O APIC: it stays what it is until the device says otherwise (KVM API, 4.25 KVM_IRQ_LINE).
pub struct LevelLine {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl LevelLine {
    /// A line to the global system interrupt `gsi`.
    pub fn new(vm: &Arc<VmFd>, gsi: u32) -> Self {
        Self { vm: vm.clone(), gsi }
    }

    fn set(&self, high: bool) {
        // It can only fail without interrupt controllers in the kernel, and those were made first.
        if let Err(error) = self.vm.set_irq_line(self.gsi, high) {
            tracing::debug!(gsi = self.gsi, high, %error, "interrupt line not set");
        }
    }
}

impl InterruptLine for LevelLine {
    fn raise(&self) {
        self.set(true);
    }

    fn lower(&self) {
        self.set(false);
    }
}
