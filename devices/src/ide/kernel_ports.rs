//! Which of the controller's ports a hypervisor's kernel may answer by itself, and what it must know for that.
//!
//! A port access that leaves the guest for user space costs more than all that a register does. Writes that only store
//! a value can wait in the kernel until somebody looks, and the write that starts the bus master can be an event. Both
//! are the hypervisor's business; here is what the registers allow.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::channel::Channel;

/// Ports of the command blocks, primary and secondary, where a write stores a value and does nothing else that anybody
/// could notice before the next access to the channel: features to device. (Selecting a drive whose interrupt is
/// pending raises the line; that, too, may wait for the next access, since a driver that has not read the status knows of
/// no interrupt.)
pub const LATCHED_TASK_FILE: [RangeInclusive<u16>; 2] = [0x1f1..=0x1f6, 0x171..=0x176];

/// The command registers, primary and secondary: a write may make a drive wait for the bus master.
pub const COMMAND_REGISTERS: [u16; 2] = [0x1f7, 0x177];

/// The bus-master command register of a channel, as an offset to the channel's eight ports. A write stores direction and start
/// bit, and only while [`DmaWatch::start_awaited`] is there anything that it could begin.
pub const BUS_MASTER_COMMAND: u16 = 0;

/// Further bus-master registers where a write only stores, or only clears, bits: status, and the table's address.
pub const LATCHED_BUS_MASTER: [RangeInclusive<u16>; 2] = [2..=2, 4..=7];

/// The values of the bus-master command register that drivers start it with: from memory, and to memory.
pub const START_VALUES: [u8; 2] = [0x01, 0x09];

/// Ports of the bus master that belong to one channel.
pub const BUS_MASTER_STRIDE: u16 = 8;

const AWAITED: u8 = 1 << 0;
const STARTED: u8 = 1 << 1;

/// What a channel shows of its bus master without its lock.
#[derive(Debug, Default)]
pub(super) struct DmaState(AtomicU8);

impl DmaState {
    pub(super) fn set(&self, awaited: bool, started: bool) {
        let bits = if awaited { AWAITED } else { 0 } | if started { STARTED } else { 0 };
        self.0.store(bits, Ordering::SeqCst);
    }

    fn has(&self, bit: u8) -> bool {
        self.0.load(Ordering::SeqCst) & bit != 0
    }
}

/// A view of both channels' bus masters that takes no lock. What it says holds as of the end of the last access.
#[derive(Clone)]
pub struct DmaWatch(pub(super) [Arc<Channel>; 2]);

impl DmaWatch {
    /// Whether a drive of either channel has a DMA command and waits for the bus master. From then on the order of a
    /// start and a stop decides whether data moves.
    pub fn start_awaited(&self) -> bool {
        self.0.iter().any(|channel| channel.dma_state().has(AWAITED))
    }

    /// Whether the bus master of `channel` (0 or 1) has its start bit set, so that another start is without effect.
    pub fn started(&self, channel: usize) -> bool {
        self.0
            .get(channel)
            .is_some_and(|channel| channel.dma_state().has(STARTED))
    }
}
