//! What a campaign of kills found, as numbers and as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// Everything that a campaign reports.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// What was run: "bare-metal" or "linux".
    pub guest: String,
    /// The seed that decided it.
    pub seed: u64,
    /// Processes that were killed.
    pub kills: u64,
    /// Kills from outside, at a random moment.
    pub random_kills: u64,
    /// Kills at a failpoint.
    pub failpoint_kills: u64,
    /// Kills during open, before the guest ran.
    pub kills_during_open: u64,
    /// Images that were used up.
    pub images: u64,
    /// Closed in an orderly way in between, and checked then.
    pub clean_ends: u64,
    /// Times that `qemu-img check` found the image free of corruption and of leaks.
    pub checks: u64,
    /// Completed writes that were looked for, counted in sectors (bare metal) or acknowledgements (Linux).
    pub acknowledged: u64,
    /// Requests that were in flight at the kill.
    pub in_flight: u64,
    /// Clusters that recovery reclaimed.
    pub leaks_reclaimed: u64,
    /// Metadata slices that recovery wrote back from a killed process's cache file.
    pub slices_recovered: u64,
    /// Where the kills fell: for each point of the write path, the last one passed before the kill.
    pub points: BTreeMap<String, Kills>,
    /// From a process's start to its guest's first instruction, where it had to recover.
    pub recovery: Spread,
    /// The same, where it had not.
    pub clean_open: Spread,
    /// Seconds that it took.
    pub seconds: f64,
    /// What went wrong.
    pub failures: Vec<Failure>,
}

/// Kills behind one point.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Kills {
    /// At random moments.
    pub random: u64,
    /// Exactly there.
    pub failpoint: u64,
    /// How often processes passed it in all.
    pub passed: u64,
}

/// How long something took, in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Spread {
    /// How often it was measured.
    pub count: usize,
    /// The middle one.
    pub median: f64,
    /// 99 of 100 took no longer.
    pub p99: f64,
    /// The longest.
    pub longest: f64,
}

/// A promise that did not hold.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// What repeats the workload.
    pub seed: u64,
    /// Which image, and which session on it.
    pub place: String,
    /// What was found.
    pub what: String,
}

impl Spread {
    /// Of these times.
    pub fn of(times: &[Duration]) -> Self {
        let mut times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (times.len() as f64 * share) as usize;
            times
                .get(index.min(times.len().saturating_sub(1)))
                .copied()
                .unwrap_or(0.0)
        };
        Self {
            count: times.len(),
            median: at(0.5),
            p99: at(0.99),
            longest: at(1.0),
        }
    }
}
