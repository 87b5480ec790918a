//! `cargo xtask simulate`: the disk engine on the simulated disk, by the million crash states.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use system_tests::workspace_folder;

/// Lives without crashes, and crash states, where the command line asks for nothing.
const DEFAULT_SEEDS: u64 = 10_000;
const DEFAULT_STATES: u64 = 100_000;

/// Run the disk engine on a simulated disk: random requests, completions in random order, crashes, faults; one seed decides all
///
/// A seed that fails is shrunk to the fewest operations and printed as a test to paste; `--seed` repeats it. docs/crash-safety.md says
/// what is checked.
#[derive(clap::Args)]
pub struct Options {
    /// How many lives of a disk without crashes, each of one seed
    #[arg(long, value_name = "N", conflicts_with = "seed")]
    seeds: Option<u64>,

    /// Just this seed: of a life, and of crashes
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,

    /// How many crash states to look at
    #[arg(long, value_name = "N", conflicts_with = "seed")]
    states: Option<u64>,

    /// The seed that crashes begin with
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    first_seed: u64,

    /// Let each storage call of N scripts fail, in each way
    #[arg(long, value_name = "N")]
    faults: Option<u64>,

    /// Plant bugs, one after the other, and catch each within N scripts
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "1000")]
    planted_bugs: Option<u64>,

    /// A folder for simulate.json
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// Runs all of that; the exit code is 0 if everything held.
pub fn simulate(options: &Options) -> Result<ExitCode> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args([
            "run",
            "--profile",
            "simulation",
            "--package",
            "disk",
            "--example",
            "simulate",
        ])
        .arg("--manifest-path")
        .arg(workspace_folder().join("Cargo.toml"));
    if options.planted_bugs.is_some() {
        command.args(["--features", "planted-bugs"]);
    }
    let own: Vec<String> = env::args().skip(1).collect();
    command
        .arg("--")
        .env("SPINDLE_COMMAND_LINE", format!("cargo xtask {}", own.join(" ")));
    for (name, value) in numbers(options) {
        command.arg(name).arg(value.to_string());
    }
    if let Some(folder) = &options.report {
        command.arg("--report").arg(folder);
    }
    let status = command.status().context("Cannot run cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What the simulation is told.
fn numbers(options: &Options) -> Vec<(&'static str, u64)> {
    let asked = [
        ("--seeds", options.seeds),
        ("--seed", options.seed),
        ("--states", options.states),
        ("--faults", options.faults),
        ("--planted-bugs", options.planted_bugs),
    ];
    let mut numbers: Vec<_> = asked
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
    if numbers.is_empty() {
        numbers = vec![("--seeds", DEFAULT_SEEDS), ("--states", DEFAULT_STATES)];
    }
    numbers.push(("--first-seed", options.first_seed));
    numbers
}
