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

use super::Qcow2;
use super::cache::{Class, DirtySlice};
use super::header::INCOMPATIBLE_DIRTY;
use super::order::Clusters;
use crate::DiskError;
use crate::failpoint::{self, Point};
use crate::planted_bug::{Bug, planted};
use crate::storage::{Piece, Pieces};
use crate::wait::WaitList;

/// The longest run of neighbouring slices that travels in one write.
const MAX_SLICES_PER_WRITE: usize = 256;

#[derive(Default)]
pub(super) struct WriteBack {
    /// The write-back that has not begun: whoever wants one from now on waits for this.
    next: RefCell<Rc<Epoch>>,
    running: Cell<bool>,
    /// Clusters whose unlinking is not durable.
    quarantine: RefCell<Vec<Clusters>>,
    /// Tasks that give up clusters which left quarantine.
    releasing: Cell<usize>,
    released: WaitList,
    /// The last change that was there when metadata was to be written back for its age. If that failed it is not tried again before
    /// there is another change.
    tried_by_age: Cell<u64>,
    /// A sync failed: what the host's cache lost then, nobody knows, so no later sync may claim success.
    sync_failed: Cell<bool>,
}

/// One write-back, and those who wait for it.
#[derive(Default)]
struct Epoch {
    wanted: Cell<bool>,
    /// Refcounts shall become durable, too, even if no link needs them.
    with_refcounts: Cell<bool>,
    result: RefCell<Option<Result<(), DiskError>>>,
    waiters: WaitList,
}

/// What a write-back took at its instant.
struct Captured {
    /// Slices of L2 tables and of the L1 table.
    slices: Vec<DirtySlice>,
    unlinked: Vec<Clusters>,
}

impl WriteBack {
    /// These lose a reference once their unlinking is durable.
    pub(super) fn quarantine(&self, references: &[Clusters]) {
        self.quarantine.borrow_mut().extend_from_slice(references);
    }

    /// Waits until the clusters that left quarantine have lost their reference.
    pub(super) async fn quarantine_is_empty(&self) {
        self.released.until(|| (self.releasing.get() == 0).then_some(())).await;
    }
}

impl Qcow2 {
    /// Makes everything that completed before now durable.
    pub(crate) async fn flush(self: &Rc<Self>) -> Result<(), DiskError> {
        self.await_epoch(self.want_write_back()).await
    }

    /// Makes everything that completed before now durable, refcounts that no link needs included.
    pub(super) async fn flush_with_refcounts(self: &Rc<Self>) -> Result<(), DiskError> {
        let epoch = self.want_write_back();
        epoch.with_refcounts.set(true);
        self.await_epoch(epoch).await
    }

    /// Whether a sync has failed, so that nobody knows what is durable.
    pub(super) fn durability_is_lost(&self) -> bool {
        self.write_back.sync_failed.get()
    }

    /// Nobody knows what is in the image file: no sync may claim success any more.
    pub(super) fn lose_durability(&self) {
        self.write_back.sync_failed.set(true);
    }

    async fn await_epoch(&self, epoch: Rc<Epoch>) -> Result<(), DiskError> {
        let outcome = || {
            epoch
                .result
                .borrow()
                .as_ref()
                .map(|result| result.as_ref().map_err(DiskError::duplicate).copied())
        };
        epoch.waiters.until(outcome).await
    }

    /// Where a killed process would take its cache along, the metadata of a request goes to the image with it.
    pub(super) async fn write_through(self: &Rc<Self>) -> Result<(), DiskError> {
        if self.write_through { self.flush().await } else { Ok(()) }
    }

    /// Whether links are in a cache that ends with this process: after an error, when their write-back failed. A write by way of
    /// them is not complete either before they are in the image.
    pub(super) fn has_fleeting_links(&self) -> bool {
        self.write_through && (self.cache.has_dirty(Class::L2Table) || self.cache.has_dirty(Class::L1Table))
    }

    /// Writes back what a flush leaves, the refcounts of clusters that left quarantine, and marks the image as closed.
    /// For the end, when a flush is done and no task is left. An image with leaks stays marked as open.
    pub(crate) async fn finish(self: &Rc<Self>) -> Result<(), DiskError> {
        if planted(Bug::ClosedBeforeWritten) {
            let mut header = self.header.borrow().clone();
            header.incompatible_features &= !INCOMPATIBLE_DIRTY;
            header.write_features(&self.file).await?;
        }
        if self.cache.has_dirty(Class::RefcountBlock) || self.cache.has_dirty(Class::RefcountTable) {
            self.write_refcounts().await?;
            self.sync().await?;
        }
        failpoint::hit(Point::DirtyBitClear);
        let header = {
            let mut header = self.header.borrow_mut();
            if !self.needs_recovery() {
                header.incompatible_features &= !INCOMPATIBLE_DIRTY;
            }
            header.clone()
        };
        if header.version >= 3 && !header.is_dirty() {
            header.write_features(&self.file).await?;
            self.sync().await?;
        }
        if let Some(lasting) = &self.lasting {
            failpoint::hit(Point::CacheFileRemove);
            lasting.remove();
        }
        Ok(())
    }

    /// Keeps the share of dirty metadata in the cache below one half.
    pub(super) fn write_back_when_much_is_dirty(self: &Rc<Self>) {
        if self.cache.dirty_bytes() > self.cache.capacity() / 2 && !self.write_back.running.get() {
            self.want_write_back().with_refcounts.set(true);
        }
    }

    /// Whether metadata was changed since the last attempt to write it back for its age.
    pub(crate) fn has_unsaved_changes(&self) -> bool {
        self.cache.dirty_bytes() > 0 && self.cache.generation() > self.write_back.tried_by_age.get()
    }

    /// Starts to write back what is dirty, so that a power loss costs a guest that never flushes no more than some seconds.
    pub(crate) fn write_back_by_age(self: &Rc<Self>) {
        if self.has_unsaved_changes() {
            self.write_back.tried_by_age.set(self.cache.generation());
            self.want_write_back().with_refcounts.set(true);
        }
    }

    /// Waits until slots of the cache are clean again. What holds them may be refcounts alone (those of a snapshot that is being
    /// taken), so they are written, too.
    pub(super) async fn make_room_in_cache(self: &Rc<Self>) -> Result<(), DiskError> {
        if self.cache.dirty_bytes() > 0 {
            return self.flush_with_refcounts().await;
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
            if planted(Bug::FreedBeforeUnlinkDurable) {
                self.release_from_quarantine(captured.unlinked.clone());
            }
            let result = self.write_back_captured(&captured, epoch.with_refcounts.get()).await;
            match &result {
                Ok(()) if planted(Bug::FreedBeforeUnlinkDurable) => {}
                Ok(()) => self.release_from_quarantine(captured.unlinked),
                Err(error) => {
                    tracing::error!(%error, "metadata could not be written back");
                    self.write_back.quarantine(&captured.unlinked);
                }
            }
            *epoch.result.borrow_mut() = Some(result);
            epoch.waiters.wake_all();
        }
        self.write_back.running.set(false);
    }

    fn capture(&self) -> Captured {
        let mut slices = self.cache.dirty_slices(Class::L2Table);
        slices.extend(self.cache.dirty_slices(Class::L1Table));
        Captured {
            slices,
            unlinked: self.write_back.quarantine.take(),
        }
    }

    async fn write_back_captured(self: &Rc<Self>, captured: &Captured, with_refcounts: bool) -> Result<(), DiskError> {
        if captured.slices.is_empty() && !with_refcounts {
            if planted(Bug::NoBarrierWithoutLinks) {
                return Ok(());
            }
            return self.sync().await;
        }
        failpoint::hit(Point::WriteBack);
        if planted(Bug::CleanBeforeWritten) {
            self.cache.written_back(&captured.slices);
        }
        if planted(Bug::LinksBeforeRefcounts) {
            self.write_slices(&captured.slices).await?;
        }
        failpoint::hit(Point::WriteBack);
        self.write_refcounts().await?;
        failpoint::hit(Point::DataBarrier);
        if !planted(Bug::NoBarrierBeforeLinks) {
            self.sync().await?;
        }
        if captured.slices.is_empty() {
            return Ok(());
        }
        failpoint::hit(Point::L2WriteBack);
        let late = planted(Bug::CopiesTakenLate).then(|| self.capture().slices);
        let slices = late.as_ref().unwrap_or(&captured.slices);
        self.write_slices(slices).await?;
        failpoint::hit(Point::LinkBarrier);
        if !planted(Bug::NoBarrierAfterLinks) {
            self.sync().await?;
        }
        failpoint::hit(Point::LinksDurable);
        self.cache.written_back(slices);
        Ok(())
    }

    /// Writes dirty refcount blocks, and then table entries that name new ones.
    async fn write_refcounts(self: &Rc<Self>) -> Result<(), DiskError> {
        // The table must not move meanwhile.
        let _using = self.refcounts.table_in_flight.use_mapping(0..1).await;
        // Taken first: the blocks that these name were written when they were made.
        let table = self.cache.dirty_slices(Class::RefcountTable);
        let blocks = self.cache.dirty_slices(Class::RefcountBlock);
        failpoint::hit(Point::RefblockUpdate);
        self.write_slices(&blocks).await?;
        self.cache.written_back(&blocks);
        if !table.is_empty() {
            failpoint::hit(Point::ReftableBarrier);
            if !planted(Bug::NoBarrierBeforeRefcountTable) {
                self.sync().await?;
            }
            failpoint::hit(Point::ReftableUpdate);
            self.write_slices(&table).await?;
            self.cache.written_back(&table);
        }
        Ok(())
    }

    /// Writes slices to where they belong; neighbours travel together.
    async fn write_slices(self: &Rc<Self>, slices: &[DirtySlice]) -> Result<(), DiskError> {
        for slice in slices {
            self.check_slice_at(slice.offset, slice.class)?;
        }
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
    pub(super) async fn sync(&self) -> Result<(), DiskError> {
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
        image.write_back.releasing.update(|count| count + 1);
        // A task of its own: it may need room in the cache, and so the next write-back.
        self.tasks.spawn(async move {
            for clusters in unlinked {
                failpoint::hit(Point::ClusterFree);
                // Before anybody else can have them. A file system without holes keeps the space, no more.
                if image.unmap
                    && let Err(error) = image.punch_last_references(clusters).await
                {
                    tracing::debug!(%error, ?clusters, "the space of clusters is not given back");
                }
                if let Err(error) = image.decrement_refcounts(clusters).await {
                    tracing::error!(%error, ?clusters, "clusters leak");
                }
            }
            image.write_back.releasing.update(|count| count - 1);
            image.write_back.released.wake_all();
        });
    }
}
