//! Counting who refers to each host cluster, from the tables themselves: what the refcounts ought to be.

use std::collections::HashMap;

use smallvec::SmallVec;

use super::entry::{COPIED, L1Entry, L2Entry};
use super::header::Header;
use super::snapshot_table::{SnapshotRecord, table_bytes};
use crate::Buffer;
use crate::DiskError;
use crate::disk::Corruption;
use crate::storage::{ImageFile, Piece};

/// Clusters whose counts lie together.
const PAGE: u64 = 1024;

/// L2 tables that are read at a time.
const TABLES_AT_ONCE: usize = 16;

/// What refers to a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct References {
    /// How many references there are.
    pub count: u32,
    /// One of them makes the cluster part of a table or the header.
    is_metadata: bool,
    /// One of them says that there is no other.
    copied: bool,
    /// The active tables refer to it, and do not say so.
    lacks_copied: bool,
}

/// The references to all clusters of an image.
#[derive(Default)]
pub(super) struct ReferenceMap {
    pages: HashMap<u64, Box<[References; PAGE as usize]>>,
    cluster_bits: u32,
}

impl ReferenceMap {
    /// Counts the references of an image whose active L1 table, refcount table and snapshots are these. `image_end` is where
    /// its file ends, rounded up to a cluster.
    pub(super) async fn count(
        file: &ImageFile,
        header: &Header,
        l1: &[u64],
        refcount_table: &[u64],
        snapshots: &[SnapshotRecord],
        image_end: u64,
    ) -> Result<Self, DiskError> {
        let mut map = Self {
            pages: HashMap::new(),
            cluster_bits: header.cluster_bits,
        };
        map.add_metadata(0, 1)?;
        map.add_metadata(header.l1_table_offset, l1.len() as u64 * 8)?;
        map.add_metadata(header.refcount_table_offset, refcount_table.len() as u64 * 8)?;
        map.add_metadata(header.snapshot_table_offset, table_bytes(snapshots))?;
        for &block in refcount_table.iter().filter(|block| **block != 0) {
            map.add_metadata(block, 1)?;
        }
        map.add_tables(file, header, l1, header.l1_table_offset, true, image_end)
            .await?;
        for snapshot in snapshots {
            map.add_metadata(snapshot.l1_table_offset, u64::from(snapshot.l1_size) * 8)?;
            let bytes = file
                .read_bytes(snapshot.l1_table_offset, snapshot.l1_size as usize * 8)
                .await?;
            let table = super::entry::words(&bytes);
            map.add_tables(file, header, &table, snapshot.l1_table_offset, false, image_end)
                .await?;
        }
        map.check_copied()?;
        Ok(map)
    }

    /// How often a cluster is referred to.
    pub(super) fn get(&self, cluster: u64) -> u32 {
        self.pages
            .get(&(cluster / PAGE))
            .map_or(0, |page| page[(cluster % PAGE) as usize].count)
    }

    /// The last cluster that is referred to.
    pub(super) fn last(&self) -> u64 {
        let used = |entries: &[References]| entries.iter().rposition(|entry| entry.count > 0);
        let last = self
            .pages
            .iter()
            .filter_map(|(page, entries)| Some(page * PAGE + used(&entries[..])? as u64))
            .max();
        last.unwrap_or(0)
    }

    fn entry(&mut self, cluster: u64) -> &mut References {
        let page = self
            .pages
            .entry(cluster / PAGE)
            .or_insert_with(|| Box::new([References::default(); PAGE as usize]));
        &mut page[(cluster % PAGE) as usize]
    }

    /// A table of `length` bytes at `offset`, which has its clusters for itself.
    fn add_metadata(&mut self, offset: u64, length: u64) -> Result<(), DiskError> {
        if length == 0 {
            return Ok(());
        }
        for cluster in offset >> self.cluster_bits..=(offset + length - 1) >> self.cluster_bits {
            let entry = self.entry(cluster);
            if entry.count > 0 {
                return Err(self.overlap(cluster));
            }
            *entry = References {
                count: 1,
                is_metadata: true,
                ..References::default()
            };
        }
        Ok(())
    }

    /// The L2 tables that an L1 table points at, and what those point at. The tables of snapshots may be shared.
    async fn add_tables(
        &mut self,
        file: &ImageFile,
        header: &Header,
        l1: &[u64],
        l1_offset: u64,
        active: bool,
        image_end: u64,
    ) -> Result<(), DiskError> {
        let mut entries = Vec::new();
        for (index, entry) in l1.iter().enumerate() {
            let at = l1_offset + index as u64 * 8;
            entries.extend(L1Entry::decode(*entry, at, self.cluster_bits).map_err(DiskError::Corrupt)?);
        }
        for batch in entries.chunks(TABLES_AT_ONCE) {
            let mut reads: SmallVec<[_; TABLES_AT_ONCE]> = SmallVec::new();
            for entry in batch {
                let table = Buffer::zeroed(1 << self.cluster_bits);
                reads.push((
                    entry,
                    table.clone(),
                    file.read(entry.table, smallvec::smallvec![Piece::whole(table)]),
                ));
            }
            for (entry, table, read) in reads {
                read.await?;
                self.add_l2_table_cluster(*entry, active)?;
                self.add_l2_table(header, *entry, &super::entry::words(&table.to_vec()), active, image_end)?;
            }
        }
        Ok(())
    }

    fn add_l2_table_cluster(&mut self, entry: L1Entry, active: bool) -> Result<(), DiskError> {
        let cluster = entry.table >> self.cluster_bits;
        let references = self.entry(cluster);
        let shares = !active && references.is_metadata;
        if references.count > 0 && !shares {
            return Err(self.overlap(cluster));
        }
        references.count += 1;
        references.is_metadata = true;
        references.copied |= active && entry.copied;
        references.lacks_copied |= active && !entry.copied;
        Ok(())
    }

    fn add_l2_table(
        &mut self,
        header: &Header,
        entry: L1Entry,
        table: &[u64],
        active: bool,
        image_end: u64,
    ) -> Result<(), DiskError> {
        for (index, word) in table.iter().enumerate().filter(|(_, word)| **word != 0) {
            let at = entry.table + index as u64 * 8;
            let decoded = L2Entry::decode(*word, at, header.version, self.cluster_bits, image_end);
            let decoded = decoded.map_err(DiskError::Corrupt)?;
            let Some((first, count)) = decoded.references(self.cluster_bits) else {
                continue;
            };
            let copied = active && matches!(decoded, L2Entry::Data { copied: true, .. });
            let lacks_copied = active && decoded.standard_host().is_some() && word & COPIED == 0;
            for cluster in first..first + count {
                let references = self.entry(cluster);
                if references.is_metadata {
                    return Err(self.overlap(cluster));
                }
                references.count = references.count.saturating_add(1);
                references.copied |= copied;
                references.lacks_copied |= lacks_copied;
            }
        }
        Ok(())
    }

    /// Whether an entry of the active tables holds the only reference to a cluster, and its copied flag is not set.
    pub(super) fn lack_copied_flags(&self) -> bool {
        let lacks = |entry: &References| entry.lacks_copied && entry.count == 1;
        self.pages.values().any(|entries| entries.iter().any(lacks))
    }

    /// A cluster that is written in place has one reference.
    fn check_copied(&self) -> Result<(), DiskError> {
        for (page, entries) in &self.pages {
            let wrong = entries.iter().position(|entry| entry.copied && entry.count != 1);
            if let Some(index) = wrong {
                return Err(self.overlap(page * PAGE + index as u64));
            }
        }
        Ok(())
    }

    fn overlap(&self, cluster: u64) -> DiskError {
        let expected = "a single owner";
        let at = cluster << self.cluster_bits;
        let found = u64::from(self.get(cluster)) + 1;
        DiskError::Corrupt(Corruption {
            structure: "the number of references to the cluster",
            at,
            found,
            expected,
        })
    }
}
