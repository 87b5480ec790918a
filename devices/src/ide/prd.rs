//! Physical region descriptors: where in guest memory a bus-master transfer goes (Programming Interface for Bus Master
//! IDE Controller 1.0, 1.2).

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of one descriptor: a 32-bit address, a 16-bit count, a 16-bit field with the end-of-table bit.
const DESCRIPTOR_BYTES: usize = 8;
/// A table does not cross a 64 KiB boundary, which bounds it to 8192 descriptors.
const BOUNDARY: u64 = 64 << 10;
/// Flag in the last descriptor.
const END_OF_TABLE: u16 = 1 << 15;
/// Descriptors read at once.
const BATCH: usize = 64;

/// The part of a table that one transfer uses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Regions {
    /// Guest-physical address and length in bytes, in transfer order, of at most the bytes asked for.
    pub ranges: Vec<(GuestAddress, usize)>,
    /// Sum of the lengths.
    pub length: usize,
    /// Whether the transfer uses the table up: it describes no more than was asked for.
    pub exhausted: bool,
}

/// A table that a controller cannot use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PrdError {
    /// The descriptor is not in guest memory.
    #[error("The PRD at guest address {0:#x} is not in guest memory")]
    NotMemory(u64),
    /// No end-of-table flag before the boundary.
    #[error("The PRD table at guest address {0:#x} has no end within its 64 KiB")]
    NoEnd(u64),
}

/// Reads the table at `table` as far as `wanted` bytes need it. The odd bits of addresses and counts do not exist in
/// the hardware's registers and are ignored; a count of 0 is 64 KiB.
pub(super) fn read(memory: &GuestMemoryMmap, table: u32, wanted: usize) -> Result<Regions, PrdError> {
    let start = u64::from(table & !3);
    let boundary = (start | (BOUNDARY - 1)) + 1;
    let mut regions = Regions {
        ranges: Vec::new(),
        length: 0,
        exhausted: false,
    };
    let mut at = start;
    while at + DESCRIPTOR_BYTES as u64 <= boundary {
        let batch = BATCH.min((boundary - at) as usize / DESCRIPTOR_BYTES);
        let mut bytes = [0; BATCH * DESCRIPTOR_BYTES];
        let bytes = &mut bytes[..batch * DESCRIPTOR_BYTES];
        // The last descriptors before the end of memory may come in a shorter read.
        let available = memory.read(bytes, GuestAddress(at)).unwrap_or(0);
        for descriptor in bytes[..available].chunks_exact(DESCRIPTOR_BYTES) {
            if regions.push(descriptor, wanted) {
                return Ok(regions);
            }
        }
        let complete = available / DESCRIPTOR_BYTES * DESCRIPTOR_BYTES;
        at += complete as u64;
        if complete < bytes.len() {
            return Err(PrdError::NotMemory(at));
        }
    }
    Err(PrdError::NoEnd(start))
}

impl Regions {
    /// Adds a descriptor. Returns true when the transfer needs no more of the table.
    fn push(&mut self, descriptor: &[u8], wanted: usize) -> bool {
        let field = |at: usize| u16::from_le_bytes([descriptor[at], descriptor[at + 1]]);
        let address = u64::from(field(0) & !1) | u64::from(field(2)) << 16;
        let count = match usize::from(field(4) & !1) {
            0 => 64 << 10,
            count => count,
        };
        let last = field(6) & END_OF_TABLE != 0;
        let used = count.min(wanted - self.length);
        if used > 0 {
            self.ranges.push((GuestAddress(address), used));
            self.length += used;
        }
        self.exhausted = last && used == count;
        last || self.length == wanted
    }

    /// Shortens the regions to their first `length` bytes.
    pub(super) fn truncate(&mut self, length: usize) {
        let mut excess = self.length.saturating_sub(length);
        self.length -= excess;
        while let Some((_, last)) = self.ranges.last_mut().filter(|_| excess > 0) {
            let cut = excess.min(*last);
            *last -= cut;
            excess -= cut;
            if *last == 0 {
                self.ranges.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(table: u64, descriptors: &[(u32, u16, u16)]) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20000)]).expect("anonymous memory");
        for (at, (address, count, flags)) in (table..).step_by(8).zip(descriptors) {
            memory.write_obj(*address, GuestAddress(at)).expect("in memory");
            memory.write_obj(*count, GuestAddress(at + 4)).expect("in memory");
            memory.write_obj(*flags, GuestAddress(at + 6)).expect("in memory");
        }
        memory
    }

    fn ranges(regions: &Regions) -> Vec<(u64, usize)> {
        regions
            .ranges
            .iter()
            .map(|(address, length)| (address.0, *length))
            .collect()
    }

    #[test]
    fn an_exact_table_is_used_up() {
        let memory = memory(0x1000, &[(0x2000, 0x200, 0), (0x4000, 0x200, END_OF_TABLE)]);
        let regions = read(&memory, 0x1000, 0x400).expect("a good table");
        assert_eq!(ranges(&regions), [(0x2000, 0x200), (0x4000, 0x200)]);
        assert!(regions.exhausted);
    }

    #[test]
    fn a_long_table_is_not_used_up_and_what_follows_is_not_looked_at() {
        let memory = memory(0x1000, &[(0x2000, 0x300, 0), (0x4000, 0x200, END_OF_TABLE)]);
        let regions = read(&memory, 0x1000, 0x400).expect("a good table");
        assert_eq!(ranges(&regions), [(0x2000, 0x300), (0x4000, 0x100)]);
        assert!(!regions.exhausted);
        // Exactly used, but another descriptor follows.
        let regions = read(&memory, 0x1000, 0x300).expect("a good table");
        assert_eq!(regions.length, 0x300);
        assert!(!regions.exhausted);
    }

    #[test]
    fn a_short_table_gives_what_it_has() {
        let memory = memory(0x1000, &[(0x2000, 0x200, END_OF_TABLE)]);
        let regions = read(&memory, 0x1000, 0x400).expect("a good table");
        assert_eq!(regions.length, 0x200);
        assert!(regions.exhausted);
    }

    #[test]
    fn a_count_of_zero_is_64_kib_and_odd_bits_are_ignored() {
        let memory = memory(0x1000, &[(0x2001, 0, 0), (0x3001, 0x201, END_OF_TABLE)]);
        let regions = read(&memory, 0x1003, 0x10200).expect("a good table");
        assert_eq!(ranges(&regions), [(0x2000, 0x10000), (0x3000, 0x200)]);
    }

    #[test]
    fn a_table_beyond_memory_is_refused_by_address() {
        let memory = memory(0x1fff4, &[(0x2000, 0x200, 0)]);
        // 0x20000 is both the end of memory and the table's boundary: the second descriptor is cut by it.
        assert_eq!(read(&memory, 0x1fff4, 0x400), Err(PrdError::NoEnd(0x1fff4)));
        assert_eq!(read(&memory, 0x8000_0000, 0x400), Err(PrdError::NotMemory(0x8000_0000)));
    }

    #[test]
    fn a_table_without_end_stops_at_its_64_kib() {
        let endless = vec![(0x2000, 2, 0); 8192];
        let memory = memory(0x10000, &endless);
        assert_eq!(read(&memory, 0x10000, 1 << 20), Err(PrdError::NoEnd(0x10000)));
    }

    #[test]
    fn truncation_drops_whole_regions_and_parts() {
        let memory = memory(
            0x1000,
            &[(0x2000, 0x200, 0), (0x4000, 0x200, 0), (0x6000, 0x200, END_OF_TABLE)],
        );
        let mut regions = read(&memory, 0x1000, 0x600).expect("a good table");
        regions.truncate(0x300);
        assert_eq!(ranges(&regions), [(0x2000, 0x200), (0x4000, 0x100)]);
        assert_eq!(regions.length, 0x300);
    }
}
