//! `spindle img compare`: whether two images have the same content.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use disk::{ImageAtRest, MapEntry, is_zero};

use crate::open;
use crate::options::Refused;
use crate::progress::Progress;

/// Exit codes, as qemu-img has them.
const DIFFERENT: u8 = 1;
/// An image could not be opened, or something else failed.
pub const ERROR: u8 = 2;
const STATUS_ERROR: u8 = 3;
const READ_ERROR: u8 = 4;

/// What is read at a time, in bytes.
const CHUNK: u64 = 2 << 20;

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 identical; 1 different; 2 an image could not be opened; 3 an allocation could not be read; 4 data could not be read"
)]
pub struct Arguments {
    #[command(flatten)]
    refused: Refused,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// Show progress, also where there is no terminal
    #[arg(short, long)]
    progress: bool,
    /// The format of the first image: qcow2 or raw
    #[arg(short = 'f', long, value_name = "FMT")]
    a_format: Option<String>,
    /// The format of the second image: qcow2 or raw
    #[arg(short = 'F', long, value_name = "FMT")]
    b_format: Option<String>,
    /// Sizes and allocation must be the same, too
    #[arg(short, long)]
    strict: bool,
    /// Accepted and without effect: images are read by way of the page cache
    #[arg(short = 'T', long, value_name = "CACHE")]
    cache: Option<String>,
    /// Do not lock the images; somebody may be writing to them
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The first image
    filename1: PathBuf,
    /// The second image
    filename2: PathBuf,
}

/// How a comparison ends before the end of the images.
enum Difference {
    Content(u64),
    Status(u64),
    /// What cannot be read, and the exit code that says so.
    Unreadable(anyhow::Error, u8),
}

pub fn run(arguments: &Arguments) -> Result<u8> {
    arguments.refused.check()?;
    if let Some(mode) = &arguments.cache {
        open::cache_mode(mode)?;
    }
    let first = open::at_rest(
        &arguments.filename1,
        arguments.a_format.as_deref(),
        arguments.force_share,
    )?;
    let second = open::at_rest(
        &arguments.filename2,
        arguments.b_format.as_deref(),
        arguments.force_share,
    )?;
    let say = |text: &str| {
        if !arguments.quiet {
            println!("{text}");
        }
    };
    if first.size() != second.size() && arguments.strict {
        say("Strict mode: Image size mismatch!");
        return Ok(DIFFERENT);
    }
    let progress = Progress::new(first.size().max(second.size()), arguments.progress, arguments.quiet);
    let result = compare(&first, &second, arguments.strict, &progress).and_then(|()| {
        if first.size() != second.size() {
            say("Warning: Image size mismatch!");
        }
        compare_rest(&first, &second, &progress)
    });
    progress.finish();
    match result {
        Ok(()) => {
            say("Images are identical.");
            Ok(0)
        }
        Err(Difference::Content(offset)) => {
            say(&format!("Content mismatch at offset {offset}!"));
            Ok(DIFFERENT)
        }
        Err(Difference::Status(offset)) => {
            say(&format!("Strict mode: Offset {offset} block status mismatch!"));
            Ok(DIFFERENT)
        }
        Err(Difference::Unreadable(error, code)) => {
            eprintln!("spindle img: {error:#}");
            Ok(code)
        }
    }
}

fn compare(first: &ImageAtRest, second: &ImageAtRest, strict: bool, progress: &Progress) -> Result<(), Difference> {
    let common = first.size().min(second.size());
    let mut buffers = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
    let mut offset = 0;
    while offset < common {
        let (one, other) = (status(first, offset, common)?, status(second, offset, common)?);
        let mut length = one.length.min(other.length);
        let summary = |extent: &MapEntry| (extent.present, extent.zero, extent.data);
        if strict && summary(&one) != summary(&other) {
            return Err(Difference::Status(offset));
        }
        if !one.zero || !other.zero {
            length = length.min(CHUNK);
            let (a, b) = (&mut buffers.0[..length as usize], &mut buffers.1[..length as usize]);
            match (one.zero, other.zero) {
                (false, false) => {
                    read(first, offset, a)?;
                    read(second, offset, b)?;
                    if a != b {
                        return Err(Difference::Content(offset + first_difference(a, b)));
                    }
                }
                (false, true) => expect_zero(first, offset, a)?,
                (true, _) => expect_zero(second, offset, b)?,
            }
        }
        offset += length;
        progress.advance(length);
    }
    Ok(())
}

/// What one image has behind the end of the other is zeros.
fn compare_rest(first: &ImageAtRest, second: &ImageAtRest, progress: &Progress) -> Result<(), Difference> {
    let mut offset = first.size().min(second.size());
    let mut buffer = vec![0; CHUNK as usize];
    let longer = if first.size() > second.size() { first } else { second };
    while offset < longer.size() {
        let extent = status(longer, offset, longer.size())?;
        let mut length = extent.length;
        if !extent.zero {
            length = length.min(CHUNK);
            expect_zero(longer, offset, &mut buffer[..length as usize])?;
        }
        offset += length;
        progress.advance(length);
    }
    Ok(())
}

fn status(image: &ImageAtRest, offset: u64, end: u64) -> Result<MapEntry, Difference> {
    let extent = image.extent(offset, end - offset).with_context(|| {
        format!(
            "Error while reading block status at offset {offset} of '{}'",
            image.path().display()
        )
    });
    extent.map_err(|error| Difference::Unreadable(error, STATUS_ERROR))
}

fn read(image: &ImageAtRest, offset: u64, buffer: &mut [u8]) -> Result<(), Difference> {
    let read = image
        .read(offset, buffer)
        .with_context(|| format!("Error while reading offset {offset} of '{}'", image.path().display()));
    read.map_err(|error| Difference::Unreadable(error, READ_ERROR))
}

fn expect_zero(image: &ImageAtRest, offset: u64, buffer: &mut [u8]) -> Result<(), Difference> {
    read(image, offset, buffer)?;
    if is_zero(buffer) {
        return Ok(());
    }
    let sector = buffer.chunks(512).position(|sector| !is_zero(sector)).unwrap_or(0);
    Err(Difference::Content(offset + sector as u64 * 512))
}

/// The first sector that differs, in bytes.
fn first_difference(a: &[u8], b: &[u8]) -> u64 {
    let sector = a.chunks(512).zip(b.chunks(512)).position(|(a, b)| a != b);
    sector.unwrap_or(0) as u64 * 512
}
