//! Which host clusters hold metadata, so that no write lands on a table it is not meant for (QEMU's documentation calls
//! these overlap checks).
//!
//! In an image that is whole none of these checks ever strikes. They stand between a damaged or hostile image, or a bug of ours,
//! and the loss of more than is lost already: what would overwrite metadata is not written, and the image is marked corrupt.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use super::Qcow2;
use super::cache::Class;
use super::entry::L1Entry;
use super::header::{Header, INCOMPATIBLE_CORRUPT};
use super::order::Clusters;
use super::snapshot_table::{SnapshotRecord, table_bytes};
use crate::DiskError;
use crate::disk::Corruption;

/// What a cluster of metadata is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Structure {
    Header,
    ActiveL1,
    L2Table,
    RefcountTable,
    RefcountBlock,
    SnapshotTable,
    InactiveL1,
}

impl Structure {
    fn name(self) -> &'static str {
        match self {
            Structure::Header => "write to the header",
            Structure::ActiveL1 => "write to the active L1 table",
            Structure::L2Table => "write to an L2 table",
            Structure::RefcountTable => "write to the refcount table",
            Structure::RefcountBlock => "write to a refcount block",
            Structure::SnapshotTable => "write to the snapshot table",
            Structure::InactiveL1 => "write to a snapshot's L1 table",
        }
    }

    /// What slices of a class are part of.
    fn of(class: Class) -> Self {
        match class {
            Class::RefcountBlock => Structure::RefcountBlock,
            Class::RefcountTable => Structure::RefcountTable,
            Class::L2Table => Structure::L2Table,
            Class::L1Table => Structure::ActiveL1,
        }
    }
}

/// The clusters that hold metadata: the header, all tables, and the L1 tables of snapshots. The L2 tables are those of the
/// active disk.
#[derive(Default)]
pub(super) struct MetadataMap {
    clusters: RefCell<HashMap<u64, Structure>>,
    /// A write was refused because it would have hit metadata; there will be no other.
    struck: Cell<Option<(Structure, u64)>>,
}

impl MetadataMap {
    /// The metadata of an image with these tables; or as much of it as there is up to the first cluster that two of them
    /// claim, which is returned, too.
    pub(super) fn of(
        header: &Header,
        l1: &[u64],
        refcount_table: &[u64],
        snapshots: &[SnapshotRecord],
    ) -> (Self, Option<Corruption>) {
        let mut clusters = HashMap::new();
        let mut conflict = None;
        let mut add = |structure: Structure, offset: u64, bytes: u64| {
            if bytes == 0 || conflict.is_some() {
                return;
            }
            for cluster in offset >> header.cluster_bits..=(offset + bytes - 1) >> header.cluster_bits {
                if let Some(other) = clusters.get(&cluster) {
                    let at = cluster << header.cluster_bits;
                    // Nobody writes to such an image, so the rest does not matter; it could be made to take forever.
                    conflict = Some((structure, *other, at));
                    return;
                }
                clusters.insert(cluster, structure);
            }
        };
        add(Structure::Header, 0, 1);
        add(
            Structure::RefcountTable,
            header.refcount_table_offset,
            refcount_table.len() as u64 * 8,
        );
        add(Structure::ActiveL1, header.l1_table_offset, l1.len() as u64 * 8);
        add(
            Structure::SnapshotTable,
            header.snapshot_table_offset,
            table_bytes(snapshots),
        );
        for &block in refcount_table.iter().filter(|block| **block != 0) {
            add(Structure::RefcountBlock, block, 1);
        }
        for snapshot in snapshots {
            add(Structure::InactiveL1, snapshot.l1_table_offset, snapshot.l1_bytes());
        }
        for &entry in l1 {
            if let Ok(Some(entry)) = L1Entry::decode(entry, 0, header.cluster_bits) {
                add(Structure::L2Table, entry.table, 1);
            }
        }
        let conflict = conflict.map(|(structure, other, at)| Corruption {
            structure: structure.name(),
            at,
            found: other as u64,
            expected: "a cluster that no other table uses",
        });
        let map = Self {
            clusters: RefCell::new(clusters),
            struck: Cell::default(),
        };
        (map, conflict)
    }

    /// From now on the cluster is part of this.
    pub(super) fn insert(&self, cluster: u64, structure: Structure) {
        self.clusters.borrow_mut().insert(cluster, structure);
    }

    /// The cluster is no metadata any more.
    pub(super) fn remove(&self, cluster: u64) {
        self.clusters.borrow_mut().remove(&cluster);
    }

    fn first_within(&self, clusters: Clusters) -> Option<(Structure, u64)> {
        let map = self.clusters.borrow();
        let range = clusters.first..clusters.first + clusters.count;
        range
            .into_iter()
            .find_map(|cluster| Some((*map.get(&cluster)?, cluster)))
    }
}

impl Qcow2 {
    /// Data, or a new table, is about to be written to `length` bytes of the image file from `offset` on.
    pub(super) fn check_no_metadata_at(self: &Rc<Self>, offset: u64, length: u64) -> Result<(), DiskError> {
        let first = self.cluster_of(offset);
        let count = self.cluster_of(offset + length.max(1) - 1) + 1 - first;
        match self.metadata.first_within(Clusters { first, count }) {
            None => Ok(()),
            Some((structure, cluster)) => Err(self.strike(structure, cluster)),
        }
    }

    /// A slice of this class is about to be written at `offset` of the image file.
    pub(super) fn check_slice_at(self: &Rc<Self>, offset: u64, class: Class) -> Result<(), DiskError> {
        let first = self.cluster_of(offset);
        match self.metadata.first_within(Clusters { first, count: 1 }) {
            Some((structure, cluster)) if structure != Structure::of(class) => Err(self.strike(structure, cluster)),
            _ => Ok(()),
        }
    }

    /// Once metadata was nearly overwritten nothing else is changed.
    pub(super) fn check_not_struck(&self) -> Result<(), DiskError> {
        match self.metadata.struck.get() {
            None => Ok(()),
            Some((structure, cluster)) => Err(self.overlap(structure, cluster)),
        }
    }

    /// Looks through all tables anew, after some of them were exchanged.
    pub(super) fn renew_metadata_map(&self) {
        let header = self.header.borrow();
        let table = self.refcounts.table();
        let (map, _) = MetadataMap::of(&header, &self.l1.borrow(), &table, &self.snapshots.borrow());
        *self.metadata.clusters.borrow_mut() = map.clusters.take();
    }

    /// Marks the image corrupt: no writer opens it before it is repaired.
    fn strike(self: &Rc<Self>, structure: Structure, cluster: u64) -> DiskError {
        if self.metadata.struck.replace(Some((structure, cluster))).is_none() {
            let image = self.clone();
            self.tasks.spawn(async move {
                if let Err(error) = image.mark_corrupt().await {
                    tracing::error!(%error, "the image could not be marked corrupt");
                }
            });
        }
        self.overlap(structure, cluster)
    }

    fn overlap(&self, structure: Structure, cluster: u64) -> DiskError {
        self.corrupt(Corruption {
            structure: structure.name(),
            at: cluster << self.cluster_bits,
            found: cluster,
            expected: "a cluster that holds no metadata",
        })
    }

    async fn mark_corrupt(&self) -> Result<(), DiskError> {
        let header = {
            let mut header = self.header.borrow_mut();
            header.incompatible_features |= INCOMPATIBLE_CORRUPT;
            header.clone()
        };
        // Version 2 has no bit for it.
        if header.version >= 3 {
            header.write_features(&self.file).await?;
            self.file.sync().await?;
        }
        Ok(())
    }
}
