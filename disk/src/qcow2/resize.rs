//! Resizing, both ways, committed by one write of the header.
//!
//! A disk grows in the order: a larger L1 table, if one is needed; zeros where something of before would show (the rest of the
//! last cluster, what a shorter disk left mapped behind its end, a backing file that is longer than the disk was); the new size. It shrinks
//! in the order: the new size; then what lies behind it is given up. So a crash leaves the old size with all of the old content, or
//! the new one. Snapshots know their own size.

use std::ops::Range;
use std::rc::Rc;

use super::Qcow2;
use super::entry::ZERO;
use super::header::{MAX_L1_BYTES, l1_entries_for};
use super::mapping::Kind;
use super::order::Unlinked;
use super::tree::Walk;
use crate::image::Image;
use crate::in_flight::InFlightGuard;
use crate::planted_bug::{Bug, planted};
use crate::storage::Piece;
use crate::{DiskError, SECTOR_SIZE};

/// Why a disk was not resized.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// Data would be lost, and that was not asked for.
    #[error("The disk would shrink from {from} to {to} bytes, and lose what lies behind; that must be asked for")]
    Shrinks {
        /// Size of the disk in bytes.
        from: u64,
        /// The size asked for.
        to: u64,
    },
    /// The size is not a multiple of the sector size.
    #[error("{0} bytes are not whole sectors of {SECTOR_SIZE} bytes")]
    Unaligned(u64),
    /// No L1 table that is allowed maps so much.
    #[error("A disk of {0} bytes needs an L1 table of more than {MAX_L1_BYTES} bytes; larger clusters need less")]
    TooLarge(u64),
    /// Snapshots that do not know their own size.
    #[error("The image has snapshots that do not record the size of the disk, as those of version 2 need not")]
    Snapshots,
    /// The image is not qcow2.
    #[error("Only qcow2 images can be resized")]
    Format,
    /// Reading or writing the image failed. The disk has its old size.
    #[error("{0}")]
    Disk(DiskError),
}

impl From<DiskError> for ResizeError {
    fn from(error: DiskError) -> Self {
        ResizeError::Disk(error)
    }
}

impl Qcow2 {
    /// Makes the disk `size` bytes long; requests of the guest come before it or after it. What is added reads as zeros; what is cut
    /// off is lost, and only if `may_shrink`.
    pub(crate) async fn resize(self: &Rc<Self>, size: u64, may_shrink: bool) -> Result<(), ResizeError> {
        let alone = Rc::new(self.alone().await?);
        let old = self.capacity();
        if !size.is_multiple_of(SECTOR_SIZE) {
            return Err(ResizeError::Unaligned(size));
        }
        if size > i64::MAX as u64 || l1_entries_for(size, self.cluster_bits) * 8 > MAX_L1_BYTES {
            return Err(ResizeError::TooLarge(size));
        }
        if size < old && !may_shrink {
            return Err(ResizeError::Shrinks { from: old, to: size });
        }
        let sized = |record: &super::SnapshotRecord| record.disk_size().is_some();
        let version_2 = self.header.borrow().version == 2 && !self.snapshots.borrow().is_empty();
        if version_2 || !self.snapshots.borrow().iter().all(sized) {
            return Err(ResizeError::Snapshots);
        }
        if size > old {
            self.grow(old, size, &alone).await?;
        } else if size < old {
            if planted(Bug::CutOffBeforeSwitch) {
                self.cut_off(size).await?;
            }
            self.switch_size(size).await?;
            self.finish_shrinking().await;
        }
        Ok(self.write_through().await?)
    }

    /// Gives up what is mapped behind the end of the disk, which a shrink that was interrupted leaves there. The disk has
    /// its size, come what may: what stays mapped wastes space, and is hidden before it could show again.
    pub(super) async fn finish_shrinking(self: &Rc<Self>) {
        if let Err(error) = self.cut_off(self.capacity()).await {
            tracing::warn!(%error, "clusters behind the end of the disk stay allocated");
            self.leave_for_recovery();
        }
    }

    async fn switch_size(self: &Rc<Self>, size: u64) -> Result<(), DiskError> {
        self.switch_header([], [], |header| header.size = size).await
    }

    async fn grow(self: &Rc<Self>, old: u64, size: u64, alone: &Rc<InFlightGuard>) -> Result<(), DiskError> {
        let entries = l1_entries_for(size, self.cluster_bits);
        let mut l1 = self.l1.borrow().clone();
        if entries > l1.len() as u64 {
            l1.resize(entries as usize, 0);
            self.switch_l1(l1, old).await?;
        }
        if planted(Bug::SizeBeforeZeros) {
            self.switch_size(size).await?;
        }
        self.hide_beyond(old, size, alone).await?;
        self.switch_size(size).await
    }

    /// Makes the bytes `old..size`, which are not part of the disk yet, read as zeros.
    async fn hide_beyond(self: &Rc<Self>, old: u64, size: u64, alone: &Rc<InFlightGuard>) -> Result<(), DiskError> {
        let first_whole = old.next_multiple_of(self.cluster_size());
        self.zero_mapped_bytes(old, first_whole.min(size), alone).await?;
        let backed = self.backing.as_ref().map_or(0, Image::capacity);
        let backed = backed
            .next_multiple_of(self.cluster_size())
            .clamp(first_whole, size.max(first_whole));
        if self.header.borrow().version == 2 {
            // There are no zero clusters.
            self.zero_mapped_bytes(first_whole, backed.min(size), alone).await?;
        } else {
            self.replace_clusters(self.cluster_range(first_whole, backed), ZERO)
                .await?;
        }
        self.replace_clusters(self.cluster_range(backed, size), 0).await
    }

    /// Writes zeros where a range of bytes does not read as zeros.
    async fn zero_mapped_bytes(
        self: &Rc<Self>,
        mut offset: u64,
        end: u64,
        alone: &Rc<InFlightGuard>,
    ) -> Result<(), DiskError> {
        while offset < end {
            let length = (end - offset).min(self.zeroes.len() as u64 - self.within_cluster(offset));
            let extent = self.lookup(offset, length).await?;
            let reads_zero = match extent.kind {
                Kind::Zero { .. } => true,
                Kind::Unallocated => self.backing.as_ref().is_none_or(|backing| offset >= backing.capacity()),
                Kind::Data { .. } | Kind::Compressed { .. } => false,
            };
            if !reads_zero {
                let zeroes = Piece {
                    buffer: self.zeroes.clone(),
                    range: 0..extent.length as usize,
                };
                self.write_mapped(offset, zeroes, alone).await?;
            }
            offset += extent.length;
        }
        Ok(())
    }

    /// Gives up everything that is mapped behind `size`: single clusters of one L2 table, then whole tables.
    async fn cut_off(self: &Rc<Self>, size: u64) -> Result<(), DiskError> {
        let table_bytes = self.cluster_size() << self.l2_bits();
        let first_whole = size.div_ceil(table_bytes);
        // This touches no other table, so the whole ones stay clean until they are read below.
        let within = self.cluster_range(size.next_multiple_of(self.cluster_size()), first_whole * table_bytes);
        self.replace_clusters(within, 0).await?;
        let entries = self.l1.borrow().len() as u64;
        for index in first_whole..entries {
            self.drop_l2_table(index).await?;
        }
        Ok(())
    }

    /// Takes L1 entry number `index` away, and gives up what it leads to. The table is not dirty.
    async fn drop_l2_table(self: &Rc<Self>, index: u64) -> Result<(), DiskError> {
        let entry = [self.l1.borrow()[index as usize]];
        let Some(references) = Walk::along(&entry).next(self).await? else {
            return Ok(());
        };
        let (slice, slice_index) = self.l1_slice(index).await?;
        self.cache.set_entry(slice, slice_index, 0);
        self.l1.borrow_mut()[index as usize] = 0;
        if let Some(table) = references.last() {
            self.metadata.remove(table.first);
        }
        Unlinked::new(self.clone(), references.into()).release();
        self.write_back_when_much_is_dirty();
        Ok(())
    }

    /// The clusters that begin within these bytes.
    fn cluster_range(&self, start: u64, end: u64) -> Range<u64> {
        self.cluster_of(start.next_multiple_of(self.cluster_size()))
            ..self.cluster_of(end.next_multiple_of(self.cluster_size()))
    }
}
