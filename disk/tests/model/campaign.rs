//! Many seeds, on all processors.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use super::generate::{Kind, generate};
use super::machine::{Failure, Tally, run};
use super::script::Script;
use super::shrink::shrink;

/// What a campaign has seen.
#[derive(Debug, Default)]
pub struct Result {
    pub tally: Tally,
    pub seeds: u64,
    pub seconds: f64,
    /// The first seed that failed, shrunk.
    pub failure: Option<Failed>,
}

/// A seed that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    pub seed: u64,
    pub failure: Failure,
    pub script: Script,
}

impl Failed {
    /// The seed, what went wrong, and a test to paste.
    pub fn text(&self, kind: Kind) -> String {
        let message = &self.failure.message;
        let test = self
            .script
            .as_test(&format!("{kind:?}_of_seed_{}", self.seed).to_lowercase());
        format!(
            "seed {} of {kind:?}: {message}\n\nThe same, in {} operations:\n\n{test}",
            self.seed,
            self.script.ops.len()
        )
    }
}

/// Runs scripts from these seeds until one fails, or `enough` has been seen.
pub fn campaign(seeds: Range<u64>, kind: Kind, enough: impl Fn(&Tally) -> bool + Sync) -> Result {
    let begin = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let result = Mutex::new(Result::default());
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let script = generate(seed, kind);
            let ended = run(&script);
            let mut result = result.lock().expect("not poisoned");
            match ended {
                Ok(tally) => {
                    result.tally.add(&tally);
                    result.seeds += 1;
                    if enough(&result.tally) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                Err(failure) => {
                    stop.store(true, Ordering::Relaxed);
                    if result.failure.as_ref().is_none_or(|other| other.seed > seed) {
                        result.failure = Some(Failed { seed, failure, script });
                    }
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut result = result.into_inner().expect("not poisoned");
    if let Some(failed) = &mut result.failure {
        (failed.script, failed.failure) = shrink(&failed.script, &failed.failure);
    }
    result.seconds = begin.elapsed().as_secs_f64();
    result
}
