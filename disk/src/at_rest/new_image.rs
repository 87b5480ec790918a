//! A new qcow2 image, written from its beginning to its end.
//!
//! Nobody reads it before it is finished, so there is no order to keep and no table to read: clusters are placed one behind the other
//! as they come, in the order of the disk, and each table is written once, when it is full. Placing is quick and one at a time;
//! the data itself may be written by many threads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::file::failed;
use crate::DiskError;
use crate::qcow2::create::{CreateOptions, Layout};
use crate::qcow2::entry::{COPIED, ZERO};
use crate::qcow2::header::HeaderError;
use crate::qcow2::refcount::{get_refcount, set_refcount};

/// A compressed cluster's flag in its L2 entry.
const COMPRESSED: u64 = 1 << 62;

/// Why a new image could not be written.
#[derive(Debug, thiserror::Error)]
pub enum NewImageError {
    /// The options contradict each other or the format.
    #[error("{0}")]
    Options(HeaderError),
    /// Writing failed.
    #[error("{0}")]
    Disk(DiskError),
}

impl From<HeaderError> for NewImageError {
    fn from(error: HeaderError) -> Self {
        NewImageError::Options(error)
    }
}

impl From<DiskError> for NewImageError {
    fn from(error: DiskError) -> Self {
        NewImageError::Disk(error)
    }
}

/// Where a run of the disk's clusters goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where the first of them begins on the disk, in bytes.
    pub guest: u64,
    /// Where it begins in the file, in bytes.
    pub host: u64,
    /// Bytes.
    pub length: u64,
}

/// An image that is being written.
pub struct NewImage {
    file: File,
    options: CreateOptions,
    layout: Layout,
    state: Mutex<State>,
}

struct State {
    /// The next cluster of the file.
    cursor: u64,
    l1: Vec<u64>,
    refcount_table: Vec<u64>,
    /// The refcount block that describes the cursor: its index and content.
    block: (u64, Vec<u8>),
    /// The L2 table that is being filled: its index, where it lies, its entries.
    l2: Option<(u64, u64, Vec<u64>)>,
    /// Where in the file the next compressed cluster may begin, in bytes; 0 if there is no place begun.
    compressed_end: u64,
}

impl NewImage {
    /// Begins an image in `file`, which is empty.
    pub fn begin(file: File, options: CreateOptions) -> Result<Self, NewImageError> {
        let most = crate::qcow2::measure::measure(&options, u64::MAX).fully_allocated;
        let blocks = (most >> options.cluster_bits).div_ceil(options.clusters_per_block());
        let layout = options.layout((blocks * 8).div_ceil(options.cluster_size()));
        let metadata = options.metadata_as(layout)?;
        file.write_all_at(&metadata[..options.cluster_size() as usize], 0)
            .map_err(|error| failed("write", 0, error))?;
        let cluster_size = options.cluster_size() as usize;
        let in_bytes = |clusters: u64| clusters as usize * cluster_size;
        for block in 0..layout.blocks - 1 {
            let at = in_bytes(layout.blocks_at + block);
            file.write_all_at(&metadata[at..at + cluster_size], at as u64)
                .map_err(|error| failed("write", at as u64, error))?;
        }
        let last_block = in_bytes(layout.blocks_at + layout.blocks - 1);
        let mut refcount_table = vec![0; in_bytes(layout.table_clusters) / 8];
        for (index, entry) in refcount_table.iter_mut().take(layout.blocks as usize).enumerate() {
            *entry = (layout.blocks_at + index as u64) << options.cluster_bits;
        }
        let state = State {
            cursor: layout.end,
            l1: vec![0; layout.l1_entries as usize],
            refcount_table,
            block: (
                layout.blocks - 1,
                metadata[last_block..last_block + cluster_size].to_vec(),
            ),
            l2: None,
            compressed_end: 0,
        };
        Ok(Self {
            file,
            options,
            layout,
            state: Mutex::new(state),
        })
    }

    /// The options that it was begun with.
    pub fn options(&self) -> &CreateOptions {
        &self.options
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives places to `length` bytes (whole clusters, but at the end of the disk) from byte `guest` of the disk on. No cluster behind them has one yet.
    pub fn place(&self, guest: u64, length: u64) -> Result<Vec<Place>, DiskError> {
        let mut state = self.lock();
        let cluster_size = self.options.cluster_size();
        let mut places: Vec<Place> = Vec::new();
        for cluster in guest / cluster_size..(guest + length).div_ceil(cluster_size) {
            self.open_l2(&mut state, cluster)?;
            let host = self.allocate(&mut state)? << self.options.cluster_bits;
            self.set_entry(&mut state, cluster, host | COPIED);
            match places.last_mut() {
                Some(last) if last.host + last.length == host => last.length += cluster_size,
                _ => places.push(Place {
                    guest: cluster * cluster_size,
                    host,
                    length: cluster_size,
                }),
            }
        }
        Ok(places)
    }

    /// Makes `length` bytes (whole clusters, but at the end of the disk) from byte `guest` of the disk on read as zeros, whatever a backing file
    /// holds. Version 3.
    pub fn place_zeroes(&self, guest: u64, length: u64) -> Result<(), DiskError> {
        let mut state = self.lock();
        let cluster_size = self.options.cluster_size();
        for cluster in guest / cluster_size..(guest + length).div_ceil(cluster_size) {
            self.open_l2(&mut state, cluster)?;
            self.set_entry(&mut state, cluster, ZERO);
        }
        Ok(())
    }

    /// Gives a place to the cluster at byte `guest` of the disk, which was compressed to `length` bytes. Returns where in the file.
    pub fn place_compressed(&self, guest: u64, length: u64) -> Result<u64, DiskError> {
        let mut state = self.lock();
        let bits = self.options.cluster_bits;
        let cluster_size = self.options.cluster_size();
        let cluster = guest >> bits;
        self.open_l2(&mut state, cluster)?;
        let begun = state.compressed_end;
        let room = begun.next_multiple_of(cluster_size) - begun;
        let host = if begun != 0 && length <= room && self.share(&mut state, begun >> bits) {
            begun
        } else {
            let new = self.allocate(&mut state)? << bits;
            // The rest of the cluster that was begun can be used if the new one is its neighbour.
            let continues = begun != 0 && room > 0 && begun + room == new && self.share(&mut state, begun >> bits);
            if continues { begun } else { new }
        };
        let end = host + length;
        state.compressed_end = if end.is_multiple_of(cluster_size) { 0 } else { end };
        let further_sectors = ((end - 1) >> 9) - (host >> 9);
        let offset_bits = 62 - (bits - 8);
        self.set_entry(&mut state, cluster, COMPRESSED | further_sectors << offset_bits | host);
        Ok(host)
    }

    /// Writes data at a place. Threads may do so together.
    pub fn write(&self, host: u64, data: &[u8]) -> Result<(), DiskError> {
        self.file
            .write_all_at(data, host)
            .map_err(|error| failed("write", host, error))
    }

    /// Where what was placed so far ends in the file, in bytes.
    pub fn end(&self) -> u64 {
        self.lock().cursor << self.options.cluster_bits
    }

    /// Writes the last tables. The image is whole then, and not yet durable.
    pub fn finish(self) -> Result<File, DiskError> {
        let mut state = self.lock();
        self.close_l2(&mut state)?;
        self.close_block(&state)?;
        let bytes = |table: &[u64]| table.iter().flat_map(|entry| entry.to_be_bytes()).collect::<Vec<u8>>();
        let bits = self.options.cluster_bits;
        self.write(self.layout.table_at << bits, &bytes(&state.refcount_table))?;
        self.write(self.layout.l1_at << bits, &bytes(&state.l1))?;
        let end = state.cursor << bits;
        drop(state);
        // The last cluster may not have been written to its end, and what was written may have been zeros left out.
        self.file
            .set_len(end)
            .map_err(|error| failed("set length", end, error))?;
        Ok(self.file)
    }

    /// Makes the L2 table of a cluster the one that is being filled.
    fn open_l2(&self, state: &mut State, cluster: u64) -> Result<(), DiskError> {
        let index = cluster >> (self.options.cluster_bits - 3);
        match &state.l2 {
            Some((open, ..)) if *open == index => return Ok(()),
            Some((open, ..)) if *open > index => {
                let error = io::Error::new(io::ErrorKind::InvalidInput, "clusters must be placed in order");
                return Err(failed("place a cluster", cluster << self.options.cluster_bits, error));
            }
            _ => self.close_l2(state)?,
        }
        let at = self.allocate(state)? << self.options.cluster_bits;
        state.l1[index as usize] = at | COPIED;
        state.l2 = Some((index, at, vec![0; self.options.cluster_size() as usize / 8]));
        Ok(())
    }

    fn close_l2(&self, state: &mut State) -> Result<(), DiskError> {
        let Some((_, at, entries)) = state.l2.take() else {
            return Ok(());
        };
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.write(at, &bytes)
    }

    fn set_entry(&self, state: &mut State, cluster: u64, entry: u64) {
        if let Some((_, _, entries)) = &mut state.l2 {
            let index = cluster as usize % entries.len();
            entries[index] = entry;
        }
    }

    /// The next cluster of the file, with a refcount of one. Where a new refcount block is needed, it is the first that it describes.
    fn allocate(&self, state: &mut State) -> Result<u64, DiskError> {
        let per_block = self.options.clusters_per_block();
        let mut cluster = state.cursor;
        if cluster / per_block != state.block.0 {
            self.close_block(state)?;
            let index = cluster / per_block;
            state.refcount_table[index as usize] = cluster << self.options.cluster_bits;
            state.block = (index, vec![0; self.options.cluster_size() as usize]);
            set_refcount(&mut state.block.1, 0, self.options.refcount_order, 1);
            cluster += 1;
        }
        set_refcount(
            &mut state.block.1,
            (cluster % per_block) as usize,
            self.options.refcount_order,
            1,
        );
        state.cursor = cluster + 1;
        Ok(cluster)
    }

    /// One more reference to a cluster that another compressed one lies in, too. Not possible if its refcount block is full, or written already.
    fn share(&self, state: &mut State, cluster: u64) -> bool {
        let (per_block, order) = (self.options.clusters_per_block(), self.options.refcount_order);
        let index = (cluster % per_block) as usize;
        if cluster / per_block != state.block.0 {
            return false;
        }
        let refcount = get_refcount(&state.block.1, index, order);
        if refcount == u64::MAX >> (64 - (1u32 << order)) {
            return false;
        }
        set_refcount(&mut state.block.1, index, order, refcount + 1);
        true
    }

    fn close_block(&self, state: &State) -> Result<(), DiskError> {
        self.write(state.refcount_table[state.block.0 as usize], &state.block.1)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
