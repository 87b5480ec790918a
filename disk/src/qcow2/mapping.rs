//! From guest offsets to host clusters: reading the L1 and L2 tables, and step 4, changing them.

use std::ops::Range;
use std::rc::Rc;

use smallvec::SmallVec;

use super::Qcow2;
use super::cache::{Class, Slice};
use super::entry::{COPIED, L1Entry, L2Entry};
use super::order::{Clusters, Content, Filled, Unlinked};
use super::overlap::Structure;
use crate::failpoint::{self, Point};
use crate::planted_bug::{Bug, planted};
use crate::storage::Piece;
use crate::{Buffer, DiskError};

/// A run of the guest's bytes that are stored alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub kind: Kind,
    /// Bytes.
    pub length: u64,
}

/// How a run of the guest's bytes is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// In the backing file; without one they are zeros.
    Unallocated,
    /// They are zeros. Byte `host` of the image file and following may be reserved for them.
    Zero { host: Option<u64> },
    /// At byte `host` of the image file and following. `in_place`: they may be overwritten there.
    Data { host: u64, in_place: bool },
    /// Compressed in `length` bytes at byte `host`; one cluster.
    Compressed { host: u64, length: u64 },
}

impl Qcow2 {
    /// How the bytes from `offset` on are stored, at most `length` of them.
    pub(super) async fn lookup(self: &Rc<Self>, offset: u64, length: u64) -> Result<Extent, DiskError> {
        let found = self.l2_slice(self.cluster_of(offset)).await?;
        self.extent(found, offset, length)
    }

    /// Like [`Qcow2::lookup`]. `None` if that would have to wait for the image file.
    pub(super) fn lookup_cached(&self, offset: u64, length: u64) -> Option<Result<Extent, DiskError>> {
        let cluster = self.cluster_of(offset);
        let found = match self.l1_entry(cluster) {
            Err(error) => return Some(Err(error)),
            Ok(None) => None,
            Ok(Some(l1)) => Some((l1, self.cache.peek(self.slice_offset(l1.table, cluster))?)),
        };
        Some(self.extent(found, offset, length))
    }

    /// How the bytes from `offset` on are stored, at most `length` of them, where their first L2 entry is in the slice `found`.
    fn extent(&self, found: Option<(L1Entry, Slice)>, offset: u64, length: u64) -> Result<Extent, DiskError> {
        let cluster = self.cluster_of(offset);
        let within = self.within_cluster(offset);
        let Some((l1, slice)) = found else {
            // No table: everything up to the next one is unallocated.
            let table_bytes = self.cluster_size() << self.l2_bits();
            let length = length.min(table_bytes - (offset & (table_bytes - 1)));
            return Ok(Extent {
                kind: Kind::Unallocated,
                length,
            });
        };
        let kind = self.kind(slice, cluster, l1.copied)?;
        let mut run = 1;
        let until = self.clusters(offset, length).end.min(self.slice_end(cluster));
        let runs_on = !matches!(kind, Kind::Compressed { .. });
        while runs_on
            && cluster + run < until
            && self.kind(slice, cluster + run, l1.copied)? == self.continued(kind, run)
        {
            run += 1;
        }
        let length = length.min((run << self.cluster_bits) - within);
        let kind = match kind {
            Kind::Data { host, in_place } => Kind::Data {
                host: host + within,
                in_place,
            },
            Kind::Zero { host: Some(host) } => Kind::Zero {
                host: Some(host + within),
            },
            other => other,
        };
        Ok(Extent { kind, length })
    }

    /// How many clusters from `cluster` on, up to `limit` and within one slice, cannot be written in place.
    pub(super) async fn run_to_allocate(self: &Rc<Self>, clusters: Range<u64>) -> Result<u64, DiskError> {
        let until = clusters.end.min(self.slice_end(clusters.start));
        let Some((l1, slice)) = self.l2_slice(clusters.start).await? else {
            return Ok(until - clusters.start);
        };
        let mut run = 0;
        while clusters.start + run < until
            && !matches!(
                self.kind(slice, clusters.start + run, l1.copied)?,
                Kind::Data { in_place: true, .. }
            )
        {
            run += 1;
        }
        Ok(run)
    }

    /// Step 4 for data: points the L2 entries from `cluster` on at the new clusters.
    pub(super) async fn link(self: &Rc<Self>, cluster: u64, filled: Filled) -> Result<Unlinked, DiskError> {
        let new = filled.clusters();
        let slice = self.l2_slice_to_change(cluster).await?;
        let references = self.replace_entries(slice, cluster..cluster + new.count, |index| {
            (new.first + index) << self.cluster_bits | COPIED
        })?;
        Ok(filled.linked(references))
    }

    /// The slice with the L2 entry of `cluster`, and the L1 entry that leads there. `None` without an L2 table.
    async fn l2_slice(self: &Rc<Self>, cluster: u64) -> Result<Option<(L1Entry, Slice)>, DiskError> {
        loop {
            let Some(l1) = self.l1_entry(cluster)? else {
                return Ok(None);
            };
            let slice = self.slice(self.slice_offset(l1.table, cluster), Class::L2Table).await?;
            // While the slice was read, a request for a neighbour may have moved the table.
            if self.l1_entry(cluster)? == Some(l1) {
                return Ok(Some((l1, slice)));
            }
        }
    }

    /// The slice with the L2 entry of `cluster`, in a table that only the active L1 table refers to.
    pub(super) async fn l2_slice_to_change(self: &Rc<Self>, cluster: u64) -> Result<Slice, DiskError> {
        loop {
            self.make_l2_table_ours(cluster).await?;
            if let Some((l1, slice)) = self.l2_slice(cluster).await?
                && (l1.copied || planted(Bug::SharedTableChanged))
            {
                return Ok(slice);
            }
        }
    }

    /// Sets the L2 entries of clusters within one slice. Returns the host clusters that they referred to.
    pub(super) fn replace_entries(
        self: &Rc<Self>,
        slice: Slice,
        clusters: Range<u64>,
        entry: impl Fn(u64) -> u64,
    ) -> Result<SmallVec<[Clusters; 2]>, DiskError> {
        let mut references: SmallVec<[Clusters; 2]> = SmallVec::new();
        for cluster in clusters.clone() {
            let Some((first, count)) = self.l2_entry(slice, cluster)?.references(self.cluster_bits) else {
                continue;
            };
            match references.last_mut() {
                Some(last) if last.first + last.count == first => last.count += count,
                _ => references.push(Clusters { first, count }),
            }
        }
        for cluster in clusters.clone() {
            failpoint::hit(Point::L2Update);
            self.cache
                .set_entry(slice, self.slice_index(cluster), entry(cluster - clusters.start));
        }
        self.write_back_when_much_is_dirty();
        Ok(references)
    }

    /// Makes the L2 table of a cluster, or copies it, where the active L1 table does not have it for itself.
    async fn make_l2_table_ours(self: &Rc<Self>, cluster: u64) -> Result<(), DiskError> {
        if self
            .l1_entry(cluster)?
            .is_some_and(|entry| entry.copied || planted(Bug::SharedTableChanged))
        {
            return Ok(());
        }
        let index = cluster >> self.l2_bits();
        let _changing = self.l1_in_flight.change_mapping(index..index + 1).await;
        let old = self.l1_entry(cluster)?;
        if old.is_some_and(|entry| entry.copied) {
            return Ok(());
        }
        let new = self.allocate(1).await?;
        let content = self.l2_table_content(old).await?;
        failpoint::hit(Point::L2AllocWrite);
        let filled = new.write(content).await?;
        // Whatever the cache still holds of that place was another table.
        self.forget_cached(filled.clusters()).await;
        let (slice, slice_index) = self.l1_slice(index).await?;
        failpoint::hit(Point::L1Update);
        self.cache.set_entry(
            slice,
            slice_index,
            (filled.clusters().first << self.cluster_bits) | COPIED,
        );
        self.link_l2_table(index, old, filled).release();
        Ok(())
    }

    /// Step 4 for an L2 table: points the L1 entry number `index` at it.
    fn link_l2_table(&self, index: u64, old: Option<L1Entry>, filled: Filled) -> Unlinked {
        let table = filled.clusters().first << self.cluster_bits;
        if let Some(old) = old {
            self.metadata.remove(old.table >> self.cluster_bits);
        }
        self.metadata.insert(filled.clusters().first, Structure::L2Table);
        self.l1.borrow_mut()[index as usize] = table | COPIED;
        let references = old.map(|old| Clusters {
            first: old.table >> self.cluster_bits,
            count: 1,
        });
        filled.linked(references.into_iter().collect())
    }

    /// The slice of the L1 table with entry number `index`, and the entry's index in it.
    pub(super) async fn l1_slice(self: &Rc<Self>, index: u64) -> Result<(Slice, usize), DiskError> {
        let offset = self.header.borrow().l1_table_offset + index / self.entries_per_slice() * self.cache.slice_size();
        Ok((self.slice(offset, Class::L1Table).await?, self.slice_index(index)))
    }

    /// What a new L2 table holds: a copy of the one that a snapshot shares, or zeros. It is written whole, because the
    /// table on disk must be valid before the L1 entry is.
    async fn l2_table_content(self: &Rc<Self>, old: Option<L1Entry>) -> Result<Content, DiskError> {
        let buffer = match old {
            None => self.zeroes.clone(),
            Some(old) => {
                // A shared table is never dirty in the cache: it was written back before it became shared.
                let copy = Buffer::zeroed(self.cluster_size() as usize);
                self.file
                    .read(old.table, smallvec::smallvec![Piece::whole(copy.clone())])
                    .await?;
                copy
            }
        };
        Ok(Content {
            start: 0,
            pieces: smallvec::smallvec![Piece::whole(buffer)],
        })
    }

    fn l1_entry(&self, cluster: u64) -> Result<Option<L1Entry>, DiskError> {
        let index = cluster >> self.l2_bits();
        let at = self.header.borrow().l1_table_offset + index * 8;
        // A cluster beyond the table can only be asked of a backing file that is shorter than its overlay.
        let entry = self.l1.borrow().get(index as usize).copied().unwrap_or(0);
        L1Entry::decode(entry, at, self.cluster_bits).map_err(|corruption| self.corrupt(corruption))
    }

    fn l2_entry(&self, slice: Slice, cluster: u64) -> Result<L2Entry, DiskError> {
        let index = self.slice_index(cluster);
        let entry = self.cache.entry(slice, index);
        let (at, version) = (slice.offset + index as u64 * 8, self.header.borrow().version);
        L2Entry::decode(entry, at, version, self.cluster_bits, self.image_end.get())
            .map_err(|corruption| self.corrupt(corruption))
    }

    fn kind(&self, slice: Slice, cluster: u64, table_is_ours: bool) -> Result<Kind, DiskError> {
        Ok(match self.l2_entry(slice, cluster)? {
            L2Entry::Unallocated => Kind::Unallocated,
            L2Entry::Zero { host } => Kind::Zero { host },
            L2Entry::Data { host, copied } => Kind::Data {
                host,
                in_place: copied && table_is_ours && !self.read_only,
            },
            L2Entry::Compressed { host, length } => Kind::Compressed { host, length },
        })
    }

    /// What the cluster `run` clusters later must be to continue an extent.
    fn continued(&self, kind: Kind, run: u64) -> Kind {
        match kind {
            Kind::Data { host, in_place } => Kind::Data {
                host: host + (run << self.cluster_bits),
                in_place,
            },
            Kind::Zero { host: Some(host) } => Kind::Zero {
                host: Some(host + (run << self.cluster_bits)),
            },
            // Two compressed clusters never lie at the same place, so this ends the extent.
            other => other,
        }
    }

    /// log2 of the entries of an L2 table.
    pub(super) fn l2_bits(&self) -> u32 {
        self.cluster_bits - 3
    }

    fn entries_per_slice(&self) -> u64 {
        self.cache.slice_size() / 8
    }

    fn slice_index(&self, cluster: u64) -> usize {
        (cluster % self.entries_per_slice()) as usize
    }

    /// Where the slice with the entry of `cluster` lies in the image file.
    fn slice_offset(&self, table: u64, cluster: u64) -> u64 {
        let index = cluster & ((1 << self.l2_bits()) - 1);
        table + index / self.entries_per_slice() * self.cache.slice_size()
    }

    /// The first cluster whose entry is in the slice after that of `cluster`.
    pub(super) fn slice_end(&self, cluster: u64) -> u64 {
        (cluster / self.entries_per_slice() + 1) * self.entries_per_slice()
    }
}
