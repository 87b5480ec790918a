//! qcow2 images: read, and written in the order that cannot lose data.
//!
//! The order of a write into a cluster that is unallocated or shared is a chain of types in [`order`];
//! when metadata reaches the image file is decided in [`write_back`]; which requests wait for each other, in
//! [`in_flight`](crate::in_flight). Everything below [`header`] and [`entry`] is pure: bytes in, structures out.

pub(crate) mod cache;
pub(crate) mod cache_memory;
pub(crate) mod change_backing;
pub(crate) mod check;
pub(crate) mod compress;
mod compressed;
mod counts;
pub(crate) mod create;
mod discard;
mod empty;
pub(crate) mod entry;
pub(crate) mod findings;
pub(crate) mod header;
pub(crate) mod layer;
mod map;
mod mapped;
mod mapping;
pub(crate) mod measure;
mod open;
mod order;
mod overlap;
mod read;
mod recover;
pub(crate) mod refcount;
mod references;
pub(crate) mod repair;
pub(crate) mod resize;
pub(crate) mod snapshot;
mod snapshot_table;
mod switch;
pub(crate) mod token;
mod tree;
mod write;
mod write_back;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::disk::Corruption;
use crate::image::Image;
use crate::storage::ImageFile;
use crate::tasks::Tasks;
use crate::{Buffer, DiskError};

use crate::in_flight::InFlight;
use cache::{Cache, Class, Found, Slice};
use cache_memory::LastingMemory;
use header::Header;
use order::Clusters;
use overlap::MetadataMap;
use refcount::Refcounts;
use snapshot_table::SnapshotRecord;
use write_back::WriteBack;

pub(crate) use open::of_image;
pub(crate) use open::{CachePlan, Opening, check_left_behind, default_cache_bytes, open};

/// An open qcow2 image.
pub(crate) struct Qcow2 {
    tasks: Tasks,
    file: ImageFile,
    header: RefCell<Header>,
    cluster_bits: u32,
    read_only: bool,
    /// Clusters that are given up give their space back to the host's file system.
    unmap: bool,
    /// The cache ends with this process, so a write is not complete before its metadata is in the image.
    write_through: bool,
    /// Where the cache lies otherwise.
    lasting: Option<Rc<dyn LastingMemory>>,
    /// The active L1 table, as the guest sees it now.
    l1: RefCell<Vec<u64>>,
    /// Held, by entry number, while an L2 table is being put in place.
    l1_in_flight: Rc<InFlight>,
    refcounts: Refcounts,
    snapshots: RefCell<Vec<SnapshotRecord>>,
    metadata: MetadataMap,
    cache: Rc<Cache>,
    in_flight: Rc<InFlight>,
    write_back: WriteBack,
    /// Every cluster that was ever written ends before this byte. What is allocated beyond it was never
    /// written, so it reads as zeros in a regular file.
    image_end: Cell<u64>,
    backing: Option<Image>,
    /// A cluster of zeros, for what a new cluster must not inherit.
    zeroes: Buffer,
}

impl Qcow2 {
    /// The size of the virtual disk in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.header.borrow().size
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn cluster_of(&self, offset: u64) -> u64 {
        offset >> self.cluster_bits
    }

    /// The clusters that a range of bytes touches.
    fn clusters(&self, offset: u64, length: u64) -> std::ops::Range<u64> {
        self.cluster_of(offset)..self.cluster_of(offset + length - 1) + 1
    }

    /// A resize may have come between the check of a request and its turn.
    fn check_within_disk(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let capacity = self.capacity();
        if offset.checked_add(length).is_none_or(|end| end > capacity) {
            return Err(DiskError::OutOfRange {
                offset,
                length,
                capacity,
            });
        }
        Ok(())
    }

    fn within_cluster(&self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    /// The slice of metadata at `offset` of the image file, from the cache or the file.
    async fn slice(self: &Rc<Self>, offset: u64, class: Class) -> Result<Slice, DiskError> {
        loop {
            match self.cache.request(offset, class) {
                Found::Ready(slice) => return Ok(slice),
                Found::Load(loading) => {
                    let transfer = self.file.read(offset, smallvec::smallvec![loading.piece()]);
                    return Ok(self.tasks.finish(transfer, loading).await?.loaded());
                }
                Found::InProgress => {
                    self.cache
                        .changed
                        .until(|| (!self.cache.is_loading(offset)).then_some(()))
                        .await;
                }
                Found::Full => self.make_room_in_cache().await?,
            }
        }
    }

    /// Drops what the cache holds of clusters that are about to become a table.
    async fn forget_cached(&self, clusters: Clusters) {
        let range = clusters.first << self.cluster_bits..(clusters.first + clusters.count) << self.cluster_bits;
        self.cache
            .changed
            .until(|| (!self.cache.is_loading_within(range.clone())).then_some(()))
            .await;
        self.cache.forget(range);
    }

    fn corrupt(&self, corruption: Corruption) -> DiskError {
        tracing::error!(%corruption, "the image is corrupt");
        DiskError::Corrupt(corruption)
    }
}
