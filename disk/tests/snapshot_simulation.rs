//! Snapshots and resizes on the simulated disk, with guest requests before and behind them: crashed after every storage
//! operation, with every storage operation failing in turn, and at random over a longer life. The oracle is a flat model of the disk and
//! of each snapshot. `SPINDLE_SEED=n` runs just that seed, `SPINDLE_SEEDS=n` so many.

use std::collections::HashMap;
use std::ops::Range;

use disk::simulation::{CrashModel, Outcome, Simulation};
use disk::{BackingReference, Buffer, Command, CreateOptions};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const SECTOR: u64 = 512;
/// EIO, as Linux numbers it.
const EIO: i32 = 5;

const MODELS: [CrashModel; 2] = [CrashModel::Kill, CrashModel::PowerLoss];

fn seeds(default: u64) -> Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("SPINDLE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SPINDLE_SEEDS").unwrap_or(default),
    }
}

/// A disk by sectors: the number of the write that each comes from, 0 for zeros.
type Sectors = Vec<u64>;

/// What an image holds: the active disk and its snapshots.
#[derive(Clone, Debug, PartialEq)]
struct State {
    active: Sectors,
    snapshots: Vec<(String, Sectors)>,
}

/// What happens to the image as a whole.
#[derive(Clone, Debug)]
enum Change {
    Create(String),
    Apply(String),
    Delete(String),
    /// To so many sectors.
    Resize(u64),
}

impl Change {
    fn submit(&self, simulation: &Simulation) -> Outcome {
        match self {
            Change::Create(name) => simulation.snapshot_create(name),
            Change::Apply(name) => simulation.snapshot_apply(name),
            Change::Delete(name) => simulation.snapshot_delete(name),
            Change::Resize(sectors) => simulation.resize(sectors * SECTOR, true),
        }
    }

    fn happen(&self, state: &State) -> State {
        let mut state = state.clone();
        match self {
            Change::Create(name) => state.snapshots.push((name.clone(), state.active.clone())),
            Change::Apply(name) => {
                let found = state.snapshots.iter().find(|(other, _)| other == name);
                state.active = found.expect("it exists").1.clone();
            }
            Change::Delete(name) => state.snapshots.retain(|(other, _)| other != name),
            Change::Resize(sectors) => state.active.resize(*sectors as usize, 0),
        }
        state
    }

    /// One that is possible in this state.
    fn random(state: &State, largest: u64, next_id: u64, rng: &mut SmallRng) -> Self {
        let some = |rng: &mut SmallRng| state.snapshots[rng.random_range(0..state.snapshots.len())].0.clone();
        let kinds = if state.snapshots.is_empty() { 2 } else { 4 };
        match rng.random_range(0..kinds) {
            0 if state.snapshots.len() < 4 => Change::Create(format!("snapshot {next_id}")),
            0 | 1 => Change::Resize(rng.random_range(1..=largest)),
            2 => Change::Apply(some(rng)),
            _ => Change::Delete(some(rng)),
        }
    }
}

/// A guest's write of one number to a range of sectors.
struct Write {
    range: Range<u64>,
    id: u64,
    outcome: Outcome,
}

impl Write {
    fn apply(&self, sectors: &mut Sectors) {
        let end = self.range.end.min(sectors.len() as u64);
        for sector in self.range.start..end {
            sectors[sector as usize] = self.id;
        }
    }
}

/// An image under test, and everything that is drawn at random for it.
struct Life {
    image: Vec<u8>,
    backing: Option<Vec<u8>>,
    state: State,
    largest: u64,
    next_id: u64,
    rng: SmallRng,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let cluster_bits = rng.random_range(9..=12);
        let largest = rng.random_range(64..=384);
        let sectors = rng.random_range(16..=largest);
        let mut options = CreateOptions::new(sectors * SECTOR);
        options.cluster_bits = cluster_bits;
        // Wide enough for as many snapshots as there will be.
        options.refcount_order = rng.random_range(3..=6);
        let backing = (rng.random_range(0..3) == 0).then(|| {
            // Longer than the disk, sometimes.
            let sectors = rng.random_range(1..=largest);
            (0..sectors)
                .flat_map(|sector| sector_bytes(1 << 40 | sector))
                .collect::<Vec<u8>>()
        });
        options.backing = backing.is_some().then(|| BackingReference {
            name: "base".into(),
            format: Some("raw".into()),
        });
        let backed = backing.as_ref().map_or(0, |bytes| bytes.len() as u64 / SECTOR);
        let active = (0..sectors)
            .map(|sector| if sector < backed { 1 << 40 | sector } else { 0 })
            .collect();
        Self {
            image: options.metadata().expect("valid options"),
            backing,
            state: State {
                active,
                snapshots: Vec::new(),
            },
            largest,
            next_id: 1,
            rng,
        }
    }

    fn open(&mut self, left_behind: Option<Vec<u8>>) -> Simulation {
        let seed = self.rng.random();
        Simulation::open(self.image.clone(), self.backing.clone(), left_behind, seed).expect("opens")
    }

    /// Submits up to `count` writes that keep clear of `taken`.
    fn submit_writes(&mut self, simulation: &Simulation, count: usize, taken: &mut Vec<Range<u64>>) -> Vec<Write> {
        let mut writes = Vec::new();
        let sectors = self.state.active.len() as u64;
        for _ in 0..count {
            let start = self.rng.random_range(0..sectors);
            let longest = (sectors - start).min(1 << self.rng.random_range(0..6));
            let range = start..start + self.rng.random_range(1..=longest);
            if taken
                .iter()
                .any(|other| other.start < range.end && range.start < other.end)
            {
                continue;
            }
            taken.push(range.clone());
            self.next_id += 1;
            let (offset, length) = (range.start * SECTOR, (range.end - range.start) * SECTOR);
            let id = if self.rng.random_range(0..5) == 0 {
                0
            } else {
                self.next_id
            };
            let command = if id == 0 {
                Command::WriteZeroes { offset, length }
            } else {
                let bytes: Vec<u8> = range.clone().flat_map(|_| sector_bytes(id)).collect();
                let buffer = Buffer::from_slice(&bytes);
                Command::Write { offset, buffer }
            };
            let outcome = simulation.submit(command);
            writes.push(Write { range, id, outcome });
        }
        writes
    }

    /// Writes, changes and closes until there is something to lose.
    fn grow_up(&mut self) {
        for change in 0..4 {
            let mut simulation = self.open(None);
            for _ in 0..2 {
                let writes = self.submit_writes(&simulation, 8, &mut Vec::new());
                simulation.settle();
                writes.iter().for_each(|write| write.apply(&mut self.state.active));
            }
            if change < 3 {
                self.next_id += 1;
                let change = match change {
                    0 | 2 => Change::Create(format!("snapshot {}", self.next_id)),
                    _ => Change::random(&self.state, self.largest, self.next_id, &mut self.rng),
                };
                let outcome = change.submit(&simulation);
                simulation.settle();
                assert!(outcome.succeeded(), "{change:?}: {:?}", outcome.error());
                self.state = change.happen(&self.state);
            }
            self.image = simulation.close().expect("closes");
            self.judge_closed();
        }
    }

    /// The closed image is whole, and holds exactly the state.
    fn judge_closed(&mut self) {
        let report = check(&self.image);
        assert!(
            report.corruptions.is_empty() && report.leaks == 0 && report.flags.is_empty(),
            "{report:?}"
        );
        let mut simulation = self.open(None);
        assert_eq!(read_all(&mut simulation), self.state.active, "the active disk");
        assert_eq!(simulation.snapshots(), names(&self.state));
        for (name, expected) in &self.state.snapshots {
            assert_eq!(&self.read_snapshot(name), expected, "{name}");
        }
    }

    /// Writes that complete; then others, `change`, and others again, all submitted at once, and a crash after `steps` storage
    /// operations. Settles on the state that is found after recovery, if it is one that the promises allow. Returns
    /// whether the change was complete.
    fn crash_after(&mut self, change: &Change, steps: usize, model: CrashModel) -> bool {
        let mut simulation = self.open(None);
        let mut taken = Vec::new();
        let completed = self.submit_writes(&simulation, 3, &mut taken);
        simulation.settle();
        let mut beside = self.submit_writes(&simulation, 3, &mut taken);
        let outcome = change.submit(&simulation);
        // Behind a resize they would find another disk than they were made for.
        if !matches!(change, Change::Resize(_)) {
            beside.extend(self.submit_writes(&simulation, 3, &mut taken));
        }
        for _ in 0..steps {
            simulation.step();
        }
        assert!(outcome.error().is_none(), "{change:?}: {:?}", outcome.error());
        let complete = outcome.is_done();
        let (image, left_behind) = simulation.crash(model);
        let report = check(&image);
        assert!(report.corruptions.is_empty(), "after {model:?}: {report:?}");
        self.image = image;
        let mut recovered = self.open(left_behind);
        let found = read_all(&mut recovered);
        let names_found = recovered.snapshots();
        self.image = recovered.close().expect("closes");

        let earlier: Vec<&Write> = completed.iter().chain(&beside).collect();
        let beside: Vec<&Write> = beside.iter().collect();
        let is_old = is_allowed(&self.state.active, &found, &earlier, model == CrashModel::Kill);
        let happened = names_found != names(&self.state)
            || match change {
                Change::Resize(sectors) => found.len() as u64 == *sectors,
                Change::Apply(_) => complete || !is_old,
                Change::Create(_) | Change::Delete(_) => false,
            };
        assert!(happened || !complete, "{change:?} was complete and is gone");
        if happened {
            // What was complete before the change became durable with it.
            completed.iter().for_each(|write| write.apply(&mut self.state.active));
            self.state = change.happen(&self.state);
            if let Change::Create(name) = change {
                let taken = self.read_snapshot(name);
                let (_, expected) = self.state.snapshots.last_mut().expect("just created");
                assert!(
                    is_allowed(expected, &taken, &beside, false),
                    "{taken:x?} not {expected:x?}"
                );
                *expected = taken;
            }
        }
        // What ran beside an apply may have been undone by it.
        let kept = model == CrashModel::Kill && !matches!(change, Change::Apply(_));
        let is_new = happened && is_allowed(&self.state.active, &found, &beside, kept);
        let expected = &self.state.active;
        assert!(
            is_new || (!happened && is_old),
            "{change:?}, happened: {happened}: found {found:x?} instead of {expected:x?}"
        );
        self.state.active = found;
        self.judge_closed();
        complete
    }

    /// What a snapshot in the closed image holds.
    fn read_snapshot(&self, name: &str) -> Sectors {
        let (image, backing) = (self.image.clone(), self.backing.clone());
        let mut snapshot = Simulation::open_snapshot(image, backing, name, 0).expect("opens");
        read_all(&mut snapshot)
    }
}

/// Whether `found` is `base` with some of the writes, by sectors; with those that completed, if they are `kept`.
fn is_allowed(base: &Sectors, found: &Sectors, writes: &[&Write], kept: bool) -> bool {
    let allowed = |sector: usize| {
        let write = writes.iter().find(|write| write.range.contains(&(sector as u64)));
        match write {
            Some(write) if kept && write.outcome.succeeded() => found[sector] == write.id,
            Some(write) => found[sector] == write.id || found[sector] == base[sector],
            None => found[sector] == base[sector],
        }
    };
    found.len() == base.len() && (0..found.len()).all(allowed)
}

fn names(state: &State) -> Vec<String> {
    state.snapshots.iter().map(|(name, _)| name.clone()).collect()
}

/// A sector that says which write it comes from.
fn sector_bytes(id: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn read_all(simulation: &mut Simulation) -> Sectors {
    let buffer = Buffer::zeroed(simulation.capacity() as usize);
    let outcome = simulation.submit(Command::Read {
        offset: 0,
        buffer: buffer.clone(),
    });
    simulation.settle();
    assert!(outcome.succeeded(), "reading everything: {:?}", outcome.error());
    let bytes = buffer.to_vec();
    let sector = |sector: &[u8]| {
        let id = u64::from_le_bytes(sector[..8].try_into().expect("eight bytes"));
        assert!(sector == sector_bytes(id), "a sector of two writes");
        id
    };
    bytes.chunks_exact(SECTOR as usize).map(sector).collect()
}

/// What an image's own tables say of its clusters: a judge that shares no code with the engine.
#[derive(Debug, Default)]
struct Report {
    /// Referenced more often than the refcount says, or marked as copied with another reference.
    corruptions: Vec<String>,
    /// Copied flags that do not say what the refcount says, and clusters that are mapped behind the end; both harmless.
    flags: Vec<String>,
    leaks: usize,
}

/// Reads tables of an image.
struct Tables<'a> {
    image: &'a [u8],
    bits: usize,
}

const OFFSET: usize = 0x00ff_ffff_ffff_fe00;
const COPIED: usize = 1 << 63;

impl Tables<'_> {
    fn number(&self, at: usize, bytes: usize) -> usize {
        let field = self.image.get(at..at + bytes).unwrap_or(&[]);
        field.iter().fold(0, |value, byte| value << 8 | usize::from(*byte))
    }

    fn size(&self) -> usize {
        1 << self.bits
    }

    /// Clusters of a table.
    fn span(&self, at: usize, bytes: usize) -> impl Iterator<Item = usize> + use<> {
        let first = at >> self.bits;
        first..first + bytes.div_ceil(self.size())
    }

    /// Clusters that are mapped behind the end of a disk of `size` bytes.
    fn behind(&self, size: usize, l1_at: usize, l1_size: usize) -> Vec<String> {
        let per_table = self.size() / 8;
        let first = size.div_ceil(self.size());
        let clusters = (first..l1_size * per_table).filter(|cluster| {
            let table = self.number(l1_at + cluster / per_table * 8, 8) & OFFSET;
            table != 0 && self.number(table + cluster % per_table * 8, 8) & OFFSET != 0
        });
        clusters
            .map(|cluster| format!("guest cluster {cluster} lies behind the end"))
            .collect()
    }

    /// L2 tables and data that an L1 table leads to: each entry that refers to a cluster.
    fn tree(&self, l1_at: usize, l1_size: usize) -> Vec<usize> {
        let mut entries = Vec::new();
        for l1_entry in (0..l1_size).map(|index| self.number(l1_at + index * 8, 8)) {
            if l1_entry == 0 {
                continue;
            }
            entries.push(l1_entry);
            let table = (0..self.size() / 8).map(|index| self.number((l1_entry & OFFSET) + index * 8, 8));
            entries.extend(table.filter(|entry| entry & OFFSET != 0));
        }
        entries
    }
}

fn check(image: &[u8]) -> Report {
    let mut tables = Tables { image, bits: 0 };
    tables.bits = tables.number(20, 4);
    let (l1_size, l1_at) = (tables.number(36, 4), tables.number(40, 8));
    let (table_at, table_clusters, order) = (tables.number(48, 8), tables.number(56, 4), tables.number(96, 4));
    let (snapshot_count, snapshots_at) = (tables.number(60, 4), tables.number(64, 8));

    let mut references: HashMap<usize, usize> = HashMap::new();
    let mut add = |cluster: usize| *references.entry(cluster).or_default() += 1;
    add(0);
    tables.span(l1_at, l1_size * 8).for_each(&mut add);
    tables.span(table_at, table_clusters * tables.size()).for_each(&mut add);
    let blocks: Vec<usize> = (0..table_clusters * tables.size() / 8)
        .map(|index| tables.number(table_at + index * 8, 8))
        .collect();
    blocks
        .iter()
        .filter(|block| **block != 0)
        .for_each(|block| add(*block >> tables.bits));
    let mut at = snapshots_at;
    for _ in 0..snapshot_count {
        let (snapshot_l1, size) = (tables.number(at, 8), tables.number(at + 8, 4));
        tables.span(snapshot_l1, size * 8).for_each(&mut add);
        tables
            .tree(snapshot_l1, size)
            .iter()
            .for_each(|entry| add((entry & OFFSET) >> tables.bits));
        let variable = tables.number(at + 12, 2) + tables.number(at + 14, 2) + tables.number(at + 36, 4);
        at += (40 + variable).next_multiple_of(8);
    }
    tables.span(snapshots_at, at - snapshots_at).for_each(&mut add);
    let active = tables.tree(l1_at, l1_size);
    active.iter().for_each(|entry| add((entry & OFFSET) >> tables.bits));

    let mapped_behind_the_end = tables.behind(tables.number(24, 8), l1_at, l1_size);

    let per_block = (tables.size() * 8) >> order;
    let refcount = |cluster: usize| match blocks.get(cluster / per_block) {
        None | Some(0) => 0,
        Some(block) => tables.number(block + (((cluster % per_block) << order) / 8), (1 << order) / 8),
    };
    let mut report = Report {
        flags: mapped_behind_the_end,
        ..Report::default()
    };
    for (&cluster, &count) in &references {
        let refcount = refcount(cluster);
        if refcount < count {
            let text = format!("cluster {cluster}: refcount {refcount} for {count} references");
            report.corruptions.push(text);
        }
    }
    for entry in active {
        let (cluster, copied) = ((entry & OFFSET) >> tables.bits, entry & COPIED != 0);
        if copied && references[&cluster] != 1 {
            report
                .corruptions
                .push(format!("cluster {cluster} is marked as copied"));
        }
        if copied != (refcount(cluster) == 1) {
            report.flags.push(format!("cluster {cluster}: copied is {copied}"));
        }
    }
    for cluster in 0..blocks.len() * per_block {
        report.leaks += refcount(cluster).saturating_sub(references.get(&cluster).copied().unwrap_or(0));
    }
    report
}

/// Each kind of change, as it can happen to this image.
fn changes(life: &Life) -> Vec<Change> {
    let some = life.state.snapshots.first().expect("there are snapshots").0.clone();
    let sectors = life.state.active.len() as u64;
    vec![
        Change::Create("new".into()),
        Change::Apply(some.clone()),
        Change::Delete(some),
        Change::Resize(sectors + 97),
        Change::Resize((sectors / 2).max(1)),
    ]
}

#[test]
fn a_crash_after_any_storage_operation_of_a_change_leaves_the_old_state_or_the_new() {
    for seed in seeds(2) {
        println!("seed {seed}");
        let mut prepared = Life::new(seed);
        prepared.grow_up();
        for (kind, model) in (0..5).flat_map(|kind| MODELS.map(|model| (kind, model))) {
            for steps in 0.. {
                let mut life = Life::new(seed);
                (life.image, life.state, life.next_id) =
                    (prepared.image.clone(), prepared.state.clone(), prepared.next_id);
                // The same requests in the same order of completion, cut off one operation later.
                life.rng = SmallRng::seed_from_u64(seed);
                let change = changes(&life).swap_remove(kind);
                println!("{change:?}, {model:?} after {steps} operations");
                if life.crash_after(&change, steps, model) {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_life_of_changes_and_crashes_keeps_every_snapshot() {
    for seed in seeds(40) {
        println!("seed {seed}");
        let mut life = Life::new(seed);
        for _ in 0..10 {
            life.next_id += 1;
            let change = Change::random(&life.state, life.largest, life.next_id, &mut life.rng);
            let steps = life.rng.random_range(0..400);
            let model = MODELS[life.rng.random_range(0..2)];
            life.crash_after(&change, steps, model);
        }
    }
}

#[test]
fn a_change_whose_storage_operation_fails_leaves_the_old_state_or_the_new() {
    for seed in seeds(2) {
        println!("seed {seed}");
        let mut prepared = Life::new(seed);
        prepared.grow_up();
        for (kind, operation) in (0..5).flat_map(|kind| ["read", "write", "fdatasync"].map(|name| (kind, name))) {
            for skip in 0.. {
                let mut life = Life::new(seed);
                (life.image, life.state, life.next_id) =
                    (prepared.image.clone(), prepared.state.clone(), prepared.next_id);
                let change = changes(&life).swap_remove(kind);
                println!("{change:?}, {operation} number {skip} fails");
                if !fail_one(&mut life, &change, operation, skip) {
                    break;
                }
            }
        }
    }
}

/// Makes one operation of a change fail, and looks at what is left. Returns whether there was such an operation.
fn fail_one(life: &mut Life, change: &Change, operation: &'static str, skip: usize) -> bool {
    let mut simulation = life.open(None);
    simulation.disk().inject(operation, skip, 1, EIO);
    let outcome = change.submit(&simulation);
    simulation.settle();
    let failed = outcome.error().is_some();
    assert!(failed || outcome.succeeded(), "{change:?} does not end");
    if simulation.disk().faults_left() > 0 {
        assert!(!failed, "{:?}", outcome.error());
        return false;
    }
    // The guest goes on, and what it flushes is kept, whichever state the image is in.
    let write = life.submit_writes(&simulation, 1, &mut Vec::new());
    simulation.settle();
    let flush = simulation.submit(Command::Flush);
    simulation.settle();
    let durable = flush.succeeded();
    let (image, left_behind) = simulation.crash(CrashModel::PowerLoss);
    let report = check(&image);
    assert!(report.corruptions.is_empty(), "{report:?}");
    life.image = image;
    let mut recovered = life.open(left_behind);
    let found = read_all(&mut recovered);
    let mut possible = Vec::new();
    let (old, new) = (life.state.clone(), change.happen(&life.state));
    if !failed || !durable {
        possible.push(new);
    }
    if failed {
        possible.push(old);
    }
    let fits = |state: &State| {
        let mut written = state.clone();
        write
            .iter()
            .filter(|write| write.outcome.succeeded())
            .for_each(|write| write.apply(&mut written.active));
        let sectors = |sector: usize| {
            found[sector] == written.active[sector] || (!durable && found[sector] == state.active[sector])
        };
        names(state) == recovered.snapshots() && found.len() == state.active.len() && (0..found.len()).all(sectors)
    };
    let state = possible.into_iter().find(fits);
    let mut state = state.unwrap_or_else(|| {
        let (expected, error) = (&life.state, outcome.error());
        panic!(
            "{error:?}, durable: {durable}: found {found:x?}, {:?}; was {expected:x?}",
            recovered.snapshots()
        )
    });
    state.active = found;
    life.state = state;
    life.image = recovered.close().expect("closes");
    life.judge_closed();
    true
}
