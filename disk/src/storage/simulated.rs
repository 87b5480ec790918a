//! A file that exists only in memory, whose operations complete in an order drawn from a seed, and which
//! can be crashed: the storage of the engine's own tests.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::{Operation, Run, Storage, Ticket, total_length};

/// The unit in which a write can tear, in bytes.
const SECTOR: usize = 512;

/// Of so many uncertain writes, [`SimulatedDisk::crash_states`] tries each subset.
const MAX_SUBSETS_OF: usize = 6;

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
        let in_flight = self.in_flight();
        if in_flight > 0 {
            self.complete(rng.random_range(0..in_flight));
        }
        in_flight > 0
    }

    /// Completes the oldest of the operations in flight that `chosen` picks. Returns false when there is none.
    pub fn complete_first(&self, mut chosen: impl FnMut(&Operation) -> bool) -> bool {
        let found = {
            let state = self.state.borrow();
            let mut waiting = state.waiting.iter();
            waiting.position(|waiting| chosen(&waiting.operation))
        };
        if let Some(index) = found {
            self.complete(index);
        }
        found.is_some()
    }

    fn complete(&self, index: usize) {
        let mut state = self.state.borrow_mut();
        let waiting = state.waiting.remove(index);
        let result = match state.injected_fault(waiting.operation.name()) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(state.execute(&waiting)),
        };
        drop(state);
        waiting.ticket.complete(result);
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
        let (mut image, mut uncertain) = self.state.borrow().at_crash(model);
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

    /// The states that a crash at this moment can leave where each write is kept whole or not at all: every one while few
    /// writes are uncertain, else those in which all, none, all but one, or just one are kept.
    pub fn crash_states(&self, model: CrashModel) -> Vec<Vec<u8>> {
        let (image, uncertain) = self.state.borrow().at_crash(model);
        let count = uncertain.len();
        let kept: Vec<Vec<bool>> = if count <= MAX_SUBSETS_OF {
            (0..1 << count)
                .map(|subset: usize| (0..count).map(|write| subset >> write & 1 == 1).collect())
                .collect()
        } else {
            let single = |one: usize, rest| (0..count).map(move |write| (write == one) != rest).collect();
            // No write has the number `count`.
            (0..=count)
                .flat_map(|one| [single(one, false), single(one, true)])
                .collect()
        };
        kept.iter()
            .map(|kept| {
                let mut image = image.clone();
                for (write, _) in uncertain.iter().zip(kept).filter(|(_, kept)| **kept) {
                    store(&mut image, write.offset, &write.bytes);
                }
                image
            })
            .collect()
    }
}

impl State {
    /// What a crash surely leaves, and the writes that may be lost or kept.
    fn at_crash(&self, model: CrashModel) -> (Vec<u8>, Vec<StoredWrite>) {
        let in_flight = self.waiting.iter().filter_map(|waiting| match &waiting.operation {
            Operation::Write { offset, .. } => Some(StoredWrite {
                sequence: u64::MAX,
                offset: *offset,
                bytes: gather(&waiting.operation),
            }),
            _ => None,
        });
        match model {
            CrashModel::Kill => (self.current.clone(), in_flight.collect()),
            CrashModel::PowerLoss => (
                self.durable.clone(),
                self.unsynced.iter().cloned().chain(in_flight).collect(),
            ),
        }
    }

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
            Operation::PunchHole { offset, length } => {
                let end = (offset + length).min(self.current.len() as u64);
                let bytes = vec![0; end.saturating_sub(*offset) as usize];
                store(&mut self.current, *offset, &bytes);
                self.unsynced.push(StoredWrite {
                    sequence: self.completed_writes,
                    offset: *offset,
                    bytes,
                });
                self.completed_writes += 1;
                0
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

    /// Nothing is a hole but what is beyond the end.
    fn run(&self, offset: u64, length: u64) -> io::Result<Run> {
        let stored = self.length()?.saturating_sub(offset);
        Ok(Run {
            is_hole: stored == 0,
            length: if stored == 0 { length } else { length.min(stored) },
        })
    }

    fn fresh_reads_zero(&self) -> bool {
        true
    }
}
