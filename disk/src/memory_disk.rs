//! A disk in memory: for tests of front ends, and the oracle that other disks are compared with.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::block_status::{BlockMap, ExtentKind};
use crate::{Command, Disk, DiskError, Request, SECTOR_SIZE};

/// A disk in memory. Requests wait until [`MemoryDisk::run`] completes them, so that a test
/// decides what the front end does in the meantime.
pub struct MemoryDisk {
    read_only: bool,
    state: Mutex<State>,
}

struct State {
    bytes: Vec<u8>,
    waiting: VecDeque<Request>,
    /// Errors for the next requests, in order.
    faults: VecDeque<DiskError>,
    /// Sectors that the host cannot read, and the error number that it gives.
    bad: BTreeMap<u64, i32>,
    flushes: usize,
}

impl MemoryDisk {
    /// A disk that holds `bytes`.
    pub fn new(bytes: Vec<u8>, read_only: bool) -> Self {
        let state = State {
            bytes,
            waiting: VecDeque::new(),
            faults: VecDeque::new(),
            bad: BTreeMap::new(),
            flushes: 0,
        };
        Self {
            read_only,
            state: Mutex::new(state),
        }
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Completes every waiting request, in order of submission, and those that they lead to. Returns how many.
    pub fn run(&self) -> usize {
        let mut completed = 0;
        while self.run_one() {
            completed += 1;
        }
        completed
    }

    /// Completes the request that waits longest. Returns false when none waits.
    pub fn run_one(&self) -> bool {
        let mut state = self.lock();
        let Some(request) = state.waiting.pop_front() else {
            return false;
        };
        let outcome = match state.faults.pop_front() {
            Some(error) => Err(error),
            None => request
                .command
                .check(state.bytes.len() as u64, self.read_only)
                .and_then(|()| state.check_readable(&request.command))
                .map(|()| state.execute(&request.command)),
        };
        drop(state);
        (request.done)(outcome);
        true
    }

    /// Forgets the `count` requests that wait longest, as if nobody were there any more to be told.
    pub fn abandon(&self, count: usize) {
        let mut state = self.lock();
        let count = count.min(state.waiting.len());
        state.waiting.drain(..count);
    }

    /// Makes the next request that is completed (after those already told to) fail with `error`.
    pub fn fail_next(&self, error: DiskError) {
        self.lock().faults.push_back(error);
    }

    /// Makes reads of this sector fail with the error number `errno`, until it is written.
    pub fn spoil(&self, sector: u64, errno: i32) {
        self.lock().bad.insert(sector, errno);
    }

    /// Sets the size in bytes, as a resize does: what is cut off is lost, what is added is zero.
    pub fn resize(&self, capacity: usize) {
        self.lock().bytes.resize(capacity, 0);
    }

    /// How many flushes completed.
    pub fn flushes(&self) -> usize {
        self.lock().flushes
    }

    /// What the disk holds now.
    pub fn contents(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check_readable(&mut self, command: &Command) -> Result<(), DiskError> {
        let (offset, length) = command.range();
        let sectors = offset / SECTOR_SIZE..(offset + length) / SECTOR_SIZE;
        if matches!(command, Command::Write { .. }) {
            self.bad.retain(|sector, _| !sectors.contains(sector));
            return Ok(());
        }
        match self.bad.range(sectors).next() {
            Some((sector, errno)) if matches!(command, Command::Read { .. }) => Err(DiskError::Io {
                operation: "read",
                offset: sector * SECTOR_SIZE,
                error: std::io::Error::from_raw_os_error(*errno),
            }),
            _ => Ok(()),
        }
    }

    fn execute(&mut self, command: &Command) {
        let (offset, length) = command.range();
        let range = offset as usize..(offset + length) as usize;
        match command {
            Command::Read { buffer, .. } => buffer.copy_from_slice(0, &self.bytes[range]),
            Command::Write { buffer, .. } => buffer.copy_to_slice(0, &mut self.bytes[range]),
            Command::Flush => self.flushes += 1,
            Command::Discard { .. } | Command::WriteZeroes { .. } => self.bytes[range].fill(0),
            Command::Map { extents, .. } => {
                let mut map = BlockMap::from(offset);
                map.push(length, ExtentKind::Data, 0, Some(offset));
                extents.put(map.finish());
            }
        }
    }
}

impl Disk for MemoryDisk {
    fn capacity(&self) -> u64 {
        self.lock().bytes.len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn discarded_reads_as_zeros(&self) -> bool {
        true
    }

    fn submit(&self, request: Request) {
        self.lock().waiting.push_back(request);
    }
}
