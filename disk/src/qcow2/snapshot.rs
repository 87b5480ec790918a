//! Internal snapshots (qcow2 spec, "Snapshots"): the records of the snapshot table.

use super::header::{Header, MAX_L1_BYTES};
use crate::DiskError;
use crate::disk::Corruption;
use crate::storage::ImageFile;

/// Bytes of a record's fixed part.
const FIXED_LENGTH: usize = 40;

/// The most extra data that a record may have, in bytes (QEMU's limit, too).
const MAX_EXTRA: usize = 1024;

/// The largest snapshot table that is read, in bytes (QEMU's limit, too).
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// One internal snapshot: what is needed to find its clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotRecord {
    /// Where its L1 table lies, in bytes.
    pub l1_table_offset: u64,
    /// Entries of its L1 table.
    pub l1_size: u32,
    length: u64,
}

impl SnapshotRecord {
    /// Bytes of the record in the snapshot table, padding included.
    pub(super) fn length(&self) -> u64 {
        self.length
    }
}

/// Reads the snapshot table of an image whose file has `length` bytes.
pub(super) async fn read_table(
    file: &ImageFile,
    header: &Header,
    length: u64,
) -> Result<Vec<SnapshotRecord>, DiskError> {
    let mut records = Vec::new();
    let start = header.snapshot_table_offset;
    let mut at = start;
    for _ in 0..header.snapshot_count {
        let corrupt = |found, expected| {
            DiskError::Corrupt(Corruption {
                structure: "snapshot table record",
                at,
                found,
                expected,
            })
        };
        if at + FIXED_LENGTH as u64 > length || at - start > MAX_TABLE_BYTES {
            return Err(corrupt(length, "a record that ends within the file"));
        }
        let fixed = file.read_bytes(at, FIXED_LENGTH).await?;
        let be = |from: usize, bytes: usize| {
            fixed[from..from + bytes]
                .iter()
                .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        let (l1_table_offset, l1_size) = (be(0, 8), be(8, 4));
        let (id, name, extra) = (be(12, 2), be(14, 2), be(36, 4));
        if l1_table_offset % header.cluster_size() != 0 || l1_table_offset == 0 {
            return Err(corrupt(l1_table_offset, "a cluster-aligned L1 table offset"));
        }
        if l1_size * 8 > MAX_L1_BYTES || l1_table_offset.saturating_add(l1_size * 8) > length {
            return Err(corrupt(l1_size, "an L1 table that ends within the file"));
        }
        if extra > MAX_EXTRA as u64 {
            return Err(corrupt(extra, "at most 1024 bytes of extra data"));
        }
        let record_length = (FIXED_LENGTH as u64 + extra + id + name).next_multiple_of(8);
        records.push(SnapshotRecord {
            l1_table_offset,
            l1_size: l1_size as u32,
            length: record_length,
        });
        at += record_length;
    }
    Ok(records)
}
