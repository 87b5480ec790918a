//! Refcounts (qcow2 spec, "Host cluster management"): who uses a host cluster, and finding free ones.

use std::cell::{Cell, Ref, RefCell};
use std::io;
use std::rc::Rc;

use super::Qcow2;
use super::cache::{Class, Slice};
use super::cache_memory::MAX_SLICE_SIZE;
use super::header::MAX_REFCOUNT_TABLE_BYTES;
use super::order::{Allocated, Clusters};
use super::overlap::Structure;
use crate::DiskError;
use crate::disk::Corruption;
use crate::failpoint::{self, Point};
use crate::in_flight::InFlight;
use crate::planted_bug::{Bug, planted};

/// Host offsets have 56 bits.
const MAX_HOST_OFFSET: u64 = 1 << 56;

/// Where the header keeps refcount_table_offset, followed by refcount_table_clusters.
const HEADER_REFCOUNT_TABLE: u64 = 48;

/// The refcount table and the allocator's state.
pub(super) struct Refcounts {
    /// Offsets of the refcount blocks in bytes; 0 where there is none.
    table: RefCell<Vec<u64>>,
    /// No cluster before this one is free.
    cursor: Cell<u64>,
    /// Something was not given up for an error, or not mended: only counting all references anew will.
    needs_recovery: Cell<bool>,
    /// Held by who adds a block, or moves the table to add many.
    adding: Rc<InFlight>,
    /// Held by who moves the table; used by who writes it, and so by each write-back. Who holds it must not wait for room in the
    /// cache, because only a write-back makes room.
    pub(super) table_in_flight: Rc<InFlight>,
}

impl Refcounts {
    pub(super) fn new(table: Vec<u64>) -> Self {
        // Cluster 0 holds the header, whatever its refcount says.
        Self {
            table: RefCell::new(table),
            cursor: Cell::new(1),
            needs_recovery: Cell::new(false),
            adding: Rc::default(),
            table_in_flight: Rc::default(),
        }
    }

    /// Offsets of the refcount blocks in bytes; 0 where there is none.
    pub(super) fn table(&self) -> Ref<'_, Vec<u64>> {
        self.table.borrow()
    }
}

/// Where the refcount of a cluster is found.
enum Place {
    /// In the slice at `offset`, as entry `index`.
    Slice { offset: u64, index: u64 },
    /// Nowhere yet: block number `block` does not exist, so the refcount is 0.
    NoBlock { block: u64 },
}

/// Reads entry `index` of packed refcounts of `1 << order` bits.
pub(crate) fn get_refcount(bytes: &[u8], index: usize, order: u32) -> u64 {
    match order {
        0..=2 => {
            let bits = 1 << order;
            let bit = index * bits;
            u64::from(bytes[bit / 8] >> (bit % 8)) & ((1 << bits) - 1)
        }
        _ => {
            let width = 1 << (order - 3);
            bytes[index * width..][..width]
                .iter()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        }
    }
}

/// Writes entry `index` of packed refcounts of `1 << order` bits. `value` fits.
pub(crate) fn set_refcount(bytes: &mut [u8], index: usize, order: u32, value: u64) {
    match order {
        0..=2 => {
            let bits = 1 << order;
            let bit = index * bits;
            let mask = ((1u8 << bits) - 1) << (bit % 8);
            let byte = &mut bytes[bit / 8];
            *byte = *byte & !mask | (value as u8) << (bit % 8);
        }
        _ => {
            let width = 1 << (order - 3);
            bytes[index * width..][..width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        }
    }
}

impl Qcow2 {
    /// Step 1: finds up to `wanted` contiguous free clusters (at least one) and gives them a refcount of one.
    pub(super) async fn allocate(self: &Rc<Self>, wanted: u64) -> Result<Allocated, DiskError> {
        loop {
            let start = self.refcounts.cursor.get();
            if start >= MAX_HOST_OFFSET >> self.cluster_bits {
                return Err(self.too_large("allocate a cluster"));
            }
            match self.refcount_place(start) {
                Place::NoBlock { block } => {
                    // Half of this would be a table on disk that we do not know of; so it is not given up with the request.
                    let image = self.clone();
                    let added = async move { image.add_refcount_block(block).await };
                    self.tasks.to_the_end(added).await?;
                }
                Place::Slice { offset, index } => {
                    let slice = self.slice(offset, Class::RefcountBlock).await?;
                    // Others may have allocated while the slice was read.
                    if self.refcounts.cursor.get() != start {
                        continue;
                    }
                    if let Some(clusters) = self.take_free_run(slice, start, index as usize, wanted) {
                        // An image whose refcounts call a table free must not be written.
                        let (offset, length) =
                            (clusters.first << self.cluster_bits, clusters.count << self.cluster_bits);
                        self.check_no_metadata_at(offset, length)?;
                        let end = offset + length;
                        let fresh = clusters.first << self.cluster_bits >= self.image_end.get();
                        self.image_end.set(self.image_end.get().max(end));
                        let fresh = fresh && self.file.fresh_reads_zero();
                        return Ok(Allocated::new(self.clone(), clusters, fresh));
                    }
                }
            }
        }
    }

    /// Takes the first run of free clusters in a slice whose entry `index` is cluster `start`.
    fn take_free_run(&self, slice: Slice, start: u64, index: usize, wanted: u64) -> Option<Clusters> {
        let order = self.refcount_order();
        let mut memory = [0; MAX_SLICE_SIZE];
        let bytes = &mut memory[..self.cache.slice_size() as usize];
        self.cache.read(slice, 0, bytes);
        let entries = self.refcounts_per_slice() as usize;
        let is_free = |entry: &usize| get_refcount(bytes, *entry, order) == 0;
        let Some(first) = (index..entries).find(is_free) else {
            self.refcounts.cursor.set(start + (entries - index) as u64);
            return None;
        };
        let count = (first..entries).take(wanted as usize).take_while(is_free).count();
        for entry in first..first + count {
            set_refcount(bytes, entry, order, 1);
        }
        let changed = first * (1 << order) / 8..((first + count) * (1 << order)).div_ceil(8);
        if !planted(Bug::RefcountNotRaised) {
            self.cache.write(slice, changed.start, &bytes[changed]);
        }
        failpoint::hit(Point::ClusterAlloc);
        let clusters = Clusters {
            first: start + (first - index) as u64,
            count: count as u64,
        };
        self.refcounts.cursor.set(clusters.first + clusters.count);
        Some(clusters)
    }

    /// Takes back clusters that were allocated and never linked.
    pub(super) fn give_back(self: &Rc<Self>, clusters: Clusters) {
        let image = self.clone();
        self.tasks.spawn(async move {
            if let Err(error) = image.decrement_refcounts(clusters).await {
                tracing::warn!(%error, ?clusters, "clusters leak");
            }
        });
    }

    /// From now on the image has leaks, or flags that do not fit, that this process does not mend: it stays marked as dirty when it is
    /// closed, and the next open does.
    pub(super) fn leave_for_recovery(&self) {
        self.refcounts.needs_recovery.set(true);
    }

    /// Whether the next open shall find the image dirty.
    pub(super) fn needs_recovery(&self) -> bool {
        self.refcounts.needs_recovery.get()
    }

    /// Takes one reference from each cluster; those without another are free again. After an error some leak.
    pub(super) async fn decrement_refcounts(self: &Rc<Self>, clusters: Clusters) -> Result<(), DiskError> {
        let result = self.decrement_each(clusters).await;
        if result.is_err() {
            self.leave_for_recovery();
        }
        result
    }

    async fn decrement_each(self: &Rc<Self>, clusters: Clusters) -> Result<(), DiskError> {
        for cluster in clusters.first..clusters.first + clusters.count {
            let at = cluster << self.cluster_bits;
            let Place::Slice { offset, index } = self.refcount_place(cluster) else {
                return Err(self.corrupt(unreferenced(at)));
            };
            let slice = self.slice(offset, Class::RefcountBlock).await?;
            let refcount = self.add_to_refcount(slice, index as usize, -1);
            if refcount == 0 {
                return Err(self.corrupt(unreferenced(at)));
            }
            if refcount == 1 {
                // If it was a table, its slices must not be written over what comes next.
                self.cache.forget(at..at + self.cluster_size());
                self.refcounts.cursor.set(self.refcounts.cursor.get().min(cluster));
            }
        }
        Ok(())
    }

    /// Gives the space of those of these clusters back to the file system that nobody but the caller refers to.
    pub(super) async fn punch_last_references(self: &Rc<Self>, clusters: Clusters) -> Result<(), DiskError> {
        let end = clusters.first + clusters.count;
        let mut start = clusters.first;
        while start < end {
            let mut run = start;
            while run < end && self.refcount(run).await? == 1 {
                run += 1;
            }
            if run > start {
                let length = (run - start) << self.cluster_bits;
                failpoint::hit(Point::PunchHole);
                self.file.punch_hole(start << self.cluster_bits, length).await?;
            }
            start = run + 1;
        }
        Ok(())
    }

    /// Takes another reference to each cluster, which has one already; to all of them, or to none.
    pub(super) async fn increment_refcounts(self: &Rc<Self>, clusters: Clusters) -> Result<(), DiskError> {
        for cluster in clusters.first..clusters.first + clusters.count {
            if let Err(error) = self.increment_refcount(cluster).await {
                let done = Clusters {
                    first: clusters.first,
                    count: cluster - clusters.first,
                };
                self.decrement_refcounts(done).await?;
                return Err(error);
            }
        }
        Ok(())
    }

    async fn increment_refcount(self: &Rc<Self>, cluster: u64) -> Result<(), DiskError> {
        let order = self.refcount_order();
        let refcount = self.refcount(cluster).await?;
        if refcount == 0 {
            return Err(self.corrupt(unreferenced(cluster << self.cluster_bits)));
        }
        if refcount == u64::MAX >> (64 - (1u32 << order)) {
            let what = "another reference to a cluster whose refcount, at this refcount_bits, cannot count it";
            return Err(DiskError::Unsupported(what));
        }
        let Place::Slice { offset, index } = self.refcount_place(cluster) else {
            return Err(self.corrupt(unreferenced(cluster << self.cluster_bits)));
        };
        let slice = self.slice(offset, Class::RefcountBlock).await?;
        self.add_to_refcount(slice, index as usize, 1);
        Ok(())
    }

    /// The refcount of a cluster, as it is now.
    pub(super) async fn refcount(self: &Rc<Self>, cluster: u64) -> Result<u64, DiskError> {
        let Place::Slice { offset, index } = self.refcount_place(cluster) else {
            return Ok(0);
        };
        let slice = self.slice(offset, Class::RefcountBlock).await?;
        let (at_byte, within, width) = packed_place(index as usize, self.refcount_order());
        let mut bytes = [0; 8];
        self.cache.read(slice, at_byte, &mut bytes[..width]);
        Ok(get_refcount(&bytes, within, self.refcount_order()))
    }

    /// Adds to entry `index` of a slice, and returns what was there before. Without change if that is 0.
    fn add_to_refcount(self: &Rc<Self>, slice: Slice, index: usize, difference: i64) -> u64 {
        let order = self.refcount_order();
        let (at_byte, within, width) = packed_place(index, order);
        let mut bytes = [0; 8];
        self.cache.read(slice, at_byte, &mut bytes[..width]);
        let refcount = get_refcount(&bytes, within, order);
        if refcount > 0 {
            set_refcount(&mut bytes, within, order, refcount.wrapping_add_signed(difference));
            self.cache.write(slice, at_byte, &bytes[..width]);
            self.write_back_when_much_is_dirty();
        }
        refcount
    }

    /// How many clusters a refcount block describes.
    pub(super) fn clusters_per_block(&self) -> u64 {
        1 << self.block_bits()
    }

    fn refcount_order(&self) -> u32 {
        self.header.borrow().refcount_order
    }

    fn refcounts_per_slice(&self) -> u64 {
        (self.cache.slice_size() * 8) >> self.refcount_order()
    }

    /// log2 of the clusters that one refcount block describes.
    fn block_bits(&self) -> u32 {
        self.cluster_bits + 3 - self.refcount_order()
    }

    fn refcount_place(&self, cluster: u64) -> Place {
        let block = cluster >> self.block_bits();
        match self.refcounts.table.borrow().get(block as usize) {
            None | Some(0) => Place::NoBlock { block },
            Some(offset) => {
                let within = cluster & ((1 << self.block_bits()) - 1);
                let slice = within / self.refcounts_per_slice();
                let index = within % self.refcounts_per_slice();
                Place::Slice {
                    offset: offset + slice * self.cache.slice_size(),
                    index,
                }
            }
        }
    }

    /// Makes refcount block number `block`: it describes itself, as its own first cluster. That cluster is free, since
    /// no block described it. The table entry is written behind a barrier, by the next write-back.
    async fn add_refcount_block(self: &Rc<Self>, block: u64) -> Result<(), DiskError> {
        let adding = self.refcounts.adding.change_mapping(0..1).await;
        let entries = self.refcounts.table.borrow().len() as u64;
        if block >= entries {
            let moving = self.refcounts.table_in_flight.change_mapping(0..1).await;
            let old = self.grow_refcount_table(entries).await?;
            drop((moving, adding));
            return self.decrement_refcounts(old).await;
        }
        if self.refcounts.table.borrow()[block as usize] != 0 {
            return Ok(());
        }
        failpoint::hit(Point::RefblockAlloc);
        let cluster = block << self.block_bits();
        let offset = cluster << self.cluster_bits;
        if cluster == 0 {
            let at = self.header.borrow().refcount_table_offset;
            let expected = "a refcount block for the header's cluster";
            return Err(self.corrupt(Corruption {
                structure: "refcount table entry",
                at,
                found: 0,
                expected,
            }));
        }
        self.check_no_metadata_at(offset, self.cluster_size())?;
        let mut content = vec![0; self.cluster_size() as usize];
        set_refcount(&mut content, 0, self.refcount_order(), 1);
        self.image_end
            .set(self.image_end.get().max(offset + self.cluster_size()));
        self.file.write_bytes(offset, &content).await?;
        failpoint::hit(Point::RefblockAllocWrite);
        self.forget_cached(Clusters {
            first: cluster,
            count: 1,
        })
        .await;
        let (slice, index) = self.refcount_table_slice(block).await?;
        failpoint::hit(Point::RefblockAllocHookup);
        self.refcounts.table.borrow_mut()[block as usize] = offset;
        self.cache.set_entry(slice, index, offset);
        self.metadata.insert(cluster, Structure::RefcountBlock);
        Ok(())
    }

    /// The slice of the refcount table with entry number `block`, and the entry's index in it.
    async fn refcount_table_slice(self: &Rc<Self>, block: u64) -> Result<(Slice, usize), DiskError> {
        let table = self.header.borrow().refcount_table_offset;
        let per_slice = self.cache.slice_size() / 8;
        let offset = table + block / per_slice * self.cache.slice_size();
        Ok((
            self.slice(offset, Class::RefcountTable).await?,
            (block % per_slice) as usize,
        ))
    }

    /// Moves the refcount table, which has `entries`, to a larger place: behind all that it could describe, along
    /// with the blocks that describe that place. One header write makes it the table. Returns the old one's clusters.
    async fn grow_refcount_table(self: &Rc<Self>, entries: u64) -> Result<Clusters, DiskError> {
        failpoint::hit(Point::ReftableGrow);
        let first = entries << self.block_bits();
        let layout = TableLayout::after(entries, self.block_bits(), self.cluster_bits);
        let too_large = layout.table_clusters << self.cluster_bits > MAX_REFCOUNT_TABLE_BYTES.max(self.cluster_size());
        if too_large || first >= MAX_HOST_OFFSET >> self.cluster_bits {
            return Err(self.too_large("grow the refcount table"));
        }
        let blocks_at = first << self.cluster_bits;
        let table_at = blocks_at + (layout.blocks << self.cluster_bits);
        let end = table_at + (layout.table_clusters << self.cluster_bits);
        let block_size = self.cluster_size();

        let mut blocks = vec![0; (layout.blocks * block_size) as usize];
        for cluster in 0..(layout.blocks + layout.table_clusters) as usize {
            // Blocks are contiguous and full, so the packed entries run on from one to the next.
            set_refcount(&mut blocks, cluster, self.refcount_order(), 1);
        }
        let mut table = self.refcounts.table.borrow().clone();
        table.extend((0..layout.blocks).map(|block| blocks_at + block * block_size));
        table.resize((layout.table_clusters * block_size / 8) as usize, 0);
        let table_bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();

        self.check_no_metadata_at(blocks_at, end - blocks_at)?;
        self.image_end.set(self.image_end.get().max(end));
        self.file.write_bytes(blocks_at, &blocks).await?;
        self.file.write_bytes(table_at, &table_bytes).await?;
        failpoint::hit(Point::ReftableGrowWrite);
        if !planted(Bug::TableNamedBeforeDurable) {
            self.sync().await?;
        }
        self.forget_cached(Clusters {
            first,
            count: layout.blocks,
        })
        .await;
        let mut pointer = table_at.to_be_bytes().to_vec();
        pointer.extend((layout.table_clusters as u32).to_be_bytes());
        if let Err(error) = self.file.write_bytes(HEADER_REFCOUNT_TABLE, &pointer).await {
            // Which of the two tables the header names, nobody knows.
            self.lose_durability();
            return Err(error);
        }
        failpoint::hit(Point::ReftableGrowSwitch);
        let old = self.adopt_refcount_table(table, first, &layout);
        // Without this barrier the old table is not given up.
        self.sync().await?;
        Ok(old)
    }

    /// The header names a new table, which lies with the blocks that describe it from cluster `first` on. Returns the old one's
    /// clusters.
    fn adopt_refcount_table(&self, table: Vec<u64>, first: u64, layout: &TableLayout) -> Clusters {
        let mut header = self.header.borrow_mut();
        let old = Clusters {
            first: header.refcount_table_offset >> self.cluster_bits,
            count: u64::from(header.refcount_table_clusters),
        };
        let table_first = first + layout.blocks;
        header.refcount_table_offset = table_first << self.cluster_bits;
        header.refcount_table_clusters = layout.table_clusters as u32;
        *self.refcounts.table.borrow_mut() = table;
        for block in first..table_first {
            self.metadata.insert(block, Structure::RefcountBlock);
        }
        for cluster in table_first..table_first + layout.table_clusters {
            self.metadata.insert(cluster, Structure::RefcountTable);
        }
        (old.first..old.first + old.count).for_each(|cluster| self.metadata.remove(cluster));
        self.cache
            .forget(old.first << self.cluster_bits..(old.first + old.count) << self.cluster_bits);
        old
    }

    fn too_large(&self, operation: &'static str) -> DiskError {
        let offset = self.image_end.get();
        DiskError::Io {
            operation,
            offset,
            error: io::Error::from_raw_os_error(libc::EFBIG),
        }
    }
}

fn unreferenced(at: u64) -> Corruption {
    Corruption {
        structure: "refcount of the cluster",
        at,
        found: 0,
        expected: "at least 1, since it is in use",
    }
}

/// The bytes that hold packed entry `index`: where they begin, the entry's index among them, and how many they are.
fn packed_place(index: usize, order: u32) -> (usize, usize, usize) {
    if order < 3 {
        let per_byte = 8 >> order;
        (index / per_byte, index % per_byte, 1)
    } else {
        let width = 1 << (order - 3);
        (index * width, 0, width)
    }
}

/// How large a new refcount table is, and how many new blocks describe it and themselves.
#[derive(Debug, PartialEq, Eq)]
struct TableLayout {
    blocks: u64,
    table_clusters: u64,
}

impl TableLayout {
    /// A layout with room for half as many entries again as there were.
    fn after(entries: u64, block_bits: u32, cluster_bits: u32) -> Self {
        let entries_per_cluster = 1 << (cluster_bits - 3);
        let mut layout = Self {
            blocks: 1,
            table_clusters: 1,
        };
        loop {
            let blocks = (layout.blocks + layout.table_clusters).div_ceil(1 << block_bits);
            let table_clusters = (entries + entries / 2 + blocks).div_ceil(entries_per_cluster);
            let next = Self {
                blocks: blocks.max(layout.blocks),
                table_clusters: table_clusters.max(layout.table_clusters),
            };
            if next == layout {
                return layout;
            }
            layout = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refcounts_of_every_width_are_packed_as_the_specification_says() {
        for order in 0..=6 {
            let mut bytes = vec![0; 64];
            let max = u64::MAX >> (64 - (1 << order));
            for index in 0..8 {
                set_refcount(&mut bytes, index, order, (index as u64 + 1) & max);
            }
            for index in 0..8 {
                assert_eq!(
                    get_refcount(&bytes, index, order),
                    (index as u64 + 1) & max,
                    "order {order}"
                );
            }
        }
        let mut bytes = vec![0; 8];
        set_refcount(&mut bytes, 1, 0, 1);
        assert_eq!(bytes[0], 0b10, "below a byte the least significant bits come first");
        set_refcount(&mut bytes, 1, 4, 0x1234);
        assert_eq!(&bytes[2..4], [0x12, 0x34], "from a byte on they are big-endian");
    }

    #[test]
    fn a_new_refcount_table_has_room_for_itself() {
        for (entries, block_bits, cluster_bits) in [(64, 8, 9), (64, 6, 9), (8192, 15, 16), (1 << 20, 3, 9)] {
            let layout = TableLayout::after(entries, block_bits, cluster_bits);
            assert!(layout.blocks << block_bits >= layout.blocks + layout.table_clusters);
            assert!(layout.table_clusters << (cluster_bits - 3) > entries + layout.blocks);
        }
    }
}
