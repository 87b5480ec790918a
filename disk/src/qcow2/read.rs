//! Reading: from the image file straight into the guest's memory.

use std::rc::Rc;

use smallvec::SmallVec;

use super::Qcow2;
use super::mapping::Kind;
use crate::DiskError;
use crate::storage::{Piece, Transfer};

impl Qcow2 {
    /// Fills `target` from the guest's bytes at `offset`.
    pub(crate) async fn read(self: &Rc<Self>, offset: u64, target: Piece) -> Result<(), DiskError> {
        if target.range.is_empty() {
            return Ok(());
        }
        let _using = self
            .in_flight
            .use_mapping(self.clusters(offset, target.range.len() as u64))
            .await;
        self.check_within_disk(offset, target.range.len() as u64)?;
        self.read_mapped(offset, target).await
    }

    /// Fills `target` from the guest's bytes at `offset`, whose mapping the caller holds still.
    pub(super) async fn read_mapped(self: &Rc<Self>, offset: u64, target: Piece) -> Result<(), DiskError> {
        let mut transfers: SmallVec<[Transfer; 4]> = SmallVec::new();
        let mut elsewhere: SmallVec<[(u64, Kind, Piece); 2]> = SmallVec::new();
        let length = target.range.len() as u64;
        let mut done = 0;
        while done < length {
            let extent = self.lookup(offset + done, length - done).await?;
            let start = target.range.start + done as usize;
            let piece = Piece {
                buffer: target.buffer.clone(),
                range: start..start + extent.length as usize,
            };
            match extent.kind {
                Kind::Data { host, .. } => transfers.push(self.file.read(host, smallvec::smallvec![piece])),
                Kind::Zero { .. } => piece.buffer.zero(piece.range),
                Kind::Unallocated if self.backing.is_none() => piece.buffer.zero(piece.range),
                Kind::Unallocated | Kind::Compressed { .. } => elsewhere.push((offset + done, extent.kind, piece)),
            }
            done += extent.length;
        }
        for (offset, kind, piece) in elsewhere {
            match (kind, &self.backing) {
                (Kind::Compressed { host, length }, _) => self.read_compressed(offset, host, length, piece).await?,
                (_, Some(backing)) => Box::pin(backing.read(offset, piece)).await?,
                (_, None) => piece.buffer.zero(piece.range),
            }
        }
        for transfer in transfers {
            transfer.await?;
        }
        Ok(())
    }
}
