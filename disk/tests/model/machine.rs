//! Runs a script on the engine, and the oracle beside it.

use std::ops::Range;

use disk::simulation::{Cancellable, Outcome, Setup, Simulation};
use disk::{Buffer, Command};

use super::image::Fixture;
use super::oracle::{After, Change, Found, Oracle};
use super::script::{Op, Script, Shape};
use super::stamp::{Id, SECTOR, ids_of, stamps};
use crate::judge;

/// As many requests are in flight as the ring's users have, at most.
const MOST_IN_FLIGHT: usize = 32;

/// More snapshots than this at a time teach nothing new.
const MOST_SNAPSHOTS: usize = 4;

/// Storage operations after which whatever is in flight has come to its end, unless it never will.
const PATIENCE: u32 = 200_000;

/// What a run has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub operations: u64,
    pub requests: u64,
    pub reads_checked: u64,
    pub changes: u64,
    pub failed_requests: u64,
    /// Requests and changes that the last crash ended.
    pub in_flight_at_crash: u64,
    /// Crash states looked at after a kill, by what was going on: see [`super::crash::Phase`].
    pub killed: [u64; super::crash::PHASES],
    /// The same after a power loss.
    pub power_lost: [u64; super::crash::PHASES],
}

impl Tally {
    pub fn states(&self) -> u64 {
        self.killed.iter().chain(&self.power_lost).sum()
    }

    pub fn add(&mut self, other: &Tally) {
        self.operations += other.operations;
        self.requests += other.requests;
        self.reads_checked += other.reads_checked;
        self.changes += other.changes;
        self.failed_requests += other.failed_requests;
        for (mine, others) in [
            (&mut self.killed, &other.killed),
            (&mut self.power_lost, &other.power_lost),
        ] {
            mine.iter_mut().zip(others).for_each(|(mine, other)| *mine += other);
        }
    }
}

/// What did not hold.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The op at which it was noticed.
    pub op: usize,
    /// The crash state, if it was in one.
    pub state: Option<u64>,
    pub message: String,
}

pub struct Machine {
    pub(super) shape: Shape,
    pub(super) fixture: Fixture,
    pub(super) simulation: Simulation,
    pub(super) oracle: Oracle,
    in_flight: Vec<InFlight>,
    change: Option<Outcome>,
    pub(super) closing: bool,
    next_id: Id,
    pub(super) next_seed: u64,
    pub(super) tally: Tally,
    pub(super) state: Option<u64>,
    /// Requests may fail, and then nobody knows how far they came.
    pub(super) failures_are_expected: bool,
    /// A snapshot or resize did.
    pub(super) change_failed: bool,
}

struct InFlight {
    outcome: Outcome,
    /// Most requests cannot be given up: then the engine does those that are one storage operation without a task.
    request: Option<Cancellable>,
    what: What,
    range: Range<u64>,
    begun: u64,
    /// The disk may have become too short for it meanwhile.
    may_be_cut_off: bool,
}

enum What {
    Write,
    Flush,
    Read(Buffer),
}

/// Runs a script from its beginning to its end, and closes the image.
pub fn run(script: &Script) -> Result<Tally, Failure> {
    let mut op = 0;
    let mut state = None;
    let result = guarded(|| {
        let mut machine = Machine::new(script.shape)?;
        for (index, next) in script.ops.iter().enumerate() {
            op = index;
            let result = machine.execute(*next);
            state = machine.state;
            result?;
        }
        op = script.ops.len();
        machine.execute(Op::Reopen)?;
        machine.tally.operations += machine.simulation.disk().completed_operations();
        Ok(machine.tally)
    });
    result.map_err(|message| Failure { op, state, message })
}

/// Runs something in which a panic is a failure, too.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let panicked = |panic: Box<dyn std::any::Any + Send>| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(format!("panic: {}", text.unwrap_or_default()))
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(panicked)
}

impl Machine {
    pub(super) fn new(shape: Shape) -> Result<Self, String> {
        let fixture = Fixture::new(&shape);
        let report = judge::check(&fixture.image);
        if !report.is_clean() {
            return Err(format!("the image to begin with: {report:?}"));
        }
        let setup = Setup {
            below: fixture.below.clone(),
            cache_bytes: shape.cache_bytes,
            ..Setup::new(fixture.image.clone(), 0)
        };
        let simulation = Simulation::open_setup(setup).map_err(|error| format!("opening: {error}"))?;
        Ok(Self {
            shape,
            oracle: Oracle::new(&fixture.content, shape.largest),
            fixture,
            simulation,
            in_flight: Vec::new(),
            change: None,
            closing: false,
            next_id: 0,
            next_seed: 0,
            tally: Tally::default(),
            state: None,
            failures_are_expected: false,
            change_failed: false,
        })
    }

    pub(super) fn execute(&mut self, op: Op) -> Result<(), String> {
        match op {
            Op::Steps { count, order } => {
                self.simulation.reseed(order);
                for _ in 0..count {
                    self.simulation.step_undelayed();
                }
                self.collect(u64::MAX)
            }
            Op::ToBarrier { barriers, order } => {
                self.simulation.reseed(order);
                self.simulation.step_to_barrier(barriers);
                self.collect(u64::MAX)
            }
            Op::Delay => {
                self.simulation.disk().delay_last();
                Ok(())
            }
            Op::Crash {
                model,
                first,
                count,
                seed,
            } => self.crash(model, first..first + count, seed),
            Op::LossInRecovery {
                barriers,
                first,
                count,
                seed,
            } => self.lose_power_in_recovery(barriers, first..first + count, seed),
            Op::KillWithin {
                stores,
                first,
                count,
                seed,
            } => self.kill_within(stores, first..first + count, seed),
            Op::Reopen => self.reopen(),
            _ if self.closing => Ok(()),
            Op::BeginClose => {
                self.settle()?;
                self.simulation.begin_close();
                self.closing = true;
                Ok(())
            }
            Op::Settle => {
                self.settle()?;
                let found = self.look(&self.simulation.disk().contents())?;
                let happened = self.oracle.judge(&found, After::Kill)?;
                self.oracle.settle(&found, After::Kill, happened);
                self.simulation
                    .disk()
                    .with_contents(|image| sound(image, "while it is open"))
            }
            Op::Cancel(number) => {
                let mut cancellable = self.in_flight.iter().enumerate();
                let count = cancellable
                    .clone()
                    .filter(|(_, request)| request.request.is_some())
                    .count();
                let mut cancellable = cancellable.by_ref().filter(|(_, request)| request.request.is_some());
                if let Some((index, _)) = cancellable.nth(number % count.max(1)) {
                    // Its write may happen until everything has come to its end.
                    drop(self.in_flight.remove(index));
                }
                self.collect(u64::MAX)
            }
            Op::Age => {
                self.simulation.let_metadata_age();
                self.collect(u64::MAX)
            }
            Op::Create | Op::Apply(_) | Op::Delete(_) | Op::Resize(_) => self.begin_change(op),
            Op::Flush | Op::Read { .. } | Op::Write { .. } | Op::Zero { .. } | Op::Discard { .. } => self.begin(op),
        }
    }

    fn begin(&mut self, op: Op) -> Result<(), String> {
        while self.in_flight.len() >= MOST_IN_FLIGHT {
            if !self.simulation.step() {
                return Err("requests never end".into());
            }
            self.collect(u64::MAX)?;
        }
        self.tally.requests += 1;
        let capacity = self.simulation.capacity() / SECTOR;
        let place = |at: u64, sectors: u64| {
            let start = at % capacity;
            start..start + sectors.clamp(1, capacity - start)
        };
        let bytes = |range: &Range<u64>| (range.start * SECTOR, (range.end - range.start) * SECTOR);
        let (range, begun, what, command) = match op {
            Op::Read { at, sectors } => {
                let range = place(at, sectors);
                let (offset, length) = bytes(&range);
                let buffer = Buffer::zeroed(length as usize);
                let command = Command::Read {
                    offset,
                    buffer: buffer.clone(),
                };
                (range, self.oracle.begin(), What::Read(buffer), command)
            }
            Op::Write { at, sectors } => {
                let range = place(at, sectors);
                self.next_id += 1;
                let begun = self.oracle.begin_write(range.clone(), self.next_id, false);
                let command = write(&range, self.next_id);
                (range, begun, What::Write, command)
            }
            Op::Zero { at, sectors } | Op::Discard { at, sectors } => {
                let range = place(at, sectors);
                let is_hint = matches!(op, Op::Discard { .. });
                let begun = self.oracle.begin_write(range.clone(), 0, is_hint);
                let (offset, length) = bytes(&range);
                let command = if is_hint {
                    Command::Discard { offset, length }
                } else {
                    Command::WriteZeroes { offset, length }
                };
                (range, begun, What::Write, command)
            }
            _ => (0..0, self.oracle.begin(), What::Flush, Command::Flush),
        };
        let request = self
            .tally
            .requests
            .is_multiple_of(3)
            .then(|| self.simulation.submit_cancellable(command.clone()));
        let outcome = match &request {
            Some(request) => request.outcome.clone(),
            None => self.simulation.submit(command),
        };
        self.in_flight.push(InFlight {
            outcome,
            request,
            what,
            range,
            begun,
            may_be_cut_off: self.oracle.is_resizing(),
        });
        Ok(())
    }

    fn begin_change(&mut self, op: Op) -> Result<(), String> {
        self.collect(u64::MAX)?;
        let snapshots = self.oracle.snapshots();
        if self.oracle.is_changing() {
            return Ok(());
        }
        let (change, outcome) = match op {
            Op::Create if snapshots < MOST_SNAPSHOTS => {
                self.next_id += 1;
                let name = format!("s{}", self.next_id);
                let outcome = self.simulation.snapshot_create(&name);
                (Change::Create(name), outcome)
            }
            Op::Apply(number) if snapshots > 0 => {
                let index = number % snapshots;
                (
                    Change::Apply(index),
                    self.simulation.snapshot_apply(self.oracle.name(index)),
                )
            }
            Op::Delete(number) if snapshots > 0 => {
                let index = number % snapshots;
                (
                    Change::Delete(index),
                    self.simulation.snapshot_delete(self.oracle.name(index)),
                )
            }
            Op::Resize(sectors) => {
                let sectors = 1 + sectors % self.shape.largest;
                (Change::Resize(sectors), self.simulation.resize(sectors * SECTOR, true))
            }
            _ => return Ok(()),
        };
        self.tally.changes += 1;
        self.oracle.begin_change(change);
        self.change = Some(outcome);
        if self.oracle.is_resizing() {
            self.in_flight
                .iter_mut()
                .for_each(|request| request.may_be_cut_off = true);
        }
        Ok(())
    }

    /// Tells the oracle of everything that was done until then.
    pub(super) fn collect(&mut self, until: u64) -> Result<(), String> {
        let is_done = |outcome: &Outcome| outcome.moment().is_some_and(|moment| moment <= until);
        let done: Vec<_> = self
            .in_flight
            .extract_if(.., |request| is_done(&request.outcome))
            .collect();
        for InFlight {
            outcome,
            what,
            range,
            begun,
            may_be_cut_off,
            ..
        } in done
        {
            if let Some(error) = outcome.error() {
                // Then nobody knows how far it came.
                if self.failures_are_expected {
                    self.tally.failed_requests += 1;
                    continue;
                }
                if may_be_cut_off && error.contains("end beyond the disk") {
                    continue;
                }
                return Err(format!("a request of sectors {range:?} failed: {error}"));
            }
            match what {
                What::Write => self.oracle.complete_write(range, begun),
                What::Flush => self.oracle.complete_flush(begun),
                What::Read(buffer) => {
                    self.tally.reads_checked += 1;
                    let found = ids_at(&buffer.to_vec(), range.start)?;
                    self.oracle.complete_read(range, begun, &found)?;
                }
            }
        }
        if self.change.as_ref().is_some_and(is_done) {
            let error = self.change.take().and_then(|outcome| outcome.error());
            match error {
                None => self.oracle.complete_change(),
                Some(error) if may_be_refused(&error) => self.oracle.refuse_change(),
                // It has happened, or has not.
                Some(_) if self.failures_are_expected => {
                    self.tally.failed_requests += 1;
                    self.change_failed = true;
                }
                Some(error) => return Err(format!("a snapshot or resize failed: {error}")),
            }
        }
        Ok(())
    }

    /// Lets everything in flight come to its end.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        rest(&mut self.simulation)?;
        self.collect(u64::MAX)?;
        if self.in_flight.is_empty() && self.change.is_none() {
            Ok(())
        } else {
            Err(format!(
                "{} requests never end",
                self.in_flight.len() + usize::from(self.change.is_some())
            ))
        }
    }

    /// What a disk that is open holds: by the engine, and the snapshots by the judge from the file.
    pub(super) fn look(&mut self, image: &[u8]) -> Result<Found, String> {
        look(&mut self.simulation, image, &self.fixture.flat)
    }

    fn reopen(&mut self) -> Result<(), String> {
        if !self.closing {
            self.execute(Op::Settle)?;
            self.simulation.begin_close();
        }
        rest(&mut self.simulation)?;
        match self.simulation.closed() {
            Some(Ok(())) => {}
            Some(Err(error)) => return Err(format!("closing: {error}")),
            None => return Err("closing never ends".into()),
        }
        self.closing = false;
        let image = self.simulation.disk().contents();
        let report = judge::check(&image);
        if !report.is_clean() {
            return Err(format!("the closed image: {report:?}"));
        }
        let by_judge = ids_of(&judge::read::disk(&image, &self.fixture.flat))?;
        self.next_seed += 1;
        self.tally.operations += self.simulation.disk().completed_operations();
        let setup = Setup {
            below: self.fixture.below.clone(),
            cache_bytes: self.shape.cache_bytes,
            ..Setup::new(image, self.next_seed)
        };
        self.simulation = Simulation::open_setup(setup).map_err(|error| format!("opening again: {error}"))?;
        let found = self.look(&self.simulation.disk().contents())?;
        if found.sectors != by_judge {
            return Err("the engine and the judge read different things from the closed image".into());
        }
        self.oracle.judge(&found, After::Kill)?;
        self.read_a_snapshot(&found)?;
        // Closing is a flush.
        self.oracle.settle(&found, After::PowerLoss, false);
        Ok(())
    }

    /// The engine reads from the first snapshot what the judge does.
    fn read_a_snapshot(&self, found: &Found) -> Result<(), String> {
        let Some((name, content)) = found.snapshots.first() else {
            return Ok(());
        };
        let setup = Setup {
            below: self.fixture.below.clone(),
            snapshot: Some(name.clone()),
            ..Setup::new(self.simulation.disk().contents(), 0)
        };
        let opened = Simulation::open_setup(setup);
        let mut snapshot = opened.map_err(|error| format!("opening snapshot {name}: {error}"))?;
        if &ids_of(&read_all(&mut snapshot)?)? == content {
            Ok(())
        } else {
            Err(format!("snapshot {name} reads otherwise when it is opened"))
        }
    }

    /// The process is gone, and with it everything in flight.
    pub(super) fn forget_in_flight(&mut self) {
        self.tally.in_flight_at_crash = (self.in_flight.len() + usize::from(self.change.is_some())) as u64;
        self.in_flight.clear();
        self.change = None;
        self.closing = false;
    }
}

/// What the format or the image cannot do.
fn may_be_refused(error: &str) -> bool {
    error.contains("cannot count it") || error.contains("do not record the size")
}

/// Write number `id` to these sectors.
pub fn write(range: &Range<u64>, id: Id) -> Command {
    Command::Write {
        offset: range.start * SECTOR,
        buffer: Buffer::from_slice(&stamps(id, range.clone())),
    }
}

/// Runs until nothing is in flight.
pub fn rest(simulation: &mut Simulation) -> Result<(), String> {
    for _ in 0..PATIENCE {
        if !simulation.step() {
            return Ok(());
        }
    }
    Err("the engine does not come to rest".into())
}

/// Everything that the disk holds.
pub fn read_all(simulation: &mut Simulation) -> Result<Vec<u8>, String> {
    let buffer = Buffer::zeroed(simulation.capacity() as usize);
    let outcome = simulation.submit(Command::Read {
        offset: 0,
        buffer: buffer.clone(),
    });
    rest(simulation)?;
    if outcome.succeeded() {
        Ok(buffer.to_vec())
    } else {
        Err(format!("reading everything: {:?}", outcome.error()))
    }
}

/// What an open disk holds: by the engine, and the snapshots by the judge from its file.
pub fn look(simulation: &mut Simulation, image: &[u8], below: &[u8]) -> Result<Found, String> {
    let sectors = ids_of(&read_all(simulation)?)?;
    let snapshots = judge::read::snapshots(image, below).into_iter();
    let snapshots = snapshots.map(|(name, content)| Ok((name, ids_of(&content)?)));
    let found = Found {
        sectors,
        snapshots: snapshots.collect::<Result<_, String>>()?,
    };
    let names: Vec<&String> = found.snapshots.iter().map(|(name, _)| name).collect();
    let by_engine = simulation.snapshots();
    if names != by_engine.iter().collect::<Vec<_>>() {
        return Err(format!(
            "the engine knows the snapshots {by_engine:?}, and the file has {names:?}"
        ));
    }
    Ok(found)
}

/// No cluster has more references than its refcount counts.
pub fn sound(image: &[u8], when: &str) -> Result<(), String> {
    let report = judge::check(image);
    if report.corruptions.is_empty() {
        Ok(())
    } else {
        Err(format!("the image {when}: {:?}", report.corruptions))
    }
}

fn ids_at(bytes: &[u8], first: u64) -> Result<Vec<Id>, String> {
    let sectors = (first..).zip(bytes.chunks_exact(SECTOR as usize));
    sectors
        .map(|(sector, bytes)| super::stamp::id_of(bytes, sector))
        .collect()
}
