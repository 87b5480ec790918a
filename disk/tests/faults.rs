//! Each storage call of a workload fails in turn, once, with each error: whoever needed it is told, nobody else is, and the image
//! stays consistent.
//!
//! `SPINDLE_SEED=n` runs the workload of that seed.

mod judge;
mod stamps;

use disk::simulation::{Outcome, Simulation};
use disk::{Command, CreateOptions};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use stamps::{Crashes, History, SECTOR, ids, read_all};

const SECTORS: u64 = 1024;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Requests of a round go side by side, each in its own part of the disk.
const SIDE_BY_SIDE: u64 = 4;
const ROUNDS: u64 = 5;

/// Runs the workload of a seed. Returns the outcomes of its flushes.
fn workload(simulation: &mut Simulation, history: &mut History, seed: u64) -> Vec<Outcome> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let part = SECTORS / SIDE_BY_SIDE;
    let mut flushes = Vec::new();
    for round in 0..ROUNDS {
        for slot in 0..SIDE_BY_SIDE {
            let start = slot * part + rng.random_range(0..part - 1);
            let end = (start + rng.random_range(1..64)).min((slot + 1) * part);
            match rng.random_range(0..6) {
                0 => history.discard(simulation, start..end),
                1 => history.write_zeroes(simulation, start..end),
                _ => history.write(simulation, start..end, 1 + round * SIDE_BY_SIDE + slot),
            };
        }
        if rng.random() {
            flushes.push(simulation.submit(Command::Flush));
        }
        simulation.settle();
    }
    flushes
}

/// Call number `skip` of one name fails with `errno`. Returns false when the workload makes fewer calls.
fn fails(options: &CreateOptions, name: &'static str, skip: usize, errno: i32, seed: u64) -> bool {
    let case = format!("seed {seed}: {name} number {skip} fails with errno {errno}");
    println!("{case}");
    let image = options.metadata().expect("valid");
    let mut simulation = Simulation::open(image, None, None, seed).expect("opens");
    let mut history = History::new(vec![0; SECTORS as usize]);
    simulation.disk().inject(name, skip, 1, errno);
    let flushes = workload(&mut simulation, &mut history, seed);
    let met = simulation.disk().faults_left() == 0;
    if !met {
        let succeeded = history.all_succeeded() && flushes.iter().all(Outcome::succeeded);
        assert!(succeeded, "{case}: a request failed without a reason");
        return false;
    }
    if name == "fdatasync" {
        // What the host dropped then, nobody knows: no later flush may claim that it is there.
        let last = simulation.submit(Command::Flush);
        simulation.settle();
        assert!(last.is_done() && !last.succeeded(), "{case}: a later flush succeeded");
    }
    // What it looks like if the process ends here, and if it goes on and closes.
    Crashes::default().look(&mut simulation, &history);
    if name == "fdatasync" {
        assert!(
            simulation.close().is_err(),
            "{case}: closing claims that all is durable"
        );
        return true;
    }
    let found = ids(&read_all(&mut simulation));
    let allowed = history.allowed(disk::simulation::CrashModel::Kill);
    for (sector, (id, allowed)) in found.iter().zip(&allowed).enumerate() {
        assert!(
            allowed.contains(id),
            "{case}: sector {sector} is of write {id}, not {allowed:?}"
        );
    }
    let closed = simulation.close().unwrap_or_else(|error| panic!("{case}: {error}"));
    let report = judge::check(&closed);
    assert!(report.is_clean(), "{case}: {report:?}");
    let mut again = Simulation::open(closed, None, None, seed).expect("opens");
    assert!(
        ids(&read_all(&mut again)) == found,
        "{case}: the closed image holds something else"
    );
    true
}

#[test]
fn a_storage_call_that_fails_fails_its_request_and_nothing_else() {
    let chosen = std::env::var("SPINDLE_SEED")
        .ok()
        .and_then(|seed| seed.parse::<u64>().ok());
    let seeds = chosen.map_or(0..3, |seed| seed..seed + 1);
    for seed in seeds {
        for (cluster_bits, refcount_order) in [(9, 6), (12, 4)] {
            let mut options = CreateOptions::new(SECTORS * SECTOR);
            options.cluster_bits = cluster_bits;
            options.refcount_order = refcount_order;
            for name in ["read", "write", "fdatasync"] {
                for errno in [EIO, ENOSPC] {
                    // The first call: opening is done by then.
                    let calls = (0..)
                        .take_while(|&skip| fails(&options, name, skip, errno, seed))
                        .count();
                    println!("{calls} calls of {name}");
                }
            }
        }
    }
}
