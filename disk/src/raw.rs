//! Raw images: the bytes of the disk, and nothing else.

use std::ops::Range;

use crate::block_status::{BlockMap, ExtentKind};
use crate::direct::Plan;
use crate::storage::{ImageFile, Operation, Piece};
use crate::{Buffer, Command, DiskError, SECTOR_SIZE};

/// Zeros are written in pieces of this many bytes.
const ZEROES_AT_ONCE: u64 = 1 << 20;

/// An open raw image.
pub(crate) struct Raw {
    file: ImageFile,
    capacity: u64,
}

impl Raw {
    /// The file as a disk. A last sector that is not whole is filled up with zeros.
    pub(crate) fn new(file: ImageFile) -> Result<Self, DiskError> {
        let capacity = file.length()?.next_multiple_of(SECTOR_SIZE);
        Ok(Self { file, capacity })
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Reads and writes are one operation each.
    pub(crate) fn plan(&self, command: &Command) -> Plan {
        let operation = match command {
            Command::Read { offset, buffer } if !buffer.is_empty() => Operation::Read {
                offset: *offset,
                pieces: smallvec::smallvec![Piece::whole(buffer.clone())],
            },
            Command::Write { offset, buffer } if !buffer.is_empty() => Operation::Write {
                offset: *offset,
                pieces: smallvec::smallvec![Piece::whole(buffer.clone())],
            },
            _ => return Plan::Steps,
        };
        Plan::Operation {
            file: self.file.clone(),
            operation,
            guard: None,
        }
    }

    pub(crate) async fn read(&self, offset: u64, target: Piece) -> Result<(), DiskError> {
        self.file.read(offset, smallvec::smallvec![target]).await
    }

    pub(crate) async fn write(&self, offset: u64, source: Piece) -> Result<(), DiskError> {
        self.file.write(offset, smallvec::smallvec![source]).await
    }

    pub(crate) async fn write_zeroes(&self, mut offset: u64, length: u64) -> Result<(), DiskError> {
        let end = offset + length;
        let zeroes = Buffer::zeroed(length.min(ZEROES_AT_ONCE) as usize);
        while offset < end {
            let count = (end - offset).min(zeroes.len() as u64);
            let piece = Piece {
                buffer: zeroes.clone(),
                range: 0..count as usize,
            };
            self.write(offset, piece).await?;
            offset += count;
        }
        Ok(())
    }

    /// Adds to `map`, which ends where `range` begins, which of these bytes are data and which are holes of the file.
    pub(crate) fn map(&self, range: Range<u64>, depth: u32, map: &mut BlockMap) -> Result<(), DiskError> {
        while map.end() < range.end && map.may_go_on() {
            let start = map.end();
            let run = self.file.run(start, range.end - start)?;
            let kind = if run.is_hole {
                ExtentKind::Zero
            } else {
                ExtentKind::Data
            };
            map.push(run.length, kind, depth, Some(start));
        }
        Ok(())
    }

    pub(crate) async fn flush(&self) -> Result<(), DiskError> {
        self.file.sync().await
    }
}
