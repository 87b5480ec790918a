//! A judge of qcow2 images that shares no code with the engine: it counts, from an image's own tables, who refers to each
//! cluster, and compares that with the refcounts.
//!
//! It knows versions 2 and 3, refcounts of all widths, compressed and zero clusters and internal snapshots. It trusts the image
//! to have tables within the file (what is beyond its end reads as zeros), so a broken image is a report or a panic, never silence.

use std::collections::HashMap;

/// The bits of an L1 or L2 entry that are a host offset.
const OFFSET: usize = 0x00ff_ffff_ffff_fe00;
const COPIED: usize = 1 << 63;
const COMPRESSED: usize = 1 << 62;

/// The fixed part of a record in the snapshot table, in bytes.
const SNAPSHOT_RECORD: usize = 40;

/// What an image's tables say of its clusters.
#[derive(Debug, Default)]
pub struct Report {
    /// Referenced more often than the refcount says, or marked as copied with another refcount than one.
    pub corruptions: Vec<String>,
    /// References that the refcounts count, and nobody has.
    pub leaks: usize,
}

impl Report {
    /// Neither a corruption nor a leak.
    pub fn is_clean(&self) -> bool {
        self.corruptions.is_empty() && self.leaks == 0
    }
}

/// Judges the qcow2 image that `image` holds.
pub fn check(image: &[u8]) -> Report {
    let mut tables = Tables::of(image);
    tables.count_references();
    let mut report = Report::default();
    for (&cluster, &count) in &tables.references {
        let refcount = tables.refcount(cluster);
        if refcount < count {
            let text = format!("cluster {cluster}: refcount {refcount} for {count} references");
            report.corruptions.push(text);
        }
    }
    for &cluster in &tables.copied {
        if tables.refcount(cluster) != 1 {
            report
                .corruptions
                .push(format!("cluster {cluster} is marked as copied"));
        }
    }
    let per_block = tables.refcounts_per_block();
    let described = tables.blocks.iter().enumerate().filter(|(_, block)| **block != 0);
    for cluster in described.flat_map(|(index, _)| index * per_block..(index + 1) * per_block) {
        let references = tables.references.get(&cluster).copied().unwrap_or(0);
        report.leaks += tables.refcount(cluster).saturating_sub(references);
    }
    report
}

struct Tables<'a> {
    image: &'a [u8],
    cluster_bits: usize,
    refcount_order: usize,
    /// The offset of each refcount block, or 0.
    blocks: Vec<usize>,
    references: HashMap<usize, usize>,
    /// Clusters that the active tables call theirs alone.
    copied: Vec<usize>,
}

impl<'a> Tables<'a> {
    fn of(image: &'a [u8]) -> Self {
        let mut tables = Self {
            image,
            cluster_bits: word(image, 20, 4),
            // Version 2 has no such field, and refcounts of 16 bits.
            refcount_order: if word(image, 4, 4) == 2 { 4 } else { word(image, 96, 4) },
            blocks: Vec::new(),
            references: HashMap::new(),
            copied: Vec::new(),
        };
        let table = word(image, 48, 8);
        let entries = word(image, 56, 4) * tables.cluster_size() / 8;
        tables.blocks = (0..entries).map(|index| word(image, table + index * 8, 8)).collect();
        tables
    }

    fn cluster_size(&self) -> usize {
        1 << self.cluster_bits
    }

    fn count_references(&mut self) {
        self.add(0, 1);
        self.add(word(self.image, 48, 8), word(self.image, 56, 4) * self.cluster_size());
        for block in self.blocks.clone() {
            self.add(block, usize::from(block != 0));
        }
        self.add_l1_table(word(self.image, 40, 8), word(self.image, 36, 4), true);
        self.add_snapshots(word(self.image, 64, 8), word(self.image, 60, 4));
    }

    fn add_snapshots(&mut self, table: usize, count: usize) {
        let mut at = table;
        for _ in 0..count {
            self.add_l1_table(word(self.image, at, 8), word(self.image, at + 8, 4), false);
            let names = word(self.image, at + 12, 2) + word(self.image, at + 14, 2);
            at += (SNAPSHOT_RECORD + word(self.image, at + 36, 4) + names).next_multiple_of(8);
        }
        self.add(table, at - table);
    }

    fn add_l1_table(&mut self, table: usize, entries: usize, active: bool) {
        self.add(table, entries * 8);
        for index in 0..entries {
            let entry = word(self.image, table + index * 8, 8);
            if entry == 0 {
                continue;
            }
            self.add(entry & OFFSET, 1);
            self.note_copied(entry, active);
            for index in 0..self.cluster_size() / 8 {
                let entry = word(self.image, (entry & OFFSET) + index * 8, 8);
                self.add_l2_entry(entry, active);
            }
        }
    }

    fn add_l2_entry(&mut self, entry: usize, active: bool) {
        if entry & COMPRESSED != 0 {
            let offset_bits = 62 - (self.cluster_bits - 8);
            let start = entry & ((1 << offset_bits) - 1);
            let further_sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
            let end = (start & !511) + (further_sectors + 1) * 512;
            self.add(start, end - start);
        } else if entry & OFFSET != 0 {
            self.add(entry & OFFSET, 1);
            self.note_copied(entry, active);
        }
    }

    /// One more reference to each cluster that these bytes touch.
    fn add(&mut self, offset: usize, length: usize) {
        if length == 0 {
            return;
        }
        for cluster in offset >> self.cluster_bits..=(offset + length - 1) >> self.cluster_bits {
            *self.references.entry(cluster).or_default() += 1;
        }
    }

    fn note_copied(&mut self, entry: usize, active: bool) {
        if active && entry & COPIED != 0 {
            self.copied.push((entry & OFFSET) >> self.cluster_bits);
        }
    }

    fn refcounts_per_block(&self) -> usize {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    fn refcount(&self, cluster: usize) -> usize {
        let block = self.blocks.get(cluster / self.refcounts_per_block());
        let Some(&block) = block.filter(|block| **block != 0) else {
            return 0;
        };
        let bit = (cluster % self.refcounts_per_block()) << self.refcount_order;
        let at = block + bit / 8;
        if self.refcount_order < 3 {
            (word(self.image, at, 1) >> (bit % 8)) & ((1 << (1 << self.refcount_order)) - 1)
        } else {
            word(self.image, at, (1 << self.refcount_order) / 8)
        }
    }
}

/// The big-endian number of `length` bytes at `at`. What is beyond the end of the file reads as zeros.
fn word(image: &[u8], at: usize, length: usize) -> usize {
    let byte = |at: usize| usize::from(image.get(at).copied().unwrap_or(0));
    (at..at + length).fold(0, |value, at| value << 8 | byte(at))
}
