//! The engine on the simulated disk: random requests in random order of completion, against a model in
//! memory, and power cuts at random moments. Each run is repeated by its seed: `SPINDLE_SEED=n` runs just that one,
//! `SPINDLE_SEEDS=n` runs so many.

mod judge;

use std::ops::Range;

use disk::simulation::{CrashModel, Outcome, Simulation};
use disk::{BackingReference, Buffer, Command, CreateOptions};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use judge::check;

const SECTOR: u64 = 512;

fn seeds(default: u64) -> Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("SPINDLE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SPINDLE_SEEDS").unwrap_or(default),
    }
}

/// An image whose shape is drawn from the seed, and the raw file below it, if any.
fn random_image(rng: &mut SmallRng) -> (CreateOptions, Option<Vec<u8>>) {
    let cluster_bits = rng.random_range(9..=16);
    let mut options =
        CreateOptions::new(rng.random_range(1..=4 * (512u64 << cluster_bits) / SECTOR).min(1024) * SECTOR);
    options.cluster_bits = cluster_bits;
    options.refcount_order = rng.random_range(0..=6);
    let with_backing = rng.random_range(0..3) == 0;
    let backing = with_backing.then(|| {
        let sectors = rng.random_range(1..=options.size / SECTOR);
        (0..sectors).flat_map(|sector| sector_bytes(1 << 40 | sector)).collect()
    });
    if with_backing {
        options.backing = Some(BackingReference {
            name: "base".into(),
            format: Some("raw".into()),
        });
    }
    (options, backing)
}

/// A sector that says which write it comes from.
fn sector_bytes(id: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// The write that a sector comes from, if it comes from just one.
fn sector_id(bytes: &[u8]) -> Option<u64> {
    let id = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    (bytes == sector_bytes(id)).then_some(id)
}

/// What each sector may hold: the writes since it was last looked at, and how they overlap in time.
///
/// Of writes that are in flight together, each may come last. A write is surely gone from a sector only when another one
/// began after it had completed, and is complete itself (or, where it must be durable, was complete before a flush).
struct Oracle {
    sectors: Vec<Vec<Value>>,
    clock: u64,
    /// What completed before this is durable.
    durable_until: u64,
}

struct Value {
    /// What the sector says.
    id: u64,
    begun_at: u64,
    completed_at: Option<u64>,
}

impl Value {
    fn completed_before(&self, time: u64) -> bool {
        self.completed_at.is_some_and(|at| at < time)
    }
}

/// Those of `values` that may be found, if everything that completed before `time` has happened.
fn allowed(values: &[Value], time: u64) -> Vec<u64> {
    let happened = values.iter().filter(|value| value.completed_before(time));
    let last_begun = happened.map(|value| value.begun_at).max().unwrap_or(0);
    values
        .iter()
        .filter(|value| !value.completed_before(last_begun))
        .map(|value| value.id)
        .collect()
}

struct InFlight {
    range: Range<u64>,
    id: u64,
    outcome: Outcome,
    submitted_at: u64,
    kind: What,
}

enum What {
    Write,
    Flush,
    Read(Buffer),
}

impl Oracle {
    fn new(sectors: u64, backing: Option<&[u8]>) -> Self {
        let initial = |sector: u64| {
            let at = (sector * SECTOR) as usize;
            let id = backing
                .and_then(|bytes| bytes.get(at..at + 8))
                .map_or(0, |_| 1 << 40 | sector);
            vec![Value {
                id,
                begun_at: 0,
                completed_at: Some(0),
            }]
        };
        Self {
            sectors: (0..sectors).map(initial).collect(),
            clock: 1,
            durable_until: 0,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn begun(&mut self, range: Range<u64>, id: u64, begun_at: u64) {
        for sector in range {
            self.sectors[sector as usize].push(Value {
                id,
                begun_at,
                completed_at: None,
            });
        }
    }

    fn completed(&mut self, done: &InFlight) {
        let now = self.tick();
        match &done.kind {
            What::Write => {
                for sector in done.range.clone() {
                    let values = &mut self.sectors[sector as usize];
                    let ours = |value: &&mut Value| value.id == done.id && value.begun_at == done.submitted_at;
                    values
                        .iter_mut()
                        .filter(ours)
                        .for_each(|value| value.completed_at = Some(now));
                }
            }
            What::Flush => self.durable_until = self.durable_until.max(done.submitted_at),
            What::Read(buffer) => {
                let bytes = buffer.to_vec();
                for (index, sector) in done.range.clone().enumerate() {
                    let values = &self.sectors[sector as usize];
                    expect(
                        sector,
                        &bytes[index * 512..][..512],
                        &allowed(values, done.submitted_at),
                    );
                }
            }
        }
    }

    /// Compares a whole disk, after a crash or without; afterwards what was found is all that is allowed.
    fn settle_on(&mut self, bytes: &[u8], crash: Option<CrashModel>) {
        // A kill keeps what completed, as no crash does.
        let time = if crash == Some(CrashModel::PowerLoss) {
            self.durable_until
        } else {
            self.tick()
        };
        for (sector, values) in self.sectors.iter_mut().enumerate() {
            let found = expect(sector as u64, &bytes[sector * 512..][..512], &allowed(values, time));
            *values = vec![Value {
                id: found,
                begun_at: 0,
                completed_at: Some(0),
            }];
        }
    }
}

/// The write that a sector comes from, which must be one of those that are allowed.
fn expect(sector: u64, bytes: &[u8], allowed: &[u64]) -> u64 {
    let found = sector_id(bytes).filter(|id| allowed.contains(id));
    found.unwrap_or_else(|| {
        let start = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        panic!("sector {sector} begins with {start:#x}; allowed are {allowed:x?}")
    })
}

/// Random requests, up to 32 at a time, in half of the runs overlapping ones too; stops in the middle after `count`.
fn workload(simulation: &mut Simulation, oracle: &mut Oracle, rng: &mut SmallRng, count: usize, next_id: &mut u64) {
    let mut in_flight: Vec<InFlight> = Vec::new();
    let sectors = simulation.capacity() / SECTOR;
    let depth = rng.random_range(1..=32);
    let may_overlap: bool = rng.random();
    for _ in 0..count {
        for _ in 0..rng.random_range(0..6) {
            simulation.step();
        }
        let done: Vec<_> = in_flight.extract_if(.., |request| request.outcome.is_done()).collect();
        for request in done {
            assert!(request.outcome.succeeded(), "a request failed");
            oracle.completed(&request);
        }
        let start = rng.random_range(0..sectors);
        let longest = (sectors - start).min(1 << rng.random_range(0..9));
        let range = start..start + rng.random_range(1..=longest);
        let overlaps = |other: &InFlight| other.range.start < range.end && range.start < other.range.end;
        if in_flight.len() >= depth || (!may_overlap && in_flight.iter().any(overlaps)) {
            continue;
        }
        *next_id += 1;
        let (offset, length) = (range.start * SECTOR, (range.end - range.start) * SECTOR);
        let (id, range, kind, command) = match rng.random_range(0..16) {
            0 | 1 => (*next_id, 0..0, What::Flush, Command::Flush),
            2 | 3 => {
                let buffer = Buffer::zeroed(length as usize);
                (
                    *next_id,
                    range,
                    What::Read(buffer.clone()),
                    Command::Read { offset, buffer },
                )
            }
            4 => (0, range, What::Write, Command::WriteZeroes { offset, length }),
            _ => {
                let bytes: Vec<u8> = range.clone().flat_map(|_| sector_bytes(*next_id)).collect();
                (
                    *next_id,
                    range,
                    What::Write,
                    Command::Write {
                        offset,
                        buffer: Buffer::from_slice(&bytes),
                    },
                )
            }
        };
        let submitted_at = oracle.tick();
        if matches!(kind, What::Write) {
            oracle.begun(range.clone(), id, submitted_at);
        }
        let outcome = simulation.submit(command);
        in_flight.push(InFlight {
            range,
            id,
            outcome,
            submitted_at,
            kind,
        });
    }
    // What is done now was acknowledged before the crash.
    for request in in_flight.extract_if(.., |request| request.outcome.is_done()) {
        assert!(request.outcome.succeeded(), "a request failed");
        oracle.completed(&request);
    }
}

fn read_all(simulation: &mut Simulation) -> Vec<u8> {
    let buffer = Buffer::zeroed(simulation.capacity() as usize);
    let outcome = simulation.submit(Command::Read {
        offset: 0,
        buffer: buffer.clone(),
    });
    simulation.settle();
    assert!(outcome.succeeded(), "reading everything failed");
    buffer.to_vec()
}

#[test]
fn a_closed_image_holds_what_was_written_and_leaks_nothing() {
    for seed in seeds(1000) {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let (options, backing) = random_image(&mut rng);
        let mut image = options.metadata().expect("valid options");
        let mut oracle = Oracle::new(options.size / SECTOR, backing.as_deref());
        let mut next_id = 0;
        for _ in 0..2 {
            let mut simulation = Simulation::open(image, backing.clone(), None, rng.random()).expect("opens");
            workload(&mut simulation, &mut oracle, &mut rng, 120, &mut next_id);
            simulation.settle();
            oracle.settle_on(&read_all(&mut simulation), None);
            image = simulation.close().expect("closes");
            let report = check(&image);
            assert!(report.is_clean(), "{report:?}");
        }
    }
}

#[test]
fn after_a_crash_every_sector_is_old_or_new_and_refcounts_cover_references() {
    for seed in seeds(1000) {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let (options, backing) = random_image(&mut rng);
        let mut image = options.metadata().expect("valid options");
        let mut oracle = Oracle::new(options.size / SECTOR, backing.as_deref());
        let mut next_id = 0;
        let mut left_behind = None;
        // Crash, recover, go on, and crash again.
        for _ in 0..3 {
            let mut simulation = Simulation::open(image, backing.clone(), left_behind, rng.random()).expect("opens");
            let count = rng.random_range(1..150);
            workload(&mut simulation, &mut oracle, &mut rng, count, &mut next_id);
            let model = if rng.random() {
                CrashModel::Kill
            } else {
                CrashModel::PowerLoss
            };
            (image, left_behind) = simulation.crash(model);
            let report = check(&image);
            assert!(report.corruptions.is_empty(), "after {model:?}: {report:?}");
            let mut after =
                Simulation::open(image.clone(), backing.clone(), left_behind.clone(), rng.random()).expect("recovers");
            oracle.settle_on(&read_all(&mut after), Some(model));
            let report = check(&after.close().expect("closes"));
            assert!(report.is_clean(), "after recovery from {model:?}: {report:?}");
        }
    }
}
