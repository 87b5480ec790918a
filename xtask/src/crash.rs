//! `cargo xtask crash`: spindle killed by SIGKILL, thousands of times.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use disk::failpoint;
use system_tests::crash::{BareMetalCampaign, Failure, LinuxCampaign, Tally, run_bare_metal, run_linux};
use system_tests::{HostKind, target_folder};

use crate::progress::{crash_spindle, prepare_linux, store_with_progress};
use crate::report;
use crate::setup::install_missing;

/// Kill spindle in the middle of a guest's work, open the disk again, compare every sector, and go on
///
/// First under a bare-metal guest that logs each completed command in memory that outlives the kill, then under a stock Linux on
/// ext4. Kills come at random moments and at the points of `disk/src/failpoint.rs`. See docs/crash-testing.md.
#[derive(clap::Args)]
pub struct Options {
    /// How many processes to kill under the bare-metal guest
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    kills: u64,

    /// How many under the Linux guest
    #[arg(long, value_name = "M", default_value_t = 0)]
    linux_kills: u64,

    /// Decides images, workloads and kills; drawn, and printed, if it is not said
    #[arg(long, value_name = "S")]
    seed: Option<u64>,

    /// A static binary with failpoints, instead of one that is built now
    #[arg(long, value_name = "FILE")]
    spindle: Option<PathBuf>,

    /// Write crash.json and the report into this folder
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// Runs it; the exit code is 0 if all held.
pub fn crash(options: &Options) -> Result<ExitCode> {
    install_missing(HostKind::detect())?;
    let seed = options.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let (store, progress) = store_with_progress()?;
    if options.linux_kills > 0 {
        prepare_linux(&store)?;
    }
    let spindle = crash_spindle(options.spindle.as_deref(), &progress)?;
    progress.finish_and_clear();
    eprintln!("seed {seed}");
    let mut tallies = Vec::new();
    if options.kills > 0 {
        let campaign = BareMetalCampaign {
            spindle: &spindle,
            failpoints: failpoint::NAMES,
            kills: options.kills,
            seed,
            folder: &target_folder().join("crash"),
        };
        let (mut next, mut failures) = (0, 0);
        let tally = run_bare_metal(&campaign, |tally| {
            tally.failures[failures..].iter().for_each(say_failure);
            failures = tally.failures.len();
            if tally.kills >= next {
                next = tally.kills + 250;
                tell(tally);
            }
        });
        tallies.push(tally.context("The kills under the bare-metal guest cannot go on")?);
    }
    if options.linux_kills > 0 {
        let campaign = LinuxCampaign {
            spindle: &spindle,
            failpoints: failpoint::NAMES,
            kills: options.linux_kills,
            seed,
        };
        tallies.push(run_linux(&campaign, tell).context("The kills under the Linux guest cannot go on")?);
    }
    for tally in &tallies {
        print(tally);
    }
    if let Some(folder) = &options.report {
        report::write(folder, "crash", &tallies)?;
    }
    let held = tallies.iter().all(|tally| tally.failures.is_empty());
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(tally: &Tally) {
    eprintln!(
        "{}: {} kills ({} at failpoints), {} failures",
        tally.guest,
        tally.kills,
        tally.failpoint_kills,
        tally.failures.len()
    );
}

fn print(tally: &Tally) {
    println!(
        "{}: {} kills in {:.0} s ({} at random, {} at failpoints; {} during open); {} images, {} found clean by qemu-img check;",
        tally.guest,
        tally.kills,
        tally.seconds,
        tally.random_kills,
        tally.failpoint_kills,
        tally.kills_during_open,
        tally.images,
        tally.checks
    );
    println!(
        "  {} acknowledgements looked for, {} leaked clusters reclaimed; recovery {:.0} ms (99 %: {:.0} ms); failures: {}",
        tally.acknowledged,
        tally.leaks_reclaimed,
        tally.recovery.median,
        tally.recovery.p99,
        tally.failures.len()
    );
    tally.failures.iter().for_each(say_failure);
}

fn say_failure(failure: &Failure) {
    eprintln!("FAILED, seed {}: {}: {}", failure.seed, failure.place, failure.what);
}
