//! Each storage call of a script fails in turn, in each way, once or until the device is mended: whoever needed it is told, what
//! nobody was told of is there, and the image stays consistent.
//!
//! `SPINDLE_SEED=n` runs the script of that seed, `SPINDLE_SEEDS=n` so many.

mod judge;
mod model;

use model::campaign::fail_each_call;
use model::generate::{Kind, generate};

#[test]
fn a_storage_call_that_fails_fails_its_request_and_nothing_else() {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seeds = match number("SPINDLE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SPINDLE_SEEDS").unwrap_or(4),
    };
    let result = fail_each_call(seeds);
    println!("{} calls, {:?}, {:.1} s", result.runs, result.tally, result.seconds);
    if let Some(broken) = &result.broken {
        let script = generate(broken.seed, Kind::Faults);
        panic!(
            "{script:#?}\nseed {}, {:?}: {}",
            broken.seed, broken.fault, broken.message
        );
    }
}
