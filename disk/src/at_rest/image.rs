//! An image at rest and the chain of backing files below it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::file::{LeftBehind, RestingFile, Sharing};
use crate::disk::SECTOR_SIZE;
use crate::open::{MAX_CHAIN, OpenCause, backing_options};
use crate::qcow2::header::Header;
use crate::qcow2::layer::{Qcow2Layer, Stored};
use crate::{DiskError, Format, OpenError, OpenOptions, Snapshot};

/// Which image, and how.
#[derive(Clone, Debug)]
pub struct RestOptions {
    /// The image file or block device.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Do not lock it: somebody may write to it meanwhile, and what is read may be inconsistent.
    pub force_share: bool,
    /// The id or name of an internal snapshot to read in place of what the disk holds now.
    pub snapshot: Option<String>,
    /// Open the files below, too. Without them, what is in them reads as zeros.
    pub with_backing: bool,
    /// Who writes to it is this process: its file is what counts, not what is in its cache.
    pub written_by_us: bool,
}

impl RestOptions {
    /// The image at `path` and all below it.
    pub fn new(path: impl Into<PathBuf>, format: Format) -> Self {
        Self {
            path: path.into(),
            format,
            force_share: false,
            snapshot: None,
            with_backing: true,
            written_by_us: false,
        }
    }
}

/// An image, open for reading. Threads may share it.
pub struct ImageAtRest {
    path: PathBuf,
    layer: Layer,
    backing: Option<Box<ImageAtRest>>,
}

enum Layer {
    Raw(RestingFile),
    Qcow2(Box<Qcow2Layer>),
}

/// A run of bytes of a disk that are stored alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Bytes.
    pub length: u64,
    /// In which image of the chain: 0 is the uppermost.
    pub depth: usize,
    /// Some image of the chain says what is there. Otherwise it is zeros for want of anything else.
    pub present: bool,
    /// It is known to read as zeros.
    pub zero: bool,
    /// There is a place with data (which may be a hole of the file).
    pub data: bool,
    /// It is stored compressed.
    pub compressed: bool,
    /// Where in the file of that image, in bytes; not for compressed clusters.
    pub host: Option<u64>,
}

impl ImageAtRest {
    /// Opens an image.
    pub fn open(options: &RestOptions) -> Result<Self, OpenError> {
        Self::open_link(options, &mut Vec::new())
    }

    fn open_link(options: &RestOptions, above: &mut Vec<(u64, u64)>) -> Result<Self, OpenError> {
        let fail = |cause| OpenError {
            path: options.path.clone(),
            cause: Box::new(cause),
        };
        let sharing = if options.force_share {
            Sharing::Everybody
        } else {
            Sharing::Readers
        };
        let file = RestingFile::open(&options.path, sharing)?;
        let identity = file.identity().map_err(|error| fail(OpenCause::File(error)))?;
        if above.contains(&identity) {
            return Err(fail(OpenCause::Cycle));
        }
        if above.len() == MAX_CHAIN {
            return Err(fail(OpenCause::ChainTooLong));
        }
        above.push(identity);
        let (layer, backing) = match options.format {
            Format::Raw => {
                if let Some(wanted) = &options.snapshot {
                    return Err(fail(OpenCause::NoSuchSnapshot(wanted.clone())));
                }
                (Layer::Raw(file), None)
            }
            Format::Qcow2 => {
                let left_behind = match (options.written_by_us, options.force_share) {
                    (true, _) => LeftBehind::Ignored,
                    (false, true) => LeftBehind::IfReadable,
                    (false, false) => LeftBehind::Needed,
                };
                let layer = Qcow2Layer::open(file, options.snapshot.as_deref(), left_behind).map_err(fail)?;
                let below = layer.header.backing.as_ref().filter(|_| options.with_backing);
                let backing = match below {
                    None => None,
                    Some(reference) => {
                        let above_options = OpenOptions::new(&options.path, options.format);
                        let found = backing_options(&above_options, reference).map_err(fail)?;
                        let below = RestOptions {
                            path: found.path,
                            format: found.format,
                            snapshot: None,
                            ..options.clone()
                        };
                        Some(Box::new(Self::open_link(&below, above)?))
                    }
                };
                (Layer::Qcow2(Box::new(layer)), backing)
            }
        };
        Ok(Self {
            path: options.path.clone(),
            layer,
            backing,
        })
    }

    /// The size of the disk in bytes.
    pub fn size(&self) -> u64 {
        match &self.layer {
            Layer::Raw(file) => file.length().next_multiple_of(SECTOR_SIZE),
            Layer::Qcow2(layer) => layer.header.size,
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file, and bytes that it takes up on its file system.
    pub fn file_size(&self) -> (u64, u64) {
        let file = match &self.layer {
            Layer::Raw(file) => file,
            Layer::Qcow2(layer) => &layer.file,
        };
        (file.length(), file.space())
    }

    /// What a qcow2 image says of itself.
    pub fn header(&self) -> Option<&Header> {
        match &self.layer {
            Layer::Raw(_) => None,
            Layer::Qcow2(layer) => Some(&layer.header),
        }
    }

    /// The internal snapshots.
    pub fn snapshots(&self) -> Vec<Snapshot> {
        match &self.layer {
            Layer::Raw(_) => Vec::new(),
            Layer::Qcow2(layer) => layer.snapshots(),
        }
    }

    /// The image below.
    pub fn backing(&self) -> Option<&ImageAtRest> {
        self.backing.as_deref()
    }

    /// Where the file below is, and its format, whether it is open or not.
    pub fn backing_path(&self) -> Result<Option<(PathBuf, Format)>, OpenError> {
        let Some(reference) = self.header().and_then(|header| header.backing.as_ref()) else {
            return Ok(None);
        };
        let found = backing_options(&OpenOptions::new(&self.path, Format::Qcow2), reference);
        let found = found.map_err(|cause| OpenError {
            path: self.path.clone(),
            cause: Box::new(cause),
        })?;
        Ok(Some((found.path, found.format)))
    }

    /// Whether this is the file at `path`.
    pub fn is_same_file(&self, path: &Path) -> bool {
        let file = match &self.layer {
            Layer::Raw(file) => file,
            Layer::Qcow2(layer) => &layer.file,
        };
        let other = std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
        file.identity().is_ok_and(|own| other.is_ok_and(|other| own == other))
    }

    /// The images of the chain, the uppermost first.
    pub fn chain(&self) -> impl Iterator<Item = &ImageAtRest> {
        std::iter::successors(Some(self), |image| image.backing())
    }

    /// How the bytes from `offset` on are stored, and how many of them, at most `length` (which is not 0), alike.
    pub fn extent(&self, offset: u64, length: u64) -> Result<MapEntry, DiskError> {
        self.extent_above(offset, length, usize::MAX)
    }

    /// As [`ImageAtRest::extent`], in the uppermost `layers` images only. What is further below is not present.
    pub fn extent_above(&self, offset: u64, length: u64, layers: usize) -> Result<MapEntry, DiskError> {
        let (mut image, mut depth, mut length) = (self, 0, length);
        loop {
            let (stored, run) = image.lookup(offset, length)?;
            let below = match (stored, image.backing()) {
                (Stored::Elsewhere, Some(below)) if depth + 1 < layers && offset < below.size() => below,
                _ => return Ok(extent_of(stored, run, depth)),
            };
            length = run.min(below.size() - offset);
            depth += 1;
            image = below;
        }
    }

    fn lookup(&self, offset: u64, length: u64) -> Result<(Stored, u64), DiskError> {
        match &self.layer {
            Layer::Qcow2(layer) => layer.lookup(offset, length),
            Layer::Raw(file) => {
                let data = file.next_data(offset);
                Ok(if data > offset || offset >= file.length() {
                    let length = if data >= file.length() {
                        length
                    } else {
                        length.min(data - offset)
                    };
                    (Stored::Zero { host: Some(offset) }, length)
                } else {
                    let hole = file.next_hole(offset).max(offset + 1);
                    (Stored::Data { host: offset }, length.min(hole - offset))
                })
            }
        }
    }

    /// Fills `target` with the bytes at `offset`. What lies beyond the end of the disk reads as zeros.
    pub fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), DiskError> {
        let within = self.size().saturating_sub(offset).min(target.len() as u64) as usize;
        let (target, beyond) = target.split_at_mut(within);
        beyond.fill(0);
        let layer = match &self.layer {
            Layer::Raw(file) => return file.read(offset, target),
            Layer::Qcow2(layer) => layer,
        };
        let mut done = 0;
        while done < target.len() {
            let at = offset + done as u64;
            let (stored, run) = layer.lookup(at, (target.len() - done) as u64)?;
            let piece = &mut target[done..done + run as usize];
            done += run as usize;
            match (stored, self.backing()) {
                (Stored::Data { host } | Stored::Hole { host }, _) => layer.file.read(host, piece)?,
                (Stored::Compressed { host, length }, _) => {
                    let within = (at % layer.header.cluster_size()) as usize;
                    layer.read_compressed(host, length, within, piece)?;
                }
                (Stored::Elsewhere, Some(backing)) => backing.read(at, piece)?,
                (Stored::Zero { .. } | Stored::Elsewhere, _) => piece.fill(0),
            }
        }
        Ok(())
    }
}

fn extent_of(stored: Stored, length: u64, depth: usize) -> MapEntry {
    let (present, zero, data, compressed, host) = match stored {
        Stored::Elsewhere => (false, true, false, false, None),
        Stored::Zero { host } => (true, true, false, false, host),
        Stored::Data { host } => (true, false, true, false, Some(host)),
        Stored::Hole { host } => (true, true, true, false, Some(host)),
        Stored::Compressed { .. } => (true, false, true, true, None),
    };
    MapEntry {
        length,
        depth,
        present,
        zero,
        data,
        compressed,
        host,
    }
}
