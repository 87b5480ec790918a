//! What a read command has still to read, and in which layout its blocks reach the host.

use serde::{Deserialize, Serialize};

use super::sector;
use super::sense::Sense;
use super::tray::{BLOCK, Medium};

/// Blocks that one request reads where they cannot go to guest memory in place: this bounds the drive's own memory.
const MOST_AT_ONCE: u32 = 32;

/// How a block of the medium looks to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Layout {
    /// The 2048 bytes of user data.
    Data,
    /// The parts of the sector that READ CD asked for.
    Parts(sector::Parts),
}

impl Layout {
    /// Bytes of a block.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Data => BLOCK,
            Self::Parts(parts) => parts.bytes(),
        }
    }
}

/// Blocks to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Blocks {
    /// The next one.
    pub first: u32,
    /// How many are left.
    pub count: u32,
    pub layout: Layout,
    /// The medium that they are on ([`Tray::generation`](super::tray::Tray::generation)).
    pub generation: u64,
    /// Blocks that one request reads: fewer after an error, to find the block that caused it.
    at_once: u32,
}

impl Blocks {
    /// A range of `medium`.
    pub(super) fn new(medium: &Medium, generation: u64, first: u32, count: u32, layout: Layout) -> Result<Self, Sense> {
        medium.check(first, count)?;
        Ok(Self {
            first,
            count,
            layout,
            generation,
            at_once: MOST_AT_ONCE,
        })
    }

    /// Whether a command could have asked for these, and some are left.
    pub(super) fn is_sound(&self) -> bool {
        self.count > 0
            && self.first.checked_add(self.count).is_some()
            && self.layout.bytes() > 0
            && (1..=MOST_AT_ONCE).contains(&self.at_once)
    }

    /// Bytes that the host gets for all of them.
    pub(super) fn bytes(&self) -> usize {
        self.count as usize * self.layout.bytes()
    }

    /// How many blocks of those that take `room` bytes the next request reads: at least one.
    pub(super) fn next_count(&self, room: usize) -> u32 {
        let fitting = u32::try_from(room / self.layout.bytes()).unwrap_or(u32::MAX);
        self.count.min(self.at_once).min(fitting).max(1)
    }

    /// Where on the disk the next block is, in bytes.
    pub(super) fn offset(&self) -> u64 {
        u64::from(self.first) * BLOCK as u64
    }

    /// What is left after `count` more.
    pub(super) fn advanced(mut self, count: u32) -> Self {
        self.first += count;
        self.count -= count;
        self
    }

    /// The same, a block at a time.
    pub(super) fn one_by_one(mut self) -> Self {
        self.at_once = 1;
        self
    }

    /// What the host gets for `data`, which the next blocks hold.
    pub(super) fn present(&self, data: Vec<u8>) -> Vec<u8> {
        let Layout::Parts(parts) = self.layout else {
            return data;
        };
        (self.first..)
            .zip(data.chunks_exact(BLOCK))
            .flat_map(|(block, data)| parts.of(block, data))
            .collect()
    }
}
