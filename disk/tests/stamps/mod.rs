//! Sectors that say which write they come from, and what each may hold after a crash.
#![allow(dead_code, reason = "each test that shares this uses a part of it")]

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use disk::simulation::{CrashModel, Operation, Outcome, Simulation};
use disk::{Buffer, Command};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::judge;

pub const SECTOR: u64 = 512;

/// The id that [`Crashes`] writes with, after an image was recovered.
const AFTERWARDS: u64 = u64::MAX;

/// The sector that write number `id` writes: no two are alike, and none can be compressed. Number 0 is zeros.
pub fn stamp(id: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    if id != 0 {
        SmallRng::seed_from_u64(id).fill(&mut bytes[..]);
        bytes[..8].copy_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// The bytes of `sectors` sectors of write number `id`.
pub fn stamps(id: u64, sectors: u64) -> Vec<u8> {
    stamp(id).repeat(sectors as usize)
}

/// The writes that the sectors of a disk come from.
///
/// # Panics
/// If a sector comes from none.
pub fn ids(bytes: &[u8]) -> Vec<u64> {
    // Neighbours mostly come from one write.
    let mut last = (0, stamp(0));
    let id = |(index, sector): (usize, &[u8])| {
        let id = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
        if id != last.0 {
            last = (id, stamp(id));
        }
        assert!(sector == last.1, "sector {index} begins with {id:#x} and is no write's");
        id
    };
    bytes.chunks_exact(SECTOR as usize).enumerate().map(id).collect()
}

/// Writes number `id` to these sectors.
pub fn write(sectors: Range<u64>, id: u64) -> Command {
    Command::Write {
        offset: sectors.start * SECTOR,
        buffer: Buffer::from_slice(&stamps(id, sectors.end - sectors.start)),
    }
}

/// Whether an operation carries data of write number `id` to the image file.
pub fn carries(operation: &Operation, id: u64) -> bool {
    let Operation::Write { pieces, .. } = operation else {
        return false;
    };
    pieces.iter().any(|piece| {
        let mut sector = [0; SECTOR as usize];
        let long_enough = piece.range.len() >= sector.len();
        if long_enough {
            piece.buffer.copy_to_slice(piece.range.start, &mut sector);
        }
        long_enough && sector == stamp(id)
    })
}

/// Everything that the disk holds.
pub fn read_all(simulation: &mut Simulation) -> Vec<u8> {
    let buffer = Buffer::zeroed(simulation.capacity() as usize);
    let outcome = simulation.submit(Command::Read {
        offset: 0,
        buffer: buffer.clone(),
    });
    simulation.settle();
    assert!(outcome.succeeded(), "reading everything failed");
    buffer.to_vec()
}

/// What was asked of a disk, and thereby what each of its sectors may hold.
#[derive(Default)]
pub struct History {
    /// What the sectors held when all was durable.
    durable: Vec<u64>,
    since: Vec<Change>,
}

struct Change {
    sectors: Range<u64>,
    id: u64,
    outcome: Outcome,
    /// The disk need not do it, even when it says that it is done.
    hint: bool,
}

impl History {
    /// A disk that holds these writes, durably.
    pub fn new(durable: Vec<u64>) -> Self {
        Self {
            durable,
            since: Vec::new(),
        }
    }

    /// Starts a write of number `id`.
    pub fn write(&mut self, simulation: &Simulation, sectors: Range<u64>, id: u64) -> Outcome {
        let outcome = simulation.submit(write(sectors.clone(), id));
        self.note(sectors, id, &outcome, false)
    }

    /// Starts making sectors zeros.
    pub fn write_zeroes(&mut self, simulation: &Simulation, sectors: Range<u64>) -> Outcome {
        let outcome = simulation.submit(Command::WriteZeroes {
            offset: sectors.start * SECTOR,
            length: (sectors.end - sectors.start) * SECTOR,
        });
        self.note(sectors, 0, &outcome, false)
    }

    /// Starts giving sectors up.
    pub fn discard(&mut self, simulation: &Simulation, sectors: Range<u64>) -> Outcome {
        let outcome = simulation.submit(Command::Discard {
            offset: sectors.start * SECTOR,
            length: (sectors.end - sectors.start) * SECTOR,
        });
        self.note(sectors, 0, &outcome, true)
    }

    /// Something may have happened to these sectors; `outcome` says when it surely has.
    pub fn note(&mut self, sectors: Range<u64>, id: u64, outcome: &Outcome, hint: bool) -> Outcome {
        self.since.push(Change {
            sectors,
            id,
            outcome: outcome.clone(),
            hint,
        });
        outcome.clone()
    }

    /// Whether everything that was asked of the disk was done.
    pub fn all_succeeded(&self) -> bool {
        self.since.iter().all(|change| change.outcome.succeeded())
    }

    /// Everything is durable, and the disk holds this.
    pub fn flushed(&mut self, ids: Vec<u64>) {
        *self = Self::new(ids);
    }

    /// What each sector may hold after a crash at this moment. Changes of the same sectors happen in their order.
    pub fn allowed(&self, model: CrashModel) -> Vec<Vec<u64>> {
        let mut allowed: Vec<Vec<u64>> = self.durable.iter().map(|id| vec![*id]).collect();
        for change in &self.since {
            let certain = model == CrashModel::Kill && change.outcome.succeeded() && !change.hint;
            for values in &mut allowed[change.sectors.start as usize..change.sectors.end as usize] {
                if certain {
                    values.clear();
                }
                values.push(change.id);
            }
        }
        allowed
    }
}

/// Looks at what crashes leave, at each state once.
#[derive(Default)]
pub struct Crashes {
    backing: Option<Vec<u8>>,
    seen: HashSet<u64>,
    /// Images that were recovered and closed, for further judges.
    pub recovered: Vec<Vec<u8>>,
}

impl Crashes {
    /// Of an image above this raw file.
    pub fn above(backing: Option<Vec<u8>>) -> Self {
        Self {
            backing,
            ..Self::default()
        }
    }

    /// Runs until nothing is in flight, and before each completion looks at the states that a crash could leave.
    pub fn step_through(&mut self, simulation: &mut Simulation, history: &History) {
        loop {
            self.look(simulation, history);
            if !simulation.step() {
                return;
            }
        }
    }

    /// Looks at the states that a crash at this moment could leave.
    pub fn look(&mut self, simulation: &mut Simulation, history: &History) {
        for model in [CrashModel::Kill, CrashModel::PowerLoss] {
            let left_behind = simulation.left_behind(model);
            let allowed = history.allowed(model);
            let mut states = simulation.disk().crash_states(model);
            // Torn and reordered ones.
            states.extend((0..3).map(|_| simulation.crash(model).0));
            for state in states {
                let mut hasher = DefaultHasher::new();
                (&state, &left_behind, &allowed).hash(&mut hasher);
                if self.seen.insert(hasher.finish()) {
                    self.judge(state, left_behind.clone(), &allowed, model);
                }
            }
        }
    }

    /// How many different states were looked at.
    pub fn looked_at(&self) -> usize {
        self.seen.len()
    }

    /// The tables are sound, recovery finds what is allowed, and the image can be written further.
    fn judge(&mut self, image: Vec<u8>, left_behind: Option<Vec<u8>>, allowed: &[Vec<u64>], model: CrashModel) {
        let report = judge::check(&image);
        assert!(report.corruptions.is_empty(), "after {model:?}: {report:?}");
        let opened = Simulation::open(image, self.backing.clone(), left_behind, self.seen.len() as u64);
        let mut simulation = opened.unwrap_or_else(|error| panic!("after {model:?}: {error}"));
        let mut found = ids(&read_all(&mut simulation));
        for (sector, (id, allowed)) in found.iter().zip(allowed).enumerate() {
            assert!(
                allowed.contains(id),
                "after {model:?} sector {sector} is of write {id}; allowed are {allowed:?}"
            );
        }
        // What is free must be free: a new write disturbs nobody.
        let last = found.len() as u64 - 1;
        let outcome = simulation.submit(write(last..last + 1, AFTERWARDS));
        simulation.settle();
        assert!(outcome.succeeded());
        found[last as usize] = AFTERWARDS;
        assert!(
            ids(&read_all(&mut simulation)) == found,
            "a write after the recovery from {model:?} disturbed others"
        );
        let closed = simulation.close().expect("closes");
        let report = judge::check(&closed);
        assert!(report.is_clean(), "after the recovery from {model:?}: {report:?}");
        self.recovered.push(closed);
    }
}
