//! The file behind a metadata cache: on tmpfs, so that it outlives its process and not its host's power.

use std::fs::{File, OpenOptions as FileOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};

use crate::Buffer;
use crate::failpoint::{self, Point};
use crate::qcow2::cache_memory::{Identity, LastingMemory};

/// statfs' f_type of a tmpfs.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// The largest file that is read back, in bytes.
const MAX_LENGTH: u64 = 4 << 30;

/// Where the cache of one image is kept.
#[derive(Debug)]
pub(crate) struct CacheFile {
    path: PathBuf,
    identity: Identity,
}

/// A cache file that is there, but not to be trusted.
#[derive(Debug, thiserror::Error)]
#[error("The metadata that a killed process left in {} cannot be used: {reason}", path.display())]
pub struct CacheFileError {
    path: PathBuf,
    reason: io::Error,
}

impl CacheFile {
    /// The place for the cache of `image`. `None` where the host has no tmpfs for it.
    pub(crate) fn of(image: &File) -> io::Result<Option<Self>> {
        let Some(directory) = directory() else { return Ok(None) };
        let metadata = image.metadata()?;
        let file = (metadata.dev(), metadata.ino());
        let user = rustix::process::geteuid().as_raw();
        let path = directory.join(format!("spindle-{:x}-{:x}.cache", file.0, file.1));
        // An inode number is used again for another file; its birth is not.
        let born = rustix::fs::statx(image, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME)?.stx_btime;
        let born = (born.tv_sec, born.tv_nsec);
        let size = crate::storage::file_length(image)?;
        Ok(Some(Self {
            path,
            identity: Identity {
                file,
                born,
                boot: boot_id()?,
                user,
                size,
                // What is in the image itself, its format adds.
                token: None,
            },
        }))
    }

    /// Whose metadata it holds.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The name of a file that has no header yet.
    fn unpublished(&self) -> PathBuf {
        self.path.with_extension("new")
    }

    /// Whether a process left one behind.
    pub(crate) fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// What a process left behind is in the image, or of no use.
    pub(crate) fn discard(&self) {
        self.remove();
    }

    /// What a process left behind, if it is ours.
    pub(crate) fn read(&self) -> Result<Vec<u8>, CacheFileError> {
        self.read_checked().map_err(|reason| CacheFileError {
            path: self.path.clone(),
            reason,
        })
    }

    fn read_checked(&self) -> io::Result<Vec<u8>> {
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
        let mut file = FileOptions::new().read(true).custom_flags(flags).open(&self.path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.uid() != self.identity.user || metadata.permissions().mode() & 0o077 != 0 {
            return Err(io::Error::other("it is not a file that only this user can write"));
        }
        if metadata.len() > MAX_LENGTH {
            return Err(io::Error::other("it is too large"));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize);
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl LastingMemory for CacheFile {
    /// Makes the file anew, with pages that are reserved, and maps it.
    fn make(&self, length: usize) -> io::Result<Buffer> {
        let new = self.unpublished();
        // One that is there was left by a process that was killed in here; the image's lock keeps others out.
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = FileOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        let buffer = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, length as u64)
            .map_err(io::Error::from)
            .and_then(|()| Buffer::map_shared(&file, length));
        if buffer.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        buffer
    }

    fn publish(&self) -> io::Result<()> {
        failpoint::hit(Point::CacheFileMade);
        std::fs::rename(self.unpublished(), &self.path)?;
        failpoint::hit(Point::CacheFileNamed);
        Ok(())
    }

    fn remove(&self) {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %self.path.display(), "a metadata cache of no use stays behind");
            }
            _ => {}
        }
    }

    fn new_token(&self) -> Option<[u8; 16]> {
        Some(rand::random())
    }
}

/// A directory on a tmpfs.
fn directory() -> Option<PathBuf> {
    let candidates = ["/dev/shm", "/run"].map(PathBuf::from);
    candidates.into_iter().find(|path| {
        let is_tmpfs = rustix::fs::statfs(path).is_ok_and(|found| found.f_type == TMPFS_MAGIC);
        is_tmpfs && rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
    })
}

fn boot_id() -> io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).map_err(|error| io::Error::other(format!("boot_id: {error}")))?;
    Ok(id.to_be_bytes())
}
