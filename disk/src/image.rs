//! An image of any format, as the engine and an overlay see it.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use crate::qcow2::Qcow2;
use crate::raw::Raw;
use crate::storage::Piece;
use crate::{Command, DiskError};

/// An open image.
#[derive(Clone)]
pub(crate) enum Image {
    Raw(Rc<Raw>),
    Qcow2(Rc<Qcow2>),
}

impl Image {
    /// The size of the virtual disk in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        match self {
            Image::Raw(image) => image.capacity(),
            Image::Qcow2(image) => image.capacity(),
        }
    }

    /// Fills `target` from the bytes at `offset`. What lies beyond the end reads as zeros. Boxed, because chains of
    /// images read through each other.
    pub(crate) fn read(&self, offset: u64, target: Piece) -> Pin<Box<dyn Future<Output = Result<(), DiskError>> + '_>> {
        Box::pin(async move {
            let length = target.range.len() as u64;
            let within = self.capacity().saturating_sub(offset).min(length) as usize;
            let end = target.range.start + within;
            target.buffer.zero(end..target.range.end);
            let inside = Piece {
                buffer: target.buffer,
                range: target.range.start..end,
            };
            match self {
                Image::Raw(image) => image.read(offset, inside).await,
                Image::Qcow2(image) => image.read(offset, inside).await,
            }
        })
    }

    /// Runs one command, whose range has been checked.
    pub(crate) async fn execute(&self, command: Command) -> Result<(), DiskError> {
        match (self, command) {
            (Image::Qcow2(image), Command::Read { offset, buffer }) => image.read(offset, Piece::whole(buffer)).await,
            (Image::Qcow2(image), Command::Write { offset, buffer }) => image.write(offset, Piece::whole(buffer)).await,
            (Image::Qcow2(image), Command::Flush) => image.flush().await,
            (Image::Qcow2(image), Command::Discard { offset, length }) => image.discard(offset, length).await,
            (Image::Qcow2(image), Command::WriteZeroes { offset, length }) => image.write_zeroes(offset, length).await,
            (Image::Raw(image), Command::Read { offset, buffer }) => image.read(offset, Piece::whole(buffer)).await,
            (Image::Raw(image), Command::Write { offset, buffer }) => image.write(offset, Piece::whole(buffer)).await,
            (Image::Raw(image), Command::Flush) => image.flush().await,
            // A raw file keeps what is discarded; that is allowed.
            (Image::Raw(_), Command::Discard { .. }) => Ok(()),
            (Image::Raw(image), Command::WriteZeroes { offset, length }) => image.write_zeroes(offset, length).await,
        }
    }

    /// Makes everything durable, as the last thing before the image is closed.
    pub(crate) async fn finish(&self) -> Result<(), DiskError> {
        match self {
            Image::Raw(image) => image.flush().await,
            Image::Qcow2(image) => image.finish().await,
        }
    }
}
