//! `cargo xtask simulate`: the disk engine on the simulated disk, seed by seed.

use std::env;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use system_tests::workspace_folder;

/// Run the disk engine on a simulated disk: random requests, completions in random order, crashes; one seed decides all
///
/// A seed that fails is printed; `--seed` repeats it.
#[derive(clap::Args)]
pub struct Options {
    /// How many seeds, from 0 on
    #[arg(long, value_name = "N", default_value_t = 10_000, conflicts_with = "seed")]
    seeds: u64,

    /// Just this seed
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
}

/// Runs them; the exit code is 0 if all held.
pub fn simulate(options: &Options) -> Result<ExitCode> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace_folder())
        .args(["test", "--release", "--package", "disk", "--test", "simulation"])
        .env_remove("SPINDLE_SEED")
        .env("SPINDLE_SEEDS", options.seeds.to_string());
    if let Some(seed) = options.seed {
        command.env("SPINDLE_SEED", seed.to_string());
    }
    let status = command.status().context("Cannot run cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
