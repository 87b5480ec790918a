//! Discard and write-zeroes: clusters that lose their content.

use std::ops::Range;
use std::rc::Rc;

use super::Qcow2;
use super::entry::ZERO;
use super::mapping::Kind;
use super::order::Unlinked;
use crate::DiskError;
use crate::failpoint::{self, Point};
use crate::storage::Piece;

impl Qcow2 {
    /// Gives up the clusters that lie wholly within the range; they read as zeros afterwards. The rest stays as it is.
    pub(crate) async fn discard(self: &Rc<Self>, offset: u64, length: u64) -> Result<(), DiskError> {
        let start = offset.next_multiple_of(self.cluster_size());
        let end = self.whole_clusters_end(offset + length);
        // Version 2 has no zero clusters: without an entry, the backing file would show through.
        if start >= end || (self.header.borrow().version == 2 && self.backing.is_some()) {
            return Ok(());
        }
        // What is left of a last cluster that is no longer the disk's last may stay as it is.
        self.zero_clusters(start, end, offset + length).await.map(drop)
    }

    /// Makes the range read as zeros: whole clusters by their L2 entry, the rest by writing.
    pub(crate) async fn write_zeroes(self: &Rc<Self>, offset: u64, length: u64) -> Result<(), DiskError> {
        let end = offset + length;
        let whole = offset.next_multiple_of(self.cluster_size())..self.whole_clusters_end(end);
        if whole.start >= whole.end || (self.header.borrow().version == 2 && self.backing.is_some()) {
            return self.write_zero_bytes(offset, end).await;
        }
        self.write_zero_bytes(offset, whole.start).await?;
        let zeroed = self.zero_clusters(whole.start, whole.end, end).await?;
        self.write_zero_bytes(zeroed, end).await
    }

    /// The end of the last cluster that ends at or before `end`. The disk's last cluster counts as whole.
    fn whole_clusters_end(&self, end: u64) -> u64 {
        if end == self.capacity() {
            end.next_multiple_of(self.cluster_size())
        } else {
            end - self.within_cluster(end)
        }
    }

    async fn write_zero_bytes(self: &Rc<Self>, mut offset: u64, end: u64) -> Result<(), DiskError> {
        while offset < end {
            let length = (end - offset).min(self.zeroes.len() as u64);
            let piece = Piece {
                buffer: self.zeroes.clone(),
                range: 0..length as usize,
            };
            self.write(offset, piece).await?;
            offset += length;
        }
        Ok(())
    }

    /// Gives up the clusters of these bytes, of which those from `asked_until` on lie behind the end of the disk. Returns where
    /// it stopped: before a last cluster that, when its turn came, was not the disk's last any more.
    async fn zero_clusters(self: &Rc<Self>, start: u64, end: u64, asked_until: u64) -> Result<u64, DiskError> {
        let clusters = self.cluster_of(start)..self.cluster_of(end);
        let _changing = self.in_flight.change_mapping(clusters.clone()).await;
        self.check_not_struck()?;
        let asked_until = asked_until.min(end);
        self.check_within_disk(start, asked_until - start)?;
        // A snapshot that was applied meanwhile may have made the disk longer, and what was behind its end the guest's.
        let end = if asked_until == self.capacity() {
            end
        } else {
            asked_until - self.within_cluster(asked_until)
        };
        // With a backing file an unallocated cluster shows it; a zero cluster hides it.
        let entry = if self.backing.is_some() { ZERO } else { 0 };
        self.replace_clusters(self.cluster_of(start)..self.cluster_of(end), entry)
            .await?;
        self.write_through().await?;
        Ok(end)
    }

    /// Gives up clusters, whose mapping the caller has for itself, in favour of an L2 entry without one: 0 or [`ZERO`].
    pub(super) async fn replace_clusters(self: &Rc<Self>, clusters: Range<u64>, entry: u64) -> Result<(), DiskError> {
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let rest = (clusters.end - cluster) << self.cluster_bits;
            let extent = self.lookup(cluster << self.cluster_bits, rest).await?;
            let run = extent.length >> self.cluster_bits;
            if matches!(extent.kind, Kind::Unallocated) && entry == 0 {
                cluster += run;
                continue;
            }
            let until = (cluster + run).min(self.slice_end(cluster));
            let slice = self.l2_slice_to_change(cluster).await?;
            failpoint::hit(Point::Discard);
            let references = self.replace_entries(slice, cluster..until, |_| entry)?;
            Unlinked::new(self.clone(), references).release();
            cluster = until;
        }
        Ok(())
    }
}
