//! `spindle img check`: whether an image is consistent, and mending it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use disk::{CheckError, CheckReport, Format, RepairMode, check_image, repair_image};
use serde::Serialize;

use crate::open;
use crate::options::{OutputFormat, Refused, print_json};

/// Exit codes, as qemu-img has them.
const INTERNAL_ERROR: u8 = 1;
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;
const NOT_SUPPORTED: u8 = 63;

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 consistent; 1 the check could not be completed; 2 corrupt; 3 leaks only; 63 the format has no check"
)]
pub struct Arguments {
    #[command(flatten)]
    refused: Refused,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// The format of the image: qcow2 or raw
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Accepted and without effect: metadata is read in large pieces
    #[arg(short = 'T', long, value_name = "CACHE")]
    cache: Option<String>,
    /// Do not lock the image; somebody may be writing to it
    #[arg(short = 'U', long, conflicts_with = "repair")]
    force_share: bool,
    /// How the result is printed
    #[arg(long, value_name = "OFMT", default_value = "human")]
    output: OutputFormat,
    /// Repair leaks, or all that can be repaired
    #[arg(short, long, value_name = "leaks|all")]
    repair: Option<Repair>,
    /// The image
    filename: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Repair {
    Leaks,
    All,
}

/// QAPI's ImageCheck.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ImageCheck {
    #[serde(skip_serializing_if = "is_zero")]
    image_end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    total_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions: u64,
    #[serde(skip_serializing_if = "is_zero")]
    corruptions_fixed: u64,
    check_errors: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks: u64,
    #[serde(skip_serializing_if = "is_zero")]
    leaks_fixed: u64,
    #[serde(skip_serializing_if = "is_zero")]
    allocated_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    fragmented_clusters: u64,
    #[serde(skip_serializing_if = "is_zero")]
    compressed_clusters: u64,
    filename: String,
    format: &'static str,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

pub fn run(arguments: &Arguments) -> Result<u8> {
    arguments.refused.check()?;
    if let Some(mode) = &arguments.cache {
        open::cache_mode(mode)?;
    }
    let path = &arguments.filename;
    if open::format_of(path, arguments.format.as_deref())? != Format::Qcow2 {
        eprintln!("spindle img: This image format does not support checks");
        return Ok(NOT_SUPPORTED);
    }
    let quiet = arguments.quiet;
    let mut tell = |line: &str| {
        if !quiet {
            eprintln!("{line}");
        }
    };
    let report = match arguments.repair {
        None => check_image(path, arguments.force_share, &mut tell),
        Some(Repair::Leaks) => repair_image(path, RepairMode::Leaks, &mut tell),
        Some(Repair::All) => repair_image(path, RepairMode::All, &mut tell),
    };
    let report = match report {
        Ok(report) => report,
        Err(CheckError::Open(error)) => return Err(error).with_context(|| open::could_not_open(path)),
        Err(CheckError::Disk(error)) => {
            eprintln!("spindle img: Check failed: {error}");
            return Ok(INTERNAL_ERROR);
        }
    };
    match arguments.output {
        OutputFormat::Json => print_json(&image_check(arguments, &report))?,
        OutputFormat::Human if quiet => {}
        OutputFormat::Human => print_human(arguments, &report),
    }
    if let Some(reason) = report.not_repaired {
        eprintln!("spindle img: Not everything was repaired: {reason}");
    }
    Ok(if report.damage.corruptions > 0 {
        CORRUPT
    } else if report.damage.leaks > 0 {
        LEAKS
    } else {
        0
    })
}

fn image_check(arguments: &Arguments, report: &CheckReport) -> ImageCheck {
    let usage = &report.usage;
    ImageCheck {
        image_end_offset: usage.image_end_offset,
        total_clusters: usage.total_clusters,
        corruptions: report.damage.corruptions,
        corruptions_fixed: report.fixed.corruptions,
        check_errors: 0,
        leaks: report.damage.leaks,
        leaks_fixed: report.fixed.leaks,
        allocated_clusters: usage.allocated_clusters,
        fragmented_clusters: usage.fragmented_clusters,
        compressed_clusters: usage.compressed_clusters,
        filename: arguments.filename.display().to_string(),
        format: "qcow2",
    }
}

fn print_human(arguments: &Arguments, report: &CheckReport) {
    explain_recovery(arguments, report);
    if report.fixed.corruptions > 0 || report.fixed.leaks > 0 {
        println!(
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
             Double checking the fixed image now...",
            report.fixed.leaks, report.fixed.corruptions
        );
    }
    let damage = report.damage;
    if damage.corruptions == 0 && damage.leaks == 0 {
        println!("No errors were found on the image.");
    }
    if damage.corruptions > 0 {
        println!(
            "\n{} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.",
            damage.corruptions
        );
    }
    if damage.leaks > 0 {
        println!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.",
            damage.leaks
        );
    }
    let usage = &report.usage;
    if usage.total_clusters > 0 && usage.allocated_clusters > 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        println!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            usage.allocated_clusters,
            usage.total_clusters,
            percent(usage.allocated_clusters, usage.total_clusters),
            percent(usage.fragmented_clusters, usage.allocated_clusters),
            percent(usage.compressed_clusters, usage.allocated_clusters)
        );
    }
    if usage.image_end_offset > 0 {
        println!("Image end offset: {}", usage.image_end_offset);
    }
}

/// What an image needs that was not closed.
fn explain_recovery(arguments: &Arguments, report: &CheckReport) {
    let slices = report.left_behind;
    if arguments.repair.is_some() {
        if slices > 0 {
            eprintln!("The metadata that a killed process left behind was written into the image: {slices} slices.");
        }
        return;
    }
    if !report.dirty {
        return;
    }
    eprintln!("The image was not closed. The next open for writing, or `check -r all`, recovers it:");
    if slices > 0 {
        eprintln!("    {slices} slices of metadata that a killed process left in memory are written into the image");
        eprintln!("    (the check below sees the image as it is then)");
    }
    eprintln!("    {} leaked clusters are reclaimed", report.damage.leaks);
}
