//! `cargo xtask bench ide`: the IDE disk of spindle and that of QEMU, as a guest sees them.
//!
//! Two guests measure. A stock Linux in the nested host (or on this machine, where its KVM can) makes O_DIRECT requests one at
//! a time; its numbers hold for all that a guest's request goes through. A bare-metal guest on this machine's own KVM makes
//! libata's port accesses and nothing else. Both VMMs get the same guest and the same image, which is allocated before, so that
//! no request allocates anything.

mod bare_metal;
mod exit_counter;
mod linux;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::progress::{spindle_with_progress, store_with_progress};
use crate::setup::install_for_bench;

/// The IDE disk: commands a second, throughput and exits per command
///
/// Prints a table; a ratio above 1 is in favour of spindle.
#[derive(clap::Args)]
pub struct Options {
    /// How often each VMM is measured; the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Write the rows to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only on one of the two guests
    #[arg(long, value_name = "GUEST")]
    guest: Option<GuestKind>,
    /// More options for `spindle run`, for example `--exits ioeventfd=off`
    #[arg(long, value_name = "OPTIONS", default_value = "", allow_hyphen_values = true)]
    spindle_options: String,
}

/// A guest that measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum GuestKind {
    /// A stock Linux, in the nested host if this machine's KVM cannot run it.
    Linux,
    /// A bare-metal guest on this machine's KVM.
    BareMetal,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vmm {
    Spindle,
    Qemu,
}

impl Vmm {
    const BOTH: [Self; 2] = [Self::Spindle, Self::Qemu];

    fn name(self) -> &'static str {
        match self {
            Self::Spindle => "spindle",
            Self::Qemu => "qemu",
        }
    }

    /// In even rounds one goes first, in odd rounds the other.
    fn order(round: u32) -> [Self; 2] {
        let [first, second] = Self::BOTH;
        if round.is_multiple_of(2) {
            [first, second]
        } else {
            [second, first]
        }
    }
}

/// What is measured: requests of one kind and size.
#[derive(Clone, Copy, Debug)]
struct Load {
    name: &'static str,
    kind: Kind,
    /// Bytes of a request.
    bytes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    /// A write, and a flush behind it.
    Durable,
}

const SMALL: u32 = 4 << 10;
const LARGE: u32 = 1 << 20;

const LOADS: [Load; 6] = [
    load("read-4k", Kind::Read, SMALL),
    load("write-4k", Kind::Write, SMALL),
    load("write+flush-4k", Kind::Durable, SMALL),
    load("read-1m", Kind::Read, LARGE),
    load("write-1m", Kind::Write, LARGE),
    load("write+flush-1m", Kind::Durable, LARGE),
];

const fn load(name: &'static str, kind: Kind, bytes: u32) -> Load {
    Load { name, kind, bytes }
}

/// What was measured for one load and one VMM.
#[derive(Clone, Debug, Default)]
struct Measured {
    /// Requests a second, one number a round.
    rates: Vec<f64>,
    /// Exits to user space for one request, if they could be counted.
    exits: Option<f64>,
}

/// One line of the result.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    unit: &'static str,
    spindle: f64,
    peer: f64,
    ratio: f64,
    exits_per_command: Exits,
}

#[derive(Clone, Debug, Serialize)]
struct Exits {
    spindle: Option<f64>,
    peer: Option<f64>,
}

impl Row {
    fn new(guest: &str, load: Load, spindle: &Measured, peer: &Measured) -> Self {
        // Small requests are counted, large ones are weighed.
        let (unit, scale) = if load.bytes == SMALL {
            ("requests/s", 1.0)
        } else {
            ("MB/s", f64::from(load.bytes) / 1e6)
        };
        let (ours, theirs) = (median(&spindle.rates) * scale, median(&peer.rates) * scale);
        Self {
            name: format!("{guest} {}", load.name),
            unit,
            spindle: rounded(ours),
            peer: rounded(theirs),
            ratio: rounded(ours / theirs),
            exits_per_command: Exits {
                spindle: spindle.exits.map(rounded),
                peer: peer.exits.map(rounded),
            },
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => sorted[count / 2],
        count => f64::midpoint(sorted[count / 2 - 1], sorted[count / 2]),
    }
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Measures, prints and writes.
pub fn bench(options: &Options) -> Result<ExitCode> {
    install_for_bench()?;
    let (store, progress) = store_with_progress()?;
    let spindle = spindle_with_progress(&progress)?;
    let mut rows = Vec::new();
    let wanted = |kind| options.guest.is_none_or(|guest| guest == kind);
    let spindle_options: Vec<String> = options.spindle_options.split_whitespace().map(str::to_owned).collect();
    if wanted(GuestKind::BareMetal) {
        crate::progress::say(&progress, "measuring with the bare-metal guest");
        rows.extend(bare_metal::measure(&spindle, &spindle_options, options.rounds)?);
    }
    if wanted(GuestKind::Linux) {
        crate::progress::say(&progress, "measuring with Linux");
        rows.extend(linux::measure(&store, &spindle, &spindle_options, options.rounds)?);
    }
    progress.finish_and_clear();
    print(&rows);
    if let Some(path) = &options.json {
        write(&rows, path)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(rows: &[Row]) {
    println!(
        "{:<28} {:<10} {:>10} {:>10} {:>6} {:>14} {:>14}",
        "", "unit", "spindle", "QEMU", "ratio", "exits spindle", "exits QEMU"
    );
    let exits = |exits: Option<f64>| exits.map_or("-".to_owned(), |exits| format!("{exits:.1}"));
    for row in rows {
        println!(
            "{:<28} {:<10} {:>10.1} {:>10.1} {:>6.2} {:>14} {:>14}",
            row.name,
            row.unit,
            row.spindle,
            row.peer,
            row.ratio,
            exits(row.exits_per_command.spindle),
            exits(row.exits_per_command.peer)
        );
    }
}

fn write(rows: &[Row], path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(rows).context("Cannot write the rows as JSON")?;
    std::fs::write(path, text + "\n").with_context(|| format!("Cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0]) - 2.5).abs() < 1e-9);
    }

    #[test]
    fn a_row_says_how_many_times_faster_spindle_is() {
        let measured = |rate| Measured {
            rates: vec![rate],
            exits: None,
        };
        let row = Row::new("linux", LOADS[3], &measured(200.0), &measured(100.0));
        assert_eq!((row.name.as_str(), row.unit), ("linux read-1m", "MB/s"));
        assert!((row.ratio - 2.0).abs() < 1e-9);
    }
}
