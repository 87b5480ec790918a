//! `spindle img create`: a new image.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use disk::{Format, NewImage, RestOptions};

use crate::creation_options::{CreationOptions, Preallocation, prints_help};
use crate::options::Refused;
use crate::output::{self, Output};
use crate::{open, size};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    refused: Refused,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// The format of the image: qcow2 or raw
    #[arg(short, long, value_name = "FMT", default_value = "raw")]
    format: String,
    /// The file that holds what is not written to the new image
    #[arg(short, long, value_name = "BACKING_FILE")]
    backing: Option<String>,
    /// The format of that file
    #[arg(short = 'F', long, value_name = "BACKING_FMT")]
    backing_format: Option<String>,
    /// Do not look at the backing file
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Options of the format, as name=value,...; `-o help` lists them
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// The image
    #[arg(required_unless_present = "options")]
    filename: Option<PathBuf>,
    /// The size of the disk; with a backing file, its size if none is given
    #[arg(allow_hyphen_values = true)]
    size: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<u8> {
    arguments.refused.check()?;
    let format = open::format(&arguments.format)?;
    if prints_help(&arguments.options, format) {
        return Ok(0);
    }
    let Some(path) = &arguments.filename else {
        bail!("Expecting image file name");
    };
    let mut options = CreationOptions::parse(&arguments.options, format)?;
    if let Some(text) = &arguments.size {
        options.size = Some(size::parse_disk(text)?);
    }
    if let Some(backing) = &arguments.backing {
        options.backing_file = Some(backing.clone());
    }
    if let Some(format) = &arguments.backing_format {
        options.backing_format = Some(format.clone());
    }
    let size = size_of_new(path, format, &options, arguments.backing_unsafe)?;
    if !arguments.quiet {
        println!("{}", options.banner(path, format, size));
    }
    create(path, format, &options, size).with_context(|| path.display().to_string())?;
    Ok(0)
}

/// The size that was said, or that of the backing file, which is checked unless `blindly`.
fn size_of_new(path: &Path, format: Format, options: &CreationOptions, blindly: bool) -> Result<u64> {
    let needs_size = || anyhow!("{}: Image creation needs a size parameter", path.display());
    let Some(name) = options.backing_file.as_ref().filter(|name| !name.is_empty()) else {
        return options.size.ok_or_else(needs_size);
    };
    if format == Format::Raw {
        bail!("{}: Backing file not supported for file format 'raw'", path.display());
    }
    if blindly {
        return options.size.ok_or_else(needs_size);
    }
    let full = path.parent().unwrap_or(Path::new("")).join(name);
    let Some(backing_format) = &options.backing_format else {
        bail!(
            "{}: Backing file specified without backing format (say -F qcow2 or -F raw)",
            path.display()
        );
    };
    let image = open::at_rest_with(&RestOptions {
        // Its own backing files do not matter now; somebody may write to none of them, though, which a lock would tell.
        force_share: true,
        ..RestOptions::new(&full, open::format(backing_format)?)
    })
    .with_context(|| format!("{}: Could not open backing image", path.display()))?;
    Ok(options.size.unwrap_or(image.size()))
}

/// Makes the image.
pub fn create(path: &Path, format: Format, options: &CreationOptions, size: u64) -> Result<()> {
    let preallocation = options.preallocation.unwrap_or_default();
    match format {
        Format::Raw => {
            let output = Output::create(path)?;
            let file = output.file()?;
            if !output.is_device() {
                file.set_len(size)?;
            }
            output::preallocate(&file, 0..size, preallocation)?;
            output.commit(true)
        }
        Format::Qcow2 => {
            let create = options.for_size(size)?;
            let output = Output::create(path)?;
            let image = NewImage::begin(output.file()?, create)?;
            preallocate(&image, size, preallocation)?;
            let file = image.finish()?;
            let end = file.metadata()?.len();
            if preallocation == Preallocation::Falloc {
                output::preallocate(&file, 0..end, preallocation)?;
            }
            output.commit(true)
        }
    }
}

/// Gives every cluster a place, if that is asked for; and for `full` zeros to it.
pub fn preallocate(image: &NewImage, size: u64, mode: Preallocation) -> Result<()> {
    if mode == Preallocation::Off || size == 0 {
        return Ok(());
    }
    // In pieces, so that a list of places does not grow with the disk.
    const PIECE: u64 = 1 << 30;
    for offset in (0..size).step_by(PIECE as usize) {
        for place in image.place(offset, PIECE.min(size - offset))? {
            if mode == Preallocation::Full {
                output::preallocate(image.file(), place.host..place.host + place.length, mode)?;
            }
        }
    }
    Ok(())
}
