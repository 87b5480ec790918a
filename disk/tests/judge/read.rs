//! Reads what an image's disk and its snapshots hold.

use std::io::Read;

use super::{COMPRESSED, OFFSET, compressed, word};

/// The fixed part of a record in the snapshot table, in bytes.
const SNAPSHOT_RECORD: usize = 40;

/// A record of the snapshot table.
pub(super) struct Record {
    pub l1_table: usize,
    pub l1_entries: usize,
    name: String,
    /// In bytes.
    disk_size: usize,
    length: usize,
}

/// The snapshots of an image.
pub(super) fn records(image: &[u8]) -> Vec<Record> {
    let mut at = word(image, 64, 8);
    let mut records = Vec::new();
    for _ in 0..word(image, 60, 4) {
        let (id, name, extra) = (
            word(image, at + 12, 2),
            word(image, at + 14, 2),
            word(image, at + 36, 4),
        );
        let name_at = at + SNAPSHOT_RECORD + extra + id;
        let record = Record {
            l1_table: word(image, at, 8),
            l1_entries: word(image, at + 8, 4),
            name: String::from_utf8_lossy(image.get(name_at..name_at + name).unwrap_or(&[])).into_owned(),
            disk_size: if extra >= 16 {
                word(image, at + SNAPSHOT_RECORD + 8, 8)
            } else {
                word(image, 24, 8)
            },
            length: (SNAPSHOT_RECORD + extra + id + name).next_multiple_of(8),
        };
        at += record.length;
        records.push(record);
    }
    records
}

/// Where the snapshot table begins and ends.
pub(super) fn snapshot_table(image: &[u8]) -> (usize, usize) {
    let start = word(image, 64, 8);
    let length: usize = records(image).iter().map(|record| record.length).sum();
    (start, start + length)
}

/// What the disk holds, above `below`, the content of the image below it.
pub fn disk(image: &[u8], below: &[u8]) -> Vec<u8> {
    content(image, word(image, 40, 8), word(image, 36, 4), word(image, 24, 8), below)
}

/// The names of the snapshots, and what they hold.
pub fn snapshots(image: &[u8], below: &[u8]) -> Vec<(String, Vec<u8>)> {
    let read = |record: Record| {
        let content = content(image, record.l1_table, record.l1_entries, record.disk_size, below);
        (record.name, content)
    };
    records(image).into_iter().map(read).collect()
}

fn content(image: &[u8], l1_table: usize, l1_entries: usize, size: usize, below: &[u8]) -> Vec<u8> {
    let cluster_bits = word(image, 20, 4);
    let cluster_size = 1 << cluster_bits;
    let has_zero_clusters = word(image, 4, 4) >= 3;
    let mut bytes = vec![0; size];
    for (index, target) in bytes.chunks_mut(cluster_size).enumerate() {
        let (l1_index, l2_index) = (index / (cluster_size / 8), index % (cluster_size / 8));
        let table = if l1_index < l1_entries {
            word(image, l1_table + l1_index * 8, 8) & OFFSET
        } else {
            0
        };
        let entry = if table == 0 {
            0
        } else {
            word(image, table + l2_index * 8, 8)
        };
        if entry & COMPRESSED != 0 {
            decompress(image, entry, cluster_bits, target);
        } else if has_zero_clusters && entry & 1 != 0 {
            // Zeros they are.
        } else if entry & OFFSET != 0 {
            copy(image, entry & OFFSET, target);
        } else {
            copy(below, index * cluster_size, target);
        }
    }
    bytes
}

/// What is beyond the end of `source` stays zeros.
fn copy(source: &[u8], at: usize, target: &mut [u8]) {
    let source = source.get(at..).unwrap_or(&[]);
    let count = source.len().min(target.len());
    target[..count].copy_from_slice(&source[..count]);
}

fn decompress(image: &[u8], entry: usize, cluster_bits: usize, target: &mut [u8]) {
    let (start, end) = compressed(entry, cluster_bits);
    let stored = &image[start..end.min(image.len())];
    let is_zstd = word(image, 72, 8) & 8 != 0 && word(image, 104, 1) == 1;
    let result = if is_zstd {
        let decoder = zstd::stream::read::Decoder::with_buffer(stored);
        decoder.and_then(|mut decoder| decoder.read_exact(target))
    } else {
        flate2::read::DeflateDecoder::new(stored).read_exact(target)
    };
    result.unwrap_or_else(|error| panic!("the compressed cluster at {start:#x}: {error}"));
}
