//! `spindle img resize`: a larger or a smaller disk.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use disk::{Format, LockedFile, RestOptions};

use crate::creation_options::Preallocation;
use crate::open::{self, InEngine};
use crate::options::Refused;
use crate::{output, size};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    refused: Refused,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// The format of the image: qcow2 or raw
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Give space to what is added: off, falloc or full; raw images only
    #[arg(long, value_name = "PREALLOC", default_value = "off")]
    preallocation: String,
    /// Allow a smaller size; what lies behind the new end is lost
    #[arg(long)]
    shrink: bool,
    /// The image
    filename: PathBuf,
    /// The new size, or with + or - before it the difference
    #[arg(value_name = "[+|-]SIZE")]
    size: String,
}

/// A size such as `-1G`, which may only come last, is not an option.
pub fn with_negative_size_last(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let is_resize = arguments.first().is_some_and(|first| first == "resize");
    let is_negative = arguments.last().and_then(|last| last.to_str()).is_some_and(|last| {
        let mut characters = last.chars();
        characters.next() == Some('-') && characters.next().is_some_and(|digit| digit.is_ascii_digit())
    });
    if is_resize && is_negative && !arguments.iter().any(|argument| argument == "--") {
        let last = arguments.len() - 1;
        arguments.insert(last, "--".into());
    }
    arguments
}

pub fn run(arguments: &Arguments) -> Result<u8> {
    arguments.refused.check()?;
    let path = &arguments.filename;
    let preallocation: Preallocation = arguments.preallocation.parse()?;
    let (sign, digits) = match arguments.size.split_at_checked(1) {
        Some(("+", digits)) => (1, digits),
        Some(("-", digits)) => (-1, digits),
        _ => (0, arguments.size.as_str()),
    };
    let amount = size::parse(digits)?;
    let format = open::format_to_write(path, arguments.format.as_deref())?;
    let old = current_size(path, format)?;
    let new = match sign {
        0 => Some(amount),
        1 => old.checked_add(amount),
        _ => old.checked_sub(amount).filter(|size| *size > 0),
    };
    let Some(new) = new.filter(|size| *size <= size::MAX_DISK - 511) else {
        bail!("New image size must be positive and less than 2^63");
    };
    let new = new.next_multiple_of(512);
    if new < old && !arguments.shrink {
        bail!(
            "Use the --shrink option to perform a shrink operation. Shrinking an image will delete all data beyond the \
             shrunken image's end; make sure there is no important data there."
        );
    }
    if new < old && preallocation != Preallocation::Off {
        bail!("Preallocation can only be used for growing images");
    }
    match format {
        Format::Raw => resize_raw(path, old, new, preallocation)?,
        Format::Qcow2 => {
            if preallocation != Preallocation::Off {
                bail!(
                    "--preallocation={} is not supported by spindle img when a qcow2 image is resized",
                    arguments.preallocation
                );
            }
            let image = InEngine::open(path, format)?;
            let result = image.engine.resize(&image.disk, new, arguments.shrink);
            let closed = image.close();
            result.with_context(|| format!("Could not resize '{}'", path.display()))?;
            closed?;
        }
    }
    if !arguments.quiet {
        println!("Image resized.");
    }
    Ok(0)
}

fn current_size(path: &std::path::Path, format: Format) -> Result<u64> {
    let image = open::at_rest_with(&RestOptions {
        with_backing: false,
        ..RestOptions::new(path, format)
    })?;
    Ok(image.size())
}

fn resize_raw(path: &std::path::Path, old: u64, new: u64, preallocation: Preallocation) -> Result<()> {
    let locked = LockedFile::open(path).with_context(|| open::could_not_open(path))?;
    let file = locked.file();
    let failed = || format!("Could not resize '{}'", path.display());
    file.set_len(new).with_context(failed)?;
    if new > old {
        output::preallocate(file, old..new, preallocation).with_context(failed)?;
    }
    file.sync_all().with_context(failed)
}
