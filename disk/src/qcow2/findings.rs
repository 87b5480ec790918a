//! What a check finds, in words and in numbers.

use std::fmt::Display;

use crate::disk::Corruption;

/// More findings than this are counted, not told one by one.
const MAX_TOLD: u64 = 1000;

/// How much is wrong with an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// What can lose data, or has.
    pub corruptions: u64,
    /// Clusters that are counted as used and are not.
    pub leaks: u64,
}

/// What a flag or an entry is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flagged {
    L1,
    L2,
    L2Table { index: u64 },
    Data,
}

/// Counts what is found, and tells it.
pub(super) struct Findings<'a> {
    tell: &'a mut dyn FnMut(&str),
    told: u64,
    pub damage: Damage,
    cluster_bits: u32,
}

impl<'a> Findings<'a> {
    pub(super) fn new(cluster_bits: u32, tell: &'a mut dyn FnMut(&str)) -> Self {
        Self {
            tell,
            told: 0,
            damage: Damage::default(),
            cluster_bits,
        }
    }

    fn tell(&mut self, text: impl Display) {
        self.told += 1;
        if self.told <= MAX_TOLD {
            (self.tell)(&text.to_string());
        } else if self.told == MAX_TOLD + 1 {
            (self.tell)("There is more of it; from here on it is only counted.");
        }
    }

    fn corruption(&mut self, text: impl Display) {
        self.damage.corruptions += 1;
        self.tell(text);
    }

    fn host(&self, cluster: u64) -> u64 {
        cluster << self.cluster_bits
    }

    /// A refcount that is not the number of references.
    pub(super) fn compare(&mut self, cluster: u64, refcount: u64, references: u64) {
        let host = self.host(cluster);
        let text = format!("cluster {cluster} refcount={refcount} reference={references} (host offset {host:#x})");
        if refcount < references {
            self.corruption(format!("ERROR {text}"));
        } else {
            self.damage.leaks += 1;
            self.tell(format!("Leaked {text}"));
        }
    }

    pub(super) fn beyond_end(&mut self, what: &'static str, offset: u64, length: u64) {
        self.corruption(format!(
            "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
             offset {offset:#x} size {length:#x} ({what})"
        ));
    }

    pub(super) fn bad_refcount_block(&mut self, index: u64, offset: u64, why: &str) {
        self.corruption(format!("ERROR refcount block {index} {why} (offset {offset:#x})"));
    }

    pub(super) fn reserved_bits(&mut self, flagged: Flagged, at: u64, entry: u64) {
        let level = if flagged == Flagged::L1 { "l1" } else { "l2" };
        self.corruption(format!(
            "ERROR found {level} entry with reserved bits set: {entry:x} (at {at:#x})"
        ));
    }

    pub(super) fn unaligned(&mut self, flagged: Flagged, at: u64, host: u64) {
        let what = if flagged == Flagged::L1 {
            "L2 table"
        } else {
            "Data cluster"
        };
        let level = if flagged == Flagged::L1 { "L1" } else { "L2" };
        self.corruption(format!(
            "ERROR offset={host:x}: {what} is not properly aligned; {level} entry corrupted (at {at:#x})"
        ));
    }

    pub(super) fn copied_compressed(&mut self, at: u64, entry: u64) {
        self.corruption(format!(
            "ERROR: coffset={entry:#x}: copied flag must never be set for compressed clusters (L2 entry at {at:#x})"
        ));
    }

    pub(super) fn overlapping_l1(&mut self, offset: u64) {
        self.corruption(format!(
            "ERROR the L1 table of a snapshot at {offset:#x} overlaps that of another; what it refers to is not counted"
        ));
    }

    /// A copied flag that is set where another refers to the cluster, or not set where nobody does.
    pub(super) fn wrong_copied_flag(&mut self, flagged: Flagged, at: u64, entry: u64, is_one: bool) {
        let refcount = if is_one { "one" } else { "not one" };
        self.corruption(match flagged {
            Flagged::L2Table { index } => {
                format!("ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={entry:x} refcount is {refcount} (at {at:#x})")
            }
            _ => format!("ERROR OFLAG_COPIED data cluster: l2_entry={entry:x} refcount is {refcount} (at {at:#x})"),
        });
    }

    pub(super) fn corrupt(&mut self, corruption: &Corruption) {
        self.corruption(format!("ERROR {corruption}"));
    }
}
