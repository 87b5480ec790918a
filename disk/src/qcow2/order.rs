//! The five steps of a write into a cluster that is unallocated or shared, as types.
//!
//! 1. increment the refcounts of the new clusters: [`Qcow2::allocate`] gives [`Allocated`]
//! 2. write the guest's data into them, and
//! 3. the parts of the old clusters that it does not cover (one vectored write): [`Allocated::write`] gives [`Filled`]
//! 4. point the table at them: [`Qcow2::link`] and [`Qcow2::link_l2_table`] take [`Filled`] and give [`Unlinked`]
//! 5. give up the old clusters: [`Unlinked::release`]; they are in quarantine until step 4 is durable.
//!
//! Each step consumes the proof that the one before it completed. There is no other way to make the values:
//! to link what was not written, or to free what is still linked, does not compile. An error, or a request that is
//! dropped half-way, drops the token, and the new clusters are given back (after a write that is still in flight).

use std::rc::Rc;

use smallvec::SmallVec;

use super::Qcow2;
use crate::DiskError;
use crate::storage::Pieces;

/// A run of host clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clusters {
    /// Index of the first: its offset in the image file divided by the cluster size.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// Proof of step 1: contiguous clusters with a refcount of one to which nothing points yet.
#[must_use]
pub(super) struct Allocated {
    image: Rc<Qcow2>,
    clusters: Clusters,
    fresh: bool,
    linked: bool,
}

/// What is to be stored in new clusters. What the pieces leave out reads as zeros: only clusters that are
/// [`Allocated::fresh`] may leave something out.
pub(super) struct Content {
    /// Where the pieces begin, in bytes from the start of the first new cluster.
    pub start: u64,
    /// The bytes.
    pub pieces: Pieces,
}

/// Proof of steps 2 and 3: the clusters hold what the guest shall read.
#[must_use]
pub(super) struct Filled {
    allocated: Allocated,
}

/// Proof of step 4: the table points at the new clusters, and no longer at these.
#[must_use]
pub(super) struct Unlinked {
    image: Rc<Qcow2>,
    references: SmallVec<[Clusters; 2]>,
    released: bool,
}

impl Allocated {
    /// Only the refcounts may call this, when it has incremented them.
    pub(super) fn new(image: Rc<Qcow2>, clusters: Clusters, fresh: bool) -> Self {
        Self {
            image,
            clusters,
            fresh,
            linked: false,
        }
    }

    /// The new clusters.
    pub(super) fn clusters(&self) -> Clusters {
        self.clusters
    }

    /// Whether the clusters were never written, so that what is left out reads as zeros.
    pub(super) fn fresh(&self) -> bool {
        self.fresh
    }

    /// One token for these clusters and those of `next`, if they follow each other.
    pub(super) fn join(mut self, mut next: Self) -> Result<Self, (Self, Self)> {
        if self.clusters.first + self.clusters.count != next.clusters.first {
            return Err((self, next));
        }
        self.clusters.count += next.clusters.count;
        self.fresh &= next.fresh;
        // They are this token's now.
        next.linked = true;
        Ok(self)
    }

    /// Writes the content. Afterwards it is in the image file, though not yet durable.
    pub(super) async fn write(self, content: Content) -> Result<Filled, DiskError> {
        let image = self.image.clone();
        let start = self.clusters.first << image.cluster_bits;
        image.check_no_metadata_at(start, self.clusters.count << image.cluster_bits)?;
        let offset = start + content.start;
        let transfer = image.file.write(offset, content.pieces);
        let allocated = image.tasks.finish(transfer, self).await?;
        Ok(Filled { allocated })
    }
}

impl Filled {
    /// The new clusters.
    pub(super) fn clusters(&self) -> Clusters {
        self.allocated.clusters
    }

    /// The table points at the clusters now, and no longer at `references`. Only for who has just changed the table.
    pub(super) fn linked(mut self, references: SmallVec<[Clusters; 2]>) -> Unlinked {
        self.allocated.linked = true;
        Unlinked::new(self.allocated.image.clone(), references)
    }
}

impl Drop for Allocated {
    fn drop(&mut self) {
        if !self.linked {
            self.image.give_back(self.clusters);
        }
    }
}

impl Unlinked {
    /// The active tables no longer point at `references`. Only for who has just changed the table.
    pub(super) fn new(image: Rc<Qcow2>, references: SmallVec<[Clusters; 2]>) -> Self {
        Self {
            image,
            references,
            released: false,
        }
    }

    /// Step 5: the old clusters lose a reference as soon as their unlinking is durable.
    pub(super) fn release(mut self) {
        self.released = true;
        self.image.write_back.quarantine(&self.references);
    }
}

impl Drop for Unlinked {
    fn drop(&mut self) {
        debug_assert!(
            self.released || std::thread::panicking(),
            "step 5 was left out: {:?} leak",
            self.references
        );
    }
}
