//! Storage that takes only aligned transfers (O_DIRECT), for callers that do not know of that.
//!
//! What is aligned passes. Everything else goes by way of an aligned buffer of our own, and a write that covers a block in part
//! reads that block first, and has it for itself meanwhile. So a guest with sectors of 512 bytes works on a
//! disk with blocks of 4096.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use smallvec::smallvec;

use super::{Completion, ImageFile, Operation, Piece, Run, Storage, Ticket, total_length};
use crate::in_flight::{InFlight, InFlightGuard};
use crate::tasks::Tasks;
use crate::{Buffer, DiskError};

/// A file with alignment rules.
pub(crate) struct AlignedStorage {
    inner: Rc<dyn Storage>,
    tasks: Tasks,
    /// Of offsets, lengths and memory, in bytes; a power of two.
    alignment: u64,
    /// Which blocks transfers touch: a write of parts of a block excludes the others.
    in_flight: Rc<InFlight>,
    passing: Rc<Passing>,
}

/// Writes that are aligned, and go to the storage below as they are. Each keeps its blocks until it is done.
#[derive(Default)]
struct Passing {
    writes: RefCell<Vec<Option<(InFlightGuard, Ticket)>>>,
    vacant: RefCell<Vec<usize>>,
}

impl Passing {
    fn add(&self, guard: InFlightGuard, ticket: Ticket) -> usize {
        let mut writes = self.writes.borrow_mut();
        let id = self.vacant.borrow_mut().pop().unwrap_or_else(|| {
            writes.push(None);
            writes.len() - 1
        });
        writes[id] = Some((guard, ticket));
        id
    }
}

impl Completion for Passing {
    fn complete(&self, id: usize, result: io::Result<usize>) {
        let done = self.writes.borrow_mut().get_mut(id).and_then(Option::take);
        if let Some((guard, ticket)) = done {
            self.vacant.borrow_mut().push(id);
            drop(guard);
            ticket.complete(result);
        }
    }
}

impl AlignedStorage {
    /// Above `inner`, which takes multiples of `alignment` bytes.
    pub(crate) fn new(inner: Rc<dyn Storage>, tasks: Tasks, alignment: u64) -> Self {
        Self {
            inner,
            tasks,
            alignment,
            in_flight: Rc::default(),
            passing: Rc::default(),
        }
    }

    /// The blocks that a range of bytes touches.
    fn blocks(&self, offset: u64, length: u64) -> Range<u64> {
        offset / self.alignment..(offset + length).div_ceil(self.alignment)
    }

    fn is_aligned(&self, offset: u64, pieces: &[Piece]) -> bool {
        let alignment = self.alignment as usize;
        offset.is_multiple_of(self.alignment)
            && pieces
                .iter()
                .all(|piece| piece.buffer.is_aligned(piece.range.clone(), alignment))
    }
}

/// Reads whole blocks, and hands out what was asked for.
async fn read_bounced(file: ImageFile, blocks: Range<u64>, alignment: u64, offset: u64, pieces: &[Piece]) -> Moved {
    let start = blocks.start * alignment;
    let bounce = Buffer::zeroed_aligned(((blocks.end - blocks.start) * alignment) as usize, alignment as usize);
    file.read(start, smallvec![Piece::whole(bounce.clone())]).await?;
    let mut at = (offset - start) as usize;
    for piece in pieces {
        let mut bytes = vec![0; piece.range.len()];
        bounce.copy_to_slice(at, &mut bytes);
        piece.buffer.copy_from_slice(piece.range.start, &bytes);
        at += bytes.len();
    }
    Ok(total_length(pieces))
}

/// Writes whole blocks: what was there, with the pieces over it.
async fn write_bounced(file: ImageFile, blocks: Range<u64>, alignment: u64, offset: u64, pieces: &[Piece]) -> Moved {
    let start = blocks.start * alignment;
    let length = total_length(pieces) as u64;
    let end = blocks.end * alignment;
    let bounce = Buffer::zeroed_aligned((end - start) as usize, alignment as usize);
    if offset != start || offset + length != end {
        file.read(start, smallvec![Piece::whole(bounce.clone())]).await?;
    }
    let mut at = (offset - start) as usize;
    for piece in pieces {
        let mut bytes = vec![0; piece.range.len()];
        piece.buffer.copy_to_slice(piece.range.start, &mut bytes);
        bounce.copy_from_slice(at, &bytes);
        at += bytes.len();
    }
    file.write(start, smallvec![Piece::whole(bounce)]).await?;
    Ok(length as usize)
}

/// How many bytes were moved.
type Moved = Result<usize, DiskError>;

fn into_io(moved: Moved) -> io::Result<usize> {
    moved.map_err(|error| match error {
        DiskError::Io { error, .. } => error,
        other => io::Error::other(other.to_string()),
    })
}

impl Storage for AlignedStorage {
    fn start(&self, operation: Operation, ticket: Ticket) {
        let (file, alignment) = (ImageFile::new(self.inner.clone()), self.alignment);
        let in_flight = self.in_flight.clone();
        match operation {
            Operation::Read { offset, ref pieces } if !self.is_aligned(offset, pieces) => {
                let (blocks, pieces) = (self.blocks(offset, total_length(pieces) as u64), pieces.clone());
                self.tasks.spawn(async move {
                    let _using = in_flight.use_mapping(blocks.clone()).await;
                    ticket.complete(into_io(read_bounced(file, blocks, alignment, offset, &pieces).await));
                });
            }
            Operation::Write { offset, ref pieces } => {
                let blocks = self.blocks(offset, total_length(pieces) as u64);
                let aligned = self.is_aligned(offset, pieces);
                if aligned && let Some(guard) = in_flight.try_use_mapping(blocks.clone()) {
                    let id = self.passing.add(guard, ticket);
                    self.inner
                        .start(operation, Ticket::of_request(self.passing.clone(), id));
                    return;
                }
                let pieces = pieces.clone();
                self.tasks.spawn(async move {
                    if aligned {
                        let _using = in_flight.use_mapping(blocks).await;
                        let length = total_length(&pieces);
                        ticket.complete(into_io(file.write(offset, pieces).await.map(|()| length)));
                    } else {
                        let _alone = in_flight.change_mapping(blocks.clone()).await;
                        ticket.complete(into_io(write_bounced(file, blocks, alignment, offset, &pieces).await));
                    }
                });
            }
            other => self.inner.start(other, ticket),
        }
    }

    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn run(&self, offset: u64, length: u64) -> io::Result<Run> {
        self.inner.run(offset, length)
    }

    fn fresh_reads_zero(&self) -> bool {
        self.inner.fresh_reads_zero()
    }
}
