//! `spindle run`: from arguments to the end of the machine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::CommandFactory;
use clap::error::ErrorKind;
use disk::{Aio, Engine, EngineOptions};
use kvm_ioctls::Kvm;

use super::Cli;
use super::cd_rom_argument::CdRomArgument;
use super::disk_argument::{DiskArgument, Slot, assign_slots, root_device};
use super::ide_argument::IdeArgument;
use crate::announcer::Announcer;
use crate::boot::{CommandLine, Guest, Initrd, Kernel, Payload};
use crate::console::{Console, ConsoleTarget};
use crate::control::{self, Control};
use crate::drives::Drives;
use crate::exit_code::Ending;
use crate::exits::ExitOptions;
use crate::memory::MemorySize;
use crate::metrics::Metrics;
use crate::milestones::Milestones;
use crate::power::PowerSwitch;
use crate::qmp::{Event, Server};
use crate::qmp_clients::Clients;
use crate::signals::Signals;
use crate::vm::{Vm, VmConfig};
use crate::{event_loop, host, kick};

/// The most CPUs: one APIC id of eight bits means "all".
const MAXIMUM_CPUS: i64 = 255;

/// Boot a kernel in a virtual machine
///
/// The kernel is a Linux bzImage or vmlinux as distributions ship it, or any 64-bit ELF program that starts by the PVH or
/// the 64-bit Linux boot protocol. The guest has one serial port, which is its console, and an IDE controller.
#[derive(Debug, clap::Args)]
#[command(after_help = crate::exit_code::HELP)]
pub struct Arguments {
    /// Kernel: a Linux bzImage, or an ELF image
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,

    /// Initial RAM file system
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Words for the kernel command line, after those that spindle gives
    ///
    /// spindle gives "console=ttyS0", unless there is a console= here, and "root=/dev/sdX rw" for a disk with ",root".
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub append: CommandLine,

    /// Disk: PATH[,format=qcow2|raw][,slot=hda|hdb|hdc|hdd][,readonly][,root][,OPTION=VALUE]...; up to four
    ///
    /// Options, with QEMU's names and meaning, defaults first: cache=writeback|none|writethrough|directsync|unsafe,
    /// discard=ignore|unmap, detect-zeroes=off|on|unmap; limits per second bps, bps_rd, bps_wr, iops, iops_rd, iops_wr, each also
    /// with _max for bursts, and iops_size. For testing a guest: inject=read|write|flush|any[@FIRST[-LAST]]:eio|enospc|delay=MILLISECONDS[:skip=N][:times=N],
    /// any number of times, in sectors.
    ///
    /// What the guest sees: serial=, model=, firmware=, wwn=0x..., drive=disk|cf (a CompactFlash card).
    ///
    /// The format is qcow2 unless it is said; it is never guessed. Without a slot, disks take the free slots in order. With
    /// root, the kernel is told to mount the disk as its root. A comma in the path is written twice.
    #[arg(long = "disk", value_name = "DISK")]
    pub disks: Vec<DiskArgument>,

    /// CD-ROM drive, and the image of the disc in it: [PATH][,slot=hda|hdb|hdc|hdd][,inject=...]
    ///
    /// Without a PATH the drive is empty. The image is raw, as an ISO 9660 file system is, and is not written to. Without a
    /// slot, the drive is hdc. On a terminal, Ctrl-A e presses its eject button.
    #[arg(long, value_name = "CDROM", num_args = 0..=1, default_missing_value = "")]
    pub cdrom: Option<CdRomArgument>,

    /// IDE controller: chip=piix4|piix3,mode=compatibility|switchable|native
    ///
    /// The mode is that of both channels: the ports and interrupts of the first PCs, for ever; those until the guest switches a
    /// channel to native mode; or native mode, with ports by BARs and one PCI interrupt. No real PIIX has the other two.
    #[arg(
        long,
        value_name = "IDE",
        default_value = "chip=piix4,mode=compatibility",
        hide_default_value = true
    )]
    pub ide: IdeArgument,

    /// How disk operations reach the host: io_uring or threads
    #[arg(long, value_name = "AIO", default_value_t)]
    pub aio: Aio,

    /// Number of CPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=MAXIMUM_CPUS))]
    pub cpus: u8,

    /// Memory of the guest, for example 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: MemorySize,

    /// For tests: the file that is the guest's memory, as long as that and shared with whoever else maps it
    #[arg(long, value_name = "FILE", hide = true)]
    pub memory_file: Option<PathBuf>,

    /// Console of the guest: stdio, file:PATH or null
    #[arg(long, value_name = "CONSOLE", default_value = "stdio")]
    pub console: ConsoleTarget,

    /// What the kernel serves by itself: coalesced=on|off,ioeventfd=on|off,irqfd=on|off
    ///
    /// The first two are on where the host's KVM has them. None of them changes anything but the time that things take.
    #[arg(
        long,
        value_name = "EXITS",
        default_value = "coalesced=on,ioeventfd=on,irqfd=off",
        hide_default_value = true
    )]
    pub exits: ExitOptions,

    /// Write what was counted to a file, as JSON, at the end and on SIGUSR1
    ///
    /// Without this option, SIGUSR1 prints it on standard error.
    #[arg(long, value_name = "FILE")]
    pub metrics: Option<PathBuf>,

    /// Listen on this Unix socket for commands of the QEMU Machine Protocol (QMP)
    ///
    /// For this user only. `query-commands` says what there is: pause and go on, eject and change media, resize, snapshots, limits.
    #[arg(long, value_name = "SOCKET")]
    pub qmp: Option<PathBuf>,

    /// End with exit code 3 when the guest resets, instead of rebooting it
    #[arg(long)]
    pub no_reboot: bool,
}

/// Where the CD-ROM drive is, if there is one.
fn cd_rom_slot(arguments: &Arguments) -> Option<Slot> {
    arguments.cdrom.as_ref().map(|argument| argument.slot)
}

/// Runs a machine as `arguments` say, and returns how it ended. `start` is when the process started.
pub fn run(arguments: &Arguments, start: Instant) -> Ending {
    let slots = assign_slots(&arguments.disks, cd_rom_slot(arguments)).unwrap_or_else(|error| {
        Cli::command()
            .error(ErrorKind::ValueValidation, format!("--disk: {error}"))
            .exit()
    });
    match prepare_and_run(arguments, &slots, start) {
        Ok(ending) => ending,
        Err(error) => Ending::Failure(error),
    }
}

/// Checks whatever can be checked, then opens the disks and runs.
fn prepare_and_run(
    arguments: &Arguments,
    slots: &[Option<&DiskArgument>; Slot::COUNT],
    start: Instant,
) -> anyhow::Result<Ending> {
    let payload = open_payload(arguments, slots)?;
    let kvm = host::open_kvm()?;
    if payload.kernel.guest() == Guest::Linux {
        host::check_runs_linux()?;
    }
    let limit = kvm.get_max_vcpus();
    if usize::from(arguments.cpus) > limit {
        bail!("--cpus {} is more than this host's KVM takes: {limit}", arguments.cpus);
    }
    kick::install()?;
    // Before the first thread: threads inherit what is blocked.
    let signals = Signals::block()?;
    let engine = Engine::new(EngineOptions { aio: arguments.aio }).context("Cannot start the disk engine")?;
    let outcome = with_disks(arguments, slots, &payload, &kvm, &engine, &signals, start);
    // Whatever happened, what the guest has written goes to the disks.
    let closed = engine.close().context("Cannot close the disks");
    match (outcome, closed) {
        (Ok(Ending::Failure(error)) | Err(error), Ok(())) => Err(error),
        (Ok(ending), Ok(())) => Ok(ending),
        (Ok(Ending::Failure(error)) | Err(error), Err(also)) => {
            Err(error.context(format!("{also:#}, and before that")))
        }
        (Ok(_), Err(error)) => Err(error),
    }
}

fn open_payload(arguments: &Arguments, slots: &[Option<&DiskArgument>; Slot::COUNT]) -> anyhow::Result<Payload> {
    let payload = Payload {
        kernel: Kernel::open(&arguments.kernel)?,
        initrd: arguments.initrd.as_deref().map(Initrd::read).transpose()?,
        command_line: CommandLine::for_guest(&arguments.append, root_device(slots)),
    };
    payload.check(arguments.memory)?;
    tracing::debug!("command line: {}", payload.command_line);
    Ok(payload)
}

fn with_disks(
    arguments: &Arguments,
    slots: &[Option<&DiskArgument>; Slot::COUNT],
    payload: &Payload,
    kvm: &Kvm,
    engine: &Engine,
    signals: &Signals,
    start: Instant,
) -> anyhow::Result<Ending> {
    let metrics = Arc::new(Metrics::default());
    if let Some(path) = &arguments.metrics {
        // A file that cannot be written is better known before the guest has run.
        metrics.write(path)?;
    }
    let drives = Drives::open(slots, arguments.cdrom.as_ref(), engine, &metrics)?;
    let announcer = Arc::new(Announcer::new(arguments.qmp.is_some())?);
    let mut server = arguments.qmp.as_deref().map(Server::listen).transpose()?;
    // Last, so that whatever fails before prints on a terminal that is as it was.
    let mut console = Console::open(&arguments.console)?;
    let milestones = Arc::new(Milestones::since(start));
    let memory_file = arguments.memory_file.as_deref();
    let memory_file = memory_file
        .map(|path| open_memory_file(path, arguments.memory))
        .transpose()?;
    let ending = loop {
        let power = Arc::new(PowerSwitch::new()?);
        let config = VmConfig {
            memory: arguments.memory,
            memory_file: memory_file.clone(),
            cpus: arguments.cpus,
            drives: drives.plugged(),
            output: console.output.clone(),
            input_room: console.input.room().clone(),
            power: power.clone(),
            milestones: milestones.clone(),
            exits: arguments.exits,
            ide: arguments.ide,
            metrics: metrics.clone(),
            announcer: announcer.clone(),
        };
        let vm = Vm::new(kvm, config, payload)?.start()?;
        control::observe_trays(&vm, &drives, &announcer);
        let clients = server.as_mut().map(|server| Clients {
            server,
            control: Control {
                engine,
                vm: &vm,
                power: &power,
                drives: &drives,
            },
            announcer: &announcer,
        });
        let report = || report_metrics(&metrics, arguments.metrics.as_deref());
        let looped = event_loop::run(engine, &mut console, &vm, signals, &power, &report, clients);
        // Stops the CPUs and takes the devices down.
        drop(vm);
        looped?;
        let ending = power
            .take_ending()
            .context("The machine stopped without saying why; this is a bug in spindle")?;
        // What the machine has in flight is done before anything else happens to the disks.
        event_loop::run_engine_until(engine, || drives.are_idle())?;
        if let Some(server) = &mut server {
            server.tell(&event_of(&ending));
        }
        match ending {
            Ending::Reset if !arguments.no_reboot => tracing::info!("guest reset: rebooting"),
            ending => break ending,
        }
    };
    console.output.drain();
    if let Some(path) = &arguments.metrics {
        metrics.write(path)?;
    }
    Ok(ending)
}

/// What the control socket's clients are told of an ending.
fn event_of(ending: &Ending) -> Event {
    match ending {
        Ending::Reset => Event::Reset { guest: true },
        Ending::PowerOff => Event::Shutdown { guest: true },
        _ => Event::Shutdown { guest: false },
    }
}

/// Somebody wants to know what was counted so far.
fn report_metrics(metrics: &Metrics, path: Option<&Path>) {
    match path {
        Some(path) => {
            if let Err(error) = metrics.write(path) {
                tracing::warn!("{error:#}");
            }
        }
        None => eprintln!("{:#}", metrics.report()),
    }
}

/// A shorter file would be a SIGBUS at the guest's first step beyond its end.
fn open_memory_file(path: &Path, memory: MemorySize) -> anyhow::Result<Arc<File>> {
    let cannot = || format!("Cannot use {} as the guest's memory", path.display());
    let file = File::options().read(true).write(true).open(path).with_context(cannot)?;
    let length = file.metadata().with_context(cannot)?.len();
    if length < memory.bytes() {
        bail!("{}: it has {length} bytes and must have {}", cannot(), memory.bytes());
    }
    Ok(Arc::new(file))
}
