//! A file that exists only in memory, whose operations complete in an order drawn from a seed, and which
//! can be crashed: the storage of the engine's own tests.

mod crash;
mod fault;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::{Operation, Run, Storage, Ticket, total_length};

pub use crash::{CrashModel, CrashPoint, Platter};
pub use fault::FaultKind;

use crash::StoredWrite;
use fault::Faults;

/// Writes that fail end at multiples of this many bytes.
const SECTOR: u64 = 512;

/// A simulated file. Operations wait until [`SimulatedDisk::complete_one`] picks one.
pub struct SimulatedDisk {
    state: RefCell<State>,
}

struct State {
    platter: Platter,
    waiting: Vec<Waiting>,
    /// Other files whose operations complete in between.
    companions: Vec<Rc<SimulatedDisk>>,
    /// How many writes have completed in all; the sequence number of the next.
    completed_writes: u64,
    completed_operations: u64,
    started_syncs: u64,
    faults: Faults,
}

struct Waiting {
    operation: Operation,
    ticket: Ticket,
    /// It completes after all that is not delayed.
    delayed: bool,
    /// Writes with a smaller sequence number had completed when this began.
    started_after: u64,
}

impl SimulatedDisk {
    /// A file that holds `bytes`, durably.
    pub fn new(bytes: Vec<u8>) -> Rc<Self> {
        Self::holding(Platter::from(bytes))
    }

    /// A file as another process, or another boot, left it.
    pub fn holding(platter: Platter) -> Rc<Self> {
        let state = State {
            platter,
            waiting: Vec::new(),
            companions: Vec::new(),
            // Those that were completed before count as number 0.
            completed_writes: 1,
            completed_operations: 0,
            started_syncs: 0,
            faults: Faults::default(),
        };
        Rc::new(Self {
            state: RefCell::new(state),
        })
    }

    /// How many operations are in flight.
    pub fn in_flight(&self) -> usize {
        self.state.borrow().waiting.len()
    }

    /// How many operations have completed, those that failed included.
    pub fn completed_operations(&self) -> u64 {
        self.state.borrow().completed_operations
    }

    /// How many fdatasyncs have begun.
    pub fn started_syncs(&self) -> u64 {
        self.state.borrow().started_syncs
    }

    /// The operation in flight that was started last takes longer than all others, those that are still to come included.
    pub fn delay_last(&self) {
        if let Some(waiting) = self.state.borrow_mut().waiting.last_mut() {
            waiting.delayed = true;
        }
    }

    /// Lets [`SimulatedDisk::complete_one`] complete operations of another file, too.
    pub fn complete_along_with(&self, companion: Rc<SimulatedDisk>) {
        self.state.borrow_mut().companions.push(companion);
    }

    /// Completes one of the operations in flight, drawn from `rng`; the delayed ones last. Returns false when there is none.
    pub fn complete_one(&self, rng: &mut SmallRng) -> bool {
        self.complete_undelayed(rng) || self.complete_first(|_| true)
    }

    /// Completes one of the operations in flight that are not delayed, drawn from `rng`. Returns false when there is none.
    pub fn complete_undelayed(&self, rng: &mut SmallRng) -> bool {
        let candidates = self.undelayed();
        let companions = self.state.borrow().companions.clone();
        for companion in companions {
            if companion.in_flight() > 0 && (candidates.is_empty() || rng.random()) {
                return companion.complete_one(rng);
            }
        }
        if !candidates.is_empty() {
            self.complete(candidates[rng.random_range(0..candidates.len())]);
        }
        !candidates.is_empty()
    }

    fn undelayed(&self) -> Vec<usize> {
        let state = self.state.borrow();
        let waiting = state.waiting.iter().enumerate();
        waiting
            .filter(|(_, waiting)| !waiting.delayed)
            .map(|(index, _)| index)
            .collect()
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
        state.completed_operations += 1;
        let result = match state.faults.meets(waiting.operation.name()) {
            Some(fault) => state.fail(&waiting, fault),
            None => Ok(state.execute(&waiting.operation, waiting.started_after)),
        };
        drop(state);
        waiting.ticket.complete(result);
    }

    /// Makes operations called `name` ("read", "write", "fdatasync") fail with `errno`: the first `skip` succeed,
    /// the next `times` fail.
    pub fn inject(&self, name: &'static str, skip: usize, times: usize, errno: i32) {
        self.inject_kind(name, skip, times, FaultKind::Errno(errno));
    }

    /// The same for every kind of fault.
    pub fn inject_kind(&self, name: &'static str, skip: usize, times: usize, kind: FaultKind) {
        self.state.borrow_mut().faults.add(name, skip, times, kind);
    }

    /// How many operations are still to fail.
    pub fn faults_left(&self) -> usize {
        self.state.borrow().faults.left()
    }

    /// From now on nothing fails any more.
    pub fn mend(&self) {
        self.state.borrow_mut().faults = Faults::default();
    }

    /// Forgets everything in flight, here and in the other files.
    pub(crate) fn abandon(&self) {
        let (waiting, companions) = {
            let mut state = self.state.borrow_mut();
            (
                std::mem::take(&mut state.waiting),
                std::mem::take(&mut state.companions),
            )
        };
        drop(waiting);
        companions.iter().for_each(|companion| companion.abandon());
    }

    /// What a read of the whole file would return now.
    pub fn contents(&self) -> Vec<u8> {
        self.state.borrow().platter.current().to_vec()
    }

    /// Looks at what a read of the whole file would return now.
    pub fn with_contents<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(self.state.borrow().platter.current())
    }

    /// What a crash at this moment surely leaves, and what it may leave.
    pub fn crash_point(&self, model: CrashModel) -> CrashPoint {
        let state = self.state.borrow();
        let in_flight = state.waiting.iter().filter_map(|waiting| match &waiting.operation {
            Operation::Write { offset, .. } => Some(StoredWrite::new(*offset, gather(&waiting.operation))),
            Operation::PunchHole { offset, length } => {
                let bytes = zeroes_within(*offset, *length, state.platter.current().len());
                Some(StoredWrite::new(*offset, bytes))
            }
            Operation::Read { .. } | Operation::Sync => None,
        });
        CrashPoint::new(model, state.platter.clone(), in_flight.collect())
    }

    /// One of the states that a crash at this moment can leave, drawn from `rng`.
    pub fn crash(&self, model: CrashModel, rng: &mut SmallRng) -> Vec<u8> {
        self.crash_point(model).random(rng).into_current()
    }

    /// The states that a crash at this moment can leave where each write is kept whole or not at all: every one while few
    /// writes are uncertain, else those in which all, none, all but one, or just one are kept.
    pub fn crash_states(&self, model: CrashModel) -> Vec<Vec<u8>> {
        let point = self.crash_point(model);
        let states = point.whole_states();
        states.into_iter().map(Platter::into_current).collect()
    }
}

impl State {
    fn execute(&mut self, operation: &Operation, started_after: u64) -> usize {
        match operation {
            Operation::Read { offset, pieces } => {
                let current = self.platter.current();
                let start = usize::try_from(*offset).unwrap_or(usize::MAX).min(current.len());
                let available = (current.len() - start).min(total_length(pieces));
                let mut position = start;
                for piece in pieces {
                    let count = piece.range.len().min(start + available - position);
                    piece
                        .buffer
                        .copy_from_slice(piece.range.start, &current[position..position + count]);
                    position += count;
                }
                available
            }
            Operation::Write { offset, .. } => {
                let bytes = gather(operation);
                let length = bytes.len();
                self.store(*offset, bytes);
                length
            }
            Operation::PunchHole { offset, length } => {
                let bytes = zeroes_within(*offset, *length, self.platter.current().len());
                self.store(*offset, bytes);
                0
            }
            Operation::Sync => {
                self.platter.sync(started_after);
                0
            }
        }
    }

    fn store(&mut self, offset: u64, bytes: Vec<u8>) {
        let write = StoredWrite::new(offset, bytes).completed_as(self.completed_writes);
        self.platter.store(write);
        self.completed_writes += 1;
    }

    /// What an operation that fails does all the same.
    fn fail(&mut self, waiting: &Waiting, kind: FaultKind) -> io::Result<usize> {
        let errno = match kind {
            FaultKind::Short => {
                let half = first_half(&waiting.operation);
                // A sector alone is transferred or not, or a read could find two halves of it.
                let operation = if length_of(&half) > 0 {
                    &half
                } else {
                    &waiting.operation
                };
                return Ok(self.execute(operation, waiting.started_after));
            }
            FaultKind::Errno(errno) => errno,
        };
        match &waiting.operation {
            // What the device took before it gave up, nobody knows.
            Operation::Write { .. } if errno == libc::EIO => {
                self.execute(&first_half(&waiting.operation), waiting.started_after);
            }
            // The pages are clean now, whether the device has them or not: no later fdatasync tries again.
            Operation::Sync if errno != libc::EINTR => self.platter.fail_sync(waiting.started_after),
            _ => {}
        }
        Err(io::Error::from_raw_os_error(errno))
    }
}

/// The same transfer of about half of the bytes, up to the end of a sector.
fn first_half(operation: &Operation) -> Operation {
    let mut half = operation.clone();
    if let Operation::Read { pieces, .. } | Operation::Write { pieces, .. } = &mut half {
        let end = operation.offset() + total_length(pieces) as u64 / 2;
        let mut rest = (end / SECTOR * SECTOR).saturating_sub(operation.offset()) as usize;
        for piece in pieces.iter_mut() {
            let taken = piece.range.len().min(rest);
            piece.range.end = piece.range.start + taken;
            rest -= taken;
        }
    }
    half
}

/// How many bytes are transferred.
fn length_of(operation: &Operation) -> usize {
    match operation {
        Operation::Read { pieces, .. } | Operation::Write { pieces, .. } => total_length(pieces),
        Operation::Sync | Operation::PunchHole { .. } => 0,
    }
}

fn zeroes_within(offset: u64, length: u64, file_length: usize) -> Vec<u8> {
    let end = (offset + length).min(file_length as u64);
    vec![0; end.saturating_sub(offset) as usize]
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

impl Storage for SimulatedDisk {
    fn start(&self, operation: Operation, ticket: Ticket) {
        let mut state = self.state.borrow_mut();
        let started_after = state.completed_writes;
        state.started_syncs += u64::from(matches!(operation, Operation::Sync));
        state.waiting.push(Waiting {
            operation,
            ticket,
            delayed: false,
            started_after,
        });
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.state.borrow().platter.current().len() as u64)
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
