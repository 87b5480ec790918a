//! The IDE ports that the kernel serves by itself, so that fewer accesses leave the guest for us.
//!
//! Linux makes 26 port accesses for a DMA command. Thirteen are reads, which only the device can answer, and one is the
//! command. The other twelve need not leave the kernel:
//!
//! ```text
//!  writes that only latch (task file, table address, bus-master status,  ─> coalesced: the kernel's ring   [`hand_over`], [`ring`]
//!   direction and stop of the bus master)
//!  the start of the bus master                                           ─> ioeventfd: wakes the event loop [`starts`]
//! ```
//!
//! # Order
//!
//! A guest must not be able to tell. So the ring is applied before anything that could show its effect: any exit for a
//! port, a start that the event loop takes, a completion, a look at the devices from outside. Starts that are noted but not
//! taken are taken before any access to the bus master and before PCI configuration changes; other accesses may come before
//! them, since a bus master takes its time to begin.
//!
//! Nobody can say in which order an entry of the ring and a start were made. The order matters while a drive waits for
//! the bus master: a stop must not end up before the start that it stops. In that time, which is from the command to the
//! start, the ring is closed and every write is an exit. At other times the ring goes first. The one thing that a guest can
//! notice: if it starts the bus master with no command outstanding, and stops it without having read a register in between, it may
//! find it started.
//!
//! # Locks
//!
//! Always in this order: a PCI function's configuration, the pass over the ring, the taking of starts, the bus, an IDE
//! channel, the disk engine's queue. Nothing here is called with a channel locked.
//!
//! # Without the capabilities
//!
//! Each part can be missing in the host's KVM or be turned off ([`ExitOptions`]); its accesses are exits then.

mod completions;
pub mod hand_over;
mod ring;
mod starts;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use devices::bus::PortBus;
use devices::ide::kernel_ports::{
    BUS_MASTER_COMMAND, BUS_MASTER_STRIDE, COMMAND_REGISTERS, DmaWatch, LATCHED_BUS_MASTER, LATCHED_TASK_FILE,
};
use devices::pci::configuration::CONFIGURATION_PORTS;
use kvm_ioctls::{Cap, IoEventAddress, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

pub use self::completions::{InOrder, PortsCell};
use self::hand_over::{HandOver, Latched};
use self::ring::KernelRing;
use self::starts::Starts;
use crate::exits::ExitOptions;
use crate::metrics::Metrics;

/// What [`hand_over`] is made of; its model checker swaps it.
mod sync {
    pub use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    pub use std::sync::{Mutex, MutexGuard};
}

/// `base` when the bus master answers nowhere.
const NOWHERE: u32 = u32::MAX;

/// The way of every port access, by whichever thread it comes.
pub struct KernelPorts {
    bus: Arc<PortBus>,
    watch: DmaWatch,
    ring: Option<HandOver<KernelRing>>,
    starts: Option<Starts>,
    /// The first port of the bus master.
    base: AtomicU32,
    /// Which ports are registered with it.
    vm: Arc<VmFd>,
    metrics: Arc<Metrics>,
}

impl KernelPorts {
    /// Takes over the ports of the machine `vm`, one of whose vCPUs is `vcpu`. `populated` says which IDE channels have
    /// drives. [`KernelPorts::follow_bus_master`] is to be called next.
    pub fn new(
        vm: &Arc<VmFd>,
        vcpu: &VcpuFd,
        bus: Arc<PortBus>,
        watch: DmaWatch,
        populated: [bool; 2],
        options: ExitOptions,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let ring = if options.coalesced && vm.check_extension(Cap::CoalescedPio) {
            Some(HandOver::new(KernelRing::map(vcpu)?))
        } else {
            None
        };
        let starts = if options.ioeventfd && vm.check_extension(Cap::Ioeventfd) {
            Some(Starts::new()?)
        } else {
            None
        };
        tracing::debug!(
            coalesced = ring.is_some(),
            ioeventfd = starts.is_some(),
            "ports served in the kernel"
        );
        let ports = Self {
            bus,
            watch,
            ring,
            starts,
            base: AtomicU32::new(NOWHERE),
            vm: vm.clone(),
            metrics,
        };
        for (zone, _) in LATCHED_TASK_FILE
            .iter()
            .zip(populated)
            .filter(|(_, populated)| *populated)
        {
            ports.register_zone(*zone.start(), zone.end() - zone.start() + 1);
        }
        Ok(ports)
    }

    /// `in` or `rep ins`, as [`PortBus::read`].
    pub fn read(&self, port: u16, size: usize, data: &mut [u8]) {
        self.settle();
        if let Some(channel) = self.bus_master_channel(port)
            && !self.watch.started(channel)
        {
            self.take_starts();
        }
        self.bus.read(port, size, data);
    }

    /// `out` or `rep outs`, as [`PortBus::write`].
    pub fn write(&self, port: u16, size: usize, data: &[u8]) -> bool {
        self.settle();
        if self.bus_master_channel(port).is_some() || CONFIGURATION_PORTS.contains(&port) {
            self.take_starts();
        }
        if COMMAND_REGISTERS.contains(&port) {
            // In good time: whom the kernel is just letting into the ring is through when the command is done.
            self.set_closed(true);
        }
        let taken = self.bus.write(port, size, data);
        self.follow_drives();
        taken
    }

    /// Applies every latched write that was made before the call.
    pub fn settle(&self) {
        let Some(ring) = &self.ring else { return };
        if !ring.is_settled() {
            let count = ring.pass().apply(|write| self.apply(write));
            self.metrics.latched(count);
        }
    }

    /// Takes the starts that guests have made and nobody has seen. Called by the event loop when one of
    /// [`KernelPorts::start_events`] is readable, and wherever their order with something else matters.
    pub fn take_starts(&self) {
        let Some(starts) = &self.starts else { return };
        // What was latched before a start is in the devices before it, and nothing comes in between.
        let mut pass = self.ring.as_ref().map(HandOver::pass);
        if let Some(pass) = &mut pass {
            self.metrics.latched(pass.apply(|write| self.apply(write)));
        }
        let Some(base) = self.base() else { return };
        starts.take(|channel, value| {
            self.metrics.started();
            self.bus.write(command_port(base, channel), 1, &[value]);
        });
        drop(pass);
        self.follow_drives();
    }

    /// What the event loop listens to.
    pub fn start_events(&self) -> impl Iterator<Item = &EventFd> {
        self.starts.iter().flat_map(Starts::events)
    }

    /// Closes the ring while a drive waits for the bus master, and opens it afterwards.
    pub fn follow_drives(&self) {
        let awaited = self.watch.start_awaited();
        // That the ring is closed says nothing while a drive waits: another thread, which looked before, may be about to open it.
        // Whoever has the pass after the command closes it again, before the guest goes on.
        if self.ring.as_ref().is_some_and(|ring| awaited || ring.is_closed()) {
            self.set_closed(awaited);
        }
    }

    fn set_closed(&self, closed: bool) {
        if let Some(ring) = &self.ring {
            let mut pass = ring.pass();
            // Another thread may have moved a drive on since the caller looked; whoever comes last looks last.
            let closed = closed || self.watch.start_awaited();
            self.metrics.latched(pass.set_closed(closed, |write| self.apply(write)));
        }
    }

    fn apply(&self, write: Latched) {
        self.bus.write(write.port, write.size, &write.data[..write.size]);
    }

    /// Has the kernel serve the bus master's ports where they are now.
    pub fn follow_bus_master(&self, base: Option<u16>) {
        if let Some(old) = self.base() {
            for channel in 0..2 {
                self.unregister_bus_master(old, channel);
            }
        }
        self.base.store(base.map_or(NOWHERE, u32::from), Ordering::SeqCst);
        if let Some(base) = base {
            for channel in 0..2 {
                self.register_bus_master(base, channel);
            }
        }
    }

    fn register_bus_master(&self, base: u16, channel: usize) {
        let command = command_port(base, channel);
        let first = command - BUS_MASTER_COMMAND;
        for zone in LATCHED_BUS_MASTER {
            self.register_zone(first + zone.start(), zone.end() - zone.start() + 1);
        }
        let Some(starts) = &self.starts else { return };
        match starts.register(&self.vm, channel, command) {
            // The kernel asks those who answer a port in the order in which they came: first the events, for the values
            // that start, then the ring for the others.
            Ok(()) => self.register_zone(command, 1),
            Err(error) => {
                tracing::debug!(port = command, %error, "starts of the bus master stay exits");
                starts.unregister(&self.vm, channel, command);
            }
        }
    }

    fn unregister_bus_master(&self, base: u16, channel: usize) {
        let command = command_port(base, channel);
        let first = command - BUS_MASTER_COMMAND;
        for zone in LATCHED_BUS_MASTER {
            self.unregister_zone(first + zone.start(), zone.end() - zone.start() + 1);
        }
        if let Some(starts) = &self.starts {
            self.unregister_zone(command, 1);
            starts.unregister(&self.vm, channel, command);
        }
    }

    fn register_zone(&self, port: u16, length: u16) {
        if self.ring.is_some()
            && let Err(error) = self
                .vm
                .register_coalesced_mmio(IoEventAddress::Pio(u64::from(port)), u32::from(length))
        {
            tracing::debug!(port, %error, "writes stay exits");
        }
    }

    fn unregister_zone(&self, port: u16, length: u16) {
        if self.ring.is_some()
            && let Err(error) = self
                .vm
                .unregister_coalesced_mmio(IoEventAddress::Pio(u64::from(port)), u32::from(length))
        {
            tracing::debug!(port, %error, "the kernel goes on taking writes");
        }
    }

    fn base(&self) -> Option<u16> {
        u16::try_from(self.base.load(Ordering::SeqCst)).ok()
    }

    /// The channel whose bus-master registers are at `port`.
    fn bus_master_channel(&self, port: u16) -> Option<usize> {
        let offset = port.checked_sub(self.base()?)?;
        let channel = usize::from(offset / BUS_MASTER_STRIDE);
        (channel < 2).then_some(channel)
    }
}

/// The port of a channel's bus-master command register.
fn command_port(base: u16, channel: usize) -> u16 {
    base + BUS_MASTER_STRIDE * channel as u16 + BUS_MASTER_COMMAND
}

/// Where to put the ports once they are there.
pub fn cell() -> PortsCell {
    Arc::new(OnceLock::new())
}

/// Lets `ports` follow the bus master of `chipset`, and the completions that wait in `cell` find them.
pub fn connect(ports: &Arc<KernelPorts>, chipset: &devices::chipset::Chipset, cell: &PortsCell) {
    let _ = cell.set(Arc::downgrade(ports));
    let follower: Weak<KernelPorts> = Arc::downgrade(ports);
    chipset.observe_bus_master(Box::new(move |base| {
        if let Some(ports) = follower.upgrade() {
            ports.follow_bus_master(base);
        }
    }));
}
