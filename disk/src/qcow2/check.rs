//! Checking an image at rest: does each cluster have as many references as its refcount says?
//!
//! Each table is read once, in the order in which they lie in the file, neighbours together. An L2 table that many snapshots share is
//! counted with a weight, not walked many times. What is kept are two bytes for each cluster, so an image of 64 GiB costs little
//! more than 2 MiB, and a hostile one a bounded amount.

use std::collections::{BTreeMap, HashMap};

use super::counts::Counts;
use super::entry::{COPIED, words};
use super::findings::{Findings, Flagged};
use super::header::{Header, MAX_REFCOUNT_TABLE_BYTES};
use super::layer::read_snapshots;
use super::refcount::get_refcount;
use super::snapshot_table::{SnapshotRecord, table_bytes};
use crate::DiskError;
use crate::at_rest::RestingFile;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;

/// Tables that lie next to each other are read together, up to this many bytes.
const READ_AT_ONCE: u64 = 4 << 20;

/// The most L2 tables that are told apart. More would be a disk of 256 TiB with the default cluster size.
const MAX_TABLES: usize = 1 << 19;

/// How the clusters of the active disk are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Those that have a place in the file.
    pub allocated_clusters: u64,
    /// Those that do not lie behind their predecessor.
    pub fragmented_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
    /// Where the last cluster in use ends, in bytes.
    pub image_end_offset: u64,
}

/// What is known of an image after a check.
pub(super) struct Checked {
    pub header: Header,
    /// How often each cluster is referred to.
    pub references: Counts,
    /// The refcounts that were found.
    pub refcounts: Counts,
    /// The refcount blocks, as far as they can be used: by their index, where they lie.
    pub blocks: Vec<u64>,
    pub l1: Vec<u64>,
    /// How many L1 entries refer to each L2 table.
    pub tables: BTreeMap<u64, u64>,
    pub usage: Usage,
    /// Tables whose entries cannot all be understood, so that what they refer to is not all known.
    pub damaged: bool,
    /// Tables lie on one another, so that nobody can tell whose content it is.
    pub overlapping: bool,
}

/// How often an L2 table is referred to.
#[derive(Clone, Copy, Default)]
struct Weight {
    all: u64,
    active: bool,
}

struct Check<'a, 'f> {
    file: &'a RestingFile,
    findings: &'a mut Findings<'f>,
    checked: Checked,
    image_end: u64,
}

/// Checks the image. What is found is reported; the error is one that ends the check.
pub(super) fn check(file: &RestingFile, header: &Header, findings: &mut Findings<'_>) -> Result<Checked, DiskError> {
    let mut check = Check {
        file,
        findings,
        checked: Checked {
            header: header.clone(),
            references: Counts::default(),
            refcounts: Counts::default(),
            blocks: Vec::new(),
            l1: Vec::new(),
            tables: BTreeMap::new(),
            usage: Usage {
                total_clusters: header.size.div_ceil(header.cluster_size()),
                ..Usage::default()
            },
            damaged: false,
            overlapping: false,
        },
        image_end: file.length().next_multiple_of(header.cluster_size()),
    };
    check.run()?;
    Ok(check.checked)
}

impl Check<'_, '_> {
    fn run(&mut self) -> Result<(), DiskError> {
        let header = self.checked.header.clone();
        self.refer("header", 0, header.cluster_size())?;
        self.load_refcount_blocks(&header)?;
        self.load_refcounts()?;
        let snapshots = self.snapshots(&header)?;
        let tables = self.l2_tables(&header, &snapshots)?;
        self.checked.overlapping |= !self.tables_lie_apart(&header, &snapshots);
        self.walk_l2_tables(&tables)?;
        self.checked.tables = tables
            .into_iter()
            .map(|(offset, weight)| (offset, weight.all))
            .collect();
        self.compare_refcounts();
        Ok(())
    }

    fn header(&self) -> &Header {
        &self.checked.header
    }

    /// One more reference to each cluster of a range. Returns false for a range that is not in the file.
    fn refer(&mut self, what: &'static str, offset: u64, length: u64) -> Result<bool, DiskError> {
        self.refer_weighted(what, offset, length, 1)
    }

    fn refer_weighted(&mut self, what: &'static str, offset: u64, length: u64, weight: u64) -> Result<bool, DiskError> {
        if length == 0 {
            return Ok(true);
        }
        let end = offset.saturating_add(length);
        if end > self.image_end {
            self.findings.beyond_end(what, offset, length);
            return Ok(false);
        }
        let bits = self.header().cluster_bits;
        for cluster in offset >> bits..=(end - 1) >> bits {
            self.checked.references.add(cluster, weight)?;
        }
        Ok(true)
    }

    fn load_refcount_blocks(&mut self, header: &Header) -> Result<(), DiskError> {
        let bytes = u64::from(header.refcount_table_clusters) << header.cluster_bits;
        if !self.refer("refcount table", header.refcount_table_offset, bytes)? {
            return Ok(());
        }
        let bytes = bytes.min(MAX_REFCOUNT_TABLE_BYTES) as usize;
        let mut blocks = words(&self.file.metadata(header.refcount_table_offset, bytes)?);
        while blocks.last() == Some(&0) {
            blocks.pop();
        }
        for (index, block) in blocks.iter_mut().enumerate().filter(|(_, block)| **block != 0) {
            if *block % header.cluster_size() != 0 || *block >= 1 << 56 {
                self.findings
                    .bad_refcount_block(index as u64, *block, "is not cluster aligned");
                *block = 0;
            } else if *block + header.cluster_size() > self.image_end {
                self.findings
                    .bad_refcount_block(index as u64, *block, "is outside image");
                *block = 0;
            } else {
                let cluster = *block >> header.cluster_bits;
                if self.checked.references.get(cluster) > 0 {
                    self.findings
                        .bad_refcount_block(index as u64, *block, "lies on another table");
                    *block = 0;
                } else {
                    self.checked.references.add(cluster, 1)?;
                }
            }
        }
        self.checked.blocks = blocks;
        Ok(())
    }

    /// Reads the refcounts. Blocks in holes of the file are all zero.
    fn load_refcounts(&mut self) -> Result<(), DiskError> {
        let (cluster_size, order) = (self.header().cluster_size(), self.header().refcount_order);
        let per_block = (cluster_size * 8) >> order;
        let mut block = vec![0; cluster_size as usize];
        let mut refcounts = Counts::default();
        for (index, &offset) in self
            .checked
            .blocks
            .iter()
            .enumerate()
            .filter(|(_, offset)| **offset != 0)
        {
            if self.file.is_hole(offset, cluster_size) {
                continue;
            }
            self.file.read_metadata(offset, &mut block)?;
            let first = index as u64 * per_block;
            if order == 4 {
                refcounts.fill_16(first, &block)?;
            } else {
                let numbers = (0..per_block as usize).map(|entry| get_refcount(&block, entry, order));
                refcounts.fill(first, numbers)?;
            }
        }
        self.checked.refcounts = refcounts;
        Ok(())
    }

    fn snapshots(&mut self, header: &Header) -> Result<Vec<SnapshotRecord>, DiskError> {
        let snapshots = match read_snapshots(self.file, header) {
            Ok(snapshots) => snapshots,
            Err(DiskError::Corrupt(corruption)) => {
                self.findings.corrupt(&corruption);
                self.checked.damaged = true;
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        self.refer("snapshot table", header.snapshot_table_offset, table_bytes(&snapshots))?;
        Ok(snapshots)
    }

    /// All L2 tables, each once, by where they lie.
    fn l2_tables(&mut self, header: &Header, snapshots: &[SnapshotRecord]) -> Result<BTreeMap<u64, Weight>, DiskError> {
        let mut tables = HashMap::new();
        let l1_bytes = u64::from(header.l1_size) * 8;
        if self.refer("active L1 table", header.l1_table_offset, l1_bytes)? {
            self.checked.l1 = words(&self.file.metadata(header.l1_table_offset, l1_bytes as usize)?);
            for (index, entry) in self.checked.l1.clone().into_iter().enumerate() {
                let at = header.l1_table_offset + index as u64 * 8;
                self.add_l2_table(&mut tables, entry, at, 1, Some(index as u64))?;
            }
        } else {
            self.checked.damaged = true;
        }
        let mut l1_tables: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for snapshot in snapshots {
            *l1_tables
                .entry((snapshot.l1_table_offset, snapshot.l1_bytes()))
                .or_default() += 1;
        }
        let mut end = 0;
        for ((offset, bytes), weight) in l1_tables {
            // Tables on top of each other would otherwise be a way to make this take forever.
            if offset < end {
                self.findings.overlapping_l1(offset);
                self.checked.damaged = true;
                self.checked.overlapping = true;
                continue;
            }
            end = offset + bytes;
            self.refer_weighted("L1 table of a snapshot", offset, bytes, weight)?;
            self.add_snapshot_l1(&mut tables, offset, bytes, weight)?;
        }
        Ok(tables.into_iter().collect())
    }

    /// Whether each table that the header or a snapshot names has its clusters for itself. Only tables have been counted yet.
    fn tables_lie_apart(&self, header: &Header, snapshots: &[SnapshotRecord]) -> bool {
        let refcount_bytes = u64::from(header.refcount_table_clusters) << header.cluster_bits;
        let named = [
            (0, 1),
            (header.refcount_table_offset, refcount_bytes),
            (header.l1_table_offset, u64::from(header.l1_size) * 8),
            (header.snapshot_table_offset, table_bytes(snapshots)),
        ];
        let of_snapshots = snapshots
            .iter()
            .map(|record| (record.l1_table_offset, record.l1_bytes()));
        let of_snapshots = of_snapshots.filter(|_| !self.checked.overlapping);
        let mut ranges = named.into_iter().chain(of_snapshots).filter(|(_, bytes)| *bytes > 0);
        ranges.all(|(offset, bytes)| {
            let clusters = offset >> header.cluster_bits..(offset + bytes).div_ceil(header.cluster_size());
            clusters
                .into_iter()
                .all(|cluster| self.checked.references.get(cluster) <= 1)
        })
    }

    fn add_snapshot_l1(
        &mut self,
        tables: &mut HashMap<u64, Weight>,
        offset: u64,
        bytes: u64,
        weight: u64,
    ) -> Result<(), DiskError> {
        let mut done = 0;
        while done < bytes {
            let piece = READ_AT_ONCE.min(bytes - done);
            let at = offset + done;
            done += piece;
            if self.file.is_hole(at, piece) {
                continue;
            }
            for (index, entry) in words(&self.file.metadata(at, piece as usize)?).into_iter().enumerate() {
                self.add_l2_table(tables, entry, at + index as u64 * 8, weight, None)?;
            }
        }
        Ok(())
    }

    /// Counts an L1 entry found at byte `at`; `active` is its index in the active table.
    fn add_l2_table(
        &mut self,
        tables: &mut HashMap<u64, Weight>,
        entry: u64,
        at: u64,
        weight: u64,
        active: Option<u64>,
    ) -> Result<(), DiskError> {
        if entry == 0 {
            return Ok(());
        }
        let cluster_size = self.header().cluster_size();
        let table = entry & OFFSET;
        if entry & !(OFFSET | COPIED) != 0 {
            self.findings.reserved_bits(Flagged::L1, at, entry);
            self.checked.damaged = true;
        }
        let in_file = table != 0 && self.refer_weighted("L2 table", table, cluster_size, weight)?;
        if let Some(index) = active {
            self.check_copied(entry, table, Flagged::L2Table { index }, at);
        }
        if !table.is_multiple_of(cluster_size) {
            self.findings.unaligned(Flagged::L1, at, table);
        }
        if !table.is_multiple_of(cluster_size) || !in_file {
            self.checked.damaged = true;
            return Ok(());
        }
        if tables.len() >= MAX_TABLES && !tables.contains_key(&table) {
            return Err(DiskError::Unsupported(
                "checking an image with more than 524288 L2 tables",
            ));
        }
        let counted = tables.entry(table).or_default();
        counted.all += weight;
        counted.active |= active.is_some();
        Ok(())
    }

    fn check_copied(&mut self, entry: u64, host: u64, flagged: Flagged, at: u64) {
        let is_one = self.checked.refcounts.get(host >> self.header().cluster_bits) == 1;
        if (entry & COPIED != 0) != is_one {
            self.findings.wrong_copied_flag(flagged, at, entry, is_one);
        }
    }

    fn walk_l2_tables(&mut self, tables: &BTreeMap<u64, Weight>) -> Result<(), DiskError> {
        let cluster_size = self.header().cluster_size();
        let mut next = tables.iter().peekable();
        let mut bytes = Vec::new();
        let mut weights = Vec::new();
        while let Some((&start, &weight)) = next.next() {
            if self.file.is_hole(start, cluster_size) {
                continue;
            }
            weights.clear();
            weights.push(weight);
            let mut end = start + cluster_size;
            while let Some((_, weight)) = next.next_if(|(offset, _)| **offset == end && end - start < READ_AT_ONCE) {
                weights.push(*weight);
                end += cluster_size;
            }
            bytes.resize((end - start) as usize, 0);
            self.file.read_metadata(start, &mut bytes)?;
            for (index, table) in bytes.chunks_exact(cluster_size as usize).enumerate() {
                self.walk_l2_table(start + index as u64 * cluster_size, table, weights[index])?;
            }
        }
        Ok(())
    }

    fn walk_l2_table(&mut self, offset: u64, table: &[u8], weight: Weight) -> Result<(), DiskError> {
        let cluster_size = self.header().cluster_size();
        let zero_flag = if self.header().version >= 3 { ZERO } else { 0 };
        let cluster_bits = self.header().cluster_bits;
        // A data cluster has none of these bits, and lies wholly within the file.
        let plain_mask = !(OFFSET | COPIED) | (cluster_size - 1);
        let last_start = self.image_end.saturating_sub(cluster_size - 1);
        // Where the cluster after the last one would lie, if they were in order.
        let mut expected = 0;
        let (mut allocated, mut fragmented) = (0, 0);
        for (index, bytes) in table.chunks_exact(8).enumerate() {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            let entry = u64::from_be_bytes(word);
            if entry == 0 {
                continue;
            }
            let is_plain = entry & (plain_mask | COPIED) == COPIED && (1..last_start).contains(&(entry & OFFSET));
            if is_plain && weight.active && weight.all == 1 {
                // What nearly all entries are: a cluster of the active disk alone.
                let host = entry & OFFSET;
                allocated += 1;
                fragmented += u64::from(expected != 0 && host != expected);
                expected = host + cluster_size;
                let cluster = host >> cluster_bits;
                self.checked.references.add(cluster, 1)?;
                if self.checked.refcounts.get(cluster) == 1 {
                    continue;
                }
                let at = offset + index as u64 * 8;
                self.check_copied(entry, host, Flagged::Data, at);
                continue;
            }
            let at = offset + index as u64 * 8;
            if entry & COMPRESSED != 0 {
                self.compressed_entry(entry, at, weight)?;
                continue;
            }
            if entry & !(OFFSET | COPIED | zero_flag) != 0 {
                self.findings.reserved_bits(Flagged::L2, at, entry);
                self.checked.damaged = true;
            }
            let host = entry & OFFSET;
            if host == 0 {
                if entry & COPIED != 0 && entry & zero_flag == 0 {
                    self.findings.reserved_bits(Flagged::L2, at, entry);
                }
                continue;
            }
            if weight.active {
                allocated += 1;
                fragmented += u64::from(expected != 0 && host != expected);
                expected = host + cluster_size;
            }
            if !host.is_multiple_of(cluster_size) {
                self.findings.unaligned(Flagged::L2, at, host);
                self.checked.damaged = true;
            }
            let in_file = self.refer_weighted("data cluster", host, cluster_size, weight.all)?;
            self.checked.damaged |= !in_file;
            if weight.active && host.is_multiple_of(cluster_size) {
                self.check_copied(entry, host, Flagged::Data, at);
            }
        }
        self.checked.usage.allocated_clusters += allocated;
        self.checked.usage.fragmented_clusters += fragmented;
        Ok(())
    }

    fn compressed_entry(&mut self, entry: u64, at: u64, weight: Weight) -> Result<(), DiskError> {
        let offset_bits = 62 - (self.header().cluster_bits - 8);
        let host = entry & ((1 << offset_bits) - 1);
        let further_sectors = (entry & !(COPIED | COMPRESSED)) >> offset_bits;
        let start = host & !511;
        if entry & COPIED != 0 {
            self.findings.copied_compressed(at, entry);
        }
        if weight.active {
            let usage = &mut self.checked.usage;
            usage.allocated_clusters += 1;
            usage.compressed_clusters += 1;
            usage.fragmented_clusters += 1;
        }
        let length = (further_sectors + 1) * 512;
        // The last one of an image may name sectors behind the end of the file, within its last cluster or not far behind it.
        let in_image = length.min(self.image_end.saturating_sub(start).max(512));
        if !self.refer_weighted("compressed cluster", start, in_image, weight.all)? {
            self.checked.damaged = true;
        }
        Ok(())
    }

    /// Compares refcounts with references.
    fn compare_refcounts(&mut self) {
        let (refcounts, references) = (&self.checked.refcounts, &self.checked.references);
        let findings = &mut *self.findings;
        refcounts.compare(references, |cluster, refcount, count| {
            findings.compare(cluster, refcount, count);
        });
        let end = refcounts.last().max(references.last()).map_or(0, |last| last + 1);
        self.checked.usage.image_end_offset = end << self.checked.header.cluster_bits;
    }
}
