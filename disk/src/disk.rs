//! The handle that a front end holds: what can be asked of a disk, and how it answers.

use std::fmt;
use std::io;

use crate::{Buffer, Extents};

/// The unit of addressing, in bytes.
pub const SECTOR_SIZE: u64 = 512;

/// A virtual disk, as its front end sees it. Shared between threads.
pub trait Disk: Send + Sync {
    /// The size that the guest sees, in bytes; a multiple of [`SECTOR_SIZE`]. A resize, or a snapshot that is applied, changes it.
    fn capacity(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// Whether a range that was discarded reads as zeros until it is written again, whatever its alignment.
    fn discarded_reads_as_zeros(&self) -> bool {
        false
    }

    /// Starts `request` and returns at once. Its `done` is called exactly once, later, on the engine's
    /// thread: never from within `submit`, so the caller may hold locks that `done` takes. (After the engine was
    /// closed it is dropped without being called.)
    fn submit(&self, request: Request);
}

/// What becomes of a request is reported here.
pub type Done = Box<dyn FnOnce(Result<(), DiskError>) + Send>;

/// One command and whom to tell when it is done.
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Called once with the outcome.
    pub done: Done,
}

/// What a disk can be asked to do. Offsets and lengths are bytes and multiples of [`SECTOR_SIZE`].
#[derive(Clone, Debug)]
pub enum Command {
    /// Fills the buffer from the disk.
    Read {
        /// Where on the disk.
        offset: u64,
        /// How much, and where to.
        buffer: Buffer,
    },
    /// Writes the buffer to the disk. Complete means: a later read returns it. Durable it is after a [`Command::Flush`].
    Write {
        /// Where on the disk.
        offset: u64,
        /// How much, and where from.
        buffer: Buffer,
    },
    /// Makes every write that completed before this was submitted durable.
    Flush,
    /// Says that the guest no longer needs this range. It reads as zeros or as before.
    Discard {
        /// Where on the disk.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// Makes this range read as zeros, without transferring them.
    WriteZeroes {
        /// Where on the disk.
        offset: u64,
        /// How much.
        length: u64,
    },
    /// Says how this range is stored, without reading it. What completed before is seen; a bounded part of a mapping is looked at,
    /// so the answer may end before the range does.
    Map {
        /// Where on the disk.
        offset: u64,
        /// How much.
        length: u64,
        /// Where to put the answer.
        extents: Extents,
    },
}

impl Command {
    /// The range of the disk that the command touches, in bytes: offset and length.
    pub fn range(&self) -> (u64, u64) {
        match self {
            Command::Read { offset, buffer } | Command::Write { offset, buffer } => (*offset, buffer.len() as u64),
            Command::Flush => (0, 0),
            Command::Discard { offset, length }
            | Command::WriteZeroes { offset, length }
            | Command::Map { offset, length, .. } => (*offset, *length),
        }
    }

    /// Whether the command changes what the disk holds.
    pub fn modifies(&self) -> bool {
        matches!(
            self,
            Command::Write { .. } | Command::Discard { .. } | Command::WriteZeroes { .. }
        )
    }

    /// Checks the command against a disk of `capacity` bytes.
    pub fn check(&self, capacity: u64, read_only: bool) -> Result<(), DiskError> {
        let (offset, length) = self.range();
        if offset % SECTOR_SIZE != 0 || length % SECTOR_SIZE != 0 {
            return Err(DiskError::Unaligned { offset, length });
        }
        if offset.checked_add(length).is_none_or(|end| end > capacity) {
            return Err(DiskError::OutOfRange {
                offset,
                length,
                capacity,
            });
        }
        if read_only && self.modifies() {
            return Err(DiskError::ReadOnly);
        }
        Ok(())
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The range ends beyond the disk.
    #[error("{length} bytes at {offset:#x} end beyond the disk of {capacity:#x} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
        /// Size of the disk in bytes.
        capacity: u64,
    },
    /// Offset or length is not a multiple of the sector size.
    #[error("{length} bytes at {offset:#x} are not whole sectors of {SECTOR_SIZE} bytes")]
    Unaligned {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
    },
    /// The disk is read-only.
    #[error("The disk is read-only")]
    ReadOnly,
    /// The host refused: the storage call, where in the image file, and its error.
    #[error("{operation} at host offset {offset:#x} failed: {error}")]
    Io {
        /// The storage operation that failed.
        operation: &'static str,
        /// Where in the image file, in bytes.
        offset: u64,
        /// What the host said.
        error: io::Error,
    },
    /// The image contradicts its format at a place that this request needs.
    #[error("The image is corrupt: {0}")]
    Corrupt(Corruption),
    /// The image uses a feature at this place that spindle does not implement.
    #[error("Unsupported: {0}")]
    Unsupported(&'static str),
    /// An earlier fdatasync failed. The host may have dropped what it should have stored, so none can succeed any more.
    #[error("An earlier fdatasync failed; what was written before it may be lost")]
    DurabilityLost,
    /// The engine is closed.
    #[error("The disk is closed")]
    Closed,
}

impl DiskError {
    /// The same error, for another who waits for the same thing.
    pub(crate) fn duplicate(&self) -> Self {
        match self {
            DiskError::OutOfRange {
                offset,
                length,
                capacity,
            } => DiskError::OutOfRange {
                offset: *offset,
                length: *length,
                capacity: *capacity,
            },
            DiskError::Unaligned { offset, length } => DiskError::Unaligned {
                offset: *offset,
                length: *length,
            },
            DiskError::ReadOnly => DiskError::ReadOnly,
            DiskError::Io {
                operation,
                offset,
                error,
            } => {
                let error = error
                    .raw_os_error()
                    .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
                DiskError::Io {
                    operation,
                    offset: *offset,
                    error,
                }
            }
            DiskError::Corrupt(corruption) => DiskError::Corrupt(corruption.clone()),
            DiskError::Unsupported(what) => DiskError::Unsupported(what),
            DiskError::DurabilityLost => DiskError::DurabilityLost,
            DiskError::Closed => DiskError::Closed,
        }
    }

    /// Whether the host ran out of space (or quota), so that the same request may succeed later.
    pub fn is_no_space(&self) -> bool {
        matches!(self, DiskError::Io { error, .. }
            if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG)))
    }
}

/// A place in an image that contradicts the format: which structure, where, and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// The structure, for example "L2 entry".
    pub structure: &'static str,
    /// Where it lies in the image file, in bytes.
    pub at: u64,
    /// What it holds.
    pub found: u64,
    /// What the format allows there.
    pub expected: &'static str,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} at {:#x} holds {:#x}, expected {}",
            self.structure, self.at, self.found, self.expected
        )
    }
}
