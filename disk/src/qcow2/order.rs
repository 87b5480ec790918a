//! The five steps of a write into a cluster that is unallocated or shared, as types.
//!
//! 1. increment the refcounts of the new clusters: [`Qcow2::allocate`] gives [`Allocated`]
//! 2. write the guest's data into them, and
//! 3. the parts of the old clusters that it does not cover (one vectored write): [`Allocated::write`] gives [`Filled`]
//! 4. point the table at them: [`Qcow2::link`] and [`Qcow2::link_l2_table`] take [`Filled`] and give [`Unlinked`]
//! 5. give up the old clusters: [`Unlinked::release`]; they are in quarantine until step 4 is durable.
//!
//! Each step consumes the proof that the one before it completed. The types themselves, and why there is no other way through them, are in
//! [`five_steps`]; this file says what the steps do to a qcow2 image. An error, or a request that is dropped half-way,
//! drops the token, and the new clusters are given back (after a write that is still in flight).

use std::rc::Rc;

use super::Qcow2;
use crate::DiskError;
use crate::failpoint::{self, Point};
use crate::five_steps;
use crate::planted_bug::{Bug, planted};
use crate::storage::Pieces;

pub(super) use crate::five_steps::Clusters;

/// Proof of step 1.
pub(super) type Allocated = five_steps::Allocated<Qcow2>;

/// Proof of steps 2 and 3.
pub(super) type Filled = five_steps::Filled<Qcow2>;

/// Proof of step 4.
pub(super) type Unlinked = five_steps::Unlinked<Qcow2>;

/// What is to be stored in new clusters. What the pieces leave out reads as zeros: only clusters that are
/// [`Allocated::fresh`] may leave something out.
pub(crate) struct Content {
    /// Where the pieces begin, in bytes from the start of the first new cluster.
    pub start: u64,
    /// The bytes.
    pub pieces: Pieces,
}

impl five_steps::Image for Qcow2 {
    type Content = Content;
    type Error = DiskError;

    async fn fill(allocated: Allocated, content: Content) -> Result<Allocated, DiskError> {
        let (image, clusters) = (allocated.image().clone(), allocated.clusters());
        let start = clusters.first << image.cluster_bits;
        image.check_no_metadata_at(start, clusters.count << image.cluster_bits)?;
        let offset = start + content.start;
        let copies = content.pieces.len() > 1;
        failpoint::hit(if copies { Point::CowWrite } else { Point::WriteAio });
        let transfer = image.file.write(offset, content.pieces);
        if planted(Bug::LinkedBeforeWritten) {
            drop(image.tasks.finish(transfer, ()));
            return Ok(allocated);
        }
        if planted(Bug::NewClustersForgotten) {
            return transfer.await.map(|()| allocated);
        }
        image.tasks.finish(transfer, allocated).await
    }

    fn give_back(self: &Rc<Self>, clusters: Clusters) {
        Qcow2::give_back(self, clusters);
    }

    fn quarantine(&self, references: &[Clusters]) {
        failpoint::hit(Point::Quarantine);
        if planted(Bug::LinkForgetsOld) {
            return;
        }
        self.write_back.quarantine(references);
    }
}
