//! Exchanging whole tables: what belongs together is committed by one write within the header's sector.
//!
//! The size of the disk, the L1 table, the refcount table and the snapshot table are all named in bytes 24 to 72 of the image
//! file. A sector is written or not, so a snapshot or a resize either happened or did not. The order is that of the five steps:
//! everything that the new header refers to is durable before it is written, and what only the old one referred to
//! is given up when it is durable.

use std::rc::Rc;

use smallvec::SmallVec;

use super::Qcow2;
use super::header::Header;
use super::order::{Allocated, Clusters, Content, Filled, Unlinked};
use crate::failpoint::{self, Point};
use crate::in_flight::InFlightGuard;
use crate::planted_bug::{Bug, planted};
use crate::storage::Piece;
use crate::{Buffer, DiskError};

impl Qcow2 {
    /// Waits until no request of the guest is in flight, and keeps it so; no table is dirty then, and no cluster in quarantine.
    pub(super) async fn alone(self: &Rc<Self>) -> Result<InFlightGuard, DiskError> {
        let alone = self.in_flight.change_mapping(0..u64::MAX).await;
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        self.check_not_struck()?;
        self.flush().await?;
        self.write_back.quarantine_is_empty().await;
        Ok(alone)
    }

    /// Steps 1 and 2 for a table that the header or a snapshot record will name: `bytes` in contiguous new clusters.
    pub(super) async fn write_table(self: &Rc<Self>, mut bytes: Vec<u8>) -> Result<Filled, DiskError> {
        let length = bytes.len().max(1).next_multiple_of(self.cluster_size() as usize);
        bytes.resize(length, 0);
        let allocated = self.allocate_contiguous(length as u64 >> self.cluster_bits).await?;
        let content = Content {
            start: 0,
            pieces: smallvec::smallvec![Piece::whole(Buffer::from_slice(&bytes))],
        };
        let filled = allocated.write(content).await?;
        self.forget_cached(filled.clusters()).await;
        Ok(filled)
    }

    async fn allocate_contiguous(self: &Rc<Self>, count: u64) -> Result<Allocated, DiskError> {
        // Each block's clusters begin with the block itself, so no run is longer.
        if count >= self.clusters_per_block() {
            return Err(DiskError::Unsupported(
                "a table that is larger than what one refcount block describes",
            ));
        }
        // Runs that are too short are given back at the end; before that they would be found again.
        let mut too_short = Vec::new();
        let mut run = self.allocate(count).await?;
        while run.clusters().count < count {
            let next = self.allocate(count - run.clusters().count).await?;
            run = match run.join(next) {
                Ok(joined) => joined,
                Err((short, next)) => {
                    too_short.push(short);
                    next
                }
            };
        }
        Ok(run)
    }

    /// Step 4 for tables that the header names: makes everything durable that came before, then changes the header.
    /// `tables` are in use afterwards, and `old` no longer.
    ///
    /// After an error the header is as it was, unless [`Qcow2::durability_is_lost`]: then nobody knows, so nothing
    /// that either of the two headers refers to is given up.
    pub(super) async fn switch_header(
        self: &Rc<Self>,
        tables: impl IntoIterator<Item = Filled>,
        old: impl IntoIterator<Item = Clusters>,
        change: impl FnOnce(&mut Header),
    ) -> Result<(), DiskError> {
        let tables: SmallVec<[Filled; 2]> = tables.into_iter().collect();
        if !planted(Bug::SwitchBeforeFlush) {
            self.flush_with_refcounts().await?;
        }
        let mut old: SmallVec<[Clusters; 2]> = old.into_iter().filter(|clusters| clusters.count > 0).collect();
        if planted(Bug::OldTableFreedFirst) {
            for clusters in old.drain(..) {
                self.decrement_refcounts(clusters).await?;
            }
        }
        let result = self.write_header_tables(change).await;
        if result.is_err() && !self.durability_is_lost() {
            return result;
        }
        for table in tables {
            table.linked(SmallVec::new()).release();
        }
        if result.is_ok() {
            Unlinked::new(self.clone(), old).release();
        }
        result
    }

    async fn write_header_tables(self: &Rc<Self>, change: impl FnOnce(&mut Header)) -> Result<(), DiskError> {
        // The refcount table must not move meanwhile.
        let _using = self.refcounts.table_in_flight.use_mapping(0..1).await;
        let old = self.header.borrow().clone();
        let mut new = old.clone();
        change(&mut new);
        failpoint::hit(Point::HeaderSwitch);
        let written = match new.write_tables(&self.file).await {
            Ok(()) => {
                failpoint::hit(Point::HeaderSwitched);
                if planted(Bug::NoBarrierAfterSwitch) {
                    Ok(())
                } else {
                    self.sync().await
                }
            }
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            let restored = old.write_tables(&self.file).await.is_ok() && self.sync().await.is_ok();
            if !restored {
                self.lose_durability();
            }
            return Err(error);
        }
        // Feature bits may have changed since; they are not part of this.
        change_tables(&mut self.header.borrow_mut(), &new);
        Ok(())
    }

    /// The clusters that `bytes` at `offset` of the image file take up.
    pub(super) fn clusters_of_table(&self, offset: u64, bytes: u64) -> Clusters {
        Clusters {
            first: offset >> self.cluster_bits,
            count: bytes.div_ceil(self.cluster_size()),
        }
    }
}

fn change_tables(header: &mut Header, new: &Header) {
    header.size = new.size;
    header.l1_size = new.l1_size;
    header.l1_table_offset = new.l1_table_offset;
    header.snapshot_count = new.snapshot_count;
    header.snapshot_table_offset = new.snapshot_table_offset;
}

/// The bytes of a table of 64-bit entries.
pub(super) fn table_of(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}
