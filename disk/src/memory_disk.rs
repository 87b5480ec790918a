//! A disk in memory: for tests of front ends, and the oracle that other disks are compared with.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::block_status::{BlockMap, ExtentKind};
use crate::{Command, Disk, DiskError, Request};

/// A disk in memory. Requests wait until [`MemoryDisk::run`] completes them, so that a test
/// decides what the front end does in the meantime.
pub struct MemoryDisk {
    capacity: u64,
    read_only: bool,
    state: Mutex<State>,
}

struct State {
    bytes: Vec<u8>,
    waiting: VecDeque<Request>,
    /// Errors for the next requests, in order.
    faults: VecDeque<DiskError>,
    flushes: usize,
}

impl MemoryDisk {
    /// A disk that holds `bytes`.
    pub fn new(bytes: Vec<u8>, read_only: bool) -> Self {
        let state = State {
            bytes,
            waiting: VecDeque::new(),
            faults: VecDeque::new(),
            flushes: 0,
        };
        let capacity = state.bytes.len() as u64;
        Self {
            capacity,
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
                .check(self.capacity, self.read_only)
                .map(|()| state.execute(&request.command)),
        };
        drop(state);
        (request.done)(outcome);
        true
    }

    /// Makes the next request that is completed (after those already told to) fail with `error`.
    pub fn fail_next(&self, error: DiskError) {
        self.lock().faults.push_back(error);
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
        self.capacity
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn submit(&self, request: Request) {
        self.lock().waiting.push_back(request);
    }
}
