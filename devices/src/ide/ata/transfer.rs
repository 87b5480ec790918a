//! What a read or write command addresses, and the block that PIO moves at a time.

use disk::SECTOR_SIZE;
use serde::{Deserialize, Serialize};

use super::geometry::Geometry;
use super::{Failure, SECTOR};
use crate::ide::registers::{DEVICE_LBA, Error, TaskFile};

/// Sectors that a 28-bit address reaches.
pub(super) const LBA28_SECTORS: u64 = 1 << 28;

/// Sectors that one command moves at the most.
pub(super) const MOST_SECTORS: u32 = 65_536;

/// How the command gave its address, and so how an error's address is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Addressing {
    Chs,
    Lba28,
    Lba48,
}

/// What is left to transfer of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Transfer {
    /// The next sector.
    pub lba: u64,
    /// Sectors left.
    pub sectors: u32,
    /// Sectors of a PIO block.
    pub block: u32,
    /// How the address was given.
    pub addressing: Addressing,
    /// The data shall be durable before the command completes.
    pub durable: bool,
}

impl Transfer {
    /// The range that the task file holds, if all of it is on a disk of `capacity` sectors. Otherwise IDNF, with the
    /// address of the first sector that does not exist.
    pub(super) fn parse(
        registers: &TaskFile,
        extended: bool,
        geometry: &Geometry,
        capacity: u64,
    ) -> Result<Self, Failure> {
        let (addressing, lba) = match (extended, registers.device & DEVICE_LBA != 0) {
            (true, _) => (Addressing::Lba48, Some(registers.lba48())),
            (false, true) => (Addressing::Lba28, Some(registers.lba28())),
            (false, false) => (Addressing::Chs, geometry.lba(registers)),
        };
        let sectors = match (extended, registers.count.wide(), registers.count.current) {
            (true, 0, _) => MOST_SECTORS,
            (true, count, _) => u32::from(count),
            (false, _, 0) => 256,
            (false, _, count) => u32::from(count),
        };
        // A CHS address that the geometry does not have stays in the registers as it is.
        let lba = lba.ok_or(Failure {
            error: Error::IDNF,
            address: None,
        })?;
        if lba + u64::from(sectors) > capacity {
            return Err(Failure::at(Error::IDNF, lba.max(capacity), addressing));
        }
        Ok(Self {
            lba,
            sectors,
            block: 1,
            addressing,
            durable: false,
        })
    }

    /// Where on the disk the next sector is, in bytes.
    pub(super) fn offset(&self) -> u64 {
        self.lba * SECTOR_SIZE
    }

    /// Bytes left.
    pub(super) fn bytes(&self) -> usize {
        self.sectors as usize * SECTOR
    }

    /// Sectors of the next PIO block.
    pub(super) fn block_sectors(&self) -> u32 {
        self.block.min(self.sectors)
    }

    /// Bytes of the next PIO block.
    pub(super) fn block_bytes(&self) -> usize {
        self.block_sectors() as usize * SECTOR
    }

    /// What is left after `sectors` more, of which there are that many at least.
    pub(super) fn advanced(mut self, sectors: u32) -> Self {
        self.lba += u64::from(sectors);
        self.sectors = self.sectors.saturating_sub(sectors);
        self
    }
}
