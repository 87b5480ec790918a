//! `spindle img commit`: what an overlay holds, written into a file below it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use disk::{Format, ImageAtRest, LockedFile, RestOptions};

use crate::copy::{Copy, Sources};
use crate::open::{self, InEngine};
use crate::options::{Refused, refuse};
use crate::progress::Progress;
use crate::target::{Target, with_engine};

/// Threads that read while the engine writes.
const WORKERS: usize = 4;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    refused: Refused,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// Show progress, also where there is no terminal
    #[arg(short, long)]
    progress: bool,
    /// The format of the image: qcow2 or raw
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// How the backing file is written: writeback, none, writethrough, directsync or unsafe
    #[arg(short = 't', long, value_name = "CACHE", default_value = "writeback")]
    cache: String,
    /// Leave the image as it is; else it is emptied, since its backing file has all of it
    #[arg(short, long)]
    drop: bool,
    /// The file to write into, if it is not the one directly below; implies -d
    #[arg(short, long, value_name = "BASE")]
    base: Option<PathBuf>,
    #[arg(short, long, value_name = "RATE", hide = true)]
    rate: Option<String>,
    /// The image
    filename: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<u8> {
    arguments.refused.check()?;
    refuse("-r", arguments.rate.is_some())?;
    let cache = open::cache_mode(&arguments.cache)?;
    let path = &arguments.filename;
    let format = open::format_of(path, arguments.format.as_deref())?;
    // Of the chain only this image is locked here: the file below is going to be written by us.
    let lock = LockedFile::open(path).with_context(|| open::could_not_open(path))?;
    let image = open::at_rest_with(&RestOptions {
        force_share: true,
        ..RestOptions::new(path, format)
    })?;
    let (layers, base, base_format) = find_base(&image, arguments.base.as_deref())?;
    let size = image.size();
    grow_raw(&base, base_format, size)?;
    let target = InEngine::open_with(
        disk::OpenOptions {
            cache,
            ..disk::OpenOptions::new(&base, base_format)
        },
        disk::EngineOptions::default(),
    )?;
    if target.disk.capacity() < size {
        target
            .engine
            .resize(&target.disk, size, false)
            .with_context(|| format!("Could not resize '{}'", base.display()))?;
    }
    let progress = Progress::new(size, arguments.progress, arguments.quiet);
    let mut sources = Sources::new(vec![image]);
    sources.layers = layers;
    let copied = with_engine(&target, |writer| copy(&sources, &writer, &progress));
    let closed = target.close();
    copied.with_context(|| format!("Could not commit '{}'", path.display()))?;
    closed?;
    drop(sources);
    drop(lock);
    if !arguments.drop && arguments.base.is_none() {
        let image = InEngine::open(path, format)?;
        let emptied = image.engine.make_empty(&image.disk);
        let closed = image.close();
        emptied.with_context(|| format!("Could not empty '{}'", path.display()))?;
        closed?;
    }
    progress.finish();
    if !arguments.quiet {
        println!("Image committed.");
    }
    Ok(0)
}

/// How many images lie above the one that is written to, where that is, and its format.
fn find_base(image: &ImageAtRest, wanted: Option<&Path>) -> Result<(usize, PathBuf, Format)> {
    let mut above = image;
    for layers in 1.. {
        let Some((path, format)) = above.backing_path()? else {
            break;
        };
        let below = above
            .backing()
            .ok_or_else(|| anyhow!("Image does not have a backing file"))?;
        if wanted.is_none_or(|wanted| below.is_same_file(wanted)) {
            return Ok((layers, path, format));
        }
        above = below;
    }
    match wanted {
        Some(wanted) => bail!(
            "Did not find '{}' in the backing chain of '{}'",
            wanted.display(),
            image.path().display()
        ),
        None => bail!("Image does not have a backing file"),
    }
}

/// A raw file is made longer before it is opened.
fn grow_raw(path: &Path, format: Format, size: u64) -> Result<()> {
    if format != Format::Raw {
        return Ok(());
    }
    let locked = LockedFile::open(path).with_context(|| open::could_not_open(path))?;
    let metadata = locked.file().metadata()?;
    if metadata.is_file() && metadata.len() < size {
        locked
            .file()
            .set_len(size)
            .with_context(|| format!("Could not resize '{}'", path.display()))?;
    }
    Ok(())
}

fn copy(sources: &Sources, writer: &crate::target::Writer, progress: &Progress) -> Result<()> {
    let target = Target::Existing {
        writer: writer.clone(),
        reads_zero: false,
    };
    Copy {
        sources,
        start: 0,
        end: sources.size(),
        target: &target,
        compression: None,
        // Data stays data, and what is known to be zero stays so.
        sparse: 1 << 20,
        place_all: false,
        workers: WORKERS,
        progress,
    }
    .run()?;
    writer.flush()
}
