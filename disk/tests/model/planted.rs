//! The proof that the simulation can fail: bugs that are planted on purpose, and the seeds that catch them.

use std::time::Instant;

use disk::planted_bug::{Bug, plant};

use super::campaign::explore;
use super::generate::{Kind, generate};

/// How a bug was caught.
pub struct Caught {
    pub bug: Bug,
    /// So many scripts were needed, and that is how the last failed; `None` if none of so many did.
    pub failure: Option<String>,
    pub scripts: u64,
    pub seconds: f64,
}

/// Runs scripts of both kinds in turn, the same for each bug, until one fails or there were `most` of them.
pub fn hunt(bug: Bug, most: u64) -> Caught {
    let begin = Instant::now();
    let script_of = |number| {
        let kind = if number % 4 == 0 { Kind::Life } else { Kind::Crashes };
        generate(number, kind)
    };
    let result = explore(0..most, script_of, || plant(Some(bug)), |_| false);
    let scripts = result.failure.as_ref().map_or(most, |failed| failed.seed + 1);
    Caught {
        bug,
        failure: result.failure.map(|failed| failed.failure.message),
        scripts,
        seconds: begin.elapsed().as_secs_f64(),
    }
}
