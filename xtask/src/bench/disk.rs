//! `cargo xtask bench disk`: the disk engine beside qemu-img, in numbers.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use guest_images::find_program;
use indicatif::{ProgressBar, ProgressStyle};
use system_tests::{HostKind, static_spindle, target_folder};

use crate::setup::install_for_tests;

mod images;
mod plot;
mod report;
mod rows;
mod sample;

use images::Images;
use report::{Measured, Report};
use rows::{Row, Side};
use sample::{Programs, Sample};

/// The disk engine: `spindle img` and `qemu-img`, on the same files in alternation
///
/// Each number is the median of the rounds. Close what else uses the machine first.
#[derive(clap::Args)]
pub struct Options {
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,

    /// Only the rows whose name contains this; may be said more than once
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,

    /// Where the images are made; about 12 GiB
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,

    /// Write the numbers as JSON: {"rows": [{"name", "unit", "spindle", "peer", "ratio"}, ...]}
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draw the ratios
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// Measures; the exit code says nothing about the numbers.
pub fn bench(options: &Options) -> Result<ExitCode> {
    install_for_tests(HostKind::detect())?;
    let programs = Programs {
        spindle: static_spindle()?,
        qemu_img: find_program("qemu-img").context("qemu-img is not there")?,
    };
    let folder = options.folder.clone().unwrap_or_else(|| target_folder().join("bench"));
    let mut images = Images::new(folder, &programs)?;
    let chosen = |row: &Row| options.only.is_empty() || options.only.iter().any(|text| row.name.contains(text));
    let rows: Vec<Row> = rows::all().into_iter().filter(chosen).collect();
    let bar = progress(rows.len() as u64 * u64::from(options.rounds));
    let mut report = Report::default();
    for row in rows {
        report.add(measure(&row, options.rounds, &programs, &mut images, &bar)?);
    }
    bar.finish_and_clear();
    print!("{}", report.table());
    if let Some(file) = &options.json {
        std::fs::write(file, report.json()).with_context(|| format!("Cannot write {}", file.display()))?;
    }
    if let Some(file) = &options.plot {
        plot::draw(&report, file)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Measures both sides of a row, each as often; the one that begins changes from round to round.
fn measure(
    row: &Row,
    rounds: u32,
    programs: &Programs,
    images: &mut Images,
    bar: &ProgressBar,
) -> Result<Vec<Measured>> {
    let mut samples = [Vec::new(), Vec::new()];
    let sides = [&row.spindle, &row.peer];
    for round in 0..rounds {
        bar.set_message(row.name);
        for number in [round % 2, 1 - round % 2] {
            let number = number as usize;
            samples[number].push(sample(sides[number], number, programs, images)?);
        }
        bar.inc(1);
    }
    images.clear()?;
    let [spindle, peer] = samples;
    Ok(report::rows_of(row, &spindle, &peer))
}

fn sample(side: &Side, number: usize, programs: &Programs, images: &mut Images) -> Result<Sample> {
    let image = images.get(side.image, side.writes, number)?;
    sample::take(side, &image, programs).with_context(|| format!("Measuring {side}"))
}

fn progress(length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar
}
