//! Many seeds, on all processors.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::Instant;

use super::faults::{Ended, Fault, KINDS, run_with};
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

thread_local! {
    /// This thread expects panics, and reports them itself.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// From now on what panics in this thread is not printed.
fn be_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
}

/// Runs scripts from these seeds until one fails, or `enough` has been seen, and shrinks what failed.
pub fn campaign(seeds: Range<u64>, kind: Kind, enough: impl Fn(&Tally) -> bool + Sync) -> Result {
    let mut result = explore(seeds, |seed| generate(seed, kind), || (), enough);
    if let Some(failed) = &mut result.failure {
        QUIET.set(true);
        (failed.script, failed.failure) = shrink(&failed.script, &failed.failure);
        QUIET.set(false);
    }
    result
}

/// The same without shrinking, with threads that are prepared. Seeds are taken in order, so the first that fails is found.
pub fn explore(
    seeds: Range<u64>,
    script_of: impl Fn(u64) -> Script + Sync,
    prepare: impl Fn() + Sync,
    enough: impl Fn(&Tally) -> bool + Sync,
) -> Result {
    let begin = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let result = Mutex::new(Result::default());
    let work = || {
        be_quiet();
        prepare();
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let script = script_of(seed);
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
    result.seconds = begin.elapsed().as_secs_f64();
    result
}

/// A seed whose script did not hold with a fault.
#[derive(Clone, Debug)]
pub struct Broken {
    pub seed: u64,
    pub fault: Fault,
    pub message: String,
}

/// What a campaign of faults has seen.
#[derive(Debug, Default)]
pub struct Faults {
    pub tally: Tally,
    pub runs: u64,
    pub seconds: f64,
    pub broken: Option<Broken>,
}

/// Fails each storage call of the scripts of these seeds in each way, one run each.
pub fn fail_each_call(seeds: Range<u64>) -> Faults {
    let begin = Instant::now();
    let ways: Vec<(u64, usize, bool)> = seeds
        .flat_map(|seed| (0..KINDS.len()).flat_map(move |kind| [false, true].map(|lasts| (seed, kind, lasts))))
        .collect();
    let next = AtomicU64::new(0);
    let result = Mutex::new(Faults::default());
    let work = || {
        be_quiet();
        while let Some(&(seed, kind, lasts)) = ways.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            let script = generate(seed, Kind::Faults);
            let (name, kind) = KINDS[kind];
            for skip in 0.. {
                let fault = Fault {
                    name,
                    kind,
                    lasts,
                    skip,
                };
                let ended = run_with(&script, fault);
                let mut result = result.lock().expect("not poisoned");
                if result.broken.is_some() {
                    return;
                }
                match ended {
                    Ok(Ended::NotMet) => break,
                    Ok(Ended::Held(tally)) => {
                        result.tally.add(&tally);
                        result.runs += 1;
                    }
                    Err(message) => {
                        result.broken = Some(Broken { seed, fault, message });
                        return;
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
    result.seconds = begin.elapsed().as_secs_f64();
    result
}
