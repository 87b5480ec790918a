//! The machine's devices, built in one place and put on the port bus.

use std::sync::{Arc, Mutex};

use disk::{Disk, SECTOR_SIZE};
use vm_memory::GuestMemoryMmap;

use crate::bus::{BusError, PortBus};
use crate::clock::{Clock, MonotonicClock};
use crate::ide::ata::{self, NonVolatile, Setup, Statistics};
use crate::ide::atapi::{CdRom, Medium};
use crate::ide::cd_rom_handle::CdRomHandle;
use crate::ide::channel::{Channel, Lines};
use crate::ide::controller::{BusMasterObserver, IdeController, IdeOptions, IdeStateError, SavedIde};
use crate::ide::drive::Drive;
use crate::ide::error_policy::{ErrorPolicy, StopObserver};
use crate::ide::identity::{Identity, IdentityError};
use crate::ide::kernel_ports::DmaWatch;
use crate::interrupt::{CountingLine, InterruptLine, SharedLine};
use crate::pci::configuration::{Address, CONFIGURATION_PORTS, ConfigurationPorts, PciFunction};
use crate::pci::host_bridge::HostBridge;
use crate::pci::slot;
use crate::piix4::isa::{EDGE_LEVEL_PORTS, EdgeLevelControl, IsaBridge};
use crate::piix4::power_management::{PM_PORTS, PowerManagement, PowerManagementFunction};
use crate::post::{POST_PORT, PostCode};
use crate::power::PowerControl;
use crate::reset::{
    KEYBOARD_COMMAND_PORT, KEYBOARD_DATA_PORT, KeyboardController, ResetControl, SYSTEM_CONTROL_PORT, SystemControl,
};
use crate::rtc::{CMOS_PORTS, Rtc};
use crate::serial::{COM1_PORTS, Serial};

/// What the machine's devices are made of.
pub struct ChipsetConfig {
    /// Guest memory, for DMA, and for its size in CMOS.
    pub memory: GuestMemoryMmap,
    /// Where the devices' ports go.
    pub bus: Arc<PortBus>,
    /// The interrupts of the primary and the secondary IDE channel: GSI 14 and 15.
    pub ide_lines: [Arc<dyn InterruptLine>; 2],
    /// How the IDE controller is built.
    pub ide: IdeOptions,
    /// hda, hdb (primary master and slave), hdc, hdd (secondary).
    pub drives: [Option<Plugged>; 4],
    /// COM1.
    pub serial: Arc<Serial>,
    /// Whom power-off and reset requests reach.
    pub power: Arc<dyn PowerControl>,
}

/// What is plugged into one end of a cable.
#[derive(Clone)]
pub enum Plugged {
    /// A disk drive.
    Disk(DriveConfig),
    /// A CD-ROM drive.
    CdRom(CdRomConfig),
}

/// An IDE disk drive.
#[derive(Clone)]
pub struct DriveConfig {
    /// What it stores.
    pub disk: Arc<dyn Disk>,
    /// Serial number, up to 20 printable ASCII characters.
    pub serial: String,
    /// Model, up to 40 printable ASCII characters.
    pub model: String,
    /// Firmware revision, up to 8 printable ASCII characters.
    pub firmware: String,
    /// World wide name, if the drive has one: 64 bits, of which the highest four are the naming authority.
    pub world_wide_name: Option<u64>,
    /// Whether it is a CompactFlash card.
    pub compact_flash: bool,
    /// What the guest gets to know of requests that the host fails. The default is QEMU's: writes that find no space stop the
    /// machine, all else is reported.
    pub error_policy: ErrorPolicy,
    /// What the drive keeps without power. Whoever builds the machine again after a reset gives the same again.
    pub non_volatile: Arc<Mutex<NonVolatile>>,
    /// The drive's clock, for standby timers and SMART.
    pub clock: Arc<dyn Clock>,
}

impl DriveConfig {
    /// A drive for slot `index` (0 is hda) with a serial number that differs from the other slots'.
    pub fn new(disk: Arc<dyn Disk>, index: usize) -> Self {
        Self {
            disk,
            serial: format!("SP{:08}", index + 1),
            model: "spindle disk".to_owned(),
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
            world_wide_name: None,
            compact_flash: false,
            error_policy: ErrorPolicy::default(),
            non_volatile: Arc::default(),
            clock: Arc::new(MonotonicClock::default()),
        }
    }
}

/// An ATAPI CD-ROM drive.
#[derive(Clone)]
pub struct CdRomConfig {
    /// What lies in its tray at first.
    pub medium: Option<Medium>,
    /// Serial number, up to 20 printable ASCII characters.
    pub serial: String,
    /// Model, up to 40 printable ASCII characters, of which INQUIRY shows 16.
    pub model: String,
    /// Firmware revision, up to 8 printable ASCII characters, of which INQUIRY shows 4.
    pub firmware: String,
}

impl CdRomConfig {
    /// A drive for slot `index` (0 is hda).
    pub fn new(medium: Option<Medium>, index: usize) -> Self {
        Self {
            medium,
            serial: format!("SPCD{:06}", index + 1),
            model: "spindle CD-ROM".to_owned(),
            firmware: concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR")).to_owned(),
        }
    }
}

/// A chipset that cannot be built as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ChipsetError {
    /// A drive's serial number, model or firmware revision cannot be told to a guest.
    #[error("Drive {slot}: {source}")]
    Identity {
        /// hda to hdd.
        slot: &'static str,
        /// Which string, and why not.
        source: IdentityError,
    },
    /// A disk that no ATA command can address.
    #[error("Drive {slot}: a disk of {capacity} bytes; an IDE disk has 512 bytes to 128 PiB, in whole sectors")]
    Capacity {
        /// hda to hdd.
        slot: &'static str,
        /// Size of the disk in bytes.
        capacity: u64,
    },
    /// A port range is taken.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// What users call the four drives.
const SLOTS: [&str; 4] = ["hda", "hdb", "hdc", "hdd"];

/// One more sector than 48 bits address.
const MOST_SECTORS: u64 = 1 << 48;

/// The machine's devices. They live as long as the bus that they are on.
pub struct Chipset {
    ide: Arc<IdeController>,
    channels: [Arc<Channel>; 2],
}

impl Chipset {
    /// Builds every device and puts it on the bus.
    pub fn new(config: ChipsetConfig) -> Result<Self, ChipsetError> {
        let ChipsetConfig {
            memory,
            bus,
            ide_lines,
            ide: options,
            drives,
            serial,
            power,
        } = config;
        bus.insert(COM1_PORTS, "COM1", serial)?;
        bus.insert(CMOS_PORTS, "RTC", Arc::new(Rtc::new(&memory)))?;
        insert_legacy_ports(&bus, &power)?;
        let present = drives.each_ref().map(Option::is_some);
        let channels = build_channels(drives, &options, ide_lines, &memory)?;
        let populated = [present[0] || present[1], present[2] || present[3]];
        let ide = Arc::new(IdeController::new(channels.clone(), &options, populated, &bus));
        let functions: [(Address, Arc<dyn PciFunction>); 4] = [
            (slot::HOST_BRIDGE, Arc::new(HostBridge::default())),
            (slot::ISA, Arc::new(IsaBridge::default())),
            (slot::IDE, ide.clone()),
            (slot::POWER_MANAGEMENT, Arc::new(PowerManagementFunction::default())),
        ];
        let configuration = ConfigurationPorts::new(functions, ResetControl::new(power.clone()));
        bus.insert(CONFIGURATION_PORTS, "PCI configuration", Arc::new(configuration))?;
        bus.insert(PM_PORTS, "ACPI", Arc::new(PowerManagement::new(power)))?;
        Ok(Self { ide, channels })
    }

    /// Calls `observer` now, and again whenever the guest moves the IDE bus master's ports (BAR4): with the first of
    /// its 16 ports, or `None` while they answer nowhere. For those who serve some of these ports by other means
    /// than the bus.
    pub fn observe_bus_master(&self, observer: BusMasterObserver) {
        self.ide.observe_bus_master(observer);
    }

    /// What can be seen of the IDE bus masters without a lock.
    pub fn dma_watch(&self) -> DmaWatch {
        self.ide.dma_watch()
    }

    /// The CD-ROM drive in `slot` (0 is hda), if there is one.
    pub fn cd_rom(&self, slot: usize) -> Option<CdRomHandle> {
        CdRomHandle::of(self.channels.get(slot / 2)?, slot % 2)
    }

    /// Calls `observer` when a drive wants the machine to stop, as its [`ErrorPolicy`] says. Without an observer nobody could let
    /// it go on, and the guest gets the error instead.
    pub fn observe_stops(&self, observer: StopObserver) {
        self.ide.observe_stops(observer);
    }

    /// The machine goes on: every request that waits for that is made again. Returns how many there were.
    pub fn resume(&self) -> usize {
        self.ide.resume()
    }

    /// The IDE controller with its drives, in mid-command. Requests that are at the disks are part of the state, and are made
    /// again when it is restored: let the disks finish them first, or throw this machine away with them. Those that wait for
    /// [`Chipset::resume`] still do then.
    pub fn save_ide(&self) -> SavedIde {
        self.ide.save()
    }

    /// Takes on a saved state. The chipset is new, has the same drives, and guest memory holds what it held then. After an
    /// error the chipset is in no state to be used.
    pub fn restore_ide(&self, saved: SavedIde) -> Result<(), IdeStateError> {
        self.ide.restore(saved)
    }

    /// What the disk drives have done: hda to hdd.
    pub fn statistics(&self) -> [Option<Statistics>; 4] {
        self.ide.statistics()
    }

    /// RST#: the IDE controller and its drives are as after power-on, but that a drive is busy until the request that it
    /// has at its disk is done.
    pub fn reset_ide(&self) {
        self.ide.hardware_reset();
    }
}

/// The ports that PCs have had from the beginning.
fn insert_legacy_ports(bus: &PortBus, power: &Arc<dyn PowerControl>) -> Result<(), BusError> {
    let system_control = Arc::new(SystemControl::new(power.clone()));
    let keyboard = Arc::new(KeyboardController::new(power.clone()));
    bus.insert(POST_PORT..=POST_PORT, "POST", Arc::new(PostCode))?;
    bus.insert(
        SYSTEM_CONTROL_PORT..=SYSTEM_CONTROL_PORT,
        "system control",
        system_control,
    )?;
    for port in [KEYBOARD_DATA_PORT, KEYBOARD_COMMAND_PORT] {
        bus.insert(port..=port, "i8042", keyboard.clone())?;
    }
    bus.insert(EDGE_LEVEL_PORTS, "ELCR", Arc::new(EdgeLevelControl::default()))
}

fn build_channels(
    plugged: [Option<Plugged>; 4],
    options: &IdeOptions,
    lines: [Arc<dyn InterruptLine>; 2],
    memory: &GuestMemoryMmap,
) -> Result<[Arc<Channel>; 2], ChipsetError> {
    let present = plugged.each_ref().map(Option::is_some);
    let mut drives = [None, None, None, None];
    for (index, plugged) in plugged.into_iter().enumerate() {
        let accompanied = present[index ^ 1];
        drives[index] = match plugged {
            None => None,
            Some(Plugged::Disk(config)) => Some(build_disk(&config, index, accompanied)?),
            Some(Plugged::CdRom(config)) => Some(build_cd_rom(&config, index, accompanied)?),
        };
    }
    let [hda, hdb, hdc, hdd] = drives;
    let pci = options
        .pci_line
        .clone()
        .unwrap_or_else(|| Arc::new(CountingLine::default()));
    let [first, second] = SharedLine::split(&pci);
    let [primary, secondary] = lines;
    let [first, second] = [(primary, first), (secondary, second)].map(|(isa, pci)| Lines { isa, pci });
    Ok([
        Channel::new([hda, hdb], ["hda", "hdb"], first, memory.clone()),
        Channel::new([hdc, hdd], ["hdc", "hdd"], second, memory.clone()),
    ])
}

fn build_cd_rom(config: &CdRomConfig, index: usize, accompanied: bool) -> Result<Drive, ChipsetError> {
    let slot = SLOTS[index];
    let identity = Identity::new(
        &config.serial,
        &config.model,
        &config.firmware,
        None,
        index % 2 == 1,
        accompanied,
    )
    .map_err(|source| ChipsetError::Identity { slot, source })?;
    Ok(Drive::CdRom(Box::new(CdRom::new(identity, config.medium.clone()))))
}

fn build_disk(config: &DriveConfig, index: usize, accompanied: bool) -> Result<Drive, ChipsetError> {
    let slot = SLOTS[index];
    let capacity = config.disk.capacity();
    let sectors = capacity / SECTOR_SIZE;
    if !(1..MOST_SECTORS).contains(&sectors) || !capacity.is_multiple_of(SECTOR_SIZE) {
        return Err(ChipsetError::Capacity { slot, capacity });
    }
    let identity = Identity::new(
        &config.serial,
        &config.model,
        &config.firmware,
        config.world_wide_name,
        index % 2 == 1,
        accompanied,
    )
    .map_err(|source| ChipsetError::Identity { slot, source })?;
    Ok(Drive::Disk(Box::new(ata::Drive::new(Setup {
        identity: identity.with_compact_flash(config.compact_flash),
        disk: config.disk.clone(),
        non_volatile: config.non_volatile.clone(),
        error_policy: config.error_policy,
        clock: config.clock.clone(),
    }))))
}
