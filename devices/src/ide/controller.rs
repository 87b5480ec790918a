//! 00:01.1: the PIIX's IDE function, which says what ports the channels and the bus master answer (PIIX4 datasheet,
//! chapter 5; PCI IDE Controller Specification 1.0 for native mode).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use super::ata::Statistics;
use super::channel::{Channel, ChannelStateError, SavedChannel};
use super::error_policy::StopObserver;
use super::kernel_ports::DmaWatch;
use super::ports::{BARS, DECODE_ENABLE, Decoded, IDETIM, NATIVE, is_native};
use crate::bus::PortBus;
use crate::interrupt::InterruptLine;
use crate::pci::configuration::{ConfigurationSpace, Identity, PciFunction, command, register};

/// Where the bus master's 16 ports are before a guest moves them.
pub const BUS_MASTER_PORT: u16 = 0xc000;

/// Where the channels' command and control blocks are in native mode before a guest moves them.
const NATIVE_PORTS: [[u16; 2]; 2] = [[0xc010, 0xc018], [0xc020, 0xc028]];

const SIDETIM: usize = 0x44;
const UDMACTL: usize = 0x48;
const UDMATIM: usize = 0x4a;

/// Programming interface: a bus master, and whether each channel's mode can be changed.
const BUS_MASTER: u8 = 1 << 7;
const SWITCHABLE: u8 = 1 << 3 | 1 << 1;

/// Version of [`SavedIde`].
const VERSION: u32 = 1;

/// Whose function this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chip {
    /// 82371SB, 8086:7010: multiword DMA.
    Piix3,
    /// 82371AB, 8086:7111: Ultra DMA, too.
    #[default]
    Piix4,
}

/// Which of its two modes a channel is in. No PIIX has native mode; guests that need it find it here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChannelModes {
    /// The ports and interrupts of the first PCs, for ever.
    #[default]
    Compatibility,
    /// Those at first; the guest can switch each channel to native mode: ports by BARs, and the PCI interrupt.
    Switchable,
    /// Native mode at first; the guest can switch back.
    Native,
}

/// How the controller is built.
#[derive(Clone, Default)]
pub struct IdeOptions {
    /// Its identity.
    pub chip: Chip,
    /// Its channels' modes.
    pub modes: ChannelModes,
    /// INTA# of the function, by level: for channels in native mode.
    pub pci_line: Option<Arc<dyn InterruptLine>>,
}

/// Is told where the bus master's ports are now: their first, or `None` while they answer nowhere. Called on the
/// vCPU thread that moved them, once per change.
pub type BusMasterObserver = Box<dyn Fn(Option<u16>) + Send + Sync>;

/// The PCI function of the IDE controller.
pub(crate) struct IdeController {
    state: Mutex<State>,
    channels: [Arc<Channel>; 2],
    /// The bus owns the devices; the way back must not keep it alive.
    bus: Weak<PortBus>,
}

struct State {
    space: ConfigurationSpace,
    /// The space after RST#.
    reset: ConfigurationSpace,
    decoded: Decoded,
    observer: Option<BusMasterObserver>,
}

/// The whole controller, in mid-command: to be stored, and given to a controller with the same drives.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedIde {
    version: u32,
    configuration: Vec<u8>,
    channels: [SavedChannel; 2],
}

/// A state that this controller cannot take on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdeStateError {
    /// Another version of spindle's.
    #[error("The IDE state is of version {0}, and this is version {VERSION}")]
    Version(u32),
    /// Another function's configuration.
    #[error(
        "The IDE state's configuration space has {length} bytes of {vendor:#06x}:{device:#06x}, which this machine does not have"
    )]
    Configuration {
        /// Bytes of it.
        length: usize,
        /// Vendor ID.
        vendor: u16,
        /// Device ID.
        device: u16,
    },
    /// A channel's state.
    #[error(transparent)]
    Channel(#[from] ChannelStateError),
}

/// The configuration space after a reset. There is no firmware to enable anything, so I/O, bus mastering and the ports of
/// channels with a drive (`populated`) are on. An empty channel is left off, and Linux does not look for drives there.
fn configuration(options: &IdeOptions, populated: [bool; 2]) -> ConfigurationSpace {
    let modes = match options.modes {
        ChannelModes::Compatibility => 0,
        ChannelModes::Switchable => SWITCHABLE,
        ChannelModes::Native => SWITCHABLE | NATIVE[0] | NATIVE[1],
    };
    let identity = Identity {
        vendor: 0x8086,
        device: match options.chip {
            Chip::Piix3 => 0x7010,
            Chip::Piix4 => 0x7111,
        },
        revision: 1,
        class: [0x01, 0x01, BUS_MASTER | modes],
        multifunction: false,
    };
    let timing = |populated: bool| if populated { DECODE_ENABLE } else { 0 };
    let mut space = ConfigurationSpace::new(identity)
        .with_u16(register::COMMAND, command::IO_SPACE | command::BUS_MASTER)
        .allow_u16(register::COMMAND, command::IO_SPACE | command::BUS_MASTER)
        .with_u16(register::STATUS, 0x0280)
        .clear_u16(register::STATUS, 0x3800)
        .with_u32(register::BAR4, u32::from(BUS_MASTER_PORT) | 1)
        .allow_u32(register::BAR4, 0xfff0)
        .with_u16(IDETIM[0], timing(populated[0]))
        .with_u16(IDETIM[1], timing(populated[1]))
        .allow_u32(IDETIM[0], 0xffff_ffff)
        .allow_all(SIDETIM..SIDETIM + 1);
    if options.chip == Chip::Piix4 {
        space = space.allow_u16(UDMACTL, 0x000f).allow_u16(UDMATIM, 0x3333);
    }
    if options.modes != ChannelModes::Compatibility {
        space = space
            .allow_u8(register::INTERFACE, NATIVE[0] | NATIVE[1])
            .with_u8(register::INTERRUPT_PIN, 1);
        for (registers, ports) in BARS.iter().zip(NATIVE_PORTS) {
            for ((bar, port), size) in registers.iter().zip(ports).zip([8, 4]) {
                space = space
                    .with_u32(*bar, u32::from(port) | 1)
                    .allow_u32(*bar, 0xffff & !(size - 1));
            }
        }
    }
    space
}

impl IdeController {
    /// A controller over two channels, with its ports on `bus`.
    pub(crate) fn new(
        channels: [Arc<Channel>; 2],
        options: &IdeOptions,
        populated: [bool; 2],
        bus: &Arc<PortBus>,
    ) -> Self {
        let space = configuration(options, populated);
        let controller = Self {
            state: Mutex::new(State {
                reset: space.clone(),
                space,
                decoded: Decoded::default(),
                observer: None,
            }),
            channels,
            bus: Arc::downgrade(bus),
        };
        controller.follow(&mut controller.lock());
        controller
    }

    /// Calls `observer` now and whenever the bus master's ports move.
    pub(crate) fn observe_bus_master(&self, observer: BusMasterObserver) {
        let mut state = self.lock();
        observer(state.decoded.bus_master);
        state.observer = Some(observer);
    }

    /// Whom to tell of a drive that wants the machine to stop.
    pub(crate) fn observe_stops(&self, observer: StopObserver) {
        let observer = Arc::new(observer);
        for channel in &self.channels {
            channel.observe_stops(observer.clone());
        }
    }

    /// Makes the requests again that wait for the machine to go on. Returns how many.
    pub(crate) fn resume(&self) -> usize {
        self.channels.iter().map(|channel| channel.resume()).sum()
    }

    /// What the disk drives have done: hda to hdd.
    pub(crate) fn statistics(&self) -> [Option<Statistics>; 4] {
        let [[hda, hdb], [hdc, hdd]] = self.channels.each_ref().map(|channel| channel.statistics());
        [hda, hdb, hdc, hdd]
    }

    /// RST#: registers and drives are as after power-on.
    pub(crate) fn hardware_reset(&self) {
        let mut state = self.lock();
        state.space = state.reset.clone();
        for channel in &self.channels {
            channel.hardware_reset();
        }
        self.follow(&mut state);
    }

    /// The state now.
    pub(crate) fn save(&self) -> SavedIde {
        let state = self.lock();
        SavedIde {
            version: VERSION,
            configuration: state.space.bytes().to_vec(),
            channels: self.channels.each_ref().map(|channel| channel.save()),
        }
    }

    /// Takes on a saved state. After an error the controller is in no state to be used.
    pub(crate) fn restore(&self, saved: SavedIde) -> Result<(), IdeStateError> {
        if saved.version != VERSION {
            return Err(IdeStateError::Version(saved.version));
        }
        let mut state = self.lock();
        let id = |at: usize| match saved.configuration.get(at..at + 2) {
            Some(bytes) => u16::from_le_bytes([bytes[0], bytes[1]]),
            None => 0xffff,
        };
        state
            .space
            .restore(&saved.configuration)
            .ok_or(IdeStateError::Configuration {
                length: saved.configuration.len(),
                vendor: id(0),
                device: id(2),
            })?;
        self.follow(&mut state);
        for (channel, saved) in self.channels.iter().zip(saved.channels) {
            channel.restore(saved)?;
        }
        Ok(())
    }

    /// What can be seen of both bus masters without a lock.
    pub(crate) fn dma_watch(&self) -> DmaWatch {
        DmaWatch(self.channels.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes bus and channels follow the configuration.
    fn follow(&self, state: &mut State) {
        let mastering = state.space.u16(register::COMMAND) & command::BUS_MASTER != 0;
        for (index, channel) in self.channels.iter().enumerate() {
            channel.set_mastering(mastering);
            channel.set_native(is_native(&state.space, index));
        }
        let wanted = Decoded::wanted(&state.space);
        let Some(bus) = self.bus.upgrade().filter(|_| wanted != state.decoded) else {
            return;
        };
        let before = state.decoded.bus_master;
        state.decoded.follow(wanted, &bus, &self.channels);
        if let Some(observer) = state.observer.as_ref().filter(|_| state.decoded.bus_master != before) {
            observer(state.decoded.bus_master);
        }
    }
}

impl PciFunction for IdeController {
    fn read_configuration(&self, offset: usize, data: &mut [u8]) {
        self.lock().space.read(offset, data);
    }

    fn write_configuration(&self, offset: usize, data: &[u8]) {
        let mut state = self.lock();
        state.space.write(offset, data);
        self.follow(&mut state);
    }
}
