//! `spindle img rebase`: another backing file, with the same content of the disk; or, with -u, only another name.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use disk::{BackingReference, Format, ImageAtRest, RestOptions, change_backing, is_zero};

use crate::open::{self, InEngine};
use crate::options::{Refused, refuse};
use crate::progress::Progress;
use crate::target::{Writer, with_engine};

/// What is compared at a time, in bytes; a multiple of every cluster size.
const CHUNK: u64 = 2 << 20;

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
    /// The format of the image
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// How the image is written: writeback, none, writethrough, directsync or unsafe
    #[arg(short = 't', long, value_name = "CACHE", default_value = "writeback")]
    cache: String,
    /// Accepted and without effect: backing files are read by way of the page cache
    #[arg(short = 'T', long, value_name = "CACHE")]
    backing_cache: Option<String>,
    /// The new backing file; "" for none
    #[arg(short, long, value_name = "BACKING_FILE")]
    backing: Option<String>,
    /// The format of the new backing file
    #[arg(short = 'F', long, value_name = "BACKING_FMT")]
    backing_format: Option<String>,
    /// Change the name only; whether the content is the same is up to you
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    #[arg(short, long, hide = true)]
    compress: bool,
    /// Do not lock the backing files; somebody may be writing to them
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    filename: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<u8> {
    arguments.refused.check()?;
    refuse("--compress (-c)", arguments.compress)?;
    let path = &arguments.filename;
    if arguments.backing.is_none() && !arguments.backing_unsafe {
        bail!("Must specify backing file (-b) or use unsafe mode (-u)");
    }
    if open::format_of(path, arguments.format.as_deref())? != Format::Qcow2 {
        bail!("'{}': only qcow2 images have backing files", path.display());
    }
    let name = arguments.backing.clone().unwrap_or_default();
    let reference = (!name.is_empty()).then(|| BackingReference {
        name: name.clone(),
        format: arguments.backing_format.clone(),
    });
    if let Some(reference) = &reference {
        let Some(format) = &reference.format else {
            bail!(
                "Could not change the backing file to '{name}': backing format must be specified (say -F qcow2 or -F raw)"
            );
        };
        open::format(format)?;
    }
    if !arguments.backing_unsafe {
        keep_content(arguments, reference.as_ref())?;
    }
    change_backing(path, reference.as_ref())
        .with_context(|| format!("Could not change the backing file of '{}'", path.display()))?;
    Ok(0)
}

/// Writes into the image what the new backing file has not, or has otherwise.
fn keep_content(arguments: &Arguments, new: Option<&BackingReference>) -> Result<()> {
    let path = &arguments.filename;
    // The engine first: it brings an image in order that was not closed.
    let image = InEngine::open_with(
        disk::OpenOptions {
            cache: open::cache_mode(&arguments.cache)?,
            ..disk::OpenOptions::new(path, Format::Qcow2)
        },
        disk::EngineOptions::default(),
    )?;
    let rest = |path: &Path, format: Format, with_backing: bool| RestOptions {
        force_share: arguments.force_share,
        with_backing,
        ..RestOptions::new(path, format)
    };
    let overlay = open::at_rest_with(&RestOptions {
        force_share: true,
        written_by_us: true,
        ..rest(path, Format::Qcow2, false)
    })?;
    let old = match overlay.backing_path()? {
        Some((path, format)) => Some(open::at_rest_with(&rest(&path, format, true))?),
        None => None,
    };
    let new = match new {
        Some(reference) => {
            let full = path.parent().unwrap_or(Path::new("")).join(&reference.name);
            let format = open::format(reference.format.as_deref().unwrap_or_default())?;
            Some(open::at_rest_with(&rest(&full, format, true))?)
        }
        None => None,
    };
    if new
        .iter()
        .flat_map(ImageAtRest::chain)
        .any(|image| image.is_same_file(path))
    {
        bail!("The new backing file would be the image itself, or lead to it");
    }
    let progress = Progress::new(overlay.size(), arguments.progress, arguments.quiet);
    let merged = with_engine(&image, |writer| {
        let rebase = Rebase {
            overlay: &overlay,
            old: old.as_ref(),
            new: new.as_ref(),
            writer,
            progress: &progress,
        };
        rebase.run()
    });
    let closed = image.close();
    merged.with_context(|| format!("Could not rebase '{}'", path.display()))?;
    closed?;
    progress.finish();
    Ok(())
}

struct Rebase<'a> {
    /// The image alone.
    overlay: &'a ImageAtRest,
    old: Option<&'a ImageAtRest>,
    new: Option<&'a ImageAtRest>,
    writer: Writer,
    progress: &'a Progress,
}

impl Rebase<'_> {
    fn run(&self) -> Result<()> {
        let size = self.overlay.size();
        let cluster_size = self.overlay.header().map_or(65536, disk::Header::cluster_size);
        let mut buffers = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
        let mut offset = 0;
        while offset < size {
            let extent = self.overlay.extent(offset, size - offset)?;
            if extent.present {
                self.progress.advance(extent.length);
                offset += extent.length;
                continue;
            }
            let zeroes =
                run_of_zeroes(self.old, offset, extent.length)?.min(run_of_zeroes(self.new, offset, extent.length)?);
            // Whole clusters: what is written allocates them.
            let zeroes = if zeroes == extent.length {
                zeroes
            } else {
                zeroes - zeroes % cluster_size
            };
            let length = if zeroes > 0 {
                zeroes
            } else {
                let length = extent.length.min(CHUNK - offset % CHUNK);
                self.merge(
                    offset,
                    cluster_size,
                    &mut buffers.0[..length as usize],
                    &mut buffers.1[..length as usize],
                )?;
                length
            };
            self.progress.advance(length);
            offset += length;
        }
        self.writer.flush()
    }

    /// Writes those clusters of a range that differ in the two backing files.
    fn merge(&self, offset: u64, cluster_size: u64, old: &mut [u8], new: &mut [u8]) -> Result<()> {
        read(self.old, offset, old)?;
        read(self.new, offset, new)?;
        let size = cluster_size as usize;
        let mut at = 0;
        while at < old.len() {
            let same = |at: usize| {
                let end = old.len().min(at + size);
                old[at..end] == new[at..end]
            };
            if same(at) {
                at += size;
                continue;
            }
            let mut end = at;
            while end < old.len() && !same(end) {
                end += size;
            }
            let end = end.min(old.len());
            let part = &old[at..end];
            // Without a backing file, zeros are what is not there; and then the new one would show.
            if is_zero(part) && self.old.is_some() {
                self.writer.write_zeroes(offset + at as u64, part.len() as u64)?;
            } else {
                self.writer.write(offset + at as u64, part)?;
            }
            at = end;
        }
        Ok(())
    }
}

/// How many bytes from `offset` on, at most `length`, are known to be zeros.
fn run_of_zeroes(image: Option<&ImageAtRest>, offset: u64, length: u64) -> Result<u64> {
    let Some(image) = image.filter(|image| offset < image.size()) else {
        return Ok(length);
    };
    let mut run = 0;
    while run < length && offset + run < image.size() {
        let extent = image.extent(offset + run, (length - run).min(image.size() - offset - run))?;
        if !extent.zero {
            return Ok(run);
        }
        run += extent.length;
    }
    Ok(length)
}

fn read(image: Option<&ImageAtRest>, offset: u64, target: &mut [u8]) -> Result<()> {
    match image {
        Some(image) => Ok(image.read(offset, target)?),
        None => {
            target.fill(0);
            Ok(())
        }
    }
}
