//! What a drive has its disk do: one request at a time, from which the request can be made again, after an error that stopped
//! the machine or in another process.

use std::collections::VecDeque;

use disk::{Buffer, BufferError, Command as DiskCommand, SECTOR_SIZE};
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use super::SECTOR;
use super::search::Search;
use super::transfer::Transfer;
use crate::ide::memory::Memory;

/// Sectors that SECURITY ERASE UNIT overwrites with one request.
pub(super) const ERASE_SECTORS: u64 = 1 << 19;

/// Work at the disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Work {
    Read {
        purpose: Purpose,
        transfer: Transfer,
        /// As many sectors of the transfer as there is room for.
        memory: Memory,
        /// After an error: the search for the sector that caused it.
        search: Option<Search>,
    },
    Write {
        purpose: Purpose,
        transfer: Transfer,
        memory: Memory,
    },
    Flush(Reason),
    /// Ranges to discard, in bytes: offset and length. The first is at the disk.
    Trim {
        ranges: VecDeque<(u64, u64)>,
    },
    /// Sectors to overwrite with zeros; the first [`ERASE_SECTORS`] of them are at the disk.
    Erase {
        at: u64,
        end: u64,
        purpose: Erasure,
    },
}

/// What sectors are read or written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Purpose {
    /// A block that goes through the data register.
    Block,
    /// A part of a DMA transfer.
    Dma,
    /// READ VERIFY.
    Verify,
}

/// What a flush is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reason {
    /// The host asked.
    Command,
    /// A write that shall be durable.
    Write,
}

/// Which command overwrites sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Erasure {
    Security,
    CompactFlash,
}

impl Work {
    /// The request of the disk.
    pub(super) fn command(&self) -> DiskCommand {
        match self {
            Self::Read {
                transfer,
                memory,
                search,
                ..
            } => {
                let (from, to) = search.as_ref().map_or((0, memory.len() / SECTOR), Search::probe);
                DiskCommand::Read {
                    offset: transfer.offset() + from as u64 * SECTOR_SIZE,
                    buffer: if search.is_some() {
                        memory.buffer().part(from * SECTOR..to * SECTOR)
                    } else {
                        memory.buffer().clone()
                    },
                }
            }
            Self::Write { transfer, memory, .. } => DiskCommand::Write {
                offset: transfer.offset(),
                buffer: memory.buffer().clone(),
            },
            Self::Flush(_) => DiskCommand::Flush,
            Self::Trim { ranges } => {
                let (offset, length) = ranges.front().copied().unwrap_or_default();
                DiskCommand::Discard { offset, length }
            }
            Self::Erase { at, end, .. } => DiskCommand::WriteZeroes {
                offset: at * SECTOR_SIZE,
                length: (end - at).min(ERASE_SECTORS) * SECTOR_SIZE,
            },
        }
    }

    /// Whether a failure is a read's.
    pub(super) fn reads(&self) -> bool {
        matches!(self, Self::Read { .. })
    }

    /// Whether guest memory takes part.
    pub(super) fn is_dma(&self) -> bool {
        matches!(
            self,
            Self::Read {
                purpose: Purpose::Dma,
                ..
            } | Self::Write {
                purpose: Purpose::Dma,
                ..
            }
        )
    }

    /// Work for a part of a transfer, into memory of the drive's own.
    pub(super) fn read(purpose: Purpose, transfer: Transfer, sectors: u32) -> Self {
        Self::Read {
            purpose,
            transfer,
            memory: Memory::own(Buffer::zeroed(sectors as usize * SECTOR)),
            search: None,
        }
    }

    /// Finds the guest memory of restored work again.
    pub(super) fn attach(&mut self, guest: &GuestMemoryMmap) -> Result<(), BufferError> {
        match self {
            Self::Read { memory, .. } | Self::Write { memory, .. } => memory.attach(guest),
            _ => Ok(()),
        }
    }
}
