//! The images that are measured on: made once, and copied or made anew for whoever writes.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::sample::Programs;

/// An image, of QEMU's defaults: version 3, clusters of 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// 1 GiB, all of it written.
    Filled,
    /// The same as a raw file.
    FilledRaw,
    /// 16 GiB, nothing written.
    Empty,
    /// 1 GiB over [`Image::Filled`], nothing written.
    Overlay,
    /// 1 GiB, of which [`PLACES`] clusters are written.
    Sparse1G,
    /// The same of 1 TiB.
    Sparse1T,
    /// 64 GiB whose clusters are mapped; the data are holes.
    Mapped64G,
    /// 100 GiB whose clusters are mapped, marked as not closed (qcow2 specification, "incompatible_features", bit 0).
    Dirty100G,
    /// 4 GiB, every other 64 MiB written.
    HalfFull,
}

impl Image {
    /// Its format, as the tools name it.
    pub fn format(self) -> &'static str {
        match self {
            Image::FilledRaw => "raw",
            _ => "qcow2",
        }
    }

    fn file_name(self) -> &'static str {
        match self {
            Image::Filled => "filled.qcow2",
            Image::FilledRaw => "filled.raw",
            Image::Empty => "empty.qcow2",
            Image::Overlay => "overlay.qcow2",
            Image::Sparse1G => "sparse-1g.qcow2",
            Image::Mapped64G => "mapped-64g.qcow2",
            Image::Dirty100G => "dirty-100g.qcow2",
            Image::Sparse1T => "sparse-1t.qcow2",
            Image::HalfFull => "half-full.qcow2",
        }
    }

    /// Quickly made, so that each run gets a new one.
    fn is_made_anew(self) -> bool {
        matches!(self, Image::Empty | Image::Overlay | Image::Dirty100G)
    }
}

/// Clusters that a sparse image has.
pub const PLACES: u64 = 4096;

/// A folder of images.
pub struct Images {
    folder: PathBuf,
    qemu_img: PathBuf,
    /// Copies that are in use, by image and side.
    copies: Vec<(Image, usize, PathBuf)>,
}

impl Images {
    /// In `folder`, which is made.
    pub fn new(folder: PathBuf, programs: &Programs) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
        Ok(Self {
            folder,
            qemu_img: programs.qemu_img.clone(),
            copies: Vec::new(),
        })
    }

    /// The file of an image for side `number` of a row; one that is written is that side's alone.
    pub fn get(&mut self, image: Image, writes: bool, number: usize) -> Result<PathBuf> {
        let master = self.folder.join(image.file_name());
        if image.is_made_anew() {
            let path = self.folder.join(format!("{number}-{}", image.file_name()));
            self.make(image, &path)?;
            self.copies.push((image, number, path.clone()));
            return Ok(path);
        }
        if !master.exists() {
            let new = master.with_extension("new");
            self.make(image, &new)?;
            fs::rename(&new, &master).with_context(|| format!("Cannot rename {}", new.display()))?;
        }
        if !writes {
            return Ok(master);
        }
        let known = self
            .copies
            .iter()
            .find(|(copied, side, _)| (*copied, *side) == (image, number));
        if let Some((_, _, path)) = known {
            return Ok(path.clone());
        }
        let path = self.folder.join(format!("{number}-{}", image.file_name()));
        fs::copy(&master, &path).with_context(|| format!("Cannot copy {}", master.display()))?;
        self.copies.push((image, number, path.clone()));
        Ok(path)
    }

    /// Removes the copies.
    pub fn clear(&mut self) -> Result<()> {
        for (_, _, path) in self.copies.drain(..) {
            if path.exists() {
                fs::remove_file(&path).with_context(|| format!("Cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn make(&mut self, image: Image, path: &Path) -> Result<()> {
        match image {
            Image::Filled => {
                self.create(path, "1G", &[])?;
                qemu_io(path, "qcow2", &["write -P 165 0 1G".to_owned()])
            }
            Image::FilledRaw => {
                fs::File::create(path)
                    .and_then(|file| file.set_len(1 << 30))
                    .with_context(|| format!("Cannot create {}", path.display()))?;
                qemu_io(path, "raw", &["write -P 165 0 1G".to_owned()])
            }
            Image::Empty => self.create(path, "16G", &[]),
            Image::Overlay => {
                let below = self.get(Image::Filled, false, 0)?;
                let below = below
                    .file_name()
                    .and_then(|name| name.to_str())
                    .unwrap_or_default()
                    .to_owned();
                self.create(path, "1G", &["-b", &below, "-F", "qcow2"])
            }
            Image::Sparse1G => self.sparse(path, 1 << 30),
            Image::Mapped64G => self.create(path, "64G", &["-o", "preallocation=metadata"]),
            Image::Dirty100G => {
                self.create(path, "100G", &["-o", "preallocation=metadata,lazy_refcounts=on"])?;
                mark_dirty(path)
            }
            Image::Sparse1T => self.sparse(path, 1 << 40),
            Image::HalfFull => {
                self.create(path, "4G", &[])?;
                let writes: Vec<String> = (0..32)
                    .map(|part| format!("write -P {} {}M 64M", part + 1, part * 128))
                    .collect();
                qemu_io(path, "qcow2", &writes)
            }
        }
    }

    /// A disk of `size` bytes of which [`PLACES`] clusters are written, all as far from each other.
    fn sparse(&self, path: &Path, size: u64) -> Result<()> {
        self.create(path, &size.to_string(), &[])?;
        let writes: Vec<String> = (0..PLACES)
            .map(|place| format!("write -P 165 {} 64k", place * (size / PLACES)))
            .collect();
        qemu_io(path, "qcow2", &writes)
    }

    fn create(&self, path: &Path, size: &str, more: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.qemu_img);
        command
            .args(["create", "-q", "-f", "qcow2"])
            .args(more)
            .arg(path)
            .arg(size);
        succeed(&mut command)
    }
}

fn mark_dirty(path: &Path) -> Result<()> {
    /// Of the last byte of "incompatible_features", which are big-endian.
    const OFFSET: u64 = 79;
    const DIRTY: u8 = 1;
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|file| file.write_all_at(&[DIRTY], OFFSET))
        .with_context(|| format!("Cannot write to {}", path.display()))
}

fn qemu_io(path: &Path, format: &str, commands: &[String]) -> Result<()> {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]);
    for text in commands {
        command.args(["-c", text]);
    }
    succeed(command.arg(path))
}

fn succeed(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} does not start"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}", text.trim_end());
    Ok(())
}
