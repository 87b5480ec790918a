//! `spindle img convert`: the content of an image, or of several behind each other, as a new image.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use disk::{CacheMode, Compression, Format, NewImage, OpenOptions, RestOptions};

use crate::copy::{Copy, Sources};
use crate::creation_options::{CreationOptions, Preallocation, prints_help};
use crate::open::{self, InEngine};
use crate::options::{Refused, refuse};
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::size;
use crate::target::{Target, with_engine};

/// qemu-img's limits and defaults.
const MAX_SPARSE: u64 = 16 << 20;
const DEFAULT_SPARSE: u64 = 4096;
const MAX_WORKERS: usize = 16;
const DEFAULT_WORKERS: usize = 8;

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
    /// The format of the inputs: qcow2 or raw
    #[arg(short = 'f', long, value_name = "FMT")]
    source_format: Option<String>,
    /// The internal snapshot that is copied: its id or name, snapshot.id=ID or snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    source_snapshot: Option<String>,
    /// Accepted and without effect: inputs are read by way of the page cache
    #[arg(short = 'T', long, value_name = "CACHE")]
    source_cache: Option<String>,
    /// The format of the output: qcow2 or raw
    #[arg(short = 'O', long, value_name = "OUTPUT_FMT", default_value = "raw")]
    target_format: String,
    /// Options of the output, as name=value,...; `-o help` lists them
    #[arg(short = 'o', long, value_name = "OPTIONS")]
    target_options: Vec<String>,
    /// Compress the output
    #[arg(short, long)]
    compress: bool,
    /// How the output is written; with anything but unsafe (the default) it is durable at the end
    #[arg(short = 't', long, value_name = "CACHE", default_value = "unsafe")]
    target_cache: String,
    /// The backing file of the output; what is not in the uppermost image of the input is not copied
    #[arg(short = 'B', long, value_name = "BACKING_FILE")]
    backing: Option<String>,
    /// The format of that file
    #[arg(short = 'F', long, value_name = "BACKING_FMT")]
    backing_format: Option<String>,
    /// Write into an image that is there
    #[arg(short = 'n', long)]
    no_create: bool,
    /// With -n: the image reads as zeros, so that none need to be written
    #[arg(long)]
    target_is_zero: bool,
    /// How many bytes of zeros make a hole; 0 writes all
    #[arg(short = 'S', long, value_name = "SPARSE_SIZE")]
    sparse_size: Option<String>,
    /// Do not lock the inputs; somebody may be writing to them
    #[arg(short = 'U', long)]
    force_share: bool,
    /// How many threads work in parallel
    #[arg(short = 'm', long, value_name = "NUM", default_value_t = DEFAULT_WORKERS)]
    parallel: usize,
    /// Accepted and without effect: several threads write anyway, and places are given out in order
    #[arg(short = 'W', long)]
    oob_writes: bool,
    #[arg(short = 'C', long, hide = true)]
    copy_range_offloading: bool,
    #[arg(long, hide = true)]
    bitmaps: bool,
    #[arg(long, hide = true)]
    skip_broken_bitmaps: bool,
    #[arg(short = 'r', long, value_name = "RATE", hide = true)]
    rate: Option<String>,
    #[arg(long, hide = true)]
    salvage: bool,
    #[arg(long, hide = true)]
    target_image_opts: bool,
    #[arg(long, hide = true)]
    source_image_opts: bool,
    /// The inputs, and last the output
    #[arg(value_name = "FILENAME")]
    filenames: Vec<PathBuf>,
}

impl Arguments {
    fn check(&self) -> Result<()> {
        self.refused.check()?;
        refuse("-C", self.copy_range_offloading)?;
        refuse("--bitmaps", self.bitmaps)?;
        refuse("--skip-broken-bitmaps", self.skip_broken_bitmaps)?;
        refuse("-r", self.rate.is_some())?;
        refuse("--salvage", self.salvage)?;
        refuse("--target-image-opts", self.target_image_opts)?;
        refuse("--source-image-opts", self.source_image_opts)?;
        if !(1..=MAX_WORKERS).contains(&self.parallel) {
            bail!("Invalid number of coroutines specified. Must be between 1 and {MAX_WORKERS}.");
        }
        if let Some(mode) = &self.source_cache {
            open::cache_mode(mode)?;
        }
        if self.target_is_zero && !self.no_create {
            bail!("--target-is-zero requires use of -n flag");
        }
        if self.no_create && !self.target_options.is_empty() {
            bail!("-o has no effect with -n: the image is there");
        }
        Ok(())
    }

    fn sparse(&self) -> Result<u64> {
        let Some(text) = &self.sparse_size else {
            return Ok(DEFAULT_SPARSE);
        };
        let sparse = size::parse(text)?;
        if sparse % 512 != 0 || sparse > MAX_SPARSE {
            bail!(
                "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to {MAX_SPARSE}. \
                 Select 0 to disable sparse detection (fully allocates output)."
            );
        }
        Ok(sparse)
    }

    /// The number of threads: no more than there is use for.
    fn workers(&self) -> usize {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        self.parallel.min(processors * 2)
    }
}

/// The id or name in a snapshot parameter.
pub fn snapshot_name(parameter: &str) -> Result<String> {
    let name = match parameter.split_once('=') {
        Some(("snapshot.id" | "snapshot.name", name)) => name,
        Some((other, _)) if other.starts_with("snapshot.") => bail!("Invalid parameter '{other}'"),
        _ => parameter,
    };
    Ok(name.to_owned())
}

pub fn run(arguments: &Arguments) -> Result<u8> {
    arguments.check()?;
    let format = open::format(&arguments.target_format)?;
    if prints_help(&arguments.target_options, format) {
        return Ok(0);
    }
    let Some((target, inputs)) = arguments
        .filenames
        .split_last()
        .filter(|(_, inputs)| !inputs.is_empty())
    else {
        bail!("Must specify image file name");
    };
    let mut options = CreationOptions::parse(&arguments.target_options, format)?;
    if options.size.is_some() {
        bail!("-o size is not supported by spindle img convert: the output has the size of the input");
    }
    if let Some(backing) = &arguments.backing {
        options.backing_file = Some(backing.clone());
    }
    if let Some(format) = &arguments.backing_format {
        options.backing_format = Some(format.clone());
    }
    check_combinations(arguments, format, &options, inputs)?;
    let sparse = arguments.sparse()?;
    let mut sources = open_sources(arguments, inputs)?;
    if options.backing_file.is_some() {
        check_backing(target, &options)?;
        sources.layers = 1;
    }
    if arguments.no_create {
        return into_existing(arguments, target, format, &sources, sparse);
    }
    let durable = open::cache_mode(&arguments.target_cache)? != CacheMode::Unsafe;
    let output = Output::create(target)?;
    let progress = Progress::new(sources.size(), arguments.progress, arguments.quiet);
    let written = write_new(
        &New {
            format,
            options: &options,
            sources: &sources,
            start: 0,
            length: sources.size(),
            size: sources.size(),
            sparse,
            compress: arguments.compress,
            workers: arguments.workers(),
        },
        &output,
        &progress,
    );
    written.with_context(|| format!("Could not convert to '{}'", target.display()))?;
    progress.finish();
    output.commit(durable)?;
    Ok(0)
}

fn check_combinations(
    arguments: &Arguments,
    format: Format,
    options: &CreationOptions,
    inputs: &[PathBuf],
) -> Result<()> {
    if format == Format::Raw && arguments.compress {
        bail!("Compression not supported for this file format");
    }
    if format == Format::Raw && options.backing_file.is_some() {
        bail!("Backing file not supported for file format 'raw'");
    }
    if options.backing_file.is_some() && options.backing_format.is_none() {
        bail!("Use of backing file requires explicit backing format (say -F qcow2 or -F raw)");
    }
    if options.backing_file.is_some() && inputs.len() > 1 {
        bail!("Having a backing file for the target makes no sense when concatenating multiple input images");
    }
    if arguments.source_snapshot.is_some() && inputs.len() > 1 {
        bail!("No support for concatenating multiple snapshot");
    }
    if arguments.compress && options.preallocation.unwrap_or_default() != Preallocation::Off {
        bail!("Compression and preallocation not supported at the same time");
    }
    if arguments.compress && arguments.no_create {
        bail!("-c with -n is not supported by spindle img: clusters that are there are not compressed");
    }
    Ok(())
}

fn open_sources(arguments: &Arguments, inputs: &[PathBuf]) -> Result<Sources> {
    let mut images = Vec::new();
    for path in inputs {
        images.push(open::at_rest_with(&RestOptions {
            force_share: arguments.force_share,
            snapshot: arguments.source_snapshot.as_deref().map(snapshot_name).transpose()?,
            ..RestOptions::new(path, open::format_of(path, arguments.source_format.as_deref())?)
        })?);
    }
    Ok(Sources::new(images))
}

/// The backing file of the output is there, and what it is said to be.
fn check_backing(target: &Path, options: &CreationOptions) -> Result<()> {
    let (Some(name), Some(format)) = (&options.backing_file, &options.backing_format) else {
        return Ok(());
    };
    let full = target.parent().unwrap_or(Path::new("")).join(name);
    open::at_rest_with(&RestOptions {
        force_share: true,
        ..RestOptions::new(&full, open::format(format)?)
    })?;
    Ok(())
}

/// A new image, and what it will hold.
pub struct New<'a> {
    pub format: Format,
    pub options: &'a CreationOptions,
    pub sources: &'a Sources,
    /// Where its content begins in the sources.
    pub start: u64,
    /// How many bytes of it come from there.
    pub length: u64,
    /// The size of its disk in bytes. What the sources do not have of it reads as zeros.
    pub size: u64,
    pub sparse: u64,
    pub compress: bool,
    pub workers: usize,
}

/// Writes all of a new image.
pub fn write_new(new: &New<'_>, output: &Output, progress: &Progress) -> Result<()> {
    let file = output.file()?;
    let preallocation = new.options.preallocation.unwrap_or_default();
    let mut compression: Option<Compression> = None;
    let target = match new.format {
        Format::Raw => {
            if !output.is_device() {
                file.set_len(new.size)?;
            }
            output::preallocate(&file, 0..new.size, preallocation)?;
            Target::Raw {
                reads_zero: !output.is_device(),
                file,
            }
        }
        Format::Qcow2 => {
            let create = new.options.for_size(new.size)?;
            compression = new.compress.then_some(create.compression);
            Target::Qcow2(Box::new(NewImage::begin(file, create)?))
        }
    };
    let copy = Copy {
        sources: new.sources,
        start: new.start,
        end: new.start + new.length,
        target: &target,
        compression,
        sparse: new.sparse,
        place_all: preallocation != Preallocation::Off,
        workers: new.workers,
        progress,
    };
    copy.run()?;
    if let Target::Qcow2(image) = target {
        let file = image.finish()?;
        let end = file.metadata()?.len();
        if preallocation == Preallocation::Falloc || preallocation == Preallocation::Full {
            // Space for what was left out because it is zero.
            output::preallocate(&file, 0..end, Preallocation::Falloc)?;
        }
    }
    Ok(())
}

/// `-n`: writes into an image that is there.
fn into_existing(arguments: &Arguments, target: &Path, format: Format, sources: &Sources, sparse: u64) -> Result<u8> {
    let cache = open::cache_mode(&arguments.target_cache)?;
    let image = InEngine::open_with(
        OpenOptions {
            cache,
            ..OpenOptions::new(target, format)
        },
        disk::EngineOptions::default(),
    )?;
    if image.disk.capacity() < sources.size() {
        image.close()?;
        bail!("output file is smaller than input file");
    }
    let progress = Progress::new(sources.size(), arguments.progress, arguments.quiet);
    let result = with_engine(&image, |writer| {
        let target = Target::Existing {
            writer,
            reads_zero: arguments.target_is_zero,
        };
        let copy = Copy {
            sources,
            start: 0,
            end: sources.size(),
            target: &target,
            compression: None,
            sparse,
            place_all: false,
            workers: arguments.workers(),
            progress: &progress,
        };
        copy.run()
    });
    let closed = image.close();
    result.with_context(|| format!("Could not convert to '{}'", target.display()))?;
    closed?;
    progress.finish();
    Ok(0)
}
