//! When metadata reaches the image file: the durable order, and its barriers shared by all who wait for one.
//!
//! A write-back takes a copy of the dirty L2 slices at one instant. For every link in these copies the data is in the
//! image file and the refcount is in the cache, because that is the order of the [five steps](super::order). Then
//!
//! 1. the refcount blocks are written (and, behind a barrier of their own, new entries of the refcount table),
//! 2. *barrier*: refcounts, data and new L2 tables are durable,
//! 3. the copies of the L2 slices and the L1 table's sectors are written,
//! 4. *barrier*: the links are durable. Clusters that were unlinked before the copies were taken leave quarantine:
//!    only now do they lose their reference, in the cache, and may be used again.
//!
//! So on disk a refcount is never below the number of references, a table never points at data that is not there,
//! and no cluster is used again while a table on disk still points at it: at worst a crash leaks. Where nothing was linked since
//! the last time, a flush is the one barrier.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use super::cache::{Class, DirtySlice};
use super::order::Clusters;
use super::{Qcow2, refcount};
use crate::storage::{Piece, Pieces, Transfer};
use crate::wait::WaitList;
use crate::{Buffer, DiskError};

/// The longest run of neighbouring slices that travels in one write.
const MAX_SLICES_PER_WRITE: usize = 256;

#[derive(Default)]
pub(super) struct WriteBack {
    /// The write-back that has not begun: whoever wants one from now on waits for this.
    next: RefCell<Rc<Epoch>>,
    running: Cell<bool>,
    /// Clusters whose unlinking is not durable.
    quarantine: RefCell<Vec<Clusters>>,
    /// A sync failed: what the host's cache lost then, nobody knows, so no later sync may claim success.
    sync_failed: Cell<bool>,
}

/// One write-back, and those who wait for it.
#[derive(Default)]
struct Epoch {
    wanted: Cell<bool>,
    result: RefCell<Option<Result<(), DiskError>>>,
    waiters: WaitList,
}

/// What a write-back took at its instant.
struct Captured {
    l2_slices: Vec<DirtySlice>,
    /// Byte offset within the L1 table, and content.
    l1_sectors: Vec<(u64, Vec<u8>)>,
    unlinked: Vec<Clusters>,
}

impl WriteBack {
    /// These lose a reference once their unlinking is durable.
    pub(super) fn quarantine(&self, references: &[Clusters]) {
        self.quarantine.borrow_mut().extend_from_slice(references);
    }
}

impl Qcow2 {
    /// Makes everything that completed before now durable.
    pub(crate) async fn flush(self: &Rc<Self>) -> Result<(), DiskError> {
        let epoch = self.want_write_back();
        let outcome = || {
            epoch
                .result
                .borrow()
                .as_ref()
                .map(|result| result.as_ref().map_err(DiskError::duplicate).copied())
        };
        epoch.waiters.until(outcome).await
    }

    /// Writes back what a flush leaves: refcounts of clusters that left quarantine. For the end, when a flush is done
    /// and no task is left.
    pub(crate) async fn finish(self: &Rc<Self>) -> Result<(), DiskError> {
        if !self.cache.has_dirty(Class::RefcountBlock) && !self.refcounts.table_is_dirty() {
            return Ok(());
        }
        self.write_refcounts().await?;
        self.sync().await
    }

    /// Keeps the share of dirty metadata in the cache below one half.
    pub(super) fn write_back_when_much_is_dirty(self: &Rc<Self>) {
        if self.cache.dirty_bytes() > self.cache.capacity() / 2 && !self.write_back.running.get() {
            drop(self.want_write_back());
        }
    }

    /// Waits until slots of the cache are clean again.
    pub(super) async fn make_room_in_cache(self: &Rc<Self>) -> Result<(), DiskError> {
        if self.cache.dirty_bytes() > 0 {
            return self.flush().await;
        }
        // All slots are being read.
        let mut first = true;
        self.cache
            .changed
            .until(|| (!std::mem::replace(&mut first, false)).then_some(()))
            .await;
        Ok(())
    }

    /// Sees to it that a write-back begins after now.
    fn want_write_back(self: &Rc<Self>) -> Rc<Epoch> {
        let epoch = self.write_back.next.borrow().clone();
        epoch.wanted.set(true);
        if !self.write_back.running.replace(true) {
            let image = self.clone();
            self.tasks.spawn(async move { image.run_write_backs().await });
        }
        epoch
    }

    /// One write-back after the other, as long as somebody wants one.
    async fn run_write_backs(self: Rc<Self>) {
        while self.write_back.next.borrow().wanted.get() {
            let epoch = self.write_back.next.take();
            let captured = self.capture();
            let result = self.write_back_captured(&captured).await;
            match &result {
                Ok(()) => self.release_from_quarantine(captured.unlinked),
                Err(error) => {
                    tracing::error!(%error, "metadata could not be written back");
                    self.restore(captured);
                }
            }
            *epoch.result.borrow_mut() = Some(result);
            epoch.waiters.wake_all();
        }
        self.write_back.running.set(false);
    }

    fn capture(&self) -> Captured {
        let l1 = self.l1.borrow();
        let l1_sectors = self
            .l1_dirty
            .take()
            .into_iter()
            .map(|sector| refcount::sector_of(&l1, sector))
            .collect();
        Captured {
            l2_slices: self.cache.dirty_slices(Class::L2Table),
            l1_sectors,
            unlinked: self.write_back.quarantine.take(),
        }
    }

    /// What was captured is still to be written.
    fn restore(&self, captured: Captured) {
        let sectors = captured
            .l1_sectors
            .iter()
            .map(|(offset, _)| *offset as usize / (8 * super::L1_ENTRIES_PER_SECTOR));
        self.l1_dirty.borrow_mut().extend(sectors);
        self.write_back.quarantine.borrow_mut().extend(captured.unlinked);
    }

    async fn write_back_captured(self: &Rc<Self>, captured: &Captured) -> Result<(), DiskError> {
        let nothing_linked = captured.l2_slices.is_empty() && captured.l1_sectors.is_empty();
        if nothing_linked {
            return self.sync().await;
        }
        self.write_refcounts().await?;
        self.sync().await?;
        let l1_offset = self.header.borrow().l1_table_offset;
        let l1_writes = self.write_sectors(l1_offset, &captured.l1_sectors);
        self.write_slices(&captured.l2_slices).await?;
        for write in l1_writes {
            write.await?;
        }
        self.sync().await?;
        self.cache.written_back(&captured.l2_slices);
        Ok(())
    }

    /// Writes dirty refcount blocks, and then table entries that name new ones.
    async fn write_refcounts(self: &Rc<Self>) -> Result<(), DiskError> {
        // The table must not move meanwhile.
        let _using = self.refcounts.table_in_flight.use_mapping(0..1).await;
        let sectors = self.refcounts.take_dirty_sectors();
        let result = self.write_refcounts_and(&sectors).await;
        if result.is_err() {
            self.refcounts
                .restore_dirty_sectors(sectors.iter().map(|(offset, _)| *offset));
        }
        result
    }

    async fn write_refcounts_and(self: &Rc<Self>, table_sectors: &[(u64, Vec<u8>)]) -> Result<(), DiskError> {
        let slices = self.cache.dirty_slices(Class::RefcountBlock);
        self.write_slices(&slices).await?;
        self.cache.written_back(&slices);
        if table_sectors.is_empty() {
            return Ok(());
        }
        self.sync().await?;
        let table = self.header.borrow().refcount_table_offset;
        for write in self.write_sectors(table, table_sectors) {
            write.await?;
        }
        Ok(())
    }

    fn write_sectors(&self, table: u64, sectors: &[(u64, Vec<u8>)]) -> Vec<Transfer> {
        let write = |(offset, content): &(u64, Vec<u8>)| {
            let piece = Piece::whole(Buffer::from_slice(content));
            self.file.write(table + offset, smallvec::smallvec![piece])
        };
        sectors.iter().map(write).collect()
    }

    /// Writes slices to where they belong; neighbours travel together.
    async fn write_slices(&self, slices: &[DirtySlice]) -> Result<(), DiskError> {
        let mut transfers = VecDeque::new();
        let mut rest = slices;
        while let Some(first) = rest.first() {
            let follows = |(index, slice): &(usize, &DirtySlice)| {
                slice.offset == first.offset + *index as u64 * self.cache.slice_size()
            };
            let run = rest
                .iter()
                .enumerate()
                .take(MAX_SLICES_PER_WRITE)
                .take_while(follows)
                .count();
            let pieces: Pieces = rest[..run]
                .iter()
                .map(|slice| Piece::whole(slice.content.clone()))
                .collect();
            transfers.push_back(self.file.write(first.offset, pieces));
            rest = &rest[run..];
        }
        for transfer in transfers {
            transfer.await?;
        }
        Ok(())
    }

    /// Makes all writes that completed before now durable, or fails for good.
    async fn sync(&self) -> Result<(), DiskError> {
        if self.write_back.sync_failed.get() {
            return Err(DiskError::DurabilityLost);
        }
        let result = self.file.sync().await;
        if result.is_err() {
            self.write_back.sync_failed.set(true);
        }
        result
    }

    /// The unlinking of these clusters is durable: they lose a reference.
    fn release_from_quarantine(self: &Rc<Self>, unlinked: Vec<Clusters>) {
        if unlinked.is_empty() {
            return;
        }
        let image = self.clone();
        // A task of its own: it may need room in the cache, and so the next write-back.
        self.tasks.spawn(async move {
            for clusters in unlinked {
                if let Err(error) = image.decrement_refcounts(clusters).await {
                    tracing::error!(%error, ?clusters, "clusters leak");
                }
            }
        });
    }
}
