//! What happened to a file, and what a power loss could have left of it at any moment.

use rand::RngExt;
use rand::rngs::StdRng;

/// What a disk writes whole or not at all, in bytes.
const ATOM: usize = 512;

/// How far the writer's user had come: counts of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Requests that it had issued.
    pub issued: u64,
    /// Requests that it had been told are complete.
    pub completed: u64,
}

/// One thing that happened to the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bytes were written.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// A range became zeros: a hole.
    Zero {
        /// Where.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// The file got another length.
    Resize(u64),
    /// Everything before became durable.
    Sync,
}

/// A change, and when it came.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub change: Change,
    /// How far the user had come just before.
    pub mark: Mark,
}

/// Everything that happened to a file.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// The content at first, all of it durable.
    pub initial: Vec<u8>,
    /// What happened, in its order.
    pub events: Vec<Event>,
    /// How far the user had come at last.
    pub last: Mark,
}

/// What becomes of the changes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tear {
    /// All of them are there: no power loss, but the end of the writer.
    Nothing,
    /// None of them is there.
    Everything,
    /// Each is there or not.
    Some,
    /// Each is there, or not, or in part.
    Torn,
}

/// A file as a crash left it.
#[derive(Clone, Debug)]
pub struct CrashState {
    /// Its content.
    pub bytes: Vec<u8>,
    /// How far the user had come at the crash.
    pub mark: Mark,
    /// Changes that were not durable.
    pub pending: usize,
    /// Of these, changes that are wholly there.
    pub kept: usize,
}

impl Recording {
    /// The file after a crash just before event number `at` (or after all of them).
    pub fn crash(&self, at: usize, tear: Tear, random: &mut StdRng) -> CrashState {
        let before = &self.events[..at];
        let durable = before
            .iter()
            .rposition(|event| event.change == Change::Sync)
            .map_or(0, |sync| sync + 1);
        let mut state = CrashState {
            bytes: self.initial.clone(),
            mark: self.events.get(at).map_or(self.last, |event| event.mark),
            pending: at - durable,
            kept: 0,
        };
        for event in &before[..durable] {
            apply(&mut state.bytes, &event.change);
        }
        // A bias of its own for each state: nearly all, nearly nothing, and what is between.
        let bias = random.random_range(1..10);
        for event in &before[durable..] {
            let keep = match tear {
                Tear::Nothing => true,
                Tear::Everything => false,
                Tear::Some | Tear::Torn => random.random_ratio(bias, 10),
            };
            if keep {
                apply(&mut state.bytes, &event.change);
                state.kept += 1;
            } else if tear == Tear::Torn && random.random_ratio(1, 3) {
                apply_in_part(&mut state.bytes, &event.change, random);
            }
        }
        state
    }

    /// How many syncs there were.
    pub fn syncs(&self) -> usize {
        self.events.iter().filter(|event| event.change == Change::Sync).count()
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { offset, data } => write(bytes, *offset as usize, data),
        Change::Zero { offset, length } => {
            let end = bytes.len().min((offset + length) as usize);
            let start = end.min(*offset as usize);
            bytes[start..end].fill(0);
        }
        Change::Resize(length) => bytes.resize(*length as usize, 0),
        Change::Sync => {}
    }
}

/// Some of a write's 512-byte units, aligned as the disk has them.
fn apply_in_part(bytes: &mut Vec<u8>, change: &Change, random: &mut StdRng) {
    let Change::Write { offset, data } = change else { return };
    let mut at = 0;
    while at < data.len() {
        let place = *offset as usize + at;
        let length = (ATOM - place % ATOM).min(data.len() - at);
        if random.random_bool(0.5) {
            write(bytes, place, &data[at..at + length]);
        }
        at += length;
    }
}

fn write(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn recording() -> Recording {
        let change = |offset, byte| Change::Write {
            offset,
            data: vec![byte; 1024],
        };
        let changes = [change(0, 1), Change::Sync, change(0, 2), change(1024, 3)];
        Recording {
            initial: vec![0; 1024],
            events: (0..)
                .zip(changes)
                .map(|(issued, change)| Event {
                    change,
                    mark: Mark { issued, completed: 0 },
                })
                .collect(),
            last: Mark {
                issued: 4,
                completed: 4,
            },
        }
    }

    #[test]
    fn what_was_synced_is_always_there_and_the_rest_in_parts_of_a_sector() {
        let recording = recording();
        let mut random = StdRng::seed_from_u64(1);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..200 {
            let state = recording.crash(4, Tear::Torn, &mut random);
            let atoms: Vec<u8> = state.bytes.chunks(512).map(|atom| atom[0]).collect();
            assert!(
                state
                    .bytes
                    .chunks(512)
                    .all(|atom| atom.iter().all(|byte| *byte == atom[0]))
            );
            assert!(atoms[..2].iter().all(|atom| [1, 2].contains(atom)), "{atoms:?}");
            assert!(atoms[2..].iter().all(|atom| [0, 3].contains(atom)), "{atoms:?}");
            seen.insert(atoms);
        }
        assert!(seen.len() > 8, "{seen:?}");
    }

    #[test]
    fn a_crash_knows_how_far_its_user_had_come() {
        let recording = recording();
        let mut random = StdRng::seed_from_u64(1);
        assert_eq!(recording.crash(2, Tear::Everything, &mut random).mark.issued, 2);
        let last = recording.crash(4, Tear::Nothing, &mut random);
        assert_eq!((last.mark.issued, last.pending, last.kept), (4, 2, 2));
        assert_eq!(last.bytes.len(), 2048);
    }
}
