//! A count for each cluster of an image, in a byte where that suffices.

use std::collections::HashMap;

use crate::DiskError;

/// Clusters whose counts lie together.
const PAGE: u64 = 4096;

/// What all counts of an image may take up, in bytes: enough for 8 TiB of clusters of 64 KiB. An image that needs more is refused,
/// whether it is that large or only says so.
const MAX_BYTES: u64 = 160 << 20;

/// What a large count takes up, about.
const LARGE_BYTES: u64 = 48;

/// In a byte: the count is among the large ones.
const LARGE: u8 = u8::MAX;

/// A count for each cluster; 0 at first.
#[derive(Default)]
pub(super) struct Counts {
    pages: Vec<Option<Box<[u8; PAGE as usize]>>>,
    large: HashMap<u64, u64>,
    bytes: u64,
}

impl Counts {
    pub(super) fn get(&self, cluster: u64) -> u64 {
        let page = self.pages.get((cluster / PAGE) as usize);
        match page.and_then(|page| page.as_deref()) {
            None => 0,
            Some(page) => match page[(cluster % PAGE) as usize] {
                LARGE => self.large.get(&cluster).copied().unwrap_or(u64::from(LARGE)),
                small => u64::from(small),
            },
        }
    }

    /// Adds `weight` to the count of one cluster.
    pub(super) fn add(&mut self, cluster: u64, weight: u64) -> Result<(), DiskError> {
        let entry = self.entry(cluster)?;
        let sum = u64::from(*entry).saturating_add(weight);
        if sum < u64::from(LARGE) {
            *entry = sum as u8;
            return Ok(());
        }
        let sum = if *entry == LARGE {
            self.large.get(&cluster).copied().unwrap_or(0).saturating_add(weight)
        } else {
            *entry = LARGE;
            self.take(LARGE_BYTES)?;
            sum
        };
        self.large.insert(cluster, sum);
        Ok(())
    }

    fn entry(&mut self, cluster: u64) -> Result<&mut u8, DiskError> {
        let index = (cluster / PAGE) as usize;
        if index >= self.pages.len() {
            self.take((index + 1 - self.pages.len()) as u64 * 8)?;
            self.pages.resize_with(index + 1, || None);
        }
        if self.pages[index].is_none() {
            self.take(PAGE)?;
        }
        let page = self.pages[index].get_or_insert_with(|| Box::new([0; PAGE as usize]));
        Ok(&mut page[(cluster % PAGE) as usize])
    }

    fn take(&mut self, bytes: u64) -> Result<(), DiskError> {
        self.bytes += bytes;
        if self.bytes > MAX_BYTES {
            return Err(DiskError::Unsupported(
                "counting the references to so many clusters, which would need more than 160 MiB of memory",
            ));
        }
        Ok(())
    }

    /// The clusters with a count, in order, and their counts.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.range(0..self.end())
    }

    /// Those within `clusters`.
    pub(super) fn range(&self, clusters: std::ops::Range<u64>) -> impl Iterator<Item = (u64, u64)> + '_ {
        let pages = clusters.start / PAGE..clusters.end.div_ceil(PAGE).min(self.pages.len() as u64);
        pages
            .filter(|page| self.pages[*page as usize].is_some())
            .flat_map(|page| page * PAGE..(page + 1) * PAGE)
            .filter(move |cluster| clusters.contains(cluster))
            .map(|cluster| (cluster, self.get(cluster)))
            .filter(|(_, count)| *count != 0)
    }

    /// No cluster from here on has a count.
    fn end(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// The last cluster with a count.
    pub(super) fn last(&self) -> Option<u64> {
        let pages = self.pages.iter().enumerate().rev();
        pages
            .filter_map(|(index, page)| {
                let within = page.as_deref()?.iter().rposition(|count| *count != 0)?;
                Some(index as u64 * PAGE + within as u64)
            })
            .next()
    }

    /// Sets the counts of the clusters from `first` on, which have none yet, to 16-bit numbers in big-endian order.
    pub(super) fn fill_16(&mut self, first: u64, numbers: &[u8]) -> Result<(), DiskError> {
        let per_page = PAGE as usize * 2;
        if !first.is_multiple_of(PAGE) || numbers.len() < per_page {
            return self.fill(
                first,
                numbers
                    .chunks_exact(2)
                    .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1])),
            );
        }
        for (index, part) in numbers.chunks(per_page).enumerate() {
            let start = first + index as u64 * PAGE;
            if part.iter().all(|byte| *byte == 0) {
                continue;
            }
            self.entry(start)?;
            let mut large = false;
            if let Some(page) = &mut self.pages[(start / PAGE) as usize] {
                for (count, pair) in page.iter_mut().zip(part.chunks_exact(2)) {
                    *count = if pair[0] == 0 { pair[1] } else { LARGE };
                    large |= *count == LARGE;
                }
            }
            if !large {
                continue;
            }
            for (within, pair) in part.chunks_exact(2).enumerate() {
                let number = u64::from(pair[0]) << 8 | u64::from(pair[1]);
                if number >= u64::from(LARGE) {
                    self.take(LARGE_BYTES)?;
                    self.large.insert(start + within as u64, number);
                }
            }
        }
        Ok(())
    }

    /// Sets the counts of the clusters from `first` on, which have none yet.
    pub(super) fn fill(&mut self, first: u64, numbers: impl Iterator<Item = u64>) -> Result<(), DiskError> {
        for (index, number) in numbers.enumerate().filter(|(_, number)| *number != 0) {
            self.add(first + index as u64, number)?;
        }
        Ok(())
    }

    /// Calls `differs` with each cluster whose count is not the same in `other`, and with both counts.
    pub(super) fn compare(&self, other: &Self, mut differs: impl FnMut(u64, u64, u64)) {
        let page = |counts: &Self, index: usize| counts.pages.get(index).is_some_and(Option::is_some);
        for index in 0..self.pages.len().max(other.pages.len()) {
            let same = match (page(self, index), page(other, index)) {
                (false, false) => true,
                (true, true) => self.pages[index] == other.pages[index],
                _ => false,
            };
            let start = index as u64 * PAGE;
            if same
                && (self.large.is_empty() || !(start..start + PAGE).any(|cluster| self.large.contains_key(&cluster)))
            {
                continue;
            }
            for cluster in start..start + PAGE {
                let (one, two) = (self.get(cluster), other.get(cluster));
                if one != two {
                    differs(cluster, one, two);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_small_and_large_add_up() {
        let mut counts = Counts::default();
        for (cluster, weight) in [(3, 1), (3, 1), (5000, 200), (5000, 100), (5000, 1 << 40), (9, 300)] {
            counts.add(cluster, weight).expect("within bounds");
        }
        let found: Vec<_> = counts.iter().collect();
        assert_eq!(found, [(3, 2), (9, 300), (5000, 300 + (1 << 40))]);
        assert_eq!(counts.get(1 << 50), 0);
        assert_eq!(counts.range(4..9).count(), 0);
        assert_eq!(counts.last(), Some(5000));
    }

    #[test]
    fn counts_are_filled_and_compared() {
        let mut numbers = vec![0u8; 3 * 8192];
        numbers[2 * 5 + 1] = 7;
        numbers[2 * 4100] = 1;
        numbers[2 * 4101 + 1] = 255;
        let (mut at_once, mut singly) = (Counts::default(), Counts::default());
        at_once.fill_16(8192, &numbers).expect("within bounds");
        let words = numbers
            .chunks_exact(2)
            .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1]));
        singly.fill(8192, words).expect("within bounds");
        at_once.compare(&singly, |cluster, one, two| panic!("{cluster}: {one} and {two}"));
        assert_eq!(
            at_once.iter().collect::<Vec<_>>(),
            [(8197, 7), (12292, 256), (12293, 255)]
        );
        singly.add(12292, 1).expect("within bounds");
        singly.add(3, 1).expect("within bounds");
        let mut differences = Vec::new();
        at_once.compare(&singly, |cluster, one, two| differences.push((cluster, one, two)));
        assert_eq!(differences, [(3, 0, 1), (12292, 256, 257)]);
    }

    #[test]
    fn an_image_that_says_it_is_enormous_costs_no_memory() {
        assert!(Counts::default().add(1 << 47, 1).is_err());
    }
}
