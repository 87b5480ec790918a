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
    pub(super) fn end(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }
}

/// Clusters of a set whose membership lies together.
const SET_PAGE: u64 = 32768;

/// What a set may take up, in bytes.
const MAX_SET_BYTES: usize = 64 << 20;

/// A set of clusters.
#[derive(Default)]
pub(super) struct ClusterSet {
    pages: Vec<Option<Box<[u64; (SET_PAGE / 64) as usize]>>>,
    bytes: usize,
}

impl ClusterSet {
    pub(super) fn insert(&mut self, cluster: u64) -> Result<(), DiskError> {
        let index = (cluster / SET_PAGE) as usize;
        if index >= self.pages.len() {
            self.bytes += (index + 1 - self.pages.len()) * 8;
            self.check_size()?;
            self.pages.resize_with(index + 1, || None);
        }
        if self.pages[index].is_none() {
            self.bytes += SET_PAGE as usize / 8;
            self.check_size()?;
        }
        let page = self.pages[index].get_or_insert_with(|| Box::new([0; (SET_PAGE / 64) as usize]));
        page[(cluster % SET_PAGE / 64) as usize] |= 1 << (cluster % 64);
        Ok(())
    }

    pub(super) fn contains(&self, cluster: u64) -> bool {
        let page = self.pages.get((cluster / SET_PAGE) as usize);
        let page = page.and_then(|page| page.as_deref());
        page.is_some_and(|page| page[(cluster % SET_PAGE / 64) as usize] >> (cluster % 64) & 1 == 1)
    }

    fn check_size(&self) -> Result<(), DiskError> {
        if self.bytes > MAX_SET_BYTES {
            return Err(DiskError::Unsupported(
                "checking so many clusters, which would need more than 64 MiB of memory for their refcounts alone",
            ));
        }
        Ok(())
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
    }

    #[test]
    fn an_image_that_says_it_is_enormous_costs_no_memory() {
        assert!(Counts::default().add(1 << 47, 1).is_err());
    }
}
