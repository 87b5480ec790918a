//! The order of a write into clusters that are unallocated or shared, as types that know nothing of qcow2.
//!
//! [`Allocated`] is the proof of step 1, [`Filled`] of steps 2 and 3, [`Unlinked`] of step 4. Each step consumes the proof of the
//! one before it. Their fields are private to this file and none can be copied, so to link what was not written, to free what is
//! still linked or to use a proof twice does not compile, and to leave a step out is a warning (which CI refuses) or, where
//! a step-5 token is dropped, an assertion.
//!
//! Why this file is public though nobody outside needs it: that something does not compile can only be tested from another crate
//! (`tests/wrong_order`), which does not see what is private to qcow2. A copy made for the test would prove nothing of the engine.
//! So the engine's own types are these, with the image as a parameter: `qcow2::order` names them for qcow2 images, the tests for an image
//! of their own. What the types cannot prove is that an [`Image`] does what it is told, and that who calls one of the three
//! constructors did what its comment asks; there is one such caller for each kind of table.

use std::future::Future;
use std::rc::Rc;

use smallvec::SmallVec;

/// A run of host clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clusters {
    /// Index of the first: its offset in the image file divided by the cluster size.
    pub first: u64,
    /// How many.
    pub count: u64,
}

/// What the steps act on.
pub trait Image: Sized + 'static {
    /// What is to be stored in new clusters.
    type Content;
    /// Why that failed.
    type Error;

    /// Steps 2 and 3: stores the content in the clusters of `allocated`, and gives the token back when it is there. A caller
    /// that stops waiting drops the future; the token must then live until no write is in flight.
    fn fill(
        allocated: Allocated<Self>,
        content: Self::Content,
    ) -> impl Future<Output = Result<Allocated<Self>, Self::Error>>;

    /// Takes back new clusters that were never linked.
    fn give_back(self: &Rc<Self>, clusters: Clusters);

    /// Step 5: these lose a reference as soon as their unlinking is durable.
    fn quarantine(&self, references: &[Clusters]);
}

/// Proof of step 1: contiguous clusters with a refcount of one to which nothing points yet.
#[must_use = "clusters that are not written are given back"]
pub struct Allocated<I: Image> {
    image: Rc<I>,
    clusters: Clusters,
    fresh: bool,
    linked: bool,
}

/// Proof of steps 2 and 3: the clusters hold what the guest shall read.
#[must_use = "clusters that are not linked are given back"]
pub struct Filled<I: Image> {
    allocated: Allocated<I>,
}

/// Proof of step 4: the table points at the new clusters, and no longer at these.
#[must_use = "clusters that are not released leak"]
pub struct Unlinked<I: Image> {
    image: Rc<I>,
    references: SmallVec<[Clusters; 2]>,
    released: bool,
}

impl<I: Image> Allocated<I> {
    /// Only the refcounts may call this, when they have been incremented.
    pub fn new(image: Rc<I>, clusters: Clusters, fresh: bool) -> Self {
        Self {
            image,
            clusters,
            fresh,
            linked: false,
        }
    }

    /// The image that they belong to.
    pub fn image(&self) -> &Rc<I> {
        &self.image
    }

    /// The new clusters.
    pub fn clusters(&self) -> Clusters {
        self.clusters
    }

    /// Whether the clusters were never written, so that what is left out reads as zeros.
    pub fn fresh(&self) -> bool {
        self.fresh
    }

    /// One token for these clusters and those of `next`, if they follow each other.
    pub fn join(mut self, mut next: Self) -> Result<Self, (Self, Self)> {
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
    pub async fn write(self, content: I::Content) -> Result<Filled<I>, I::Error> {
        let allocated = I::fill(self, content).await?;
        Ok(Filled { allocated })
    }
}

impl<I: Image> Filled<I> {
    /// The new clusters.
    pub fn clusters(&self) -> Clusters {
        self.allocated.clusters
    }

    /// The table points at the clusters now, and no longer at `references`. Only for who has just changed the table.
    pub fn linked(mut self, references: SmallVec<[Clusters; 2]>) -> Unlinked<I> {
        self.allocated.linked = true;
        Unlinked::new(self.allocated.image.clone(), references)
    }
}

impl<I: Image> Drop for Allocated<I> {
    fn drop(&mut self) {
        if !self.linked {
            self.image.give_back(self.clusters);
        }
    }
}

impl<I: Image> Unlinked<I> {
    /// The active tables no longer point at `references`. Only for who has just changed the table.
    pub fn new(image: Rc<I>, references: SmallVec<[Clusters; 2]>) -> Self {
        Self {
            image,
            references,
            released: false,
        }
    }

    /// Step 5: the old clusters lose a reference as soon as their unlinking is durable.
    pub fn release(mut self) {
        self.released = true;
        self.image.quarantine(&self.references);
    }
}

impl<I: Image> Drop for Unlinked<I> {
    fn drop(&mut self) {
        debug_assert!(
            self.released || std::thread::panicking(),
            "step 5 was left out: {:?} leak",
            self.references
        );
    }
}
