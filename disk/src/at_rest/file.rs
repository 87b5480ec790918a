//! The file of an image at rest, with the metadata that a killed process did not get to write.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions as FileOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::SeekFrom;

use crate::cache_file::CacheFile;
use crate::lock;
use crate::open::OpenCause;
use crate::qcow2::cache_memory::{Survivor, survivors};
use crate::qcow2::header::Header;
use crate::qcow2::of_image;
use crate::storage::file_length;
use crate::{DiskError, OpenError};

/// Who else may use the file meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Anybody; nothing is locked, and what is read may be inconsistent.
    Everybody,
    /// Readers.
    Readers,
    /// Nobody: it is going to be written.
    Nobody,
}

/// What is made of the metadata that a killed process left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeftBehind {
    /// Without it the image is not what it was.
    Needed,
    /// It may be another process' that lives, and changes as it is read.
    IfReadable,
    /// It is this process' own.
    Ignored,
}

/// An open file. All reads name their offset, so threads may share it.
pub(crate) struct RestingFile {
    file: File,
    length: u64,
    /// Of a killed process: what belongs over the file, by offset.
    survivors: BTreeMap<u64, Survivor>,
}

impl RestingFile {
    /// Opens the file at `path`.
    pub(crate) fn open(path: &Path, sharing: Sharing) -> Result<Self, OpenError> {
        Self::open_quietly(path, sharing).map_err(|cause| OpenError {
            path: path.to_owned(),
            cause: Box::new(cause),
        })
    }

    fn open_quietly(path: &Path, sharing: Sharing) -> Result<Self, OpenCause> {
        let file = FileOptions::new()
            .read(true)
            .write(sharing == Sharing::Nobody)
            .open(path)
            .map_err(OpenCause::File)?;
        let metadata = file.metadata().map_err(OpenCause::File)?;
        if !metadata.is_file() && !metadata.file_type().is_block_device() {
            return Err(OpenCause::NotAFile);
        }
        if sharing != Sharing::Everybody {
            lock::lock(&file, sharing == Sharing::Readers)?;
        }
        let length = file_length(&file).map_err(OpenCause::File)?;
        Ok(Self {
            file,
            length,
            survivors: BTreeMap::new(),
        })
    }

    /// Finds what a killed process left of the metadata of this image.
    pub(crate) fn find_survivors(&mut self, header: &Header) -> Result<(), OpenCause> {
        if header.version < 3 || !header.is_dirty() {
            return Ok(());
        }
        let Some(cache_file) = CacheFile::of(&self.file).map_err(OpenCause::File)? else {
            return Ok(());
        };
        if !cache_file.exists() {
            return Ok(());
        }
        let bytes = cache_file.read().map_err(OpenCause::CacheFile)?;
        let found = survivors(&bytes, of_image(cache_file.identity(), header)).map_err(OpenCause::Cache)?;
        let image_end = self.length.next_multiple_of(header.cluster_size());
        for survivor in found {
            survivor
                .check_within(header.cluster_size(), image_end)
                .map_err(OpenCause::Corrupt)?;
            self.survivors.insert(survivor.offset, survivor);
        }
        Ok(())
    }

    /// What a killed process left, by offset.
    pub(crate) fn survivors(&self) -> impl Iterator<Item = &Survivor> {
        self.survivors.values()
    }

    /// They are in the file now.
    pub(crate) fn forget_survivors(&mut self) {
        self.survivors.clear();
    }

    /// Bytes, at the time when it was opened, or measured again.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes, now.
    pub(crate) fn measure(&mut self) -> Result<u64, DiskError> {
        self.length = file_length(&self.file).map_err(|error| failed("length", 0, error))?;
        Ok(self.length)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Device and inode number.
    pub(crate) fn identity(&self) -> io::Result<(u64, u64)> {
        let metadata = self.file.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Bytes that the file takes up on its file system.
    pub(crate) fn space(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512)
    }

    /// Fills `target` with the guest's data at `offset`. What lies beyond the end of the file reads as zeros.
    pub(crate) fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), DiskError> {
        let mut done = 0;
        while done < target.len() {
            match self.file.read_at(&mut target[done..], offset + done as u64) {
                Ok(0) => {
                    target[done..].fill(0);
                    return Ok(());
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("read", offset + done as u64, error)),
            }
        }
        Ok(())
    }

    /// Fills `target` with metadata at `offset`: the file's, and over it what a killed process left.
    pub(crate) fn read_metadata(&self, offset: u64, target: &mut [u8]) -> Result<(), DiskError> {
        self.read(offset, target)?;
        let end = offset + target.len() as u64;
        for survivor in self.survivors.range(..end).rev().map(|(_, survivor)| survivor) {
            let survivor_end = survivor.offset + survivor.content.len() as u64;
            // Slices are all of one size and do not overlap.
            if survivor_end <= offset {
                break;
            }
            let (start, end) = (survivor.offset.max(offset), survivor_end.min(end));
            target[(start - offset) as usize..(end - offset) as usize].copy_from_slice(
                &survivor.content[(start - survivor.offset) as usize..(end - survivor.offset) as usize],
            );
        }
        Ok(())
    }

    /// `length` bytes of metadata.
    pub(crate) fn metadata(&self, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        let mut bytes = vec![0; length];
        self.read_metadata(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Whether all of a range of metadata lies in a hole of the file, and nothing was left that belongs there.
    pub(crate) fn is_hole(&self, offset: u64, length: u64) -> bool {
        let left = self.survivors.range(..offset + length).next_back();
        if left.is_some_and(|(at, survivor)| at + survivor.content.len() as u64 > offset) {
            return false;
        }
        self.next_data(offset) >= offset + length
    }

    /// Where the first data at or behind `offset` begins: the end of the file if there is none, `offset` if the file system does not say.
    pub(crate) fn next_data(&self, offset: u64) -> u64 {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(found) => found,
            Err(rustix::io::Errno::NXIO) => self.length.max(offset),
            Err(_) => offset,
        }
    }

    /// Where the first hole at or behind `offset` begins: the end of the file at the latest.
    pub(crate) fn next_hole(&self, offset: u64) -> u64 {
        rustix::fs::seek(&self.file, SeekFrom::Hole(offset)).unwrap_or_else(|_| self.length.max(offset))
    }

    /// Writes all of `bytes` at `offset`.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| failed("write", offset, error))
    }

    /// Makes everything that was written durable.
    pub(crate) fn sync(&self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(|error| failed("fdatasync", 0, error))
    }
}

impl Drop for RestingFile {
    fn drop(&mut self) {
        // Closing does it, too, but for a descriptor that a fork of this process still holds.
        if let Err(error) = lock::unlock(&self.file) {
            tracing::debug!(%error, "an image stays locked until its file is closed");
        }
    }
}

pub(crate) fn failed(operation: &'static str, offset: u64, error: io::Error) -> DiskError {
    DiskError::Io {
        operation,
        offset,
        error,
    }
}
