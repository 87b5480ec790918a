//! Internal snapshots: taken, applied and deleted while the image is open.
//!
//! A snapshot is an L1 table of its own, beside the active one, that leads to the same L2 tables and data. In each case the
//! order is: raise the refcounts of all that will have another owner; take the copied flags away, so that nobody
//! writes to it in place; write new tables elsewhere; make all that durable; *switch* the header; then give up what
//! only the old header referred to. A crash before the switch leaves refcounts that are too high and flags that are missing, one
//! after it refcounts that are too high: the next open mends both.

use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::Qcow2;
use super::entry::words;
use super::entry::{COPIED, L1Entry};
use super::header::{MAX_L1_BYTES, MAX_SNAPSHOTS, l1_entries_for};
use super::order::{Clusters, Filled};
use super::snapshot_table::{MAX_TABLE_BYTES, SnapshotRecord, encode_table, table_bytes};
use super::switch::table_of;
use crate::DiskError;
use crate::disk::Corruption;
use crate::planted_bug::{Bug, planted};

/// The longest name, in bytes (QEMU's limit, too).
const MAX_NAME_BYTES: usize = 255;

/// An internal snapshot of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Unique within the image.
    pub id: String,
    /// What the user calls it.
    pub name: String,
    /// When it was taken: seconds since 1970, and nanoseconds.
    pub date: (u32, u32),
    /// How long the guest had been running, in nanoseconds; 0 if that is not known.
    pub vm_clock: u64,
    /// Bytes of machine state that another hypervisor stored with it. It is kept, but of no use here.
    pub vm_state_bytes: u64,
    /// The size that the disk had, in bytes.
    pub disk_size: u64,
    /// How many instructions the guest had executed, if that was counted.
    pub icount: Option<u64>,
}

/// Why something cannot be done with a snapshot. The image is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No snapshot has this id or name.
    #[error("There is no snapshot with the id or name \"{0}\"")]
    NotFound(String),
    /// There is one with this id or name.
    #[error("There is already a snapshot with the id or name \"{0}\"")]
    Exists(String),
    /// The name cannot be stored.
    #[error("A snapshot's name has 1 to {MAX_NAME_BYTES} bytes, not {0}")]
    Name(usize),
    /// The snapshot table is full.
    #[error("The image has {0} snapshots, or a snapshot table of 64 MiB; there can be no more")]
    TooMany(usize),
    /// The image is not qcow2, so it has no snapshots.
    #[error("Only qcow2 images have snapshots")]
    Format,
    /// Reading or writing the image failed.
    #[error("{0}")]
    Disk(DiskError),
}

impl From<DiskError> for SnapshotError {
    fn from(error: DiskError) -> Self {
        SnapshotError::Disk(error)
    }
}

impl Qcow2 {
    /// All snapshots, in the order of the snapshot table.
    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        let records = self.snapshots.borrow();
        records.iter().map(|record| self.describe(record)).collect()
    }

    /// Takes a snapshot. A request of the guest that is in flight comes wholly before it or wholly after it; one that has
    /// completed is part of it.
    pub(crate) async fn snapshot_create(self: &Rc<Self>, name: &str) -> Result<Snapshot, SnapshotError> {
        let _alone = self.alone().await?;
        self.check_new_name(name)?;
        let l1 = self.l1.borrow().clone();
        let record = SnapshotRecord::new(self.unused_id(), name, now(), self.capacity(), l1.len().max(1) as u32);
        if !planted(Bug::ReferencesNotRaised) {
            self.raise_tree(&l1).await?;
        }
        match self.add_snapshot(record).await {
            Ok(record) => {
                self.write_through().await?;
                Ok(self.describe(&record))
            }
            Err(error) => {
                self.undo_raise(&l1).await;
                Err(error.into())
            }
        }
    }

    /// Makes the disk what it was when the snapshot was taken, size included. What it holds now is lost. The
    /// snapshot stays.
    pub(crate) async fn snapshot_apply(self: &Rc<Self>, id_or_name: &str) -> Result<(), SnapshotError> {
        let _alone = self.alone().await?;
        let record = self.snapshots.borrow()[self.find_snapshot(id_or_name)?].clone();
        let l1 = self.read_l1(&record).await?;
        let size = record.disk_size().unwrap_or(self.capacity());
        let entries = l1_entries_for(size, self.cluster_bits).max(l1.len() as u64);
        if size > i64::MAX as u64 || entries * 8 > MAX_L1_BYTES {
            let (structure, at) = ("disk size of the snapshot with the L1 table", record.l1_table_offset);
            let expected = "a size that an L1 table of 32 MiB can map";
            return Err(SnapshotError::Disk(self.corrupt(Corruption {
                structure,
                at,
                found: size,
                expected,
            })));
        }
        self.raise_tree(&l1).await?;
        let old = self.l1.borrow().clone();
        if planted(Bug::OldTreeLoweredFirst) {
            self.lower_tree(&old).await;
        }
        if let Err(error) = self.activate(&l1, entries, size).await {
            if !self.durability_is_lost() {
                self.lower_tree(&l1).await;
            }
            return Err(error.into());
        }
        if !planted(Bug::OldTreeLoweredFirst) {
            self.lower_tree(&old).await;
        }
        Ok(self.write_through().await?)
    }

    /// Deletes a snapshot. What nobody else refers to is free again.
    pub(crate) async fn snapshot_delete(self: &Rc<Self>, id_or_name: &str) -> Result<(), SnapshotError> {
        let _alone = self.alone().await?;
        let index = self.find_snapshot(id_or_name)?;
        let mut records = self.snapshots.borrow().clone();
        let record = records.remove(index);
        let l1 = self.read_l1(&record).await?;
        let own = self.clusters_of_table(record.l1_table_offset, record.l1_bytes());
        if planted(Bug::DeletedTreeLoweredFirst) {
            self.lower_tree(&l1).await;
        }
        self.switch_snapshots(records, None, own).await?;
        if !planted(Bug::DeletedTreeLoweredFirst) {
            self.lower_tree(&l1).await;
        }
        if let Err(error) = self.refresh_active_copied().await {
            tracing::warn!(%error, "clusters that are not shared any more will be copied once when they are written");
            self.leave_for_recovery();
        }
        Ok(self.write_through().await?)
    }

    /// The position of a snapshot: ids come before names.
    pub(super) fn find_snapshot(&self, id_or_name: &str) -> Result<usize, SnapshotError> {
        find(&self.snapshots.borrow(), id_or_name).ok_or_else(|| SnapshotError::NotFound(id_or_name.to_owned()))
    }

    /// The rest of creating one, when all that it leads to has another reference.
    async fn add_snapshot(self: &Rc<Self>, mut record: SnapshotRecord) -> Result<SnapshotRecord, DiskError> {
        if !planted(Bug::CopiedFlagsKept) {
            self.refresh_active_copied().await?;
        }
        let l1: Vec<u64> = self.l1.borrow().iter().map(|entry| entry & !COPIED).collect();
        let table = self.write_table(table_of(&l1)).await?;
        record.l1_table_offset = table.clusters().first << self.cluster_bits;
        let mut records = self.snapshots.borrow().clone();
        records.push(record.clone());
        let nothing = Clusters { first: 0, count: 0 };
        self.switch_snapshots(records, Some(table), nothing).await?;
        Ok(record)
    }

    /// Makes `records` the snapshots; `new_l1` is in use then, and the clusters `unused` no longer.
    async fn switch_snapshots(
        self: &Rc<Self>,
        records: Vec<SnapshotRecord>,
        new_l1: Option<Filled>,
        unused: Clusters,
    ) -> Result<(), DiskError> {
        let table = if records.is_empty() {
            None
        } else {
            Some(self.write_table(encode_table(&records)).await?)
        };
        let offset = table
            .as_ref()
            .map_or(0, |table| table.clusters().first << self.cluster_bits);
        let old_offset = self.header.borrow().snapshot_table_offset;
        let old = self.clusters_of_table(old_offset, table_bytes(&self.snapshots.borrow()));
        let count = records.len() as u32;
        self.switch_header(new_l1.into_iter().chain(table), [old, unused], |header| {
            header.snapshot_count = count;
            header.snapshot_table_offset = offset;
        })
        .await?;
        *self.snapshots.borrow_mut() = records;
        self.renew_metadata_map();
        Ok(())
    }

    /// Makes a copy of the snapshot's table `l1`, filled up to `entries`, the active L1 table of a disk of `size` bytes.
    async fn activate(self: &Rc<Self>, l1: &[u64], entries: u64, size: u64) -> Result<(), DiskError> {
        let mut new = self.refresh_copied(l1).await?;
        new.resize(entries as usize, 0);
        self.switch_l1(new, size).await
    }

    /// Makes `l1` the active L1 table, in a new place, and the disk `size` bytes long.
    pub(super) async fn switch_l1(self: &Rc<Self>, l1: Vec<u64>, size: u64) -> Result<(), DiskError> {
        let table = self.write_table(table_of(&l1)).await?;
        let offset = table.clusters().first << self.cluster_bits;
        let old_offset = self.header.borrow().l1_table_offset;
        let old = self.clusters_of_table(old_offset, self.l1.borrow().len() as u64 * 8);
        let entries = l1.len() as u32;
        self.switch_header([table], [old], |header| {
            header.size = size;
            header.l1_size = entries;
            header.l1_table_offset = offset;
        })
        .await?;
        *self.l1.borrow_mut() = l1;
        self.renew_metadata_map();
        Ok(())
    }

    /// The snapshot did not come about: the references that were taken for it are given up, and the flags come back.
    async fn undo_raise(self: &Rc<Self>, l1: &[u64]) {
        if self.durability_is_lost() {
            return;
        }
        self.lower_tree(l1).await;
        if let Err(error) = self.refresh_active_copied().await {
            tracing::warn!(%error, "clusters that are not shared will be copied once when they are written");
            self.leave_for_recovery();
        }
    }

    /// The L1 table of a snapshot, whose entries lie within the file.
    pub(super) async fn read_l1(&self, record: &SnapshotRecord) -> Result<Vec<u64>, DiskError> {
        let bytes = self
            .file
            .read_bytes(record.l1_table_offset, record.l1_bytes() as usize)
            .await?;
        let l1 = words(&bytes);
        for (index, &found) in l1.iter().enumerate() {
            let at = record.l1_table_offset + index as u64 * 8;
            let entry = L1Entry::decode(found, at, self.cluster_bits).map_err(|corruption| self.corrupt(corruption))?;
            if entry.is_some_and(|entry| entry.table >= self.image_end.get()) {
                return Err(self.corrupt(Corruption {
                    structure: "L1 entry of a snapshot",
                    at,
                    found,
                    expected: "an offset within the image file",
                }));
            }
        }
        Ok(l1)
    }

    fn check_new_name(&self, name: &str) -> Result<(), SnapshotError> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(SnapshotError::Name(name.len()));
        }
        let records = self.snapshots.borrow();
        let longest = SnapshotRecord::new(u64::MAX, name, (0, 0), 0, 0).length();
        if records.len() >= MAX_SNAPSHOTS as usize || table_bytes(&records) + longest > MAX_TABLE_BYTES {
            return Err(SnapshotError::TooMany(records.len()));
        }
        match find(&records, name) {
            Some(_) => Err(SnapshotError::Exists(name.to_owned())),
            None => Ok(()),
        }
    }

    /// An id that no snapshot has, neither as its id nor as its name.
    fn unused_id(&self) -> u64 {
        let records = self.snapshots.borrow();
        let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok()?.parse::<u64>().ok();
        let used = records
            .iter()
            .filter_map(|record| number(&record.id))
            .max()
            .unwrap_or(0);
        let mut id = used.wrapping_add(1);
        while find(&records, &id.to_string()).is_some() {
            id = id.wrapping_add(1);
        }
        id
    }

    fn describe(&self, record: &SnapshotRecord) -> Snapshot {
        describe(record, self.capacity())
    }
}

/// A record of an image whose active disk has `size` bytes, as others see it.
pub(super) fn describe(record: &SnapshotRecord, size: u64) -> Snapshot {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Snapshot {
        id: text(&record.id),
        name: text(&record.name),
        date: record.date,
        vm_clock: record.vm_clock,
        vm_state_bytes: record.vm_state_bytes(),
        disk_size: record.disk_size().unwrap_or(size),
        icount: record.icount(),
    }
}

/// The position of the snapshot with this id, or else with this name.
pub(super) fn find(records: &[SnapshotRecord], id_or_name: &str) -> Option<usize> {
    let wanted = id_or_name.as_bytes();
    let by_id = records.iter().position(|record| record.id == wanted);
    by_id.or_else(|| records.iter().position(|record| record.name == wanted))
}

/// Seconds since 1970, and nanoseconds. The field ends in 2106.
fn now() -> (u32, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_secs() as u32, since.subsec_nanos())
}
