//! 00:01.1: the PIIX4's IDE function, which says what ports the channels and the bus master answer (PIIX4 datasheet,
//! chapter 5).

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::channel::{Channel, CommandBlock, ControlBlock};
use super::kernel_ports::DmaWatch;
use crate::bus::{PortBus, PortDevice};
use crate::pci::configuration::{ConfigurationSpace, Identity, PciFunction, command, register};

/// Where the bus master's 16 ports are before a guest moves them.
pub const BUS_MASTER_PORT: u16 = 0xc000;

/// How many ports the bus master has: 8 a channel.
const BUS_MASTER_PORTS: u16 = 16;

/// The command blocks of the two channels, and the ports of their control blocks (compatibility mode).
const COMMAND_PORTS: [RangeInclusive<u16>; 2] = [0x1f0..=0x1f7, 0x170..=0x177];
const CONTROL_PORTS: [u16; 2] = [0x3f6, 0x376];

/// IDETIM of the primary and the secondary channel, and its bit that lets the channel's ports be decoded.
const IDETIM: [usize; 2] = [0x40, 0x42];
const DECODE_ENABLE: u16 = 1 << 15;
const SIDETIM: usize = 0x44;
const UDMACTL: usize = 0x48;
const UDMATIM: usize = 0x4a;

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
    decoded: Decoded,
    observer: Option<BusMasterObserver>,
}

/// Which ports are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Decoded {
    channels: [bool; 2],
    /// The first port of the bus master.
    bus_master: Option<u16>,
}

impl Decoded {
    /// What the configuration asks for.
    fn wanted(space: &ConfigurationSpace) -> Self {
        if space.u16(register::COMMAND) & command::IO_SPACE == 0 {
            return Self::default();
        }
        let base = (space.u32(register::BAR4) & 0xfff0) as u16;
        Self {
            channels: IDETIM.map(|timing| space.u16(timing) & DECODE_ENABLE != 0),
            bus_master: (base != 0).then_some(base),
        }
    }
}

impl IdeController {
    /// A controller over two channels, with its ports on `bus`. There is no firmware to enable anything, so I/O, bus
    /// mastering and the ports of channels with a drive (`populated`) are on. An empty channel is left off, and
    /// Linux does not look for drives there.
    pub(crate) fn new(channels: [Arc<Channel>; 2], populated: [bool; 2], bus: &Arc<PortBus>) -> Self {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x7111,
            revision: 1,
            // Both channels in compatibility mode and fixed there; a bus master.
            class: [0x01, 0x01, 0x80],
            multifunction: false,
        };
        let timing = |populated: bool| if populated { DECODE_ENABLE } else { 0 };
        let space = ConfigurationSpace::new(identity)
            .with_u16(register::COMMAND, command::IO_SPACE | command::BUS_MASTER)
            .allow_u16(register::COMMAND, command::IO_SPACE | command::BUS_MASTER)
            .with_u16(register::STATUS, 0x0280)
            .clear_u16(register::STATUS, 0x3800)
            .with_u32(register::BAR4, u32::from(BUS_MASTER_PORT) | 1)
            .allow_u32(register::BAR4, 0xfff0)
            .with_u16(IDETIM[0], timing(populated[0]))
            .with_u16(IDETIM[1], timing(populated[1]))
            .allow_u32(IDETIM[0], 0xffff_ffff)
            .allow_all(SIDETIM..SIDETIM + 1)
            .allow_u16(UDMACTL, 0x000f)
            .allow_u16(UDMATIM, 0x3333);
        let controller = Self {
            state: Mutex::new(State {
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
        for channel in &self.channels {
            channel.set_mastering(mastering);
        }
        let wanted = Decoded::wanted(&state.space);
        let Some(bus) = self.bus.upgrade().filter(|_| wanted != state.decoded) else {
            return;
        };
        let before = state.decoded;
        for index in 0..2 {
            state.decoded.channels[index] =
                self.decode_channel(&bus, index, before.channels[index], wanted.channels[index]);
        }
        state.decoded.bus_master = self.decode_bus_master(&bus, before.bus_master, wanted.bus_master);
        if let Some(observer) = state
            .observer
            .as_ref()
            .filter(|_| state.decoded.bus_master != before.bus_master)
        {
            observer(state.decoded.bus_master);
        }
    }

    /// Puts a channel's ports on the bus or takes them off. Returns whether they are on it.
    fn decode_channel(&self, bus: &PortBus, index: usize, before: bool, wanted: bool) -> bool {
        let (block, control) = (COMMAND_PORTS[index].clone(), CONTROL_PORTS[index]);
        if before == wanted {
            return before;
        }
        if before {
            bus.remove(*block.start());
            bus.remove(control);
            return false;
        }
        let channel = &self.channels[index];
        let first = *block.start();
        let claimed = claim(bus, block, "IDE command block", Arc::new(CommandBlock(channel.clone())));
        if claimed
            && claim(
                bus,
                control..=control,
                "IDE control block",
                Arc::new(ControlBlock(channel.clone())),
            )
        {
            return true;
        }
        if claimed {
            bus.remove(first);
        }
        false
    }

    /// Moves the bus master's ports. Returns where they are now.
    fn decode_bus_master(&self, bus: &PortBus, before: Option<u16>, wanted: Option<u16>) -> Option<u16> {
        if before == wanted {
            return before;
        }
        if let Some(first) = before {
            bus.remove(first);
        }
        let first = wanted?;
        let ports = first..=first + (BUS_MASTER_PORTS - 1);
        claim(
            bus,
            ports,
            "IDE bus master",
            Arc::new(BusMasterPorts(self.channels.clone())),
        )
        .then_some(first)
    }
}

/// Claims ports for a guest. Where a guest moves ports onto others, the others keep them.
fn claim(bus: &PortBus, ports: RangeInclusive<u16>, name: &'static str, device: Arc<dyn PortDevice>) -> bool {
    bus.insert(ports, name, device)
        .inspect_err(|error| tracing::debug!(%error, "the guest's port assignment has no effect"))
        .is_ok()
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

/// The bus master's 16 ports, aligned: 8 for each channel.
struct BusMasterPorts([Arc<Channel>; 2]);

impl BusMasterPorts {
    /// The channel and register of a port, and how many bytes of an access at it are that channel's.
    fn target(&self, port: u16, length: usize) -> (&Channel, u16, usize) {
        let register = port & 7;
        (
            &self.0[usize::from(port >> 3 & 1)],
            register,
            length.min(usize::from(8 - register)),
        )
    }
}

impl PortDevice for BusMasterPorts {
    fn read(&self, port: u16, data: &mut [u8]) {
        let (channel, register, length) = self.target(port, data.len());
        data[length..].fill(0xff);
        channel.read_bus_master(register, &mut data[..length]);
    }

    fn write(&self, port: u16, data: &[u8]) {
        let (channel, register, length) = self.target(port, data.len());
        channel.write_bus_master(register, &data[..length]);
    }
}
