//! Writing: in place where the cluster is ours alone, else by the five steps.

use std::rc::Rc;

use futures_lite::future::zip;
use smallvec::SmallVec;

use super::Qcow2;
use super::mapping::Kind;
use super::order::{Allocated, Content};
use crate::failpoint::{self, Point};
use crate::in_flight::InFlightGuard;
use crate::planted_bug::{Bug, planted};
use crate::storage::{Piece, Pieces};
use crate::{Buffer, DiskError};

impl Qcow2 {
    /// Writes `source` to the guest's bytes at `offset`.
    pub(crate) async fn write(self: &Rc<Self>, offset: u64, source: Piece) -> Result<(), DiskError> {
        if source.range.is_empty() {
            return Ok(());
        }
        if self.write_in_place(offset, &source).await? {
            return Ok(());
        }
        let length = source.range.len() as u64;
        // Shared with the transfers in place, as in `write_in_place`.
        let changing = Rc::new(self.in_flight.change_mapping(self.clusters(offset, length)).await);
        self.check_within_disk(offset, length)?;
        self.write_mapped(offset, source, &changing).await?;
        self.write_through().await
    }

    /// Writes everything in place and returns true, or returns false before it wrote anything.
    async fn write_in_place(self: &Rc<Self>, offset: u64, source: &Piece) -> Result<bool, DiskError> {
        let length = source.range.len() as u64;
        // Shared with the transfers: if this request is dropped, they still keep the clusters from being freed.
        let using = Rc::new(self.in_flight.use_mapping(self.clusters(offset, length)).await);
        self.check_not_struck()?;
        self.check_within_disk(offset, length)?;
        let mut targets: SmallVec<[(u64, Piece); 4]> = SmallVec::new();
        let mut done = 0;
        while done < length {
            let extent = self.lookup(offset + done, length - done).await?;
            let Kind::Data { host, in_place: true } = extent.kind else {
                return Ok(false);
            };
            self.check_no_metadata_at(host, extent.length)?;
            targets.push((host, part(source, done, extent.length)));
            done += extent.length;
        }
        failpoint::hit(Point::WriteInPlace);
        let transfers: SmallVec<[_; 4]> = targets
            .into_iter()
            .map(|(host, piece)| {
                let kept = (!planted(Bug::WritesForgotten)).then(|| using.clone());
                self.tasks
                    .finish(self.file.write(host, smallvec::smallvec![piece]), kept)
            })
            .collect();
        for transfer in transfers {
            transfer.await?;
        }
        if self.has_fleeting_links() {
            self.flush().await?;
        }
        Ok(true)
    }

    /// Writes `source` to the guest's bytes at `offset`, whose mapping `changing` reserves.
    pub(super) async fn write_mapped(
        self: &Rc<Self>,
        offset: u64,
        source: Piece,
        changing: &Rc<InFlightGuard>,
    ) -> Result<(), DiskError> {
        let length = source.range.len() as u64;
        let mut done = 0;
        while done < length {
            let extent = self.lookup(offset + done, length - done).await?;
            if let Kind::Data { host, in_place: true } = extent.kind {
                self.check_no_metadata_at(host, extent.length)?;
                let piece = part(&source, done, extent.length);
                let transfer = self.file.write(host, smallvec::smallvec![piece]);
                self.tasks.finish(transfer, changing.clone()).await?;
                done += extent.length;
            } else {
                done += self
                    .write_allocating(offset + done, part(&source, done, length - done))
                    .await?;
            }
        }
        Ok(())
    }

    /// The five steps, for as many clusters as can be allocated in one run. Returns how many bytes that were.
    async fn write_allocating(self: &Rc<Self>, offset: u64, source: Piece) -> Result<u64, DiskError> {
        let clusters = self.clusters(offset, source.range.len() as u64);
        let wanted = self.run_to_allocate(clusters.clone()).await?;
        let allocated = self.allocate(wanted).await?;
        let end = (clusters.start + allocated.clusters().count) << self.cluster_bits;
        let length = (end - offset).min(source.range.len() as u64);
        let content = self.content(&allocated, offset, part(&source, 0, length)).await?;
        let filled = allocated.write(content).await?;
        failpoint::hit(Point::WriteDone);
        let unlinked = self.link(clusters.start, filled).await?;
        unlinked.release();
        Ok(length)
    }

    /// What new clusters shall hold: the guest's data, and around it what was there before.
    async fn content(self: &Rc<Self>, allocated: &Allocated, offset: u64, source: Piece) -> Result<Content, DiskError> {
        let head = self.within_cluster(offset);
        let end = offset + source.range.len() as u64;
        let tail = end.next_multiple_of(self.cluster_size()) - end;
        // Both at once: what has to be read, from a backing file for example, is read side by side.
        let (before, after) = zip(
            self.old_content(offset - head, head, allocated.fresh()),
            self.old_content(end, tail, allocated.fresh()),
        )
        .await;
        let (before, after) = (before?, after?);
        let start = if before.is_some() { 0 } else { head };
        let pieces: Pieces = before.into_iter().chain([source]).chain(after).collect();
        Ok(Content { start, pieces })
    }

    /// The guest's bytes at `offset`, to be copied into a new cluster. `None` if there is nothing to write, because they
    /// are zeros and the cluster is fresh.
    async fn old_content(self: &Rc<Self>, offset: u64, length: u64, fresh: bool) -> Result<Option<Piece>, DiskError> {
        if length == 0 || planted(Bug::OldContentLeftOut) {
            return Ok(None);
        }
        let fresh = fresh || planted(Bug::ReusedCountsAsFresh);
        let extent = self.lookup(offset, length).await?;
        let is_zero = match extent.kind {
            Kind::Zero { .. } => true,
            Kind::Unallocated => self.backing.as_ref().is_none_or(|backing| offset >= backing.capacity()),
            Kind::Data { .. } | Kind::Compressed { .. } => false,
        };
        if is_zero {
            return Ok((!fresh).then(|| Piece {
                buffer: self.zeroes.clone(),
                range: 0..length as usize,
            }));
        }
        failpoint::hit(Point::CowRead);
        let old = Piece::whole(Buffer::zeroed(length as usize));
        // Boxed, because most writes into new clusters read nothing, and each carries the room for what it might do.
        Box::pin(self.read_mapped(offset, old.clone())).await?;
        Ok(Some(old))
    }
}

/// `length` bytes of `piece`, from its byte `start` on.
fn part(piece: &Piece, start: u64, length: u64) -> Piece {
    let start = piece.range.start + start as usize;
    Piece {
        buffer: piece.buffer.clone(),
        range: start..start + length as usize,
    }
}
