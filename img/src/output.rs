//! New files: without a name until they are complete.
//!
//! The file system keeps a file without a name (O_TMPFILE) for as long as it is open, so whatever ends the program before, Ctrl-C and SIGKILL
//! included, leaves nothing behind. Where that is not possible, it has a name of its own beside the one it will have.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use disk::LockedFile;
use rustix::fs::{AtFlags, CWD, FallocateFlags, OFlags};

use crate::creation_options::Preallocation;
use crate::open::could_not_open;

/// A file that will have the name `path`.
pub struct Output {
    path: PathBuf,
    file: File,
    state: State,
}

enum State {
    Unnamed,
    Named(PathBuf),
    /// A device: there is nothing to name.
    Direct,
}

impl Output {
    /// Begins a file; one that has the name already stays as it is until [`Output::commit`].
    pub fn create(path: &Path) -> Result<Self> {
        let failed = || format!("Could not create '{}'", path.display());
        let existing = fs::metadata(path).ok();
        if let Some(existing) = &existing {
            let kind = existing.file_type();
            if kind.is_block_device() || kind.is_char_device() {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(path)
                    .with_context(failed)?;
                return Ok(Self {
                    path: path.to_owned(),
                    file,
                    state: State::Direct,
                });
            }
            if !existing.is_file() {
                bail!("{}: it is neither a regular file nor a device", failed());
            }
            check_not_in_use(path)?;
        }
        // What a link points at is replaced, not the link.
        let path = if existing.is_some() {
            path.canonicalize().with_context(failed)?
        } else {
            path.to_owned()
        };
        let (file, state) = match Self::unnamed(&directory(&path)) {
            Ok(file) => (file, State::Unnamed),
            Err(_) => {
                let name = temporary_name(&path);
                let file = OpenOptions::new().read(true).write(true).create_new(true).open(&name);
                (file.with_context(failed)?, State::Named(name))
            }
        };
        if let Some(existing) = existing {
            file.set_permissions(existing.permissions()).with_context(failed)?;
        }
        Ok(Self { path, file, state })
    }

    fn unnamed(directory: &Path) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o666)
            .custom_flags(OFlags::TMPFILE.bits() as i32)
            .open(directory)
    }

    /// The file.
    pub fn file(&self) -> Result<File> {
        Ok(self.file.try_clone()?)
    }

    /// Whether it is a device, which has a size and content already.
    pub fn is_device(&self) -> bool {
        matches!(self.state, State::Direct)
    }

    /// Gives the file its name. If `durable`, what is in it is, first.
    pub fn commit(mut self, durable: bool) -> Result<()> {
        let failed = || format!("Could not finish '{}'", self.path.display());
        if durable {
            self.file.sync_all().with_context(failed)?;
        }
        let temporary = match &self.state {
            State::Direct => return Ok(()),
            State::Named(name) => name.clone(),
            State::Unnamed => {
                let name = temporary_name(&self.path);
                let descriptor = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                // Only a link can be made of it, and a link does not replace what is there; a rename does.
                rustix::fs::linkat(CWD, descriptor, CWD, &name, AtFlags::SYMLINK_FOLLOW)
                    .map_err(io::Error::from)
                    .with_context(failed)?;
                name
            }
        };
        if let Err(error) = fs::rename(&temporary, &self.path) {
            let _ = fs::remove_file(&temporary);
            return Err(error).with_context(failed);
        }
        self.state = State::Direct;
        if durable {
            File::open(directory(&self.path))
                .and_then(|directory| directory.sync_all())
                .with_context(failed)?;
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let State::Named(name) = &self.state {
            // It is of no use, and no harm either.
            let _ = fs::remove_file(name);
        }
    }
}

fn directory(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    directory(path).join(format!(".{name}.spindle-{}", std::process::id()))
}

/// Fails if somebody has the image open.
pub fn check_not_in_use(path: &Path) -> Result<()> {
    LockedFile::open(path).with_context(|| could_not_open(path))?;
    Ok(())
}

/// Gives space to a range of a file that was never written.
pub fn preallocate(file: &File, range: Range<u64>, mode: Preallocation) -> io::Result<()> {
    match mode {
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        Preallocation::Falloc => {
            let length = range.end.saturating_sub(range.start);
            if length > 0 {
                rustix::fs::fallocate(file, FallocateFlags::empty(), range.start, length)?;
            }
            Ok(())
        }
        Preallocation::Full => {
            let zeroes = vec![0; 1 << 20];
            let mut at = range.start;
            while at < range.end {
                let count = (range.end - at).min(zeroes.len() as u64);
                file.write_all_at(&zeroes[..count as usize], at)?;
                at += count;
            }
            Ok(())
        }
    }
}
