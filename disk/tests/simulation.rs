//! The engine on the simulated disk: random operations in random order of completion, against a model in memory; and
//! crashes at random moments. Each run is repeated by its seed: `SPINDLE_SEED=n` runs just that one, `SPINDLE_SEEDS=n` so many.
//! What fails is shrunk and printed as a test.

mod judge;
mod model;

use std::ops::Range;

use disk::simulation::CrashModel::{Kill, PowerLoss};
use model::campaign::campaign;
use model::generate::Kind;
use model::machine::run;
use model::script::{Below, Compressed, Op, Script, Shape};

fn seeds(default: u64) -> Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    match number("SPINDLE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SPINDLE_SEEDS").unwrap_or(default),
    }
}

/// Runs a script that a failure was shrunk to.
#[track_caller]
fn replay(script: &Script) {
    if let Err(failure) = run(script) {
        panic!("op {}: {}", failure.op, failure.message);
    }
}

#[test]
fn ten_thousand_lives_of_a_disk_end_as_the_model_does() {
    let result = campaign(seeds(10_000), Kind::Life, |_| false);
    println!("{} seeds, {:?}, {:.1} s", result.seeds, result.tally, result.seconds);
    if let Some(failed) = &result.failure {
        panic!("{}", failed.text(Kind::Life));
    }
}

#[test]
fn after_any_of_ten_thousand_crashes_the_promises_hold() {
    let result = campaign(seeds(u64::MAX), Kind::Crashes, |tally| tally.states() >= 10_000);
    println!(
        "{} states, {:?}, {:.1} s",
        result.tally.states(),
        result.tally,
        result.seconds
    );
    if let Some(failed) = &result.failure {
        panic!("{}", failed.text(Kind::Crashes));
    }
}

/// An image without anything special.
const PLAIN: Shape = Shape {
    version: 3,
    cluster_bits: 9,
    refcount_order: 4,
    lazy_refcounts: false,
    sectors: 96,
    largest: 160,
    below: Below::Nothing,
    compressed: Compressed::None,
    filled: 0,
    cache_bytes: 0,
};

/// Snapshots, and a disk that has something in all of its clusters and in some twice.
fn grown_up() -> Vec<Op> {
    vec![
        Op::Write { at: 0, sectors: 96 },
        Op::Settle,
        Op::Create,
        Op::Settle,
        Op::Write { at: 10, sectors: 30 },
        Op::Discard { at: 50, sectors: 9 },
        Op::Settle,
        Op::Create,
        Op::Settle,
        Op::Write { at: 30, sectors: 5 },
        Op::Settle,
    ]
}

#[test]
fn a_crash_after_any_storage_operation_of_a_change_leaves_the_old_state_or_the_new() {
    let changes = [Op::Create, Op::Apply(0), Op::Delete(0), Op::Resize(150), Op::Resize(40)];
    for (change, model) in changes
        .into_iter()
        .flat_map(|change| [(change, Kill), (change, PowerLoss)])
    {
        let mut states = 0;
        for count in 0.. {
            let mut ops = grown_up();
            // Requests before it and behind it.
            ops.extend([
                Op::Write { at: 5, sectors: 4 },
                change,
                Op::Write { at: 20, sectors: 3 },
            ]);
            ops.extend([
                Op::Steps { count, order: 7 },
                Op::Crash {
                    model,
                    first: 0,
                    count: 4,
                    seed: 7,
                },
            ]);
            let ended = run(&Script { shape: PLAIN, ops });
            let tally = ended.unwrap_or_else(|failure| {
                panic!("{change:?}, {model:?} after {count} operations: {}", failure.message);
            });
            states += tally.states();
            if tally.in_flight_at_crash == 0 {
                println!("{change:?}, {model:?}: {count} operations, {states} states");
                break;
            }
        }
    }
}

/// The zeros waited for the snapshot, which made the disk longer; then they took what was behind the old end for no one's.
#[test]
fn zeros_up_to_the_end_of_the_disk_end_there_when_a_snapshot_has_moved_it() {
    replay(&Script {
        shape: Shape {
            cluster_bits: 14,
            sectors: 579,
            largest: 813,
            below: Below::Raw(630),
            ..PLAIN
        },
        ops: vec![
            Op::Create,
            Op::Settle,
            Op::Resize(115),
            Op::Settle,
            Op::Apply(2),
            Op::Zero { at: 96, sectors: 32 },
        ],
    });
}

/// Version 2 has no dirty bit that would tell of a crash.
#[test]
fn leaks_of_a_version_2_image_are_reclaimed() {
    replay(&Script {
        shape: Shape {
            version: 2,
            cluster_bits: 13,
            sectors: 547,
            largest: 868,
            ..PLAIN
        },
        ops: vec![
            Op::Write { at: 0, sectors: 1 },
            Op::Steps { count: 6, order: 0 },
            Op::Crash {
                model: Kill,
                first: 13,
                count: 1,
                seed: 1,
            },
        ],
    });
}

/// A process was killed after it had unlinked, the next counted the references and lost power: the refcounts were on the disk, and the
/// unlinking was not.
#[test]
fn recovery_makes_durable_what_it_counts() {
    // The unlinking is written behind the first barrier of the discard, and the refcounts before the last one of the recovery.
    for (barriers, barriers_of_recovery) in [1, 2, 3]
        .into_iter()
        .flat_map(|barriers| [(barriers, 1), (barriers, 2)])
    {
        replay(&Script {
            shape: Shape { version: 2, ..PLAIN },
            ops: vec![
                Op::Write { at: 8, sectors: 4 },
                Op::Settle,
                Op::Discard { at: 8, sectors: 4 },
                Op::ToBarrier { barriers, order: 0 },
                Op::LossInRecovery {
                    barriers: barriers_of_recovery,
                    first: 0,
                    count: 64,
                    seed: 0,
                },
            ],
        });
    }
}
