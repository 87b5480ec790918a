//! Interrupt lines into KVM's in-kernel interrupt controllers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use devices::interrupt::InterruptLine;
use kvm_ioctls::{Cap, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An ISA interrupt line: each rising edge is one pulse on the PIC and on the I/O APIC.
pub struct EdgeLine {
    gsi: u32,
    way: Way,
    high: AtomicBool,
    /// It rose, and no pulse was made for that.
    due: AtomicBool,
}

/// How a pulse gets into the kernel.
enum Way {
    /// One `write` (KVM API, 4.75 KVM_IRQFD). The kernel makes the pulse later, on a worker's thread: on the PIC's interrupts it may not
    /// sleep where the write is.
    Irqfd(EventFd),
    /// Two calls, and it is made when they are (KVM API, 4.25 KVM_IRQ_LINE). One thread at a time: a pulse that begins within another
    /// is no edge, and the guest may have taken the first already.
    Calls(Mutex<Arc<VmFd>>),
}

impl EdgeLine {
    /// A line to the global system interrupt `gsi`, as an irqfd or by calls.
    pub fn new(vm: &Arc<VmFd>, gsi: u32, irqfd: bool) -> anyhow::Result<Self> {
        let way = if irqfd && vm.check_extension(Cap::Irqfd) {
            let event = EventFd::new(EFD_NONBLOCK).context("Cannot make an eventfd")?;
            vm.register_irqfd(&event, gsi)
                .with_context(|| format!("KVM refuses an irqfd for interrupt {gsi}"))?;
            Way::Irqfd(event)
        } else {
            Way::Calls(Mutex::new(vm.clone()))
        };
        Ok(Self {
            gsi,
            way,
            high: AtomicBool::new(false),
            due: AtomicBool::new(false),
        })
    }
}

impl InterruptLine for EdgeLine {
    fn raise(&self) {
        if !self.high.swap(true, Ordering::SeqCst) {
            self.due.store(true, Ordering::SeqCst);
        }
    }

    fn lower(&self) {
        self.high.store(false, Ordering::SeqCst);
    }

    fn deliver(&self) {
        // What rises twice before it is delivered is one interrupt, as with an interrupt controller that was not asked in between.
        if !self.due.swap(false, Ordering::SeqCst) {
            return;
        }
        match &self.way {
            // The kernel consumes the counter at once, so it can only fail where the VM is gone already.
            Way::Irqfd(event) => {
                if let Err(error) = event.write(1) {
                    tracing::debug!(gsi = self.gsi, %error, "interrupt lost");
                }
            }
            Way::Calls(vm) => {
                let vm = vm.lock().unwrap_or_else(PoisonError::into_inner);
                set_level(&vm, self.gsi, true);
                set_level(&vm, self.gsi, false);
            }
        }
    }
}

fn set_level(vm: &VmFd, gsi: u32, high: bool) {
    // It can only fail without interrupt controllers in the kernel, and those were made first.
    if let Err(error) = vm.set_irq_line(gsi, high) {
        tracing::debug!(gsi, high, %error, "interrupt line not set");
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
}

impl InterruptLine for LevelLine {
    fn raise(&self) {
        set_level(&self.vm, self.gsi, true);
    }

    fn lower(&self) {
        set_level(&self.vm, self.gsi, false);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use kvm_bindings::{KVM_IRQCHIP_PIC_MASTER, kvm_irqchip};
    use kvm_ioctls::Kvm;

    use super::*;

    /// The interrupts that were requested from the first PIC and not taken.
    fn requested(vm: &VmFd) -> u8 {
        let mut chip = kvm_irqchip {
            chip_id: KVM_IRQCHIP_PIC_MASTER,
            ..Default::default()
        };
        vm.get_irqchip(&mut chip).expect("a PIC");
        #[expect(unsafe_code, reason = "the kernel filled in the PIC's part of the union")]
        // SAFETY: as the chip's number asks.
        unsafe {
            chip.chip.pic.irr
        }
    }

    #[test]
    fn a_rise_is_delivered_by_either_way_when_that_is_asked_for() {
        let vm = Arc::new(Kvm::new().and_then(|kvm| kvm.create_vm()).expect("a VM"));
        vm.create_irq_chip().expect("interrupt controllers");
        for (irqfd, gsi) in [(true, 4), (false, 5)] {
            let line = EdgeLine::new(&vm, gsi, irqfd).expect("a line");
            line.deliver();
            line.raise();
            assert_eq!(requested(&vm) & 1 << gsi, 0, "irqfd {irqfd}");
            line.lower();
            line.deliver();
            // An irqfd's pulse is made by a thread of the kernel.
            let patience = Instant::now() + Duration::from_secs(60);
            while requested(&vm) & 1 << gsi == 0 {
                assert!(Instant::now() < patience, "irqfd {irqfd}: no interrupt");
            }
        }
    }

    #[test]
    fn a_pulse_waits_for_the_end_of_another() {
        let vm = Arc::new(Kvm::new().and_then(|kvm| kvm.create_vm()).expect("a VM"));
        vm.create_irq_chip().expect("interrupt controllers");
        let line = EdgeLine::new(&vm, 5, false).expect("a line");
        let Way::Calls(calls) = &line.way else {
            panic!("an irqfd that nobody asked for");
        };
        let another = calls.lock().expect("nobody panics");
        std::thread::scope(|scope| {
            let delivery = scope.spawn(|| {
                line.raise();
                line.deliver();
            });
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(requested(&vm), 0);
            drop(another);
            delivery.join().expect("it ends");
            assert_eq!(requested(&vm), 1 << 5);
        });
    }
}
