//! DATA SET MANAGEMENT with TRIM (ATA8-ACS-2, 7.10).

use std::collections::VecDeque;

use disk::SECTOR_SIZE;

use super::phase::Dma;
use super::transfer::Addressing;
use super::work::Work;
use super::{Drive, Failure, SECTOR, Step};
use crate::ide::registers::Error;

/// The most 512-byte blocks of ranges that a command may have (IDENTIFY word 105).
pub(super) const MOST_BLOCKS: u16 = 8;

/// The most ranges in them.
pub(super) const MOST_RANGES: usize = MOST_BLOCKS as usize * SECTOR / 8;

/// Features register: TRIM, the only function.
const TRIM: u8 = 1 << 0;

impl Drive {
    pub(super) fn start_trim(&mut self) -> Result<Step, Failure> {
        let blocks = self.registers.count.wide();
        let trim = self.registers.features.current == TRIM;
        if !trim || self.setup.disk.read_only() || blocks == 0 || blocks > MOST_BLOCKS {
            return Err(Failure::ABORTED);
        }
        self.power.wake(self.powered_for());
        Ok(self.wait_for_bus_master(Dma::Trim {
            bytes: usize::from(blocks) * SECTOR,
        }))
    }

    /// The ranges have arrived. If one of them leads beyond the disk, none is discarded.
    pub(super) fn took_trim_ranges(&mut self, payload: &[u8]) -> Step {
        match ranges(payload, self.capacity()) {
            Ok(ranges) => self.discard_next(ranges),
            Err(lba) => self.fail(&Failure::at(Error::IDNF, lba, Addressing::Lba48)),
        }
    }

    /// Discards range after range, then completes.
    pub(super) fn discard_next(&mut self, ranges: VecDeque<(u64, u64)>) -> Step {
        if ranges.is_empty() {
            return self.complete();
        }
        self.statistics.discards += 1;
        self.ask(Work::Trim { ranges })
    }
}

/// The ranges of a payload, in bytes, neighbours joined. Fails with the first address beyond `capacity` sectors.
fn ranges(payload: &[u8], capacity: u64) -> Result<VecDeque<(u64, u64)>, u64> {
    let mut ranges: VecDeque<(u64, u64)> = VecDeque::new();
    for entry in payload.as_chunks::<8>().0 {
        let entry = u64::from_le_bytes(*entry);
        let (lba, sectors) = (entry & 0xffff_ffff_ffff, entry >> 48);
        if sectors == 0 {
            continue;
        }
        if lba + sectors > capacity {
            return Err(lba.max(capacity));
        }
        let (offset, length) = (lba * SECTOR_SIZE, sectors * SECTOR_SIZE);
        match ranges.back_mut() {
            Some((last, joined)) if *last + *joined == offset => *joined += length,
            _ => ranges.push_back((offset, length)),
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(entries: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes: Vec<u8> = entries
            .iter()
            .flat_map(|(lba, sectors)| (lba | sectors << 48).to_le_bytes())
            .collect();
        bytes.resize(SECTOR, 0);
        bytes
    }

    #[test]
    fn neighbours_are_joined_and_empty_entries_skipped() {
        let found = ranges(&payload(&[(8, 8), (16, 4), (0, 0), (100, 1)]), 1000);
        assert_eq!(found, Ok(VecDeque::from([(8 * 512, 12 * 512), (100 * 512, 512)])));
    }

    #[test]
    fn a_range_beyond_the_disk_is_named() {
        assert_eq!(ranges(&payload(&[(8, 8), (998, 4)]), 1000), Err(1000));
        assert_eq!(
            ranges(&payload(&[(0xffff_ffff_ffff, 0xffff)]), 1000),
            Err(0xffff_ffff_ffff)
        );
    }
}
