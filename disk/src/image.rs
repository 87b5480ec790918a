//! An image of any format, as the engine and an overlay see it.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;

use crate::block_status::BlockMap;
use crate::direct::Plan;
use crate::qcow2::Qcow2;
use crate::raw::Raw;
use crate::storage::Piece;
use crate::{Command, DiskError, ResizeError, Snapshot, SnapshotError};

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

    /// What it takes to run a command, whose range has been checked, at this moment.
    pub(crate) fn plan(&self, command: &Command) -> Plan {
        match self {
            Image::Raw(image) => image.plan(command),
            Image::Qcow2(image) => image.plan(command),
        }
    }

    /// Whether metadata was changed since the last attempt to write it back.
    pub(crate) fn has_unsaved_changes(&self) -> bool {
        match self {
            Image::Raw(_) => false,
            Image::Qcow2(image) => image.has_unsaved_changes(),
        }
    }

    /// Starts to write back metadata that has been dirty for a while.
    pub(crate) fn write_back_by_age(&self) {
        match self {
            Image::Raw(_) => {}
            Image::Qcow2(image) => image.write_back_by_age(),
        }
    }

    /// Adds to `map`, which ends where `range` begins, how these bytes are stored. Boxed, as [`Image::read`] is.
    pub(crate) fn map<'a>(
        &'a self,
        range: Range<u64>,
        depth: u32,
        map: &'a mut BlockMap,
    ) -> Pin<Box<dyn Future<Output = Result<(), DiskError>> + 'a>> {
        Box::pin(async move {
            match self {
                Image::Raw(image) => image.map(range, depth, map),
                Image::Qcow2(image) => image.map(range, depth, map).await,
            }
        })
    }

    /// Runs one command, whose range has been checked.
    pub(crate) async fn execute(&self, command: Command) -> Result<(), DiskError> {
        match (self, command) {
            (
                _,
                Command::Map {
                    offset,
                    length,
                    extents,
                },
            ) => {
                let mut map = BlockMap::from(offset);
                self.map(offset..offset + length, 0, &mut map).await?;
                extents.put(map.finish());
                Ok(())
            }
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

    /// The internal snapshots.
    pub(crate) fn snapshots(&self) -> Result<Vec<Snapshot>, SnapshotError> {
        Ok(self.with_snapshots()?.snapshots())
    }

    /// Takes a snapshot.
    pub(crate) async fn snapshot_create(&self, name: &str) -> Result<Snapshot, SnapshotError> {
        self.with_snapshots()?.snapshot_create(name).await
    }

    /// Makes the disk what it was when a snapshot was taken.
    pub(crate) async fn snapshot_apply(&self, id_or_name: &str) -> Result<(), SnapshotError> {
        self.with_snapshots()?.snapshot_apply(id_or_name).await
    }

    /// Deletes a snapshot.
    pub(crate) async fn snapshot_delete(&self, id_or_name: &str) -> Result<(), SnapshotError> {
        self.with_snapshots()?.snapshot_delete(id_or_name).await
    }

    /// Makes the disk `size` bytes long.
    pub(crate) async fn resize(&self, size: u64, may_shrink: bool) -> Result<(), ResizeError> {
        match self {
            Image::Raw(_) => Err(ResizeError::Format),
            Image::Qcow2(image) => image.resize(size, may_shrink).await,
        }
    }

    /// Makes an overlay empty.
    pub(crate) async fn make_empty(&self) -> Result<(), DiskError> {
        match self {
            Image::Raw(_) => Err(DiskError::Unsupported(
                "a raw image cannot be made empty: nothing would show through",
            )),
            Image::Qcow2(image) => image.make_empty().await,
        }
    }

    fn with_snapshots(&self) -> Result<&Rc<Qcow2>, SnapshotError> {
        match self {
            Image::Raw(_) => Err(SnapshotError::Format),
            Image::Qcow2(image) => Ok(image),
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
