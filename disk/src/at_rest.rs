//! Images at rest: read and checked whole, by blocking calls, from any thread.
//!
//! The [`Engine`](crate::Engine) serves a disk that is in use: one thread, small requests, metadata that changes. A tool that copies,
//! compares or checks an image wants the opposite: much at once, from many threads, of an image that nobody changes meanwhile.
//! What it needs of the format is the same pure code; what is different is only how the bytes come in.
//!
//! An image that a killed process left is seen as that process saw it: the dirty slices of its metadata cache are laid over the
//! file, without writing to it. Nothing here writes to an image, except [`repair`](crate::repair) and [`change_backing`](crate::change_backing).

use std::fs::File;
use std::path::Path;

use crate::OpenError;

mod file;
mod image;
mod new_image;
mod table_cache;

pub(crate) use file::{LeftBehind, RestingFile, Sharing};
pub use image::{ImageAtRest, MapEntry, RestOptions};
pub use new_image::{NewImage, NewImageError, Place};
pub(crate) use table_cache::{Table, TableCache};

/// A file that nobody else uses as an image, for as long as this lives.
pub struct LockedFile(RestingFile);

impl LockedFile {
    /// Opens and locks it for writing.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Ok(Self(RestingFile::open(path, Sharing::Nobody)?))
    }

    /// The file.
    pub fn file(&self) -> &File {
        self.0.file()
    }
}

/// Whether all bytes are zero. Fast: large words, no branch within a kilobyte.
pub fn is_zero(bytes: &[u8]) -> bool {
    const BLOCK: usize = 1024;
    let mut blocks = bytes.chunks_exact(BLOCK);
    // The compiler makes vector instructions of the inner fold; leaving early is decided once per block.
    let block_is_zero = |block: &[u8]| block.iter().fold(0, |sum, byte| sum | byte) == 0;
    blocks.by_ref().all(block_is_zero) && block_is_zero(blocks.remainder())
}
