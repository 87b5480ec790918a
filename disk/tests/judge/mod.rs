//! A judge of qcow2 images that shares no code with the engine: it counts, from an image's own tables, who refers to each
//! cluster, and compares that with the refcounts; and it reads what the disk and its snapshots hold.
//!
//! It knows versions 2 and 3, refcounts of all widths, compressed and zero clusters and internal snapshots. It trusts the image
//! to have tables within the file (what is beyond its end reads as zeros), so a broken image is a report or a panic, never silence.
#![allow(dead_code, reason = "each test that shares this uses a part of it")]

pub mod read;

/// The bits of an L1 or L2 entry that are a host offset.
const OFFSET: usize = 0x00ff_ffff_ffff_fe00;
const COPIED: usize = 1 << 63;
const COMPRESSED: usize = 1 << 62;

/// What an image's tables say of its clusters.
#[derive(Debug, Default)]
pub struct Report {
    /// Referenced more often than the refcount says, or marked as copied with another reference.
    pub corruptions: Vec<String>,
    /// Harmless, but not as the specification has it: copied flags that do not say what the refcount says, and clusters that are
    /// mapped behind the end of the disk.
    pub flags: Vec<String>,
    /// References that the refcounts count, and nobody has.
    pub leaks: usize,
}

impl Report {
    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.corruptions.is_empty() && self.flags.is_empty() && self.leaks == 0
    }
}

/// Judges the qcow2 image that `image` holds.
pub fn check(image: &[u8]) -> Report {
    let mut tables = Tables::of(image);
    tables.count_references();
    let mut report = Report::default();
    for (cluster, &count) in tables.references.iter().enumerate().filter(|(_, count)| **count > 0) {
        let refcount = tables.refcount(cluster);
        if refcount < count as usize {
            let text = format!("cluster {cluster}: refcount {refcount} for {count} references");
            report.corruptions.push(text);
        }
    }
    for &(cluster, copied) in &tables.active {
        let references = tables.references[cluster];
        if copied && references != 1 {
            let text = format!("cluster {cluster} is marked as copied and has {references} references");
            report.corruptions.push(text);
        } else if copied != (tables.refcount(cluster) == 1) {
            report.flags.push(format!("cluster {cluster}: copied is {copied}"));
        }
    }
    report.flags.append(&mut tables.behind_the_end);
    report.leaks = tables.leaks();
    report
}

/// How many references each cluster has.
pub fn references(image: &[u8]) -> Vec<u32> {
    let mut tables = Tables::of(image);
    tables.count_references();
    tables.references
}

struct Tables<'a> {
    image: &'a [u8],
    cluster_bits: usize,
    refcount_order: usize,
    /// The offset of each refcount block, or 0.
    blocks: Vec<usize>,
    references: Vec<u32>,
    /// Clusters that the active tables refer to, unless compressed, and whether they call them theirs alone.
    active: Vec<(usize, bool)>,
    behind_the_end: Vec<String>,
}

impl<'a> Tables<'a> {
    fn of(image: &'a [u8]) -> Self {
        let mut tables = Self {
            image,
            cluster_bits: word(image, 20, 4),
            // Version 2 has no such field, and refcounts of 16 bits.
            refcount_order: if word(image, 4, 4) == 2 { 4 } else { word(image, 96, 4) },
            blocks: Vec::new(),
            references: Vec::new(),
            active: Vec::new(),
            behind_the_end: Vec::new(),
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
        for snapshot in read::records(self.image) {
            self.add_l1_table(snapshot.l1_table, snapshot.l1_entries, false);
        }
        let (start, end) = read::snapshot_table(self.image);
        self.add(start, end - start);
    }

    fn add_l1_table(&mut self, table: usize, entries: usize, active: bool) {
        self.add(table, entries * 8);
        let per_table = self.cluster_size() / 8;
        let size_in_clusters = word(self.image, 24, 8).div_ceil(self.cluster_size());
        for l1_index in 0..entries {
            let l1_entry = word(self.image, table + l1_index * 8, 8);
            if l1_entry == 0 {
                continue;
            }
            self.add(l1_entry & OFFSET, 1);
            self.note_active(l1_entry, active);
            for index in 0..per_table {
                let entry = word(self.image, (l1_entry & OFFSET) + index * 8, 8);
                if entry == 0 {
                    continue;
                }
                self.add_l2_entry(entry, active);
                let cluster = l1_index * per_table + index;
                if active && entry & OFFSET != 0 && cluster >= size_in_clusters {
                    let text = format!("guest cluster {cluster} lies behind the end");
                    self.behind_the_end.push(text);
                }
            }
        }
    }

    fn add_l2_entry(&mut self, entry: usize, active: bool) {
        if entry & COMPRESSED != 0 {
            let (start, end) = compressed(entry, self.cluster_bits);
            self.add(start & !511, end - (start & !511));
        } else if entry & OFFSET != 0 {
            self.add(entry & OFFSET, 1);
            self.note_active(entry, active);
        }
    }

    /// One more reference to each cluster that these bytes touch.
    fn add(&mut self, offset: usize, length: usize) {
        if length == 0 {
            return;
        }
        let last = (offset + length - 1) >> self.cluster_bits;
        assert!(last < 1 << 24, "the image refers to byte {:#x}", offset + length);
        if self.references.len() <= last {
            self.references.resize(last + 1, 0);
        }
        for cluster in offset >> self.cluster_bits..=last {
            self.references[cluster] += 1;
        }
    }

    fn note_active(&mut self, entry: usize, active: bool) {
        if active {
            self.active
                .push(((entry & OFFSET) >> self.cluster_bits, entry & COPIED != 0));
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

    fn leaks(&self) -> usize {
        let mut leaks = 0;
        for (index, block) in self.blocks.iter().enumerate().filter(|(_, block)| **block != 0) {
            let bytes = self.image.get(*block..).unwrap_or(&[]);
            let bytes = &bytes[..bytes.len().min(self.cluster_size())];
            // Mostly zeros: only entries in words that are not.
            for (at, word) in bytes
                .chunks(8)
                .enumerate()
                .filter(|(_, word)| word.iter().any(|byte| *byte != 0))
            {
                let first = index * self.refcounts_per_block() + ((at * 64) >> self.refcount_order);
                for cluster in first..first + ((word.len() * 8) >> self.refcount_order).max(1) {
                    let references = self.references.get(cluster).copied().unwrap_or(0) as usize;
                    leaks += self.refcount(cluster).saturating_sub(references);
                }
            }
        }
        leaks
    }
}

/// Where compressed data begins, and where the last sector of it ends.
fn compressed(entry: usize, cluster_bits: usize) -> (usize, usize) {
    let offset_bits = 62 - (cluster_bits - 8);
    let start = entry & ((1 << offset_bits) - 1);
    let further_sectors = (entry & (COMPRESSED - 1)) >> offset_bits;
    (start, (start & !511) + (further_sectors + 1) * 512)
}

/// The big-endian number of `length` bytes at `at`. What is beyond the end of the file reads as zeros.
fn word(image: &[u8], at: usize, length: usize) -> usize {
    if let Some(bytes) = image.get(at..at + length) {
        return bytes.iter().fold(0, |value, byte| value << 8 | usize::from(*byte));
    }
    let byte = |at: usize| usize::from(image.get(at).copied().unwrap_or(0));
    (at..at + length).fold(0, |value, at| value << 8 | byte(at))
}
