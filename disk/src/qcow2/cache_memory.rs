//! The memory of the metadata cache, laid out so that another process can make sense of it.
//!
//! ```text
//! 0                  header: magic, identity of the image, geometry, checksum
//! 4096               index: per slot two words, the slice's offset | class | dirty, and a checksum of that
//! from a page on     the slots
//! ```
//!
//! All words are of this machine's byte order: the memory never leaves the machine, nor survives its reboot.

use std::io;
use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

use super::cache::Class;
use super::token::Token;
use crate::Buffer;
use crate::disk::Corruption;
use crate::planted_bug::{Bug, planted};

/// The largest slice, in bytes.
pub(super) const MAX_SLICE_SIZE: usize = 4096;

/// Fewer slots than this, and two requests could wait for each other's.
const MIN_SLOTS: usize = 64;

const PAGE: usize = 4096;
const MAGIC: [u8; 16] = *b"spindle cache 2\0";
const INDEX_AT: usize = PAGE;
const INDEX_ENTRY: usize = 16;

/// The low bits of an index word; offsets are multiples of 512.
const DIRTY: u64 = 1;
const CLASS_SHIFT: u32 = 1;
const CLASS_MASK: u64 = 3;
const OFFSET_MASK: u64 = !511;

/// Whose metadata a cache holds. Another image, another boot or another user is another cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Device and inode number of the image file.
    pub file: (u64, u64),
    /// When the image file was made: seconds and nanoseconds.
    pub born: (i64, u32),
    /// The kernel's random id of this boot.
    pub boot: [u8; 16],
    /// The user who made it.
    pub user: u32,
    /// The length of the image file in bytes. It grows, so what was recorded is the least that it can be.
    pub size: u64,
    /// What the image's header was given when it was opened, if it has room for that. Another image that was copied over this one
    /// has another.
    pub token: Option<Token>,
}

/// How many slots of which size a cache has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    slice_size: usize,
    slots: usize,
}

impl Shape {
    /// A cache of about `bytes` for an image with clusters of `cluster_size` bytes.
    pub(crate) fn new(bytes: usize, cluster_size: u64) -> Self {
        let slice_size = MAX_SLICE_SIZE.min(cluster_size as usize);
        Self {
            slice_size,
            slots: (bytes / slice_size).max(MIN_SLOTS),
        }
    }

    /// Bytes of memory that it needs.
    pub(crate) fn length(self) -> usize {
        self.slots_at() + self.slots * self.slice_size
    }

    fn slots_at(self) -> usize {
        (INDEX_AT + self.slots * INDEX_ENTRY).next_multiple_of(PAGE)
    }

    fn content(self, slot: usize) -> Range<usize> {
        let start = self.slots_at() + slot * self.slice_size;
        start..start + self.slice_size
    }
}

pub(crate) struct CacheMemory {
    buffer: Buffer,
    shape: Shape,
}

/// A place for a cache that outlives the process.
pub(crate) trait LastingMemory {
    /// Makes `length` zero bytes, which take the place of what was there before at once, or when they are published.
    fn make(&self, length: usize) -> io::Result<Buffer>;

    /// What was made last is a cache now, and found by the next process. Half of one never is.
    fn publish(&self) -> io::Result<()> {
        Ok(())
    }

    /// Nothing there is of use any more.
    fn remove(&self);

    /// What tells the next cache from all others: random, and never given twice.
    fn new_token(&self) -> Option<Token> {
        None
    }
}

/// A slice that was dirty when its process ended.
#[derive(Debug)]
pub(crate) struct Survivor {
    pub class: Class,
    /// Where it belongs in the image file, in bytes.
    pub offset: u64,
    pub content: Vec<u8>,
}

impl Survivor {
    /// It belongs into the image, whose clusters end before `image_end`, and not over the header.
    pub(crate) fn check_within(&self, cluster_size: u64, image_end: u64) -> Result<(), Corruption> {
        let end = self.offset + self.content.len() as u64;
        if self.offset >= cluster_size && end <= image_end {
            return Ok(());
        }
        Err(Corruption {
            structure: "metadata cache",
            at: self.offset,
            found: end,
            expected: "a slice within the image",
        })
    }
}

/// Why memory that was found is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// It does not begin with a header, or the header is damaged.
    #[error("it is not a metadata cache, or its header is damaged")]
    Header,
    /// It belongs to another image, boot or user.
    #[error("it belongs to another image, boot or user")]
    Identity,
    /// The image file was longer when it was used.
    #[error("its image had at least {recorded} bytes, and this one has {found}")]
    Shorter {
        /// The length of the image file when it was opened, in bytes.
        recorded: u64,
        /// The length of the image file now, in bytes.
        found: u64,
    },
    /// An entry of its index is damaged.
    #[error("entry {0} of its index is damaged")]
    Index(usize),
}

impl CacheMemory {
    /// An empty cache in `buffer`, which is zeroed and as long as `shape` needs.
    pub(crate) fn format(buffer: Buffer, shape: Shape, identity: Identity) -> Self {
        assert!(buffer.len() >= shape.length());
        let header = encode_header(shape, identity);
        buffer.copy_from_slice(0, &header);
        Self { buffer, shape }
    }

    pub(crate) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    pub(crate) fn slice_size(&self) -> usize {
        self.shape.slice_size
    }

    pub(crate) fn slots(&self) -> usize {
        self.shape.slots
    }

    /// Which bytes of the buffer a slot is.
    pub(crate) fn content(&self, slot: usize) -> Range<usize> {
        self.shape.content(slot)
    }

    /// From now on the slot holds something that the image file does not. To be called before that is stored.
    pub(crate) fn announce_dirty(&self, slot: usize, offset: u64, class: Class) {
        let word = offset | (class as u64) << CLASS_SHIFT | DIRTY;
        let at = INDEX_AT + slot * INDEX_ENTRY;
        if planted(Bug::WordBeforeChecksum) {
            self.store(at, &word.to_ne_bytes());
        }
        // The checksum first: until the word itself is stored the slot counts as clean.
        self.store(at + 8, &checksum(&word.to_ne_bytes()).to_ne_bytes());
        self.store(at, &word.to_ne_bytes());
    }

    /// What the slot holds is in the image file, or no longer of interest.
    pub(crate) fn announce_clean(&self, slot: usize) {
        self.store(INDEX_AT + slot * INDEX_ENTRY, &0u64.to_ne_bytes());
    }

    /// Stores bytes, after all that was stored before and before all that will be. (x86 keeps stores in order; the
    /// compiler must be told.)
    pub(crate) fn store(&self, at: usize, bytes: &[u8]) {
        compiler_fence(Ordering::SeqCst);
        self.buffer.copy_from_slice(at, bytes);
        compiler_fence(Ordering::SeqCst);
        if cfg!(debug_assertions) {
            crate::simulation::memory::stored();
        }
    }
}

/// The dirty slices in memory that a process left behind.
pub(crate) fn survivors(bytes: &[u8], identity: Identity) -> Result<Vec<Survivor>, CacheError> {
    let shape = decode_header(bytes, identity)?;
    let mut survivors = Vec::new();
    for slot in 0..shape.slots {
        let at = INDEX_AT + slot * INDEX_ENTRY;
        let word = u64_at(bytes, at);
        if word & DIRTY == 0 {
            continue;
        }
        let class = [
            Class::RefcountBlock,
            Class::RefcountTable,
            Class::L2Table,
            Class::L1Table,
        ][((word >> CLASS_SHIFT) & CLASS_MASK) as usize];
        if u64_at(bytes, at + 8) != checksum(&word.to_ne_bytes()) || word & OFFSET_MASK == 0 {
            return Err(CacheError::Index(slot));
        }
        let content = bytes[shape.content(slot)].to_vec();
        survivors.push(Survivor {
            class,
            offset: word & OFFSET_MASK,
            content,
        });
    }
    survivors.sort_by_key(|survivor| survivor.offset);
    Ok(survivors)
}

fn encode_header(shape: Shape, identity: Identity) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend(identity.file.0.to_ne_bytes());
    header.extend(identity.file.1.to_ne_bytes());
    header.extend(identity.born.0.to_ne_bytes());
    header.extend(u64::from(identity.born.1).to_ne_bytes());
    header.extend(identity.boot);
    header.extend(u64::from(identity.user).to_ne_bytes());
    header.extend(u64::from(identity.token.is_some()).to_ne_bytes());
    header.extend(identity.token.unwrap_or_default());
    header.extend(identity.size.to_ne_bytes());
    header.extend((shape.slice_size as u64).to_ne_bytes());
    header.extend((shape.slots as u64).to_ne_bytes());
    header.extend(checksum(&header).to_ne_bytes());
    header
}

fn decode_header(bytes: &[u8], identity: Identity) -> Result<Shape, CacheError> {
    let length = encode_header(
        Shape {
            slice_size: 0,
            slots: 0,
        },
        identity,
    )
    .len();
    if bytes.len() < PAGE || bytes[..16] != MAGIC {
        return Err(CacheError::Header);
    }
    if u64_at(bytes, length - 8) != checksum(&bytes[..length - 8]) {
        return Err(CacheError::Header);
    }
    let (slice_size, slots) = (u64_at(bytes, length - 24) as usize, u64_at(bytes, length - 16) as usize);
    // The checksum is no protection against malice; these are.
    if !(512..=MAX_SLICE_SIZE).contains(&slice_size) {
        return Err(CacheError::Header);
    }
    let slots_fit = slots
        .checked_mul(INDEX_ENTRY + slice_size)
        .is_some_and(|length| length < bytes.len());
    let shape = Shape { slice_size, slots };
    if !slots_fit || shape.length() > bytes.len() {
        return Err(CacheError::Header);
    }
    let recorded = Identity {
        size: u64_at(bytes, length - 32),
        ..identity
    };
    if bytes[..length] != encode_header(shape, recorded)[..] {
        return Err(CacheError::Identity);
    }
    if identity.size < recorded.size {
        return Err(CacheError::Shorter {
            recorded: recorded.size,
            found: identity.size,
        });
    }
    Ok(shape)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

/// FNV-1a: against accidents, not against attackers.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            file: (1, 2),
            born: (5, 6),
            boot: [3; 16],
            user: 4,
            size: 7,
            token: Some([8; 16]),
        }
    }

    fn memory() -> CacheMemory {
        let shape = Shape::new(0, 65536);
        CacheMemory::format(Buffer::zeroed(shape.length()), shape, identity())
    }

    #[test]
    fn what_was_announced_and_not_written_back_survives() {
        let memory = memory();
        for (slot, offset) in [(3, 0x7_0000), (1, 0x5_0000), (2, 0x6_0000)] {
            memory.announce_dirty(slot, offset, Class::L2Table);
            memory.store(memory.content(slot).start, &[slot as u8; 8]);
        }
        memory.announce_clean(2);
        let found = survivors(&memory.buffer().to_vec(), identity()).expect("intact");
        let found: Vec<_> = found
            .iter()
            .map(|slice| (slice.class, slice.offset, slice.content[0]))
            .collect();
        assert_eq!(found, [(Class::L2Table, 0x5_0000, 1), (Class::L2Table, 0x7_0000, 3)]);
    }

    #[test]
    fn memory_of_another_image_boot_or_user_is_refused() {
        let bytes = memory().buffer().to_vec();
        for other in [
            Identity {
                file: (1, 3),
                ..identity()
            },
            Identity {
                born: (5, 7),
                ..identity()
            },
            Identity {
                boot: [4; 16],
                ..identity()
            },
            Identity { user: 0, ..identity() },
            Identity {
                token: Some([9; 16]),
                ..identity()
            },
            Identity {
                token: None,
                ..identity()
            },
        ] {
            assert_eq!(survivors(&bytes, other).err(), Some(CacheError::Identity));
        }
    }

    #[test]
    fn an_image_may_have_grown_and_not_shrunk() {
        let bytes = memory().buffer().to_vec();
        let sized = |size| survivors(&bytes, Identity { size, ..identity() }).err();
        assert_eq!(sized(8), None);
        assert_eq!(sized(6), Some(CacheError::Shorter { recorded: 7, found: 6 }));
    }

    #[test]
    fn a_geometry_that_overflows_is_refused() {
        for (slice_size, slots) in [
            (usize::MAX, 1),
            (0, usize::MAX),
            (512, usize::MAX),
            (4096, usize::MAX / 4096),
        ] {
            let mut bytes = encode_header(Shape { slice_size, slots }, identity());
            bytes.resize(2 * PAGE, 0);
            assert_eq!(survivors(&bytes, identity()).err(), Some(CacheError::Header));
        }
    }

    #[test]
    fn damage_is_noticed() {
        let memory = memory();
        memory.announce_dirty(0, 0x5_0000, Class::L1Table);
        let bytes = memory.buffer().to_vec();
        let damaged = |at: usize| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            survivors(&bytes, identity()).err()
        };
        assert_eq!(damaged(0), Some(CacheError::Header));
        assert_eq!(damaged(60), Some(CacheError::Header));
        assert_eq!(damaged(INDEX_AT + 2), Some(CacheError::Index(0)));
        assert_eq!(survivors(&bytes[..100], identity()).err(), Some(CacheError::Header));
    }
}
