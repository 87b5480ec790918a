//! The memory that a drive's request works on, in a form that can be saved while the request runs.

use disk::{Buffer, BufferError};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// A drive's own memory, or guest memory in place.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Saved", into = "Saved")]
pub(super) struct Memory {
    /// Guest-physical address and length in bytes of each range, in transfer order; none if the memory is the drive's.
    ranges: Vec<(u64, usize)>,
    buffer: Buffer,
}

/// What is saved of it: the drive's own bytes, and of guest memory the place.
#[derive(Clone, Serialize, Deserialize)]
enum Saved {
    Own(Vec<u8>),
    Guest(Vec<(u64, usize)>),
}

impl From<Saved> for Memory {
    fn from(saved: Saved) -> Self {
        match saved {
            Saved::Own(bytes) => Self::own(Buffer::from_slice(&bytes)),
            // Nothing is there before `attach`.
            Saved::Guest(ranges) => Self {
                ranges,
                buffer: Buffer::zeroed(0),
            },
        }
    }
}

impl From<Memory> for Saved {
    fn from(memory: Memory) -> Self {
        if memory.ranges.is_empty() {
            Self::Own(memory.buffer.to_vec())
        } else {
            Self::Guest(memory.ranges)
        }
    }
}

impl Memory {
    /// The drive's own memory.
    pub(super) fn own(buffer: Buffer) -> Self {
        Self {
            ranges: Vec::new(),
            buffer,
        }
    }

    /// Guest memory: address and length of each range in transfer order.
    pub(super) fn guest(memory: &GuestMemoryMmap, ranges: Vec<(GuestAddress, usize)>) -> Result<Self, BufferError> {
        let buffer = Buffer::from_guest(memory, ranges.iter().copied())?;
        let ranges = ranges
            .into_iter()
            .map(|(address, length)| (address.0, length))
            .collect();
        Ok(Self { ranges, buffer })
    }

    /// Finds the guest memory of a restored request again.
    pub(super) fn attach(&mut self, memory: &GuestMemoryMmap) -> Result<(), BufferError> {
        if !self.ranges.is_empty() {
            let ranges = self
                .ranges
                .iter()
                .map(|(address, length)| (GuestAddress(*address), *length));
            self.buffer = Buffer::from_guest(memory, ranges)?;
        }
        Ok(())
    }

    /// The bytes.
    pub(super) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether there are no bytes.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The first `length` bytes, of which there are that many.
    pub(super) fn first(mut self, length: usize) -> Self {
        if length >= self.len() {
            return self;
        }
        let mut left = length;
        self.ranges.retain_mut(|(_, range)| {
            *range = left.min(*range);
            left -= *range;
            *range > 0
        });
        self.buffer = self.buffer.part(0..length);
        self
    }
}
