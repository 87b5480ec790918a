//! Which ports the controller answers, as its configuration says.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::channel::{BusMasterPorts, Channel, CommandBlock, ControlBlock};
use crate::bus::{PortBus, PortDevice};
use crate::pci::configuration::{ConfigurationSpace, command, register};

/// The command blocks of the two channels, and the ports of their control blocks, in compatibility mode.
const COMMAND_PORTS: [u16; 2] = [0x1f0, 0x170];
const CONTROL_PORTS: [u16; 2] = [0x3f6, 0x376];
/// Ports of a command block, and of the bus master: 8 for each channel.
const COMMAND_BLOCK_PORTS: u16 = 8;
const BUS_MASTER_PORTS: u16 = 16;
/// In native mode a control block has four ports, of which the third is device control.
const NATIVE_CONTROL: u16 = 2;

/// IDETIM of the primary and the secondary channel, and its bit that lets the channel's ports be decoded.
pub(super) const IDETIM: [usize; 2] = [0x40, 0x42];
pub(super) const DECODE_ENABLE: u16 = 1 << 15;

/// Programming interface: the bits of the two channels that say that they are in native mode.
pub(super) const NATIVE: [u8; 2] = [1 << 0, 1 << 2];
/// The base address registers of the two channels in native mode: command block and control block.
pub(super) const BARS: [[usize; 2]; 2] = [[0x10, 0x14], [0x18, 0x1c]];

/// Which ports are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Decoded {
    /// The first port of each command block, and the port of its control block.
    channels: [Option<(u16, u16)>; 2],
    /// The first port of the bus master.
    pub bus_master: Option<u16>,
}

/// The base in a base address register for ports, if there is one.
fn base(space: &ConfigurationSpace, register: usize, ports: u16) -> Option<u16> {
    let base = space.u32(register) as u16 & !(ports - 1);
    (base != 0).then_some(base)
}

/// Whether a channel is in native mode.
pub(super) fn is_native(space: &ConfigurationSpace, channel: usize) -> bool {
    space.u8(register::INTERFACE) & NATIVE[channel] != 0
}

impl Decoded {
    /// What the configuration asks for.
    pub(super) fn wanted(space: &ConfigurationSpace) -> Self {
        if space.u16(register::COMMAND) & command::IO_SPACE == 0 {
            return Self::default();
        }
        let channels = [0, 1].map(|channel| {
            if space.u16(IDETIM[channel]) & DECODE_ENABLE == 0 {
                None
            } else if is_native(space, channel) {
                let [command, control] = BARS[channel];
                let control = base(space, control, 4)? + NATIVE_CONTROL;
                Some((base(space, command, COMMAND_BLOCK_PORTS)?, control))
            } else {
                Some((COMMAND_PORTS[channel], CONTROL_PORTS[channel]))
            }
        });
        Self {
            channels,
            bus_master: base(space, register::BAR4, BUS_MASTER_PORTS),
        }
    }

    /// Moves the ports on `bus` from where they are to where they are wanted. Where a guest moves ports onto others, the others
    /// keep them, and these answer nowhere.
    pub(super) fn follow(&mut self, wanted: Self, bus: &PortBus, channels: &[Arc<Channel>; 2]) {
        for (decoded, wanted) in self.channels.iter_mut().zip(wanted.channels) {
            if let Some((block, control)) = decoded.take_if(|decoded| Some(*decoded) != wanted) {
                bus.remove(block);
                bus.remove(control);
            }
        }
        if self.bus_master != wanted.bus_master
            && let Some(first) = self.bus_master.take()
        {
            bus.remove(first);
        }
        for (index, channel) in channels.iter().enumerate() {
            if self.channels[index].is_none() {
                self.channels[index] = wanted.channels[index].filter(|ports| claim_channel(bus, channel, *ports));
            }
        }
        if self.bus_master.is_none() {
            self.bus_master = wanted.bus_master.filter(|first| {
                let ports = *first..=*first + (BUS_MASTER_PORTS - 1);
                claim(bus, ports, "IDE bus master", Arc::new(BusMasterPorts(channels.clone())))
            });
        }
    }
}

/// Puts a channel's ports on the bus.
fn claim_channel(bus: &PortBus, channel: &Arc<Channel>, (first, control): (u16, u16)) -> bool {
    let block = first..=first + (COMMAND_BLOCK_PORTS - 1);
    if !claim(bus, block, "IDE command block", Arc::new(CommandBlock(channel.clone()))) {
        return false;
    }
    let claimed = claim(
        bus,
        control..=control,
        "IDE control block",
        Arc::new(ControlBlock(channel.clone())),
    );
    if !claimed {
        bus.remove(first);
    }
    claimed
}

/// Claims ports for a guest.
fn claim(bus: &PortBus, ports: RangeInclusive<u16>, name: &'static str, device: Arc<dyn PortDevice>) -> bool {
    bus.insert(ports, name, device)
        .inspect_err(|error| tracing::debug!(%error, "the guest's port assignment has no effect"))
        .is_ok()
}
