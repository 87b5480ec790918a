//! Whole trees: all that an L1 table leads to, which a snapshot shares with the active disk.
//!
//! Each L1 table that leads to an L2 table or to data holds one reference to it, however many tables lie between; that is
//! how qcow2 counts. The copied flags of the active tables say that there is no other reference, so they follow the refcounts. A flag
//! that is missing is harmless (the cluster is copied before it is written), one too many is corruption.

use std::rc::Rc;

use super::Qcow2;
use super::cache::Class;
use super::entry::words;
use super::entry::{COPIED, L1Entry, L2Entry};
use super::order::Clusters;
use crate::DiskError;

/// Walks along an L1 table. The tables that it leads to are read from the image file, so they must not be dirty
/// (their copied flags may be, which play no part here).
pub(super) struct Walk<'a> {
    l1: std::slice::Iter<'a, u64>,
}

impl<'a> Walk<'a> {
    pub(super) fn along(l1: &'a [u64]) -> Self {
        Self { l1: l1.iter() }
    }

    /// What the next L2 table refers to, and the table itself as the last.
    pub(super) async fn next(&mut self, image: &Qcow2) -> Result<Option<Vec<Clusters>>, DiskError> {
        let header = (image.header.borrow().version, image.cluster_bits, image.image_end.get());
        let (version, cluster_bits, image_end) = header;
        let found = self.l1.by_ref().find(|entry| **entry != 0);
        let Some(&entry) = found else { return Ok(None) };
        let decoded = L1Entry::decode(entry, 0, cluster_bits).map_err(|corruption| image.corrupt(corruption))?;
        let Some(entry) = decoded else { return Ok(None) };
        let table = words(
            &image
                .file
                .read_bytes(entry.table, image.cluster_size() as usize)
                .await?,
        );
        let mut references: Vec<Clusters> = Vec::new();
        for (index, word) in table.into_iter().enumerate().filter(|(_, word)| *word != 0) {
            let at = entry.table + index as u64 * 8;
            let decoded = L2Entry::decode(word, at, version, cluster_bits, image_end);
            let decoded = decoded.map_err(|corruption| image.corrupt(corruption))?;
            let Some((first, count)) = decoded.references(cluster_bits) else {
                continue;
            };
            match references.last_mut() {
                Some(last) if last.first + last.count == first => last.count += count,
                _ => references.push(Clusters { first, count }),
            }
        }
        references.push(Clusters {
            first: entry.table >> cluster_bits,
            count: 1,
        });
        Ok(Some(references))
    }
}

impl Qcow2 {
    /// Takes another reference to everything that `l1` leads to; all of it, or nothing.
    pub(super) async fn raise_tree(self: &Rc<Self>, l1: &[u64]) -> Result<(), DiskError> {
        let mut raised = 0;
        let result = self.raise_tree_counting(l1, &mut raised).await;
        if result.is_err() {
            self.lower_runs(l1, raised).await;
        }
        result
    }

    async fn raise_tree_counting(self: &Rc<Self>, l1: &[u64], raised: &mut usize) -> Result<(), DiskError> {
        let mut walk = Walk::along(l1);
        while let Some(references) = walk.next(self).await? {
            for clusters in references {
                self.increment_refcounts(clusters).await?;
                *raised += 1;
            }
        }
        Ok(())
    }

    /// Gives up a reference to everything that `l1` leads to. That no table on disk needs it any more must be durable.
    pub(super) async fn lower_tree(self: &Rc<Self>, l1: &[u64]) {
        self.lower_runs(l1, usize::MAX).await;
    }

    /// Gives up the first `runs` references. What cannot be given up leaks.
    async fn lower_runs(self: &Rc<Self>, l1: &[u64], mut runs: usize) {
        let mut walk = Walk::along(l1);
        while runs > 0 {
            let references = match walk.next(self).await {
                Ok(Some(references)) => references,
                Ok(None) => return,
                // Of a part of the tree nobody knows what is left.
                Err(error) if runs < usize::MAX / 2 => {
                    tracing::error!(%error, "clusters leak");
                    self.leave_for_recovery();
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "the clusters of an L2 table leak");
                    self.leave_for_recovery();
                    continue;
                }
            };
            for clusters in references.into_iter().take(runs) {
                runs -= 1;
                if let Err(error) = self.decrement_refcounts(clusters).await {
                    tracing::error!(%error, ?clusters, "clusters leak");
                }
            }
        }
    }

    /// Makes the copied flags of the active tables fit the refcounts.
    pub(super) async fn refresh_active_copied(self: &Rc<Self>) -> Result<(), DiskError> {
        let old = self.l1.borrow().clone();
        let new = self.refresh_copied(&old).await?;
        for (index, entry) in new.iter().enumerate().filter(|(index, entry)| old[*index] != **entry) {
            let (slice, slice_index) = self.l1_slice(index as u64).await?;
            self.cache.set_entry(slice, slice_index, *entry);
            self.l1.borrow_mut()[index] = *entry;
        }
        Ok(())
    }

    /// Makes the copied flags of the L2 tables that `l1` leads to fit the refcounts. Returns `l1` with flags that do.
    pub(super) async fn refresh_copied(self: &Rc<Self>, l1: &[u64]) -> Result<Vec<u64>, DiskError> {
        let mut fitting = l1.to_vec();
        for word in &mut fitting {
            let decoded = L1Entry::decode(*word, 0, self.cluster_bits);
            let Some(entry) = decoded.map_err(|corruption| self.corrupt(corruption))? else {
                continue;
            };
            for at in (entry.table..entry.table + self.cluster_size()).step_by(self.cache.slice_size() as usize) {
                self.refresh_slice(at).await?;
            }
            *word = self.with_fitting_flag(*word, entry.table).await?;
        }
        Ok(fitting)
    }

    async fn refresh_slice(self: &Rc<Self>, offset: u64) -> Result<(), DiskError> {
        let mut bytes = vec![0; self.cache.slice_size() as usize];
        self.cache
            .read(self.slice(offset, Class::L2Table).await?, 0, &mut bytes);
        let version = self.header.borrow().version;
        for (index, word) in words(&bytes).into_iter().enumerate().filter(|(_, word)| *word != 0) {
            let at = offset + index as u64 * 8;
            let decoded = L2Entry::decode(word, at, version, self.cluster_bits, self.image_end.get());
            let decoded = decoded.map_err(|corruption| self.corrupt(corruption))?;
            let Some(host) = decoded.standard_host() else { continue };
            let fitting = self.with_fitting_flag(word, host).await?;
            if fitting != word {
                let slice = self.slice(offset, Class::L2Table).await?;
                self.cache.set_entry(slice, index, fitting);
            }
        }
        self.write_back_when_much_is_dirty();
        Ok(())
    }

    /// `entry`, which refers to the cluster at byte `host`, with the copied flag set if nothing else does.
    async fn with_fitting_flag(self: &Rc<Self>, entry: u64, host: u64) -> Result<u64, DiskError> {
        let is_only_one = self.refcount(host >> self.cluster_bits).await? == 1;
        Ok(entry & !COPIED | if is_only_one { COPIED } else { 0 })
    }
}
