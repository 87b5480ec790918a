//! Opening an image: its tables are read and checked before the first request.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::cache::Cache;
use super::cache_memory::{CacheError, CacheMemory, Identity, LastingMemory, Shape, survivors};
use super::entry::{L1Entry, L2Entry, words};
use super::header::{Header, INCOMPATIBLE_DIRTY};
use super::overlap::MetadataMap;
use super::refcount::{Refcounts, get_refcount};
use super::snapshot;
use super::snapshot_table::{self, SnapshotRecord};
use super::token::Token;
use super::write_back::WriteBack;
use super::{Qcow2, recover, token};
use crate::disk::Corruption;
use crate::failpoint::{self, Point};
use crate::image::Image;
use crate::open::OpenCause;
use crate::planted_bug::{Bug, planted};
use crate::storage::ImageFile;
use crate::tasks::Tasks;
use crate::{Buffer, DiskError};

/// The most that a metadata cache has by default, in bytes: what an image of 256 GiB with clusters of 64 KiB can use, which is 32 MiB of
/// L2 tables, 8 MiB of refcounts, and the tables above them.
const MAX_DEFAULT_CACHE_BYTES: u64 = 41 << 20;

/// What is left for the tables above, and for tables that grow.
const SPARE_CACHE_BYTES: u64 = 1 << 20;

/// The default size of the metadata cache of an image, in bytes: all of its tables, within a limit.
pub(crate) fn default_cache_bytes(header: &Header) -> usize {
    let clusters = header.size.div_ceil(header.cluster_size());
    let l2_tables = clusters.saturating_mul(8);
    let refcounts = (clusters << header.refcount_order >> 3).saturating_add(l2_tables);
    let tables = l2_tables.saturating_add(refcounts);
    tables.saturating_add(SPARE_CACHE_BYTES).min(MAX_DEFAULT_CACHE_BYTES) as usize
}

/// Whether memory that a process left behind belongs to the image with this header, and is whole.
pub(crate) fn check_left_behind(bytes: &[u8], identity: Identity, header: &Header) -> Result<(), CacheError> {
    survivors(bytes, of_image(identity, header)).map(drop)
}

/// The identity of an image's cache, with what its header says.
pub(crate) fn of_image(identity: Identity, header: &Header) -> Identity {
    Identity {
        token: header.token.found(),
        ..identity
    }
}

/// Everything that opening needs to know.
pub(crate) struct Opening {
    pub tasks: Tasks,
    pub file: ImageFile,
    pub header: Header,
    pub backing: Option<Image>,
    pub read_only: bool,
    /// Clusters that are given up give their space back to the host's file system.
    pub unmap: bool,
    /// The id or name of the snapshot to read, in place of the active disk.
    pub snapshot: Option<String>,
    pub cache: CachePlan,
}

/// Where the metadata cache lies, and what a process that was killed left there.
pub(crate) struct CachePlan {
    /// The size of the cache, in bytes.
    pub bytes: usize,
    pub identity: Identity,
    /// Memory that a process left behind.
    pub left_behind: Option<Vec<u8>>,
    /// Memory that outlives this process. Without it, metadata is written through.
    pub lasting: Option<Rc<dyn LastingMemory>>,
}

/// Opens the image.
pub(crate) async fn open(opening: Opening) -> Result<Rc<Qcow2>, OpenCause> {
    let Opening {
        tasks,
        file,
        mut header,
        backing,
        read_only,
        unmap,
        snapshot,
        cache,
    } = opening;
    if snapshot.is_some() && !read_only {
        return Err(OpenCause::SnapshotForWriting);
    }
    if header.is_corrupt() && !read_only {
        return Err(OpenCause::MarkedCorrupt);
    }
    let survivors = match &cache.left_behind {
        Some(bytes) => survivors(bytes, of_image(cache.identity, &header)).map_err(OpenCause::Cache)?,
        None => Vec::new(),
    };
    if read_only && !survivors.is_empty() {
        return Err(OpenCause::NeedsRecovery);
    }
    if !survivors.is_empty() && !planted(Bug::SurvivorsIgnored) {
        recover::write_survivors(&file, &header, &survivors).await?;
    }
    let length = file.length()?;
    if let Some(wanted) = &snapshot {
        choose_snapshot(&file, &mut header, wanted, length).await?;
    }
    let (mut l1, refcount_table, snapshots) = read_tables(&file, &header, length).await?;
    let image_end = length.next_multiple_of(header.cluster_size());
    check_not_truncated(&file, &header, &l1, &refcount_table, image_end).await?;
    // Version 2 has no dirty bit to tell that an image and its cache belong together.
    let lasting = cache.lasting.filter(|_| !read_only && header.version >= 3);
    // Version 2 has no dirty bit, so each time may be after a crash.
    let recovers = !read_only && (header.is_dirty() || header.version < 3);
    if !read_only {
        if recovers && !planted(Bug::RefcountsNotRebuilt) {
            // What a killed process wrote last may be in the page cache alone. A refcount must not get to the disk before the unlinking
            // that it counts.
            if !planted(Bug::CountsWhatIsNotDurable) {
                file.sync().await?;
            }
            recover::rebuild_refcounts(&file, &header, &mut l1, &refcount_table, &snapshots).await?;
        }
        let (_, conflict) = MetadataMap::of(&header, &l1, &refcount_table, &snapshots);
        if let Some(corruption) = conflict {
            return Err(OpenCause::Corrupt(corruption));
        }
        // What a process left behind is in the image, or out of date. It must not be there when the image gets another token, or
        // who is killed next would leave an image and a cache that do not know each other.
        let new_token = lasting.as_ref().and_then(|lasting| {
            lasting.remove();
            lasting.new_token()
        });
        prepare_header(&file, &mut header, new_token).await?;
    }
    let shape = Shape::new(cache.bytes, header.cluster_size());
    let buffer = match &lasting {
        Some(lasting) => lasting.make(shape.length()).map_err(OpenCause::CacheMemory)?,
        None => Buffer::zeroed(shape.length()),
    };
    let (metadata, _) = MetadataMap::of(&header, &l1, &refcount_table, &snapshots);
    let memory = CacheMemory::format(buffer, shape, of_image(cache.identity, &header));
    if let Some(lasting) = &lasting {
        lasting.publish().map_err(OpenCause::CacheMemory)?;
    }
    let image = Rc::new(Qcow2 {
        tasks,
        file,
        cluster_bits: header.cluster_bits,
        read_only,
        unmap,
        write_through: lasting.is_none() && !read_only,
        lasting,
        l1: RefCell::new(l1),
        l1_in_flight: Rc::default(),
        refcounts: Refcounts::new(refcount_table),
        snapshots: RefCell::new(snapshots),
        metadata,
        cache: Rc::new(Cache::new(memory)),
        in_flight: Rc::default(),
        write_back: WriteBack::default(),
        image_end: Cell::new(image_end),
        backing,
        zeroes: Buffer::zeroed(header.cluster_size() as usize),
        header: RefCell::new(header),
    });
    if recovers && !planted(Bug::ShrinkNotFinished) {
        image.finish_shrinking().await;
    }
    Ok(image)
}

/// The L1 table, the refcount table and the snapshots, each within the file and plausible.
async fn read_tables(
    file: &ImageFile,
    header: &Header,
    length: u64,
) -> Result<(Vec<u64>, Vec<u64>, Vec<SnapshotRecord>), OpenCause> {
    let l1 = read_table(
        file,
        "L1 table",
        header.l1_table_offset,
        u64::from(header.l1_size),
        length,
    )
    .await?;
    check_l1(header, &l1, length)?;
    let entries = (u64::from(header.refcount_table_clusters) << header.cluster_bits) / 8;
    let refcount_table = read_table(file, "refcount table", header.refcount_table_offset, entries, length).await?;
    check_refcount_table(header, &refcount_table, length)?;
    let snapshots = snapshot_table::read_table(file, header, length).await?;
    Ok((l1, refcount_table, snapshots))
}

/// Makes the header say what it said when the snapshot was taken: that L1 table, and that size. It is never written so.
async fn choose_snapshot(file: &ImageFile, header: &mut Header, wanted: &str, length: u64) -> Result<(), OpenCause> {
    let snapshots = snapshot_table::read_table(file, header, length).await?;
    point_at_snapshot(header, &snapshots, wanted)
}

/// As above, with the snapshots at hand.
pub(super) fn point_at_snapshot(
    header: &mut Header,
    snapshots: &[SnapshotRecord],
    wanted: &str,
) -> Result<(), OpenCause> {
    let found = snapshot::find(snapshots, wanted).map(|index| &snapshots[index]);
    let record = found.ok_or_else(|| OpenCause::NoSuchSnapshot(wanted.to_owned()))?;
    header.l1_table_offset = record.l1_table_offset;
    header.l1_size = record.l1_size;
    header.size = record.disk_size().unwrap_or(header.size);
    if header.size > i64::MAX as u64 || header.l1_entries_needed() > u64::from(header.l1_size) {
        let at = record.l1_table_offset;
        let (structure, found) = ("disk size of the snapshot with the L1 table", header.size);
        return Err(OpenCause::Corrupt(Corruption {
            structure,
            at,
            found,
            expected: "a size that its L1 table maps",
        }));
    }
    Ok(())
}

/// Marks the image as open for writing, and clears what it promises about features that we do not keep up.
///
/// From the dirty bit on, until it is cleared on close, another program that repairs the image clears it: that tells that a
/// metadata cache which was left behind is out of date.
async fn prepare_header(file: &ImageFile, header: &mut Header, new_token: Option<Token>) -> Result<(), DiskError> {
    if header.version < 3 {
        return Ok(());
    }
    if let Some(token) = new_token {
        token::write(file, header, token).await?;
    }
    if header.autoclear_features != 0 {
        tracing::warn!(
            bits = header.autoclear_features,
            "clearing autoclear feature bits that are not understood"
        );
        header.autoclear_features = 0;
    }
    header.incompatible_features |= INCOMPATIBLE_DIRTY;
    failpoint::hit(Point::DirtyBitSet);
    header.write_features(file).await?;
    file.sync().await
}

/// Reads a table of 64-bit big-endian entries that must lie within the file of `length` bytes.
async fn read_table(
    file: &ImageFile,
    table: &'static str,
    offset: u64,
    entries: u64,
    length: u64,
) -> Result<Vec<u64>, OpenCause> {
    let end = offset + entries * 8;
    if end > length {
        return Err(OpenCause::Truncated {
            structure: table,
            end,
            length,
        });
    }
    let bytes = file.read_bytes(offset, (entries * 8) as usize).await?;
    Ok(words(&bytes))
}

fn check_l1(header: &Header, l1: &[u64], length: u64) -> Result<(), OpenCause> {
    for (index, entry) in l1.iter().enumerate() {
        let at = header.l1_table_offset + index as u64 * 8;
        let entry = L1Entry::decode(*entry, at, header.cluster_bits).map_err(OpenCause::Corrupt)?;
        let end = entry.map_or(0, |entry| entry.table + header.cluster_size());
        if end > length.next_multiple_of(header.cluster_size()) {
            return Err(OpenCause::Truncated {
                structure: "L2 table",
                end,
                length,
            });
        }
    }
    Ok(())
}

fn check_refcount_table(header: &Header, table: &[u64], length: u64) -> Result<(), OpenCause> {
    for (index, &entry) in table.iter().enumerate() {
        let at = header.refcount_table_offset + index as u64 * 8;
        if entry % header.cluster_size() != 0 || entry >= 1 << 56 {
            let expected = "a cluster-aligned offset below 2^56";
            return Err(OpenCause::Corrupt(Corruption {
                structure: "refcount table entry",
                at,
                found: entry,
                expected,
            }));
        }
        if entry != 0 && entry >= length {
            return Err(OpenCause::Truncated {
                structure: "refcount block",
                end: entry + header.cluster_size(),
                length,
            });
        }
    }
    Ok(())
}

/// A file that is shorter than its refcounts say may be truncated, or a crash may have left leaks at its end. In
/// that rare case the L2 tables are read, to see whether they refer to what is missing.
async fn check_not_truncated(
    file: &ImageFile,
    header: &Header,
    l1: &[u64],
    refcount_table: &[u64],
    image_end: u64,
) -> Result<(), OpenCause> {
    let Some((block, &offset)) = refcount_table.iter().enumerate().rfind(|(_, offset)| **offset != 0) else {
        return Ok(());
    };
    let bytes = file.read_bytes(offset, header.cluster_size() as usize).await?;
    let per_block = (bytes.len() * 8) >> header.refcount_order;
    let last = (0..per_block).rfind(|index| get_refcount(&bytes, *index, header.refcount_order) != 0);
    let end = last.map_or(0, |last| ((block * per_block + last) as u64 + 1) << header.cluster_bits);
    if end <= image_end {
        return Ok(());
    }
    for entry in l1 {
        let Ok(Some(l1_entry)) = L1Entry::decode(*entry, 0, header.cluster_bits) else {
            continue;
        };
        let table = words(&file.read_bytes(l1_entry.table, header.cluster_size() as usize).await?);
        for entry in table {
            let decoded = L2Entry::decode(entry, 0, header.version, header.cluster_bits, u64::MAX);
            let Some((first, count)) = decoded.ok().and_then(|entry| entry.references(header.cluster_bits)) else {
                continue;
            };
            let end = (first + count) << header.cluster_bits;
            if first << header.cluster_bits >= image_end {
                return Err(OpenCause::Truncated {
                    structure: "data cluster",
                    end,
                    length: image_end,
                });
            }
        }
    }
    Ok(())
}
