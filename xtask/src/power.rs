//! `cargo xtask power`: what a power loss of the host leaves of an image.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use system_tests::crash::{Column, LinuxPowerCampaign, PowerCampaign, run_linux_power, run_power};
use system_tests::target_folder;

use crate::progress::{crash_spindle, prepare_linux, store_with_progress};
use crate::report;
use crate::setup::install_for_power;

/// Record what a guest's writes do to an image file, make crash states of the recording, and look at each
///
/// The image lies on a FUSE file system of our own. A crash state has all that was synced and any part of the rest, torn at 512
/// bytes. The same is done to QEMU's qcow2 driver, for comparison. See docs/power-loss.md.
#[derive(clap::Args)]
pub struct Options {
    /// How many crash states of spindle's
    #[arg(long, value_name = "N", default_value_t = 2000)]
    states: u64,

    /// How many of QEMU's: half power losses, half kills
    #[arg(long, value_name = "N", default_value_t = 400)]
    qemu_states: u64,

    /// How many of spindle's under a stock Linux guest
    #[arg(long, value_name = "N", default_value_t = 0)]
    linux_states: u64,

    /// Decides workloads and crash states; drawn, and printed, if it is not said
    #[arg(long, value_name = "S")]
    seed: Option<u64>,

    /// A static binary, instead of one that is built now
    #[arg(long, value_name = "FILE")]
    spindle: Option<PathBuf>,

    /// Write power.json into this folder
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// Runs it; the exit code is 0 if all of spindle's states held.
pub fn power(options: &Options) -> Result<ExitCode> {
    install_for_power()?;
    let seed = options.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let (store, progress) = store_with_progress()?;
    if options.linux_states > 0 {
        prepare_linux(&store)?;
    }
    let spindle = crash_spindle(options.spindle.as_deref(), &progress)?;
    progress.finish_and_clear();
    eprintln!("seed {seed}");
    let folder = target_folder().join("power");
    let campaign = PowerCampaign {
        spindle: &spindle,
        states: options.states,
        qemu_states: options.qemu_states,
        seed,
        folder: &folder,
    };
    let mut next = 0;
    let columns = run_power(&campaign, |columns| {
        let states: u64 = columns.iter().map(|column| column.states).sum();
        if states >= next {
            next = states + 500;
            columns.iter().filter(|column| column.states > 0).for_each(tell);
        }
    });
    let mut columns = columns.context("The campaign cannot go on")?;
    columns.retain(|column| column.states > 0);
    if options.linux_states > 0 {
        let campaign = LinuxPowerCampaign {
            spindle: &spindle,
            states: options.linux_states,
            seed,
            folder: &folder,
        };
        let column = run_linux_power(&campaign, |column, disk| {
            if column.states % 20 == 1 {
                tell(column);
                println!("  now {disk}");
            }
        });
        columns.push(column.context("The power losses under the Linux guest cannot go on")?);
    }
    for column in &columns {
        tell(column);
        for failure in &column.failures {
            println!("  seed {}: {}: {}", failure.seed, failure.place, failure.what);
        }
    }
    if let Some(folder) = &options.report {
        report::write(folder, "power", &columns)?;
    }
    let held = columns
        .iter()
        .filter(|column| column.hypervisor == "spindle")
        .all(|column| column.violations() == 0);
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tell(column: &Column) {
    println!(
        "{}, {} guest, {}: {} states of {} recordings with {} changes and syncs: {} lost something, {} corrupt, {} do not open, {} with leaks ({:.0} s)",
        column.hypervisor,
        column.guest,
        column.model,
        column.states,
        column.recordings,
        column.events,
        column.lost,
        column.corrupt,
        column.refused,
        column.leaky,
        column.seconds
    );
    if column.acknowledged > 0 {
        println!("  {} acknowledgements looked for", column.acknowledged);
    }
}
