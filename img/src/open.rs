//! Opening images by name and format.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use disk::{CacheMode, Disk, Engine, EngineOptions, Format, ImageAtRest, OpenOptions, RestOptions};

/// Reads a format's name.
pub fn format(name: &str) -> Result<Format> {
    match name {
        "qcow2" => Ok(Format::Qcow2),
        "raw" => Ok(Format::Raw),
        _ => bail!("Unknown format \"{name}\"; spindle img knows qcow2 and raw"),
    }
}

/// The name of a format.
pub fn format_name(format: Format) -> &'static str {
    match format {
        Format::Qcow2 => "qcow2",
        Format::Raw => "raw",
    }
}

/// The format of an image: what was said, or else what its first bytes say. A raw disk whose guest wrote a qcow2 header
/// to it looks like qcow2; who cannot trust the guest says the format.
pub fn format_of(path: &Path, said: Option<&str>) -> Result<Format> {
    if let Some(name) = said {
        return format(name);
    }
    let mut magic = [0; 4];
    let file = File::open(path).with_context(|| could_not_open(path))?;
    let metadata = file.metadata().with_context(|| could_not_open(path))?;
    if metadata.is_dir() {
        bail!("{}: Is a directory", could_not_open(path));
    }
    let begins = file.read_exact_at(&mut magic, 0).is_ok() && &magic == b"QFI\xfb";
    Ok(if begins { Format::Qcow2 } else { Format::Raw })
}

/// As [`format_of`], for an image that will be written: a guess is worth a warning.
pub fn format_to_write(path: &Path, said: Option<&str>) -> Result<Format> {
    let format = format_of(path, said)?;
    if said.is_none() && format == Format::Raw {
        eprintln!(
            "WARNING: the format of '{}' was not specified and is taken to be raw; say -f raw to be sure.",
            path.display()
        );
    }
    Ok(format)
}

/// The beginning of an error about a file.
pub fn could_not_open(path: &Path) -> String {
    format!("Could not open '{}'", path.display())
}

/// An image to be read.
pub fn at_rest(path: &Path, said: Option<&str>, force_share: bool) -> Result<ImageAtRest> {
    at_rest_with(&RestOptions {
        force_share,
        ..RestOptions::new(path, format_of(path, said)?)
    })
}

/// The same, with all options.
pub fn at_rest_with(options: &RestOptions) -> Result<ImageAtRest> {
    ImageAtRest::open(options).with_context(|| could_not_open(&options.path))
}

/// An image open in an engine of its own.
pub struct InEngine {
    /// The engine.
    pub engine: Engine,
    /// The image.
    pub disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl InEngine {
    /// Opens an image for writing.
    pub fn open(path: &Path, format: Format) -> Result<Self> {
        Self::open_with(OpenOptions::new(path, format), EngineOptions::default())
    }

    /// The same, with all options.
    pub fn open_with(options: OpenOptions, engine: EngineOptions) -> Result<Self> {
        let engine = Engine::new(engine)?;
        let disk = engine.open(&options).with_context(|| could_not_open(&options.path))?;
        Ok(Self {
            engine,
            disk,
            path: options.path,
        })
    }

    /// Makes everything durable and gives the image up.
    pub fn close(self) -> Result<()> {
        self.engine
            .close()
            .with_context(|| format!("Could not close '{}'", self.path.display()))
    }
}

/// Reads a cache mode.
pub fn cache_mode(text: &str) -> Result<CacheMode> {
    text.parse().map_err(|_| {
        anyhow!("Invalid cache option: \"{text}\"; there are writeback, none, writethrough, directsync and unsafe")
    })
}
