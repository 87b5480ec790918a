//! What a command that is not finished waits for.

use serde::{Deserialize, Serialize};

use super::payload::Payload;
use super::transfer::Transfer;
use crate::ide::data_block::DataBlock;

/// What the drive waits for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Phase {
    /// No command.
    Idle,
    /// A reset: waits for the end of SRST (`held`) and of the request in flight.
    Reset { held: bool },
    /// The guest reads a block; then `rest` of the command follows.
    DataIn { block: DataBlock, rest: Rest },
    /// The guest fills a block.
    DataOut { block: DataBlock, sink: Sink },
    /// The bus master has not started, or its table was too short for all of it.
    DmaWait(Dma),
    /// The disk does the drive's work.
    Working,
    /// The bus master was stopped in mid-transfer: the command ends when the disk has done the drive's work.
    DmaStopped,
}

/// What follows a block that the guest reads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Rest {
    /// The end of the command.
    Nothing,
    /// Blocks that the disk has.
    Sectors(Transfer),
    /// Sectors that the drive has.
    Pages(Vec<u8>),
}

/// Who takes the data that the guest writes by PIO.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) enum Sink {
    /// The disk.
    Disk(Transfer),
    /// The drive itself, a sector at a time.
    Drive(Payload),
}

/// What a DMA command transfers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Dma {
    Read(Transfer),
    Write(Transfer),
    /// The ranges of DATA SET MANAGEMENT.
    Trim {
        bytes: usize,
    },
    /// Pages that the drive has.
    Pages(Vec<u8>),
}
