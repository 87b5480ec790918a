//! The memory that a request reads into or writes from.
#![expect(
    unsafe_code,
    reason = "the bytes belong to a guest or to the kernel while a request runs"
)]

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use smallvec::SmallVec;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// A scatter-gather list of bytes: guest memory in place, or memory of our own.
///
/// Clones share the bytes. The bytes may change under us at any time (a guest may write to them while the
/// kernel reads), so they are only ever copied in or out, never borrowed.
#[derive(Clone)]
pub struct Buffer {
    inner: Arc<Inner>,
}

struct Inner {
    segments: SmallVec<[Segment; 4]>,
    length: usize,
    /// Keeps the memory behind `segments` alive.
    _owner: Owner,
}

enum Owner {
    Guest { _memory: GuestMemoryMmap },
    Own { _bytes: Box<[u64]> },
    Mapped { _mapping: Mapping },
    Part { _whole: Buffer },
}

/// A shared mapping of a whole file.
struct Mapping {
    start: *mut u8,
    length: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `Buffer::map_shared` with this length, and nobody has the buffer any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.cast(), self.length) } {
            tracing::error!(%error, "a mapping could not be given back");
        }
    }
}

/// A run of contiguous bytes in this process's address space.
#[derive(Clone, Copy)]
struct Segment {
    start: *mut u8,
    length: usize,
}

// SAFETY: the segments point into memory that `_owner` keeps alive, and nobody forms a reference to it:
// all access is by raw copies, or by the kernel.
unsafe impl Send for Inner {}
// SAFETY: as above; concurrent copies are what a disk controller's DMA does to guest memory, too.
unsafe impl Sync for Inner {}

/// A range of guest-physical addresses that is not backed by guest memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{length} bytes at guest address {address:#x} are not guest memory")]
pub struct BufferError {
    /// First guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: usize,
}

impl Buffer {
    /// Names ranges of guest memory, each a guest-physical address and a length in bytes, in transfer order.
    pub fn from_guest(
        memory: &GuestMemoryMmap,
        ranges: impl IntoIterator<Item = (GuestAddress, usize)>,
    ) -> Result<Self, BufferError> {
        let mut segments: SmallVec<[Segment; 4]> = SmallVec::new();
        let mut total = 0;
        for (address, length) in ranges {
            let outside = || BufferError {
                address: address.0,
                length,
            };
            if length == 0 {
                continue;
            }
            for slice in GuestMemoryBackend::get_slices(memory, address, length) {
                let slice = slice.map_err(|_| outside())?;
                let start = slice.ptr_guard_mut().as_ptr();
                match segments.last_mut() {
                    // Neighbours travel as one segment.
                    Some(last) if last.start.wrapping_add(last.length) == start => last.length += slice.len(),
                    _ => segments.push(Segment {
                        start,
                        length: slice.len(),
                    }),
                }
                total += slice.len();
            }
        }
        let owner = Owner::Guest {
            _memory: memory.clone(),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                segments,
                length: total,
                _owner: owner,
            }),
        })
    }

    /// Memory of our own: `length` zero bytes.
    pub fn zeroed(length: usize) -> Self {
        let mut bytes = vec![0u64; length.div_ceil(8)].into_boxed_slice();
        let start = bytes.as_mut_ptr().cast::<u8>();
        let segments = if length == 0 {
            SmallVec::new()
        } else {
            SmallVec::from_slice(&[Segment { start, length }])
        };
        Self {
            inner: Arc::new(Inner {
                segments,
                length,
                _owner: Owner::Own { _bytes: bytes },
            }),
        }
    }

    /// Memory of our own: `length` zero bytes that begin at a multiple of `alignment`, a power of two.
    pub(crate) fn zeroed_aligned(length: usize, alignment: usize) -> Self {
        let whole = Self::zeroed(length + alignment);
        let start = whole
            .inner
            .segments
            .first()
            .map_or(0, |segment| segment.start.align_offset(alignment));
        let Some(first) = whole.segments(start..start + length).next() else {
            return whole;
        };
        let owner = Owner::Part { _whole: whole };
        Self {
            inner: Arc::new(Inner {
                segments: SmallVec::from_slice(&[first]),
                length,
                _owner: owner,
            }),
        }
    }

    /// Whether each segment of the range begins and ends at a multiple of `alignment`.
    pub(crate) fn is_aligned(&self, range: Range<usize>, alignment: usize) -> bool {
        self.segments(range)
            .all(|segment| segment.start.addr().is_multiple_of(alignment) && segment.length.is_multiple_of(alignment))
    }

    /// Whether all bytes are zero now.
    pub(crate) fn is_zero(&self) -> bool {
        let mut bytes = [0; 4096];
        (0..self.len()).step_by(bytes.len()).all(|at| {
            let part = &mut bytes[..(self.len() - at).min(4096)];
            self.copy_to_slice(at, part);
            part.iter().all(|byte| *byte == 0)
        })
    }

    /// The first `length` bytes of `file`, shared with it: what is stored here survives this process. The file must not
    /// shrink, and its pages must be reserved, else a store is a SIGBUS.
    pub(crate) fn map_shared(file: &std::fs::File, length: usize) -> std::io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags};
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses overlaps nothing.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, file, 0) }?.cast();
        let owner = Owner::Mapped {
            _mapping: Mapping { start, length },
        };
        let segments = SmallVec::from_slice(&[Segment { start, length }]);
        Ok(Self {
            inner: Arc::new(Inner {
                segments,
                length,
                _owner: owner,
            }),
        })
    }

    /// Some of the bytes, shared with this buffer.
    ///
    /// # Panics
    /// If the range ends beyond the buffer.
    pub fn part(&self, range: Range<usize>) -> Self {
        let length = range.len();
        let segments = self.segments(range).collect();
        let owner = Owner::Part { _whole: self.clone() };
        Self {
            inner: Arc::new(Inner {
                segments,
                length,
                _owner: owner,
            }),
        }
    }

    /// Memory of our own with a copy of `bytes`.
    pub fn from_slice(bytes: &[u8]) -> Self {
        let buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(0, bytes);
        buffer
    }

    /// Memory of our own with a copy of a range of this buffer.
    ///
    /// # Panics
    /// If the range ends beyond the buffer.
    pub(crate) fn duplicate(&self, range: Range<usize>) -> Self {
        let copy = Self::zeroed(range.len());
        let mut at = 0;
        for segment in self.segments(range) {
            // SAFETY: both lie within memory that its owner keeps alive, and the copy's is new, so they do not overlap.
            unsafe {
                let target = copy.inner.segments[0].start.add(at);
                std::ptr::copy_nonoverlapping(segment.start, target, segment.length);
            }
            at += segment.length;
        }
        copy
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.inner.length
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.inner.length == 0
    }

    /// Copies `source` into the buffer from byte `at` on.
    ///
    /// # Panics
    /// If that ends beyond the buffer.
    pub fn copy_from_slice(&self, at: usize, mut source: &[u8]) {
        for segment in self.segments(at..at + source.len()) {
            let (head, tail) = source.split_at(segment.length);
            // SAFETY: `segment` lies within memory kept alive by the owner and is as long as `head`;
            // `head` is a plain slice, which cannot overlap memory that is never borrowed.
            unsafe { std::ptr::copy_nonoverlapping(head.as_ptr(), segment.start, head.len()) };
            source = tail;
        }
    }

    /// Copies bytes of the buffer from byte `at` on into `target`.
    ///
    /// # Panics
    /// If that ends beyond the buffer.
    pub fn copy_to_slice(&self, at: usize, mut target: &mut [u8]) {
        for segment in self.segments(at..at + target.len()) {
            let (head, tail) = target.split_at_mut(segment.length);
            // SAFETY: as in `copy_from_slice`, the other way round.
            unsafe { std::ptr::copy_nonoverlapping(segment.start, head.as_mut_ptr(), head.len()) };
            target = tail;
        }
    }

    /// Sets a range of the buffer to zero.
    ///
    /// # Panics
    /// If the range ends beyond the buffer.
    pub fn zero(&self, range: Range<usize>) {
        for segment in self.segments(range) {
            // SAFETY: `segment` lies within memory kept alive by the owner.
            unsafe { std::ptr::write_bytes(segment.start, 0, segment.length) };
        }
    }

    /// All bytes, copied out.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to_slice(0, &mut bytes);
        bytes
    }

    /// The memory of a range, for the kernel. The caller keeps the buffer until the kernel is done with it.
    pub(crate) fn iovecs(&self, range: Range<usize>) -> impl Iterator<Item = libc::iovec> + '_ {
        self.segments(range).map(|segment| libc::iovec {
            iov_base: segment.start.cast(),
            iov_len: segment.length,
        })
    }

    fn segments(&self, range: Range<usize>) -> impl Iterator<Item = Segment> + '_ {
        assert!(
            range.start <= range.end && range.end <= self.len(),
            "{range:?} of a buffer of {} bytes",
            self.len()
        );
        let mut position = 0;
        self.inner.segments.iter().filter_map(move |segment| {
            let start = range.start.clamp(position, position + segment.length);
            let end = range.end.clamp(position, position + segment.length);
            let within = start - position;
            position += segment.length;
            (start < end).then(|| Segment {
                start: segment.start.wrapping_add(within),
                length: end - start,
            })
        })
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Buffer({} bytes in {} segments)",
            self.len(),
            self.inner.segments.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ranges_are_written_in_place_and_in_order() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000), (GuestAddress(0x10000), 0x1000)])
            .expect("anonymous memory");
        let buffer =
            Buffer::from_guest(&memory, [(GuestAddress(0x1ffe), 2), (GuestAddress(0x10000), 3)]).expect("memory");
        buffer.copy_from_slice(0, &[1, 2, 3, 4, 5]);
        let mut found = [0; 3];
        vm_memory::Bytes::read_slice(&memory, &mut found, GuestAddress(0x10000)).expect("in memory");
        assert_eq!(found, [3, 4, 5]);
        buffer.zero(1..4);
        assert_eq!(buffer.to_vec(), [1, 0, 0, 0, 5]);
    }

    #[test]
    fn a_part_shares_its_bytes_with_the_whole() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).expect("anonymous memory");
        let whole = Buffer::from_guest(&memory, [(GuestAddress(0x100), 4), (GuestAddress(0x200), 4)]).expect("memory");
        let part = whole.part(2..7);
        assert_eq!(part.len(), 5);
        part.copy_from_slice(0, &[1, 2, 3, 4, 5]);
        assert_eq!(whole.to_vec(), [0, 0, 1, 2, 3, 4, 5, 0]);
        assert!(whole.part(3..3).is_empty());
    }

    #[test]
    fn a_range_outside_guest_memory_is_refused_by_address() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).expect("anonymous memory");
        let error = Buffer::from_guest(&memory, [(GuestAddress(0x1f00), 0x200)]).expect_err("ends beyond memory");
        assert_eq!(
            error,
            BufferError {
                address: 0x1f00,
                length: 0x200
            }
        );
    }
}
