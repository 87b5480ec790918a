//! A qcow2 image at rest, without what lies below it: where each byte of its disk is.

use std::sync::OnceLock;

use super::compressed::decompress;
use super::entry::{L1Entry, L2Entry, words};
use super::header::{Header, MAX_REFCOUNT_TABLE_BYTES};
use super::open::point_at_snapshot;
use super::refcount::get_refcount;
use super::snapshot::describe;
use super::snapshot_table::{SnapshotRecord, Table};
use crate::at_rest::{LeftBehind, RestingFile, TableCache};
use crate::disk::Corruption;
use crate::open::{OpenCause, read_header};
use crate::{DiskError, Snapshot};

/// An open image.
pub(crate) struct Qcow2Layer {
    pub file: RestingFile,
    pub header: Header,
    l1: Vec<u64>,
    records: Vec<SnapshotRecord>,
    tables: TableCache,
    /// Every cluster that there is ends before this byte.
    image_end: u64,
    looks_for_holes: OnceLock<bool>,
}

/// How a run of bytes is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// Not in this image.
    Elsewhere,
    /// As zeros, without data; a place may be reserved.
    Zero { host: Option<u64> },
    /// At byte `host` of the file.
    Data { host: u64 },
    /// At byte `host` of the file, where a hole is, so that it reads as zeros.
    Hole { host: u64 },
    /// Compressed, one cluster.
    Compressed { host: u64, length: u64 },
}

impl Qcow2Layer {
    /// Reads the header and the tables that are always needed.
    pub(crate) fn open(
        mut file: RestingFile,
        snapshot: Option<&str>,
        left_behind: LeftBehind,
    ) -> Result<Self, OpenCause> {
        let mut header = read_header(file.file())?;
        let found = match left_behind {
            LeftBehind::Ignored => Ok(()),
            _ => file.find_survivors(&header),
        };
        if left_behind == LeftBehind::Needed {
            found?;
        }
        let records = read_snapshots(&file, &header)?;
        if let Some(wanted) = snapshot {
            point_at_snapshot(&mut header, &records, wanted)?;
        }
        let l1 = read_l1(&file, &header)?;
        Ok(Self {
            image_end: file.length().next_multiple_of(header.cluster_size()),
            file,
            header,
            l1,
            records,
            tables: TableCache::default(),
            looks_for_holes: OnceLock::new(),
        })
    }

    /// The internal snapshots, in the order of their table.
    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        let records = self.records.iter();
        records.map(|record| describe(record, self.header.size)).collect()
    }

    /// How the bytes from `offset` on are stored, and how many of them, at most `length`, alike.
    pub(crate) fn lookup(&self, offset: u64, length: u64) -> Result<(Stored, u64), DiskError> {
        let bits = self.header.cluster_bits;
        let cluster_size = self.header.cluster_size();
        let table_bytes = cluster_size << (bits - 3);
        let length = length.min(table_bytes - offset % table_bytes);
        let Some(table) = self.l2_table(offset / table_bytes)? else {
            return Ok((Stored::Elsewhere, length));
        };
        let (base, entries) = table;
        let index = ((offset % table_bytes) >> bits) as usize;
        let within = offset % cluster_size;
        let first = self.stored(base, index, entries[index])?;
        let until = (within + length).div_ceil(cluster_size);
        let mut run = 1;
        while run < until && self.continues(base, index, &entries, first, run) {
            run += 1;
        }
        let length = length.min(run * cluster_size - within);
        Ok(match first {
            Stored::Data { host } => self.data_or_hole(host + within, length),
            Stored::Zero { host: Some(host) } => {
                let host = Some(host + within);
                (Stored::Zero { host }, length)
            }
            other => (other, length),
        })
    }

    fn continues(&self, base: u64, index: usize, entries: &[u64], first: Stored, run: u64) -> bool {
        let offset = run << self.header.cluster_bits;
        let expected = match first {
            Stored::Compressed { .. } => return false,
            Stored::Data { host } => Stored::Data { host: host + offset },
            Stored::Zero { host: Some(host) } => Stored::Zero {
                host: Some(host + offset),
            },
            other => other,
        };
        let index = index + run as usize;
        // An entry that is damaged is an error for whoever asks for its cluster.
        self.stored(base, index, entries[index])
            .is_ok_and(|stored| stored == expected)
    }

    fn stored(&self, base: u64, index: usize, entry: u64) -> Result<Stored, DiskError> {
        let at = base + index as u64 * 8;
        let header = &self.header;
        let decoded = L2Entry::decode(entry, at, header.version, header.cluster_bits, self.image_end);
        Ok(match decoded.map_err(DiskError::Corrupt)? {
            L2Entry::Unallocated => Stored::Elsewhere,
            L2Entry::Zero { host } => Stored::Zero { host },
            L2Entry::Data { host, .. } => Stored::Data { host },
            L2Entry::Compressed { host, length } => Stored::Compressed { host, length },
        })
    }

    /// L2 table number `index`, and where it lies.
    fn l2_table(&self, index: u64) -> Result<Option<(u64, crate::at_rest::Table)>, DiskError> {
        let Some(&entry) = self.l1.get(index as usize) else {
            return Ok(None);
        };
        let at = self.header.l1_table_offset + index * 8;
        let decoded = L1Entry::decode(entry, at, self.header.cluster_bits).map_err(DiskError::Corrupt)?;
        let Some(entry) = decoded else { return Ok(None) };
        if entry.table >= self.image_end {
            return Err(DiskError::Corrupt(Corruption {
                structure: "L1 entry",
                at,
                found: entry.table,
                expected: "an L2 table within the image file",
            }));
        }
        let length = self.header.cluster_size() as usize;
        let read = || Ok(words(&self.file.metadata(entry.table, length)?));
        Ok(Some((entry.table, self.tables.get(entry.table, read)?)))
    }

    fn data_or_hole(&self, host: u64, length: u64) -> (Stored, u64) {
        if !self.looks_for_holes() {
            return (Stored::Data { host }, length);
        }
        let (data, end) = (self.file.next_data(host), self.file.length());
        if data >= end {
            return (Stored::Hole { host }, length);
        }
        if data > host {
            return (Stored::Hole { host }, length.min(data - host));
        }
        let hole = self.file.next_hole(host);
        (Stored::Data { host }, length.min(hole.max(host + 512) - host))
    }

    /// Whether the file has markedly less space than its clusters: then they were allocated ahead of their data, and there
    /// are holes to be found. Asking for every cluster of an ordinary image would cost more than it gives.
    fn looks_for_holes(&self) -> bool {
        *self.looks_for_holes.get_or_init(|| {
            let with_space = self.file.space() >> self.header.cluster_bits;
            self.used_clusters()
                .is_ok_and(|used| used >= (with_space + 2).max(with_space * 10 / 9))
        })
    }

    /// Clusters with a refcount.
    fn used_clusters(&self) -> Result<u64, DiskError> {
        let cluster_size = self.header.cluster_size();
        let bytes = u64::from(self.header.refcount_table_clusters) * cluster_size;
        let table = self.file.metadata(
            self.header.refcount_table_offset,
            bytes.min(MAX_REFCOUNT_TABLE_BYTES) as usize,
        )?;
        let per_block = (cluster_size as usize * 8) >> self.header.refcount_order;
        let mut used = 0;
        for block in words(&table)
            .into_iter()
            .filter(|block| *block != 0 && *block < self.image_end)
        {
            if self.file.is_hole(block, cluster_size) {
                continue;
            }
            let bytes = self.file.metadata(block, cluster_size as usize)?;
            let is_used = |index: &usize| get_refcount(&bytes, *index, self.header.refcount_order) != 0;
            used += (0..per_block).filter(is_used).count() as u64;
        }
        Ok(used)
    }

    /// Fills `target` from the cluster that is stored compressed in `length` bytes at byte `host` of the file, from its
    /// byte `within` on.
    pub(crate) fn read_compressed(
        &self,
        host: u64,
        length: u64,
        within: usize,
        target: &mut [u8],
    ) -> Result<(), DiskError> {
        let mut stored = vec![0; length as usize];
        self.file.read(host, &mut stored)?;
        let cluster_size = self.header.cluster_size() as usize;
        let algorithm = self.header.compression;
        let result = if target.len() == cluster_size {
            decompress(algorithm, &stored, target)
        } else {
            let mut cluster = vec![0; cluster_size];
            let result = decompress(algorithm, &stored, &mut cluster);
            target.copy_from_slice(&cluster[within..within + target.len()]);
            result
        };
        result.map_err(|_| {
            DiskError::Corrupt(Corruption {
                structure: "compressed data",
                at: host,
                found: length,
                expected: "a compressed cluster of that length",
            })
        })
    }
}

/// The snapshot table of an image.
pub(super) fn read_snapshots(file: &RestingFile, header: &Header) -> Result<Vec<SnapshotRecord>, DiskError> {
    let mut table = Table::new(header, file.length());
    while let Some((at, bytes)) = table.fixed_part()? {
        let (at, bytes) = table.variable_part(&file.metadata(at, bytes)?)?;
        table.add(&file.metadata(at, bytes)?);
    }
    Ok(table.records)
}

fn read_l1(file: &RestingFile, header: &Header) -> Result<Vec<u64>, OpenCause> {
    let bytes = u64::from(header.l1_size) * 8;
    let end = header.l1_table_offset + bytes;
    if end > file.length() {
        return Err(OpenCause::Truncated {
            structure: "L1 table",
            end,
            length: file.length(),
        });
    }
    Ok(words(&file.metadata(header.l1_table_offset, bytes as usize)?))
}
