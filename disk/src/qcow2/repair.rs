//! Repairing an image at rest, so that it never gets worse.
//!
//! What a killed process left is written first, in the durable order. Then the references are counted, and the refcounts set to
//! them: where they were too low by what every qcow2 tool does, too, where they were too high only if all tables could be understood. A
//! table that is damaged may have referred to a cluster that nothing else refers to, and whoever could mend it by hand needs that cluster.
//!
//! The order makes each step harmless if the next one never comes: copied flags that are wrong are taken away; then refcounts are
//! written, or, where refcount blocks are missing or damaged, a whole new set of them behind everything else, which one write in the
//! header's sector puts to use; then copied flags are set. After each step all of it is made durable.

use std::path::Path;

use super::check::{Checked, Usage, check};
use super::counts::Counts;
use super::entry::{COPIED, words};
use super::findings::{Damage, Findings};
use super::header::{Header, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DIRTY, MAX_REFCOUNT_TABLE_BYTES};
use super::recover::WRITE_ORDER;
use super::refcount::{get_refcount, set_refcount};
use super::switch::table_of;
use crate::at_rest::{RestingFile, Sharing};
use crate::cache_file::CacheFile;
use crate::disk::Corruption;
use crate::open::read_header;
use crate::{DiskError, OpenError};

/// Where the features lie in the header, and the fields of the refcount table.
const FEATURES_AT: u64 = 72;
const REFCOUNT_TABLE_AT: u64 = 48;

/// What is to be repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepairMode {
    /// Refcounts that are too high, and copied flags.
    Leaks,
    /// All that can be.
    All,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What is wrong (after a repair: still wrong).
    pub damage: Damage,
    /// What was repaired.
    pub fixed: Damage,
    /// How the clusters are used.
    pub usage: Usage,
    /// Slices of metadata that a killed process left behind, which belong into the image.
    pub left_behind: u64,
    /// The image was not closed: its next user has to set its refcounts right.
    pub dirty: bool,
    /// Why not everything was repaired.
    pub not_repaired: Option<&'static str>,
}

/// Why a check or a repair could not be done, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The image could not be opened.
    #[error("{0}")]
    Open(OpenError),
    /// Reading or writing it failed half-way.
    #[error("{0}")]
    Disk(DiskError),
}

impl From<OpenError> for CheckError {
    fn from(error: OpenError) -> Self {
        CheckError::Open(error)
    }
}

impl From<DiskError> for CheckError {
    fn from(error: DiskError) -> Self {
        CheckError::Disk(error)
    }
}

/// Checks the qcow2 image at `path`. Each thing that is wrong is told in a line; the first thousand of them.
pub fn check_image(path: &Path, force_share: bool, tell: &mut dyn FnMut(&str)) -> Result<CheckReport, CheckError> {
    let sharing = if force_share {
        Sharing::Everybody
    } else {
        Sharing::Readers
    };
    let (file, header) = open(path, sharing)?;
    let mut findings = Findings::new(header.cluster_bits, tell);
    let checked = check(&file, &header, &mut findings)?;
    Ok(CheckReport {
        damage: findings.damage,
        usage: checked.usage,
        left_behind: file.survivors().count() as u64,
        dirty: header.is_dirty(),
        ..CheckReport::default()
    })
}

/// Repairs the qcow2 image at `path`, and checks it again.
pub fn repair_image(path: &Path, mode: RepairMode, tell: &mut dyn FnMut(&str)) -> Result<CheckReport, CheckError> {
    let (mut file, mut header) = open(path, Sharing::Nobody)?;
    let left_behind = write_survivors(&mut file, path)?;
    let mut findings = Findings::new(header.cluster_bits, tell);
    let before = check(&file, &header, &mut findings)?;
    let found = findings.damage;
    if found == Damage::default() && !header.is_dirty() && !header.is_corrupt() {
        return Ok(CheckReport {
            usage: before.usage,
            left_behind,
            ..CheckReport::default()
        });
    }
    let mut repair = Repair {
        file: &mut file,
        mode,
        checked: &before,
        fixed: Damage::default(),
        not_repaired: None,
    };
    if found != Damage::default() {
        repair.run(&mut header)?;
    }
    let (fixed, not_repaired) = (repair.fixed, repair.not_repaired);
    let mut findings = Findings::new(header.cluster_bits, tell);
    let after = check(&file, &header, &mut findings)?;
    let still = findings.damage;
    if still.corruptions == 0 {
        mark_whole(&file, &mut header, mode)?;
    }
    Ok(CheckReport {
        damage: still,
        fixed,
        usage: after.usage,
        left_behind,
        dirty: header.is_dirty(),
        not_repaired: not_repaired.filter(|_| still != Damage::default()),
    })
}

fn open(path: &Path, sharing: Sharing) -> Result<(RestingFile, Header), OpenError> {
    let fail = |cause| OpenError {
        path: path.to_owned(),
        cause: Box::new(cause),
    };
    let mut file = RestingFile::open(path, sharing)?;
    let header = read_header(file.file()).map_err(fail)?;
    match file.find_survivors(&header) {
        // Whoever does not lock sees another process' cache change under its hands.
        Err(_) if sharing == Sharing::Everybody => {}
        other => other.map_err(fail)?,
    }
    Ok((file, header))
}

/// Puts what a killed process left into the image. Returns how many slices that were.
fn write_survivors(file: &mut RestingFile, path: &Path) -> Result<u64, CheckError> {
    let count = file.survivors().count() as u64;
    for stage in WRITE_ORDER {
        for survivor in file.survivors().filter(|survivor| stage.contains(&survivor.class)) {
            file.write(survivor.offset, &survivor.content)?;
        }
        // What a killed process wrote last may still be in the page cache only.
        file.sync()?;
    }
    file.forget_survivors();
    file.measure()?;
    if count > 0 {
        tracing::info!(slices = count, path = %path.display(), "wrote back the metadata of a process that was killed");
    }
    Ok(count)
}

/// The image needs no more recovery, and is not corrupt any more. Then the cache that a killed process left is of no use.
fn mark_whole(file: &RestingFile, header: &mut Header, mode: RepairMode) -> Result<(), CheckError> {
    let was_dirty = header.is_dirty();
    let mut features = header.incompatible_features & !INCOMPATIBLE_DIRTY;
    if mode == RepairMode::All {
        features &= !INCOMPATIBLE_CORRUPT;
    }
    if features == header.incompatible_features {
        return Ok(());
    }
    header.incompatible_features = features;
    file.write(FEATURES_AT, &features.to_be_bytes())?;
    file.sync()?;
    if was_dirty && let Ok(Some(cache)) = CacheFile::of(file.file()) {
        cache.discard();
    }
    Ok(())
}

struct Repair<'a> {
    file: &'a mut RestingFile,
    mode: RepairMode,
    checked: &'a Checked,
    fixed: Damage,
    not_repaired: Option<&'static str>,
}

impl Repair<'_> {
    fn run(&mut self, header: &mut Header) -> Result<(), DiskError> {
        let max = u64::MAX >> (64 - (1u32 << header.refcount_order));
        if self.checked.references.iter().any(|(_, count)| count > max) {
            self.not_repaired = Some("a cluster has more references than a refcount of this width can count");
            return Ok(());
        }
        if self.checked.overlapping {
            self.not_repaired =
                Some("tables lie on one another; nobody can tell whose content it is, so nothing is written there");
            return Ok(());
        }
        if self.checked.damaged {
            self.not_repaired = Some(
                "entries of its tables are damaged; no cluster is freed, since a damaged entry may have referred to it",
            );
        }
        let blocks_are_whole = self.blocks_are_whole();
        if !blocks_are_whole && self.mode == RepairMode::Leaks {
            self.not_repaired = Some("refcount blocks are missing or damaged; `check -r all` makes new ones");
            return Ok(());
        }
        self.set_copied_flags(false)?;
        if blocks_are_whole {
            self.write_refcounts()?;
        } else {
            self.make_new_refcounts(header)?;
        }
        if !self.checked.damaged {
            self.set_copied_flags(true)?;
        }
        Ok(())
    }

    /// Each cluster with references has a refcount block, and nothing else uses any block: else writing to one would
    /// destroy what somebody else has there.
    fn blocks_are_whole(&self) -> bool {
        let header = &self.checked.header;
        let mut blocks = self.checked.blocks.iter().filter(|block| **block != 0);
        if !blocks.all(|block| self.checked.references.get(*block >> header.cluster_bits) == 1) {
            return false;
        }
        let per_block = (header.cluster_size() * 8) >> header.refcount_order;
        let has_block = |cluster: u64| {
            let block = self.checked.blocks.get((cluster / per_block) as usize);
            block.is_some_and(|block| *block != 0)
        };
        let mut known = None;
        self.checked.references.iter().all(|(cluster, _)| {
            let block = cluster / per_block;
            if known != Some(block) {
                known = has_block(cluster).then_some(block);
            }
            known == Some(block)
        })
    }

    /// Sets refcounts to the number of references, each block in its place.
    fn write_refcounts(&mut self) -> Result<(), DiskError> {
        let header = &self.checked.header;
        let (cluster_size, order) = (header.cluster_size() as usize, header.refcount_order);
        let per_block = (cluster_size * 8) >> order;
        for (index, &offset) in self
            .checked
            .blocks
            .iter()
            .enumerate()
            .filter(|(_, offset)| **offset != 0)
        {
            let mut block = self.file.metadata(offset, cluster_size)?;
            let mut changed = false;
            for entry in 0..per_block {
                let cluster = (index * per_block + entry) as u64;
                let found = get_refcount(&block, entry, order);
                let wanted = self.repaired_refcount(cluster);
                if found == wanted {
                    continue;
                }
                set_refcount(&mut block, entry, order, wanted);
                changed = true;
                if found < wanted {
                    self.fixed.corruptions += 1;
                } else {
                    self.fixed.leaks += 1;
                }
            }
            if changed {
                self.file.write(offset, &block)?;
            }
        }
        self.file.sync()
    }

    /// Makes a new refcount table and new blocks behind everything else, and puts them to use.
    fn make_new_refcounts(&mut self, header: &mut Header) -> Result<(), DiskError> {
        let cluster_size = header.cluster_size();
        let references = &self.checked.references;
        let first = self.file.length().div_ceil(cluster_size);
        let old = OldRefcounts::of(self.checked);
        let layout = NewRefcounts::plan(header, references, first, &|block| {
            self.checked.damaged && old.has_block(block)
        })?;
        let order = header.refcount_order;
        for (position, &index) in layout.blocks.iter().enumerate() {
            let mut block = vec![0; cluster_size as usize];
            let start = index * layout.per_block;
            if self.checked.damaged {
                // Nothing is freed, so the old refcounts are where to begin.
                old.read(self.file, index, &mut block)?;
            }
            for (cluster, count) in references.range(start..start + layout.per_block) {
                let entry = (cluster - start) as usize;
                let before = get_refcount(&block, entry, order);
                set_refcount(&mut block, entry, order, count.max(before));
            }
            for cluster in layout
                .own()
                .filter(|cluster| (start..start + layout.per_block).contains(cluster))
            {
                set_refcount(&mut block, (cluster - start) as usize, order, 1);
            }
            self.file.write(layout.block_offset(position), &block)?;
        }
        let mut table = vec![0; (layout.table_clusters * cluster_size / 8) as usize];
        for (position, &index) in layout.blocks.iter().enumerate() {
            table[index as usize] = layout.block_offset(position);
        }
        self.file.write(layout.table_offset(), &table_of(&table))?;
        self.file.sync()?;
        header.refcount_table_offset = layout.table_offset();
        header.refcount_table_clusters = layout.table_clusters as u32;
        let mut fields = header.refcount_table_offset.to_be_bytes().to_vec();
        fields.extend(header.refcount_table_clusters.to_be_bytes());
        self.file.write(REFCOUNT_TABLE_AT, &fields)?;
        self.file.sync()?;
        self.file.measure()?;
        // What the old table and blocks took up is free now: nothing refers to it.
        if !self.checked.damaged {
            self.release_old_refcounts(header, &layout)?;
        }
        self.fixed.corruptions += self.raised();
        Ok(())
    }

    /// Clusters whose refcount was too low.
    fn raised(&self) -> u64 {
        let is_raised = |(cluster, count): &(u64, u64)| self.checked.refcounts.get(*cluster) < *count;
        self.checked.references.iter().filter(is_raised).count() as u64
    }

    fn release_old_refcounts(&self, header: &Header, layout: &NewRefcounts) -> Result<(), DiskError> {
        let old = &self.checked.header;
        let bits = old.cluster_bits;
        let table = old.refcount_table_offset >> bits;
        let clusters = (table..table + u64::from(old.refcount_table_clusters)).chain(
            self.checked
                .blocks
                .iter()
                .filter(|block| **block != 0)
                .map(|block| block >> bits),
        );
        let is_only_one = |cluster: &u64| self.checked.references.get(*cluster) == 1;
        for cluster in clusters.filter(is_only_one) {
            let Some(position) = layout
                .blocks
                .iter()
                .position(|index| *index == cluster / layout.per_block)
            else {
                continue;
            };
            let at = layout.block_offset(position);
            let mut block = self.file.metadata(at, header.cluster_size() as usize)?;
            let entry = (cluster % layout.per_block) as usize;
            set_refcount(&mut block, entry, header.refcount_order, 0);
            self.file.write(at, &block)?;
        }
        self.file.sync()
    }

    /// Takes the copied flag from entries of the active tables whose cluster has several references, or gives it to those whose cluster has
    /// one (`give`).
    fn set_copied_flags(&mut self, give: bool) -> Result<(), DiskError> {
        let header = &self.checked.header;
        let cluster_size = header.cluster_size();
        let mut l1 = self.checked.l1.clone();
        // A table that is something else as well is left alone.
        let l1_clusters = header.l1_table_offset >> header.cluster_bits
            ..(header.l1_table_offset + l1.len() as u64 * 8).div_ceil(cluster_size);
        let l1_is_whole = l1_clusters
            .into_iter()
            .all(|cluster| self.checked.references.get(cluster) == 1);
        for entry in &mut l1 {
            let table = *entry & 0x00ff_ffff_ffff_fe00;
            let owners = self.checked.tables.get(&table);
            if owners != Some(&self.checked.references.get(table >> header.cluster_bits)) {
                continue;
            }
            if l1_is_whole {
                self.fit_flag(entry, table, give);
            }
            if self.file.is_hole(table, cluster_size) {
                continue;
            }
            let old = words(&self.file.metadata(table, cluster_size as usize)?);
            let mut new = old.clone();
            for word in new.iter_mut().filter(|word| **word != 0 && **word & 1 << 62 == 0) {
                let host = *word & 0x00ff_ffff_ffff_fe00;
                if host != 0 && host % cluster_size == 0 {
                    self.fit_flag(word, host, give);
                }
            }
            if new != old {
                self.file.write(table, &table_of(&new))?;
            }
        }
        if l1 != self.checked.l1 {
            self.file.write(header.l1_table_offset, &table_of(&l1))?;
        }
        self.file.sync()
    }

    fn fit_flag(&mut self, entry: &mut u64, host: u64, give: bool) {
        let cluster = host >> self.checked.header.cluster_bits;
        let is_one = self.repaired_refcount(cluster) == 1;
        let fitting = match (is_one, give) {
            // Whoever refers to it by a damaged entry is not counted.
            (true, true) if self.checked.references.get(cluster) == 1 => *entry | COPIED,
            (false, false) => *entry & !COPIED,
            _ => *entry,
        };
        self.fixed.corruptions += u64::from(*entry != fitting);
        *entry = fitting;
    }

    /// What the refcount of a cluster is after the repair: too low stays too low where only leaks are repaired, and too high too
    /// high where tables are damaged.
    fn repaired_refcount(&self, cluster: u64) -> u64 {
        let (found, wanted) = (
            self.checked.refcounts.get(cluster),
            self.checked.references.get(cluster),
        );
        let keep = (found > wanted && self.checked.damaged) || (found < wanted && self.mode == RepairMode::Leaks);
        if keep { found } else { wanted }
    }
}

/// The refcounts that were found.
struct OldRefcounts<'a> {
    checked: &'a Checked,
}

impl<'a> OldRefcounts<'a> {
    fn of(checked: &'a Checked) -> Self {
        Self { checked }
    }

    fn has_block(&self, index: u64) -> bool {
        self.checked.blocks.get(index as usize).is_some_and(|block| *block != 0)
    }

    /// The block with this index; without one, `block` stays as it is.
    fn read(&self, file: &RestingFile, index: u64, block: &mut [u8]) -> Result<(), DiskError> {
        match self.checked.blocks.get(index as usize) {
            Some(offset) if *offset != 0 => file.read_metadata(*offset, block),
            _ => Ok(()),
        }
    }
}

/// Where a new refcount table and its blocks lie: behind each other.
struct NewRefcounts {
    first: u64,
    table_clusters: u64,
    /// The indexes of the blocks that there are.
    blocks: Vec<u64>,
    per_block: u64,
    cluster_bits: u32,
}

impl NewRefcounts {
    /// For all clusters that are counted, and for those that `keeps` says have a block, from cluster `first` on.
    fn plan(header: &Header, references: &Counts, first: u64, keeps: &dyn Fn(u64) -> bool) -> Result<Self, DiskError> {
        let per_block = (header.cluster_size() * 8) >> header.refcount_order;
        let mut used: Vec<u64> = Vec::new();
        for (cluster, _) in references.iter() {
            if used.last() != Some(&(cluster / per_block)) {
                used.push(cluster / per_block);
            }
        }
        let last = used.last().copied().unwrap_or(0).max(first / per_block);
        for block in (0..=last).filter(|block| keeps(*block)) {
            if let Err(place) = used.binary_search(&block) {
                used.insert(place, block);
            }
        }
        let mut layout = Self {
            first,
            table_clusters: 1,
            blocks: used,
            per_block,
            cluster_bits: header.cluster_bits,
        };
        // What describes the new clusters needs new clusters.
        loop {
            let own: Vec<u64> = layout.own().map(|cluster| cluster / per_block).collect();
            let before = (layout.blocks.len(), layout.table_clusters);
            for block in own {
                if let Err(place) = layout.blocks.binary_search(&block) {
                    layout.blocks.insert(place, block);
                }
            }
            let entries = layout.blocks.last().map_or(1, |last| last + 1);
            layout.table_clusters = (entries * 8).div_ceil(header.cluster_size());
            if (layout.blocks.len(), layout.table_clusters) == before {
                break;
            }
        }
        if layout.table_clusters << header.cluster_bits > MAX_REFCOUNT_TABLE_BYTES.max(header.cluster_size()) {
            return Err(DiskError::Corrupt(Corruption {
                structure: "refcount table",
                at: header.refcount_table_offset,
                found: layout.table_clusters << header.cluster_bits,
                expected: "no more than 8 MiB, even when it is made anew",
            }));
        }
        Ok(layout)
    }

    /// The clusters of the table and the blocks themselves.
    fn own(&self) -> std::ops::Range<u64> {
        self.first..self.first + self.table_clusters + self.blocks.len() as u64
    }

    fn table_offset(&self) -> u64 {
        self.first << self.cluster_bits
    }

    fn block_offset(&self, position: usize) -> u64 {
        (self.first + self.table_clusters + position as u64) << self.cluster_bits
    }
}
