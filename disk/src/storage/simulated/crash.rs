//! What is left of a file after a crash.

use std::rc::Rc;

use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

/// The unit in which a write can tear, in bytes.
const SECTOR: usize = 512;

/// Of so many uncertain writes every subset is a state that [`CrashPoint::state`] counts.
const MAX_SUBSETS_OF: usize = 6;

/// What a crash does to writes that are not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashModel {
    /// The process is killed: completed writes stay; those in flight happen, or not, or in part.
    Kill,
    /// Power is lost: each write since the last sync is kept, dropped or torn, in any order.
    PowerLoss,
}

/// A write that has completed, or may have.
#[derive(Clone)]
pub(super) struct StoredWrite {
    sequence: u64,
    offset: u64,
    bytes: Rc<[u8]>,
    /// An fdatasync failed that should have made it durable.
    given_up: bool,
}

impl StoredWrite {
    pub(super) fn new(offset: u64, bytes: Vec<u8>) -> Self {
        Self {
            sequence: 0,
            offset,
            bytes: bytes.into(),
            given_up: false,
        }
    }

    pub(super) fn completed_as(self, sequence: u64) -> Self {
        Self { sequence, ..self }
    }
}

/// A file: what a read returns, and what would be left of it without power.
#[derive(Clone)]
pub struct Platter {
    /// What a read returns now (the host's page cache).
    current: Vec<u8>,
    /// What a power loss surely leaves.
    durable: Vec<u8>,
    /// Writes that completed since the last sync took hold, in order of completion.
    unsynced: Vec<StoredWrite>,
}

impl From<Vec<u8>> for Platter {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            current: bytes.clone(),
            durable: bytes,
            unsynced: Vec::new(),
        }
    }
}

impl Platter {
    /// What a read of the whole file returns.
    pub fn current(&self) -> &[u8] {
        &self.current
    }

    /// What a read of the whole file returns.
    pub fn into_current(self) -> Vec<u8> {
        self.current
    }

    pub(super) fn store(&mut self, write: StoredWrite) {
        store(&mut self.current, write.offset, &write.bytes);
        self.unsynced.push(write);
    }

    /// An fdatasync succeeds that began when writes with a smaller sequence number had completed.
    pub(super) fn sync(&mut self, started_after: u64) {
        let durable = &mut self.durable;
        self.unsynced.retain(|write| {
            let synced = write.sequence < started_after && !write.given_up;
            if synced {
                store(durable, write.offset, &write.bytes);
            }
            !synced
        });
    }

    /// An fdatasync fails.
    pub(super) fn fail_sync(&mut self, started_after: u64) {
        let lost = self.unsynced.iter_mut().filter(|write| write.sequence < started_after);
        lost.for_each(|write| write.given_up = true);
    }
}

/// A moment of a crash: what it surely leaves, and the writes that it may leave.
pub struct CrashPoint {
    model: CrashModel,
    platter: Platter,
    uncertain: Vec<StoredWrite>,
}

impl CrashPoint {
    pub(super) fn new(model: CrashModel, platter: Platter, in_flight: Vec<StoredWrite>) -> Self {
        let uncertain = match model {
            CrashModel::Kill => in_flight,
            CrashModel::PowerLoss => platter.unsynced.iter().cloned().chain(in_flight).collect(),
        };
        Self {
            model,
            platter,
            uncertain,
        }
    }

    /// How many states there are in which each write is kept or not: if they are few, [`CrashPoint::state`] counts them first.
    pub fn subsets(&self) -> Option<u64> {
        (self.uncertain.len() <= MAX_SUBSETS_OF).then(|| 1 << self.uncertain.len())
    }

    /// State `number`: of few writes one subset after the other, then (and otherwise) one that is drawn from `seed` and `number`, in which
    /// writes may be torn and take hold in any order.
    pub fn state(&self, number: u64, seed: u64) -> Platter {
        if self.subsets().is_some_and(|subsets| number < subsets) {
            return self.keep(|index| number >> index & 1 == 1);
        }
        self.random(&mut SmallRng::seed_from_u64(
            seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15),
        ))
    }

    /// One of the states, in which writes may be torn and take hold in any order.
    pub fn random(&self, rng: &mut SmallRng) -> Platter {
        let mut uncertain = self.uncertain.clone();
        uncertain.shuffle(rng);
        let mut kept = Vec::new();
        for write in uncertain {
            match rng.random_range(0..4) {
                0 => {}
                1 => kept.extend(torn(&write, rng)),
                _ => kept.push(write),
            }
        }
        self.left(kept)
    }

    /// The states in which each write is kept whole or not at all: every one while few writes are uncertain, else those in which all,
    /// none, all but one, or just one are kept.
    pub(super) fn whole_states(&self) -> Vec<Platter> {
        if let Some(subsets) = self.subsets() {
            return (0..subsets).map(|number| self.state(number, 0)).collect();
        }
        // No write has the number that is their count.
        (0..=self.uncertain.len())
            .flat_map(|one| [self.keep(|index| index == one), self.keep(|index| index != one)])
            .collect()
    }

    fn keep(&self, is_kept: impl Fn(usize) -> bool) -> Platter {
        let kept = self.uncertain.iter().enumerate().filter(|(index, _)| is_kept(*index));
        self.left(kept.map(|(_, write)| write.clone()).collect())
    }

    fn left(&self, kept: Vec<StoredWrite>) -> Platter {
        match self.model {
            // They are in the page cache now, and no more durable than others.
            CrashModel::Kill => {
                let mut platter = self.platter.clone();
                kept.into_iter().for_each(|write| platter.store(write.completed_as(0)));
                // Before the next process begins, its sequence numbers included.
                platter.unsynced.iter_mut().for_each(|write| write.sequence = 0);
                platter
            }
            CrashModel::PowerLoss => {
                let mut bytes = self.platter.durable.clone();
                kept.iter()
                    .for_each(|write| store(&mut bytes, write.offset, &write.bytes));
                Platter::from(bytes)
            }
        }
    }
}

fn store(image: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    // All of a simulated file is in a vector, and the write that this is was made to one.
    let start = usize::try_from(offset).expect("a simulated file fits in memory");
    let end = start + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[start..end].copy_from_slice(bytes);
}

/// Each 512-byte sector of the write, or not.
fn torn(write: &StoredWrite, rng: &mut SmallRng) -> Vec<StoredWrite> {
    let mut kept = Vec::new();
    let mut position = 0;
    while position < write.bytes.len() {
        let at = write.offset + position as u64;
        let length = (SECTOR - (at as usize % SECTOR)).min(write.bytes.len() - position);
        if rng.random() {
            kept.push(StoredWrite {
                offset: at,
                bytes: write.bytes[position..position + length].into(),
                ..write.clone()
            });
        }
        position += length;
    }
    kept
}
