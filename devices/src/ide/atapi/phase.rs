//! What a command that is not finished waits for.

use serde::{Deserialize, Serialize};

use super::super::data_block::DataBlock;
use super::super::memory::Memory;
use super::blocks::Blocks;

/// What the drive waits for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Phase {
    /// No command.
    Idle,
    /// A reset: waits for the end of SRST (`held`) and of the request in flight.
    Reset { held: bool },
    /// DEVICE RESET waits for the end of the request in flight.
    DeviceReset,
    /// The host sends the packet.
    PacketOut { packet: DataBlock, way: Way },
    /// The host reads the page of IDENTIFY PACKET DEVICE.
    Page(DataBlock),
    /// The host reads data in blocks; then `rest` follows from the medium.
    DataIn {
        data: DataBlock,
        /// Bytes of the block that is being read, which may end with one that is only there to make it even.
        block: usize,
        rest: Option<Blocks>,
    },
    /// The host sends a parameter list in blocks.
    DataOut {
        list: DataBlock,
        /// Bytes of the block that is being sent.
        block: usize,
    },
    /// The bus master has not started, or its table was too short for all of it.
    DmaWait(Dma),
    /// The medium is being read.
    Reading(Reading),
    /// The bus master was stopped in mid-transfer: the command ends with the request in flight.
    DmaStopped,
}

/// How the data of a packet command moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Way {
    Port,
    BusMaster,
}

/// What is transferred by bus master.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Dma {
    /// Bytes that the drive has.
    Reply(Vec<u8>),
    /// Blocks of the medium.
    Read(Blocks),
    /// A parameter list of this many bytes.
    Take(usize),
}

/// A request at the medium's disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Reading {
    /// What the host still gets.
    pub blocks: Blocks,
    /// How many of them this request reads.
    pub count: u32,
    /// Where they are read to.
    pub memory: Memory,
    pub to: Destination,
}

impl Reading {
    /// The request of the medium's disk.
    pub(super) fn command(&self) -> disk::Command {
        disk::Command::Read {
            offset: self.blocks.offset(),
            buffer: self.memory.buffer().clone(),
        }
    }
}

/// Where blocks go once they are read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Destination {
    /// Through the data register.
    Port,
    /// They are in guest memory already.
    InPlace,
    /// To guest memory, from byte `at` of it on.
    Guest { memory: Memory, at: usize },
}
