//! The machine's devices, built in one place and put on the port bus.

use std::sync::Arc;

use disk::Disk;
use vm_memory::GuestMemoryMmap;

use crate::bus::{BusError, PortBus};
use crate::interrupt::InterruptLine;
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
    /// hda, hdb (primary master and slave), hdc, hdd (secondary).
    pub drives: [Option<DriveConfig>; 4],
    /// COM1.
    pub serial: Arc<Serial>,
    /// Whom power-off and reset requests reach.
    pub power: Arc<dyn PowerControl>,
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
}

impl DriveConfig {
    /// A drive for slot `index` (0 is hda) with a serial number that differs from the other slots'.
    pub fn new(disk: Arc<dyn Disk>, index: usize) -> Self {
        Self {
            disk,
            serial: format!("SP{:08}", index + 1),
            model: "spindle disk".to_owned(),
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// A chipset that cannot be built as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ChipsetError {
    /// A port range is taken.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The machine's devices. They live as long as the bus that they are on.
pub struct Chipset {}

impl Chipset {
    /// Builds every device and puts it on the bus.
    pub fn new(config: ChipsetConfig) -> Result<Self, ChipsetError> {
        let ChipsetConfig {
            memory,
            bus,
            ide_lines: _,
            drives: _,
            serial,
            power,
        } = config;
        let functions: [(Address, Arc<dyn PciFunction>); 3] = [
            (slot::HOST_BRIDGE, Arc::new(HostBridge::default())),
            (slot::ISA, Arc::new(IsaBridge::default())),
            (slot::POWER_MANAGEMENT, Arc::new(PowerManagementFunction::default())),
        ];
        let configuration = ConfigurationPorts::new(functions, ResetControl::new(power.clone()));
        bus.insert(CONFIGURATION_PORTS, "PCI configuration", Arc::new(configuration))?;
        bus.insert(PM_PORTS, "ACPI", Arc::new(PowerManagement::new(power.clone())))?;
        bus.insert(EDGE_LEVEL_PORTS, "ELCR", Arc::new(EdgeLevelControl::default()))?;
        bus.insert(COM1_PORTS, "COM1", serial)?;
        bus.insert(CMOS_PORTS, "RTC", Arc::new(Rtc::new(&memory)))?;
        bus.insert(POST_PORT..=POST_PORT, "POST", Arc::new(PostCode))?;
        let system_control = Arc::new(SystemControl::new(power.clone()));
        bus.insert(
            SYSTEM_CONTROL_PORT..=SYSTEM_CONTROL_PORT,
            "system control",
            system_control,
        )?;
        let keyboard = Arc::new(KeyboardController::new(power));
        for port in [KEYBOARD_DATA_PORT, KEYBOARD_COMMAND_PORT] {
            bus.insert(port..=port, "i8042", keyboard.clone())?;
        }
        Ok(Self {})
    }
}
