//! A file that exists only in memory, whose operations complete in an order drawn from a seed, and which
//! can be crashed: the storage of the engine's own tests.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::{Operation, Storage, Ticket, total_length};

/// The unit in which a write can tear, in bytes.
const SECTOR: usize = 512;

/// A simulated file. Operations wait until [`SimulatedDisk::complete_one`] picks one.
pub struct SimulatedDisk {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// What a read returns now (the host's page cache).
    current: Vec<u8>,
    /// What a power loss surely leaves.
    durable: Vec<u8>,
    /// Writes that completed since the last sync took hold, in order of completion.
    unsynced: Vec<StoredWrite>,
    waiting: Vec<Waiting>,
    /// A second file whose operations complete in between.
    companion: Option<Rc<SimulatedDisk>>,
    /// How many writes have completed in all; the sequence number of the next.
    completed_writes: u64,
    faults: Vec<Fault>,
}

#[derive(Clone)]
struct StoredWrite {
    sequence: u64,
    offset: u64,
    bytes: Vec<u8>,
}

struct Waiting {
    operation: Operation,
    ticket: Ticket,
    /// Writes with a smaller sequence number had completed when this began.
    started_after: u64,
}

/// Makes operations of one kind fail: after `skip` of them, with `errno`, `times` times.
struct Fault {
    name: &'static str,
    skip: usize,
    times: usize,
    errno: i32,
}

/// What a crash does to writes that are not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashModel {
    /// The process is killed: completed writes stay; those in flight happen, or not, or in part.
    Kill,
    /// Power is lost: each write since the last sync is kept, dropped or torn, in any order.
    PowerLoss,
}

impl SimulatedDisk {
    /// A file that holds `bytes`, durably.
    pub fn new(bytes: Vec<u8>) -> Rc<Self> {
        let state = State {
            durable: bytes.clone(),
            current: bytes,
            ..State::default()
        };
        Rc::new(Self {
            state: RefCell::new(state),
        })
    }

    /// How many operations are in flight.
    pub fn in_flight(&self) -> usize {
        self.state.borrow().waiting.len()
    }

    /// Lets [`SimulatedDisk::complete_one`] complete operations of another file, too.
    pub fn complete_along_with(&self, companion: Rc<SimulatedDisk>) {
        self.state.borrow_mut().companion = Some(companion);
    }

    /// Completes one of the operations in flight, drawn from `rng`. Returns false when there is none.
    pub fn complete_one(&self, rng: &mut SmallRng) -> bool {
        let companion = self
            .state
            .borrow()
            .companion
            .clone()
            .filter(|companion| companion.in_flight() > 0);
        if let Some(companion) = companion
            && (self.in_flight() == 0 || rng.random())
        {
            return companion.complete_one(rng);
        }
        let mut state = self.state.borrow_mut();
        if state.waiting.is_empty() {
            return false;
        }
        let index = rng.random_range(0..state.waiting.len());
        let waiting = state.waiting.swap_remove(index);
        let result = match state.injected_fault(waiting.operation.name()) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(state.execute(&waiting)),
        };
        drop(state);
        waiting.ticket.complete(result);
        true
    }

    /// Makes operations called `name` ("read", "write", "fdatasync") fail with `errno`: the first `skip` succeed,
    /// the next `times` fail.
    pub fn inject(&self, name: &'static str, skip: usize, times: usize, errno: i32) {
        self.state.borrow_mut().faults.push(Fault {
            name,
            skip,
            times,
            errno,
        });
    }

    /// How many operations are still to fail.
    pub fn faults_left(&self) -> usize {
        self.state.borrow().faults.iter().map(|fault| fault.times).sum()
    }

    /// What a read of the whole file would return now.
    pub fn contents(&self) -> Vec<u8> {
        self.state.borrow().current.clone()
    }

    /// One of the states that a crash at this moment can leave, drawn from `rng`.
    pub fn crash(&self, model: CrashModel, rng: &mut SmallRng) -> Vec<u8> {
        let state = self.state.borrow();
        let in_flight = state.waiting.iter().filter_map(|waiting| match &waiting.operation {
            Operation::Write { offset, .. } => Some(StoredWrite {
                sequence: u64::MAX,
                offset: *offset,
                bytes: gather(&waiting.operation),
            }),
            _ => None,
        });
        let (mut image, mut uncertain) = match model {
            CrashModel::Kill => (state.current.clone(), in_flight.collect::<Vec<_>>()),
            CrashModel::PowerLoss => (
                state.durable.clone(),
                state.unsynced.iter().cloned().chain(in_flight).collect(),
            ),
        };
        uncertain.shuffle(rng);
        for write in uncertain {
            match rng.random_range(0..4) {
                0 => {}
                1 => torn(&mut image, &write, rng),
                _ => store(&mut image, write.offset, &write.bytes),
            }
        }
        image
    }
}

impl State {
    fn injected_fault(&mut self, name: &str) -> Option<i32> {
        let fault = self
            .faults
            .iter_mut()
            .find(|fault| fault.name == name && fault.times > 0)?;
        if fault.skip > 0 {
            fault.skip -= 1;
            return None;
        }
        fault.times -= 1;
        Some(fault.errno)
    }

    fn execute(&mut self, waiting: &Waiting) -> usize {
        match &waiting.operation {
            Operation::Read { offset, pieces } => {
                let start = usize::try_from(*offset).unwrap_or(usize::MAX).min(self.current.len());
                let available = (self.current.len() - start).min(total_length(pieces));
                let mut position = start;
                for piece in pieces {
                    let count = piece.range.len().min(start + available - position);
                    piece
                        .buffer
                        .copy_from_slice(piece.range.start, &self.current[position..position + count]);
                    position += count;
                }
                available
            }
            Operation::Write { offset, .. } => {
                let bytes = gather(&waiting.operation);
                store(&mut self.current, *offset, &bytes);
                let length = bytes.len();
                self.unsynced.push(StoredWrite {
                    sequence: self.completed_writes,
                    offset: *offset,
                    bytes,
                });
                self.completed_writes += 1;
                length
            }
            Operation::Sync => {
                let (synced, rest) = self
                    .unsynced
                    .drain(..)
                    .partition(|write: &StoredWrite| write.sequence < waiting.started_after);
                self.unsynced = rest;
                for write in synced {
                    store(&mut self.durable, write.offset, &write.bytes);
                }
                0
            }
        }
    }
}

fn gather(operation: &Operation) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Operation::Write { pieces, .. } = operation {
        for piece in pieces {
            let start = bytes.len();
            bytes.resize(start + piece.range.len(), 0);
            piece.buffer.copy_to_slice(piece.range.start, &mut bytes[start..]);
        }
    }
    bytes
}

fn store(image: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let start = usize::try_from(offset).expect("a simulated file fits in memory");
    let end = start + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[start..end].copy_from_slice(bytes);
}

/// Stores each 512-byte sector of the write, or not.
fn torn(image: &mut Vec<u8>, write: &StoredWrite, rng: &mut SmallRng) {
    let mut position = 0;
    while position < write.bytes.len() {
        let at = write.offset + position as u64;
        let length = (SECTOR - (at as usize % SECTOR)).min(write.bytes.len() - position);
        if rng.random() {
            store(image, at, &write.bytes[position..position + length]);
        }
        position += length;
    }
}

impl Storage for SimulatedDisk {
    fn start(&self, operation: Operation, ticket: Ticket) {
        let mut state = self.state.borrow_mut();
        let started_after = state.completed_writes;
        state.waiting.push(Waiting {
            operation,
            ticket,
            started_after,
        });
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.state.borrow().current.len() as u64)
    }

    fn fresh_reads_zero(&self) -> bool {
        true
    }
}
