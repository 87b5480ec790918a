//! Reading: from the image file straight into the guest's memory.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

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
        let mut elsewhere: SmallVec<[Part<'_>; 2]> = SmallVec::new();
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
                Kind::Compressed { host, length } => {
                    elsewhere.push(Box::pin(self.read_compressed(offset + done, host, length, piece)));
                }
                Kind::Unallocated => match &self.backing {
                    Some(backing) => elsewhere.push(backing.read(offset + done, piece)),
                    None => piece.buffer.zero(piece.range),
                },
            }
            done += extent.length;
        }
        all(elsewhere).await?;
        for transfer in transfers {
            transfer.await?;
        }
        Ok(())
    }
}

/// A part of a request that takes more than one transfer.
type Part<'a> = Pin<Box<dyn Future<Output = Result<(), DiskError>> + 'a>>;

/// Runs all parts side by side to their end. Returns the first error.
async fn all(mut parts: SmallVec<[Part<'_>; 2]>) -> Result<(), DiskError> {
    let mut result = Ok(());
    poll_fn(|context| {
        parts.retain(|part| match part.as_mut().poll(context) {
            Poll::Pending => true,
            Poll::Ready(outcome) => {
                result = std::mem::replace(&mut result, Ok(())).and(outcome);
                false
            }
        });
        if parts.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    result
}
