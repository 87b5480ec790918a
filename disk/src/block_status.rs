//! How a disk is stored: runs of its bytes that are data, zeros or nothing, and where they lie.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The most pieces of a mapping that one [`Command::Map`](crate::Command::Map) looks at, so that one request does not hold up the others.
const MAX_STEPS: usize = 4096;

/// A run of a disk's bytes that are stored alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first byte, on the disk.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// How they are stored.
    pub kind: ExtentKind,
    /// Which image of the chain says so: 0 is the top, 1 its backing file. Of bytes that no image stores, the lowest that reaches so far.
    pub depth: u32,
    /// Where the first byte lies in that image's file, if these bytes have a place there as they are.
    pub host_offset: Option<u64>,
    /// Whether they are stored compressed.
    pub compressed: bool,
}

/// How a run of bytes is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// They are read from an image file.
    Data,
    /// An image says that they are zeros.
    Zero,
    /// No image stores them; they read as zeros.
    Unallocated,
}

/// Where [`Command::Map`](crate::Command::Map) leaves its answer. Clones share it.
#[derive(Clone, Default)]
pub struct Extents(Arc<Mutex<Vec<Extent>>>);

impl Extents {
    /// Takes the answer out: without gaps from the first byte that was asked for, neighbours that are alike merged. It
    /// covers at least one byte, and may end before the range does: ask again from there.
    pub fn take(&self) -> Vec<Extent> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn put(&self, extents: Vec<Extent>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = extents;
    }
}

impl fmt::Debug for Extents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Extents")
    }
}

/// An answer that is being put together.
pub(crate) struct BlockMap {
    extents: Vec<Extent>,
    end: u64,
    steps: usize,
}

impl BlockMap {
    /// An answer that begins at byte `offset`.
    pub(crate) fn from(offset: u64) -> Self {
        Self {
            extents: Vec::new(),
            end: offset,
            steps: 0,
        }
    }

    /// Up to where the answer goes.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Counts one look at a mapping. Returns false when there were enough.
    pub(crate) fn may_go_on(&mut self) -> bool {
        self.steps += 1;
        self.steps <= MAX_STEPS
    }

    /// Goes on with the next `length` bytes.
    pub(crate) fn push(&mut self, length: u64, kind: ExtentKind, depth: u32, host_offset: Option<u64>) {
        self.push_extent(Extent {
            offset: self.end,
            length,
            kind,
            depth,
            host_offset,
            compressed: false,
        });
    }

    /// Goes on with the next `length` bytes, which are compressed.
    pub(crate) fn push_compressed(&mut self, length: u64, depth: u32) {
        self.push_extent(Extent {
            offset: self.end,
            length,
            kind: ExtentKind::Data,
            depth,
            host_offset: None,
            compressed: true,
        });
    }

    /// The answer.
    pub(crate) fn finish(self) -> Vec<Extent> {
        self.extents
    }

    fn push_extent(&mut self, extent: Extent) {
        if extent.length == 0 {
            return;
        }
        self.end += extent.length;
        match self.extents.last_mut() {
            Some(last) if last.goes_on_with(&extent) => last.length += extent.length,
            _ => self.extents.push(extent),
        }
    }
}

impl Extent {
    /// Whether `next`, which follows on the disk, is stored alike and follows in the image file, too.
    fn goes_on_with(&self, next: &Extent) -> bool {
        (self.kind, self.depth, self.compressed) == (next.kind, next.depth, next.compressed)
            && self.host_offset.map(|host| host + self.length) == next.host_offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_that_are_stored_alike_become_one() {
        let mut map = BlockMap::from(512);
        map.push(512, ExtentKind::Data, 0, Some(4096));
        map.push(0, ExtentKind::Zero, 0, None);
        map.push(512, ExtentKind::Data, 0, Some(4608));
        map.push(512, ExtentKind::Data, 0, Some(4096));
        map.push(512, ExtentKind::Zero, 0, None);
        map.push(512, ExtentKind::Zero, 0, None);
        map.push(512, ExtentKind::Zero, 1, None);
        let found: Vec<_> = map
            .finish()
            .iter()
            .map(|extent| (extent.offset, extent.length))
            .collect();
        assert_eq!(found, [(512, 1024), (1536, 512), (2048, 1024), (3072, 512)]);
    }

    #[test]
    fn one_request_looks_at_a_bounded_part_of_a_mapping() {
        let mut map = BlockMap::from(0);
        assert!((0..MAX_STEPS).all(|_| map.may_go_on()));
        assert!(!map.may_go_on());
    }
}
