//! A virtual machine: what is built, in which order, and how it is taken down.

use std::cell::Cell;
use std::fs::File;
use std::sync::Arc;

use anyhow::Context;
use devices::bus::PortBus;
use devices::chipset::{Chipset, ChipsetConfig, Plugged};
use devices::ide::cd_rom_handle::{ButtonOutcome, CdRomHandle, Medium, TrayLocked};
use devices::ide::controller::{ChannelModes, IdeOptions};
use devices::interrupt::InterruptLine;
use devices::pci::slot;
use devices::serial::{COM1_GSI, Serial};
use disk::Disk;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::announcer::Announcer;
use crate::boot::{Entry, Payload};
use crate::cli::disk_argument::Slot;
use crate::cli::ide_argument::IdeArgument;
use crate::console::Output;
use crate::exits::ExitOptions;
use crate::interrupts::{EdgeLine, LevelLine};
use crate::kernel_ports::{self, InOrder, KernelPorts, PortsCell};
use crate::memory::{self, MemorySize, layout};
use crate::metrics::Metrics;
use crate::milestones::Milestones;
use crate::power::PowerSwitch;
use crate::qmp::Event;
use crate::stops::{Reason, Stops};
use crate::vcpu::{RunningVcpus, Surroundings, Vcpu};
use crate::{acpi, cpuid, kvm_memory, registers};

/// The ISA interrupts of the two IDE channels.
const IDE_GSI: [u32; 2] = [14, 15];

/// The first interrupt pin of a PCI slot.
const INTA: u32 = 0;

/// What a machine is built of.
pub struct VmConfig {
    /// RAM.
    pub memory: MemorySize,
    /// The file that is the RAM, if it is not the machine's own.
    pub memory_file: Option<Arc<File>>,
    /// Number of CPUs.
    pub cpus: u8,
    /// Drives: hda, hdb, hdc, hdd.
    pub drives: [Option<Plugged>; 4],
    /// Where the console's output goes.
    pub output: Arc<Output>,
    /// Written to when the console has room for more input.
    pub input_room: Arc<EventFd>,
    /// What ends the machine.
    pub power: Arc<PowerSwitch>,
    /// Whom to tell of the start.
    pub milestones: Arc<Milestones>,
    /// What the kernel serves by itself.
    pub exits: ExitOptions,
    /// Counts what the machine does.
    pub metrics: Arc<Metrics>,
    /// Which IDE controller there is.
    pub ide: IdeArgument,
    /// Whom to tell of what happens.
    pub announcer: Arc<Announcer>,
}

/// A machine whose CPUs have not run yet. Fields are dropped in this order: CPUs, devices, then KVM's VM and its memory.
pub struct Vm {
    vcpus: Vec<Vcpu>,
    serial: Arc<Serial>,
    surroundings: Surroundings,
    ports_cell: PortsCell,
    announcer: Arc<Announcer>,
    chipset: Chipset,
    fd: Arc<VmFd>,
    memory: GuestMemoryMmap,
}

/// A machine whose CPUs run. Dropping it stops them.
pub struct RunningVm {
    _vcpus: RunningVcpus,
    serial: Arc<Serial>,
    ports: Arc<KernelPorts>,
    stops: Arc<Stops>,
    /// The guest's clock when it was paused, in nanoseconds.
    clock: Cell<Option<u64>>,
    ports_cell: PortsCell,
    announcer: Arc<Announcer>,
    chipset: Chipset,
    fd: Arc<VmFd>,
    _memory: GuestMemoryMmap,
}

impl Vm {
    /// Builds a machine on `kvm`, with `payload` loaded.
    pub fn new(kvm: &Kvm, config: VmConfig, payload: &Payload) -> anyhow::Result<Self> {
        let fd = Arc::new(kvm.create_vm().context("KVM refuses to make a virtual machine")?);
        let memory = memory::allocate(config.memory, config.memory_file.as_ref())
            .with_context(|| format!("Cannot map {} of guest memory", config.memory))?;
        kvm_memory::register(&fd, &memory)?;
        create_interrupt_controllers(&fd)?;
        let bus = Arc::new(PortBus::default());
        let serial = create_serial(&fd, &config)?;
        let ports_cell = kernel_ports::cell();
        let populated = [0, 2].map(|first| config.drives[first..first + 2].iter().any(Option::is_some));
        let drives = config.drives.map(|plugged| Some(in_order(plugged?, &ports_cell)));
        let chipset = Chipset::new(ChipsetConfig {
            memory: memory.clone(),
            bus: bus.clone(),
            ide_lines: [
                Arc::new(EdgeLine::new(&fd, IDE_GSI[0], config.exits.irqfd)?),
                Arc::new(EdgeLine::new(&fd, IDE_GSI[1], config.exits.irqfd)?),
            ],
            ide: ide_options(config.ide, &fd),
            drives,
            serial: serial.clone(),
            power: config.power.clone(),
        })
        .context("Cannot build the chipset")?;
        let rsdp = acpi::write_tables(&memory, config.cpus)?;
        let entry = payload.load(&memory, config.memory, rsdp)?;
        registers::write_boot_tables(&memory, entry).context("Cannot write the boot tables to guest memory")?;
        let vcpus = create_vcpus(kvm, &fd, config.cpus, entry)?;
        let boot_cpu = vcpus.first().context("A machine needs a CPU")?;
        let ports = Arc::new(KernelPorts::new(
            &fd,
            boot_cpu.fd(),
            bus,
            chipset.dma_watch(),
            populated,
            config.exits,
            config.metrics.clone(),
        )?);
        kernel_ports::connect(&ports, &chipset, &ports_cell);
        let stops = Arc::new(Stops::new()?);
        let stopped = stops.clone();
        chipset.observe_stops(Box::new(move |stop| stopped.pause(Reason::Drive(stop.clone()))));
        let surroundings = Surroundings {
            ports,
            power: config.power,
            output: config.output,
            milestones: config.milestones,
            metrics: config.metrics,
            stops,
        };
        Ok(Self {
            vcpus,
            serial,
            surroundings,
            ports_cell,
            announcer: config.announcer,
            chipset,
            fd,
            memory,
        })
    }

    /// Lets the CPUs run.
    pub fn start(self) -> anyhow::Result<RunningVm> {
        Ok(RunningVm {
            _vcpus: RunningVcpus::start(self.vcpus, &self.surroundings)?,
            serial: self.serial,
            ports: self.surroundings.ports,
            stops: self.surroundings.stops,
            clock: Cell::new(None),
            ports_cell: self.ports_cell,
            announcer: self.announcer,
            chipset: self.chipset,
            fd: self.fd,
            _memory: self.memory,
        })
    }
}

impl RunningVm {
    /// The console's serial port.
    pub fn serial(&self) -> &Arc<Serial> {
        &self.serial
    }

    /// The way of its port accesses.
    pub fn ports(&self) -> &KernelPorts {
        &self.ports
    }

    /// What pauses it.
    pub fn stops(&self) -> &Stops {
        &self.stops
    }

    /// Says why the machine was paused, and stops the guest's clock.
    pub fn report_pause(&self) {
        for reason in self.stops.take_reasons() {
            match reason {
                Reason::Drive(stop) => {
                    let reason = Reason::Drive(stop.clone());
                    eprintln!(
                        "spindle: paused: {reason}. Once the cause is gone, SIGCONT or Ctrl-A c lets the guest go on."
                    );
                    self.announcer.announce(Event::BlockIoError {
                        device: stop.slot.to_owned(),
                        // What failed on the host: a write of the guest may need a read of old content.
                        write: !stop.error.starts_with("read "),
                        no_space: stop.no_space,
                        reason: stop.error,
                    });
                }
                Reason::Asked => eprintln!("spindle: paused, as asked. SIGCONT or Ctrl-A c lets the guest go on."),
            }
            self.announcer.announce(Event::Stop);
        }
        if self.stops.is_paused() && self.clock.get().is_none() {
            match self.fd.get_clock() {
                Ok(clock) => self.clock.set(Some(clock.clock)),
                Err(error) => tracing::debug!(%error, "the guest's clock runs on"),
            }
        }
    }

    /// Lets a paused machine go on: drives make their requests again, CPUs run.
    pub fn resume(&self) {
        if !self.stops.is_paused() {
            return;
        }
        // Before the CPUs run, and before a request can fail anew.
        self.report_pause();
        if let Some(clock) = self.clock.take()
            && let Err(error) = self.fd.set_clock(&kvm_clock_data {
                clock,
                ..Default::default()
            })
        {
            tracing::debug!(%error, "the guest's clock ran on");
        }
        eprintln!("spindle: going on");
        self.announcer.announce(Event::Resume);
        // The requests first: one that fails again pauses a machine that runs, and is not lost.
        self.stops.resume();
        self.chipset.resume();
    }
}

/// CD-ROM drives.
impl RunningVm {
    /// The CD-ROM drive in `slot` (0 is hda), if there is one.
    pub fn cd_rom(&self, slot: usize) -> Option<CdRomHandle> {
        self.chipset.cd_rom(slot)
    }

    /// The CD-ROM drive in the slot of this name, if there is one.
    pub fn cd_rom_named(&self, slot: &str) -> Option<CdRomHandle> {
        self.cd_rom(Slot::NAMES.iter().position(|name| *name == slot)?)
    }

    /// Puts a medium into the tray of a drive, in place of what lay there.
    ///
    /// # Errors
    /// If the guest has locked the tray.
    pub fn insert_medium(&self, drive: &CdRomHandle, medium: Medium) -> Result<(), TrayLocked> {
        drive.insert(medium.wrapped(|disk| Arc::new(InOrder::new(disk, self.ports_cell.clone()))))
    }

    /// Presses the button of the first CD-ROM drive, and says what came of it, in a line for people.
    pub fn press_eject_button(&self) -> &'static str {
        match (0..4)
            .find_map(|slot| self.cd_rom(slot))
            .map(|drive| drive.press_button())
        {
            Some(ButtonOutcome::Opened) => "\nspindle: the CD-ROM drive is open\n",
            Some(ButtonOutcome::Closed) => "\nspindle: the CD-ROM drive is closed\n",
            Some(ButtonOutcome::Requested) => {
                "\nspindle: the guest has locked the CD-ROM drive, and was asked to open it\n"
            }
            None => "\nspindle: there is no CD-ROM drive\n",
        }
    }
}

/// What is plugged in, with completions that come after what the guest wrote before them.
fn in_order(mut plugged: Plugged, ports: &PortsCell) -> Plugged {
    let wrap = |disk| -> Arc<dyn Disk> { Arc::new(InOrder::new(disk, ports.clone())) };
    match &mut plugged {
        Plugged::Disk(config) => config.disk = wrap(config.disk.clone()),
        Plugged::CdRom(config) => config.medium = config.medium.take().map(|medium| medium.wrapped(wrap)),
    }
    plugged
}

/// Both 8259s, the I/O APIC, local APICs and the PIT live in the kernel.
fn create_interrupt_controllers(vm: &VmFd) -> anyhow::Result<()> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP.0)
        .context("KVM_SET_IDENTITY_MAP_ADDR failed")?;
    vm.set_tss_address(layout::KVM_TSS.0 as usize)
        .context("KVM_SET_TSS_ADDR failed")?;
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP failed")?;
    let pit = kvm_pit_config {
        // Port 0x61 is answered in the kernel, too: kernels calibrate their clock with it.
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).context("KVM_CREATE_PIT2 failed")
}

/// INTA# of the IDE function leads where the ACPI tables say; in compatibility mode there is none.
fn ide_options(argument: IdeArgument, vm: &Arc<VmFd>) -> IdeOptions {
    let gsi = acpi::pci_gsi(u32::from(slot::IDE.device), INTA);
    let line = || -> Arc<dyn InterruptLine> { Arc::new(LevelLine::new(vm, gsi)) };
    IdeOptions {
        chip: argument.chip,
        modes: argument.modes,
        pci_line: (argument.modes != ChannelModes::Compatibility).then(line),
    }
}

fn create_serial(vm: &Arc<VmFd>, config: &VmConfig) -> anyhow::Result<Arc<Serial>> {
    let line = Arc::new(EdgeLine::new(vm, COM1_GSI, config.exits.irqfd)?);
    let input_room = config.input_room.clone();
    let room = move || {
        if let Err(error) = input_room.write(1) {
            tracing::debug!(%error, "console input not woken");
        }
    };
    let writer = Box::new(config.output.writer(config.milestones.clone()));
    Ok(Serial::new(line, writer, Box::new(room)))
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, cpus: u8, entry: Entry) -> anyhow::Result<Vec<Vcpu>> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .context("KVM_GET_SUPPORTED_CPUID failed")?;
    let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let vcpus = (0..cpus)
        .map(|id| Vcpu::new(vm, id, &cpuid::for_cpu(&supported, id, cpus, tsc_deadline)))
        .collect::<anyhow::Result<Vec<Vcpu>>>()?;
    if let Some(boot_cpu) = vcpus.first() {
        boot_cpu.set_entry(entry)?;
    }
    Ok(vcpus)
}
