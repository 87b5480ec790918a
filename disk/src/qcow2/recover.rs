//! What an image needs that was not closed: the metadata that its process left behind, and refcounts that fit.
//!
//! A process that was killed leaves its metadata cache in memory. Its dirty slices are written back in the durable order,
//! and with them everything that had completed is in the image. After a power loss there is no such memory, nor is it
//! needed: what is in the image is consistent, because dirty metadata reached it only behind its barriers.
//!
//! In both cases clusters may have a higher refcount than references: those that were being allocated, and those that were
//! in quarantine. The references are counted and the refcounts set to them. Nothing else is changed: an image with two owners of one
//! cluster is refused, not repaired. A crash while a snapshot was being made or deleted can leave copied flags away where they
//! belong; that is harmless, and mended, too. Everything here can be interrupted and done again.

use super::cache::Class;
use super::cache_memory::Survivor;
use super::entry::words;
use super::entry::{COPIED, L1Entry, L2Entry};
use super::header::Header;
use super::refcount::{get_refcount, set_refcount};
use super::references::ReferenceMap;
use super::snapshot_table::SnapshotRecord;
use super::switch::table_of;
use crate::DiskError;
use crate::disk::Corruption;
use crate::failpoint::{self, Point};
use crate::planted_bug::{Bug, planted};
use crate::storage::ImageFile;

/// The durable order: what lies in a later stage is written when all of the earlier ones is durable.
pub(super) const WRITE_ORDER: [&[Class]; 3] = [
    &[Class::RefcountBlock],
    &[Class::RefcountTable],
    &[Class::L2Table, Class::L1Table],
];

/// Writes what a process left behind into its image, in the durable order.
pub(super) async fn write_survivors(
    file: &ImageFile,
    header: &Header,
    survivors: &[Survivor],
) -> Result<(), DiskError> {
    let image_end = file.length()?.next_multiple_of(header.cluster_size());
    for survivor in survivors {
        survivor
            .check_within(header.cluster_size(), image_end)
            .map_err(DiskError::Corrupt)?;
    }
    let mut stages = WRITE_ORDER;
    if planted(Bug::SurvivorLinksFirst) {
        stages.reverse();
    }
    for stage in stages {
        for survivor in survivors.iter().filter(|survivor| stage.contains(&survivor.class)) {
            failpoint::hit(Point::RecoverWrite);
            file.write_bytes(survivor.offset, &survivor.content).await?;
        }
        failpoint::hit(Point::RecoverBarrier);
        if !planted(Bug::SurvivorsWithoutBarriers) {
            file.sync().await?;
        }
    }
    tracing::info!(
        slices = survivors.len(),
        "wrote back the metadata of a process that was killed"
    );
    Ok(())
}

/// Sets every refcount to the number of references, and copied flags in the active tables where there is just one. Fails, without having written anything, where that would not make
/// the image whole.
pub(super) async fn rebuild_refcounts(
    file: &ImageFile,
    header: &Header,
    l1: &mut [u64],
    refcount_table: &[u64],
    snapshots: &[SnapshotRecord],
) -> Result<(), DiskError> {
    let image_end = file.length()?.next_multiple_of(header.cluster_size());
    let references = ReferenceMap::count(file, header, l1, refcount_table, snapshots, image_end).await?;
    let per_block = (header.cluster_size() * 8) >> header.refcount_order;
    check_blocks_exist(header, refcount_table, &references, per_block)?;
    let (mut raised, mut lowered) = (0u64, 0u64);
    for (index, &offset) in refcount_table.iter().enumerate().filter(|(_, offset)| **offset != 0) {
        let mut block = file.read_bytes(offset, header.cluster_size() as usize).await?;
        let mut changed = false;
        for entry in 0..per_block {
            let found = get_refcount(&block, entry as usize, header.refcount_order);
            let expected = u64::from(references.get(index as u64 * per_block + entry));
            if found == expected {
                continue;
            }
            check_fits(header, offset, expected)?;
            set_refcount(&mut block, entry as usize, header.refcount_order, expected);
            changed = true;
            (raised, lowered) = (
                raised + u64::from(found < expected),
                lowered + u64::from(found > expected),
            );
        }
        if changed {
            failpoint::hit(Point::RecoverRefcounts);
            file.write_bytes(offset, &block).await?;
        }
    }
    if raised + lowered > 0 {
        failpoint::hit(Point::RecoverRefcountsBarrier);
        file.sync().await?;
        tracing::info!(reclaimed = lowered, raised, "refcounts rebuilt");
    }
    if references.lack_copied_flags() {
        restore_copied_flags(file, header, l1, &references).await?;
    }
    Ok(())
}

/// Sets the copied flag wherever the active tables hold the only reference to a cluster. The refcounts are durable.
async fn restore_copied_flags(
    file: &ImageFile,
    header: &Header,
    l1: &mut [u64],
    references: &ReferenceMap,
) -> Result<(), DiskError> {
    let is_only_one = |host: u64| references.get(host >> header.cluster_bits) == 1;
    for entry in l1.iter_mut() {
        let decoded = L1Entry::decode(*entry, header.l1_table_offset, header.cluster_bits);
        let Some(table) = decoded.map_err(DiskError::Corrupt)?.map(|entry| entry.table) else {
            continue;
        };
        let old = words(&file.read_bytes(table, header.cluster_size() as usize).await?);
        let mut new = old.clone();
        for word in &mut new {
            let decoded = L2Entry::decode(*word, table, header.version, header.cluster_bits, u64::MAX);
            if let Some(host) = decoded.map_err(DiskError::Corrupt)?.standard_host()
                && is_only_one(host)
            {
                *word |= COPIED;
            }
        }
        if new != old {
            file.write_bytes(table, &table_of(&new)).await?;
        }
        if is_only_one(table) {
            *entry |= COPIED;
        }
    }
    file.write_bytes(header.l1_table_offset, &table_of(l1)).await?;
    file.sync().await
}

/// Each cluster that is referred to has a refcount block.
fn check_blocks_exist(
    header: &Header,
    table: &[u64],
    references: &ReferenceMap,
    per_block: u64,
) -> Result<(), DiskError> {
    let blocks = references.last() / per_block + 1;
    for index in 0..blocks {
        let missing = table.get(index as usize).is_none_or(|offset| *offset == 0);
        let needed = || (index * per_block..(index + 1) * per_block).any(|cluster| references.get(cluster) > 0);
        if missing && needed() {
            let at = header.refcount_table_offset + index * 8;
            let expected = "a refcount block, since clusters that it would describe are in use";
            return Err(DiskError::Corrupt(Corruption {
                structure: "refcount table entry",
                at,
                found: 0,
                expected,
            }));
        }
    }
    Ok(())
}

fn check_fits(header: &Header, at: u64, refcount: u64) -> Result<(), DiskError> {
    let max = u64::MAX >> (64 - (1u32 << header.refcount_order));
    if refcount > max {
        let expected = "no more references than a refcount can count";
        return Err(DiskError::Corrupt(Corruption {
            structure: "refcount block",
            at,
            found: refcount,
            expected,
        }));
    }
    Ok(())
}
