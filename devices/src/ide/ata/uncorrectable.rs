//! Sectors that cannot be read: because WRITE UNCORRECTABLE EXT says so (ATA8-ACS, 7.75), or because the host could not read
//! them when the guest last tried.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::transfer::Addressing;
use super::{Drive, Failure, Step};
use crate::ide::registers::Error;

/// Ranges that WRITE UNCORRECTABLE can leave behind. A guest that makes more of them is told that it cannot.
const MOST_RANGES: usize = 4096;
/// Host errors that are remembered.
const MOST_PENDING: usize = 1024;

/// Features register: errors that look like any other, and errors that a drive flags in its own records.
const PSEUDO: u8 = 0x55;
const FLAGGED: u8 = 0xaa;

/// A range that was made uncorrectable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marked {
    /// The sector after the last.
    pub end: u64,
    /// Reading it is not worth an entry in the error log.
    pub flagged: bool,
}

/// The sectors that cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Uncorrectable {
    /// By first sector; they do not overlap.
    marked: BTreeMap<u64, Marked>,
    /// Sectors that the host failed to read.
    pending: BTreeSet<u64>,
}

impl Uncorrectable {
    /// The range that holds this sector.
    fn holding(&self, lba: u64) -> Option<Marked> {
        let (_, marked) = self.marked.range(..=lba).next_back()?;
        (marked.end > lba).then_some(*marked)
    }

    /// Whether a read error of this sector is kept out of the error log.
    pub(super) fn is_flagged(&self, lba: u64) -> bool {
        self.holding(lba).is_some_and(|marked| marked.flagged)
    }

    /// How many of the `sectors` sectors from `lba` on come before the first that was made uncorrectable.
    pub(super) fn good_sectors(&self, lba: u64, sectors: u32) -> u32 {
        if self.marked.is_empty() {
            return sectors;
        }
        if self.holding(lba).is_some() {
            return 0;
        }
        let next = self.marked.range(lba..).next().map(|(first, _)| first - lba);
        next.map_or(sectors, |good| good.min(u64::from(sectors)) as u32)
    }

    /// The first sector from `lba` on that cannot be read, whatever the reason.
    pub(super) fn first_from(&self, lba: u64) -> Option<u64> {
        let marked = self
            .holding(lba)
            .map(|_| lba)
            .or_else(|| self.marked.range(lba..).next().map(|(first, _)| *first));
        let pending = self.pending.range(lba..).next().copied();
        marked.into_iter().chain(pending).min()
    }

    /// How many sectors cannot be read.
    pub(super) fn count(&self) -> u64 {
        let marked: u64 = self.marked.iter().map(|(first, marked)| marked.end - first).sum();
        let others = self.pending.iter().filter(|lba| self.holding(**lba).is_none()).count();
        marked + others as u64
    }

    /// The host could not read a sector.
    pub(super) fn note_pending(&mut self, lba: u64) {
        if self.pending.len() < MOST_PENDING {
            self.pending.insert(lba);
        }
    }

    /// Makes sectors uncorrectable. `None` if that makes too many ranges.
    fn mark(&mut self, lba: u64, sectors: u64, flagged: bool) -> Option<()> {
        // Splitting a range makes one more.
        if self.marked.len() + 2 > MOST_RANGES {
            return None;
        }
        self.mend(lba, sectors);
        let mut first = lba;
        let mut end = lba + sectors;
        // Neighbours of the same kind are one range.
        if let Some((before, marked)) = self
            .marked
            .range(..lba)
            .next_back()
            .map(|(first, marked)| (*first, *marked))
            && marked.end == lba
            && marked.flagged == flagged
        {
            first = before;
        }
        if let Some(after) = self.marked.get(&end).copied().filter(|after| after.flagged == flagged) {
            self.marked.remove(&end);
            end = after.end;
        }
        self.marked.insert(first, Marked { end, flagged });
        Some(())
    }

    /// Sectors were written: they can be read again. Returns whether one of them could not.
    pub(super) fn mend(&mut self, lba: u64, sectors: u64) -> bool {
        if self.marked.is_empty() && self.pending.is_empty() {
            return false;
        }
        let end = lba.saturating_add(sectors);
        let touched: Vec<(u64, Marked)> = self
            .marked
            .range(..end)
            .rev()
            .take_while(|(_, marked)| marked.end > lba)
            .map(|(first, marked)| (*first, *marked))
            .collect();
        for (first, marked) in &touched {
            self.marked.remove(first);
            if *first < lba {
                self.marked.insert(*first, Marked { end: lba, ..*marked });
            }
            if marked.end > end {
                self.marked.insert(end, *marked);
            }
        }
        let pending: Vec<u64> = self.pending.range(lba..end).copied().collect();
        for sector in &pending {
            self.pending.remove(sector);
        }
        !touched.is_empty() || !pending.is_empty()
    }

    /// Whether the ranges are what [`Uncorrectable::mark`] makes.
    pub(super) fn is_sound(&self) -> bool {
        let mut before = 0;
        self.marked.len() <= MOST_RANGES
            && self.pending.len() <= MOST_PENDING
            && self.marked.iter().all(|(first, marked)| {
                let sound = *first >= before && marked.end > *first;
                before = marked.end;
                sound
            })
    }
}

impl Drive {
    /// WRITE UNCORRECTABLE EXT.
    pub(super) fn write_uncorrectable(&mut self) -> Result<Step, Failure> {
        let flagged = match self.registers.features.current {
            PSEUDO => false,
            FLAGGED => true,
            _ => return Err(Failure::ABORTED),
        };
        if self.setup.disk.read_only() {
            return Err(Failure::ABORTED);
        }
        let lba = self.registers.lba48();
        let sectors = match self.registers.count.wide() {
            0 => 65_536,
            count => u64::from(count),
        };
        if lba + sectors > self.capacity() {
            return Err(Failure::at(Error::IDNF, lba.max(self.capacity()), Addressing::Lba48));
        }
        self.kept
            .uncorrectable
            .mark(lba, sectors, flagged)
            .ok_or(Failure::ABORTED)?;
        self.changed = true;
        self.power.wake(self.powered_for());
        Ok(self.complete())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Against a map of every sector.
    #[test]
    fn ranges_split_and_join_as_single_sectors_would() {
        let mut state = 12345u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut ranges = Uncorrectable::default();
        let mut model: HashMap<u64, bool> = HashMap::new();
        for _ in 0..3000 {
            let (lba, sectors) = (random(60), 1 + random(12));
            let what = random(3);
            if what == 0 {
                ranges.mend(lba, sectors);
                model.retain(|at, _| !(lba..lba + sectors).contains(at));
            } else {
                ranges.mark(lba, sectors, what == 1).expect("few ranges");
                model.extend((lba..lba + sectors).map(|at| (at, what == 1)));
            }
            assert!(ranges.is_sound());
            assert_eq!(ranges.count(), model.len() as u64);
            for lba in 0..80 {
                assert_eq!(ranges.is_flagged(lba), model.get(&lba) == Some(&true));
                let good = (lba..lba + 20).take_while(|lba| !model.contains_key(lba)).count();
                assert_eq!(ranges.good_sectors(lba, 20), good as u32, "from {lba}");
            }
        }
    }

    #[test]
    fn ranges_are_bounded() {
        let mut ranges = Uncorrectable::default();
        let marked = (0..100_000)
            .take_while(|at| ranges.mark(at * 2, 1, false).is_some())
            .count();
        assert!(marked <= MOST_RANGES);
        assert!(ranges.is_sound());
    }
}
