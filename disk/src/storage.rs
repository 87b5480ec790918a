//! What the formats stand on: a file that is read, written and synced asynchronously.
//!
//! A [`Storage`] starts an [`Operation`] at once and reports through the operation's [`Ticket`].
//! An operation that nobody waits for any more still runs to its end, and keeps its memory until then.

mod aligned;
mod simulated;
mod threads;
mod uring;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::future::Future;
use std::io::{self, Seek};
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use rustix::fs::FallocateFlags;
use smallvec::SmallVec;

use crate::{Buffer, DiskError, SECTOR_SIZE};

pub(crate) use aligned::AlignedStorage;
pub use simulated::{CrashModel, CrashPoint, FaultKind, Platter, SimulatedDisk};
pub(crate) use threads::ThreadPool;
pub(crate) use uring::Ring;

/// A part of a [`Buffer`].
#[derive(Clone, Debug)]
pub struct Piece {
    /// The memory.
    pub buffer: Buffer,
    /// Which bytes of it.
    pub range: Range<usize>,
}

impl Piece {
    /// All of `buffer`.
    pub fn whole(buffer: Buffer) -> Self {
        let range = 0..buffer.len();
        Self { buffer, range }
    }
}

/// The memory of one transfer, in file order.
pub type Pieces = SmallVec<[Piece; 3]>;

/// Bytes that `pieces` span.
pub(crate) fn total_length(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.range.len()).sum()
}

/// One operation on a file. Offsets and lengths are bytes.
#[derive(Clone, Debug)]
pub enum Operation {
    /// Fills the pieces; the result is the number of bytes read, 0 at the end of the file.
    Read {
        /// Where in the file.
        offset: u64,
        /// Where to.
        pieces: Pieces,
    },
    /// Writes the pieces; the result is the number of bytes written.
    Write {
        /// Where in the file.
        offset: u64,
        /// Where from.
        pieces: Pieces,
    },
    /// Makes all writes that completed before this began durable (fdatasync).
    Sync,
    /// Gives the space of a range back to the file system; it reads as zeros then.
    PunchHole {
        /// Where in the file.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
}

impl Operation {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Operation::Read { .. } => "read",
            Operation::Write { .. } => "write",
            Operation::Sync => "fdatasync",
            Operation::PunchHole { .. } => "punch hole",
        }
    }

    /// The memory, as the kernel wants it named.
    fn segments(&self) -> impl Iterator<Item = libc::iovec> + '_ {
        let pieces: &[Piece] = match self {
            Operation::Read { pieces, .. } | Operation::Write { pieces, .. } => pieces,
            Operation::Sync | Operation::PunchHole { .. } => &[],
        };
        pieces.iter().flat_map(|piece| piece.buffer.iovecs(piece.range.clone()))
    }

    /// Where in the file, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        match self {
            Operation::Read { offset, .. } | Operation::Write { offset, .. } | Operation::PunchHole { offset, .. } => {
                *offset
            }
            Operation::Sync => 0,
        }
    }
}

/// A run of a file's bytes that are all stored, or all not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// They are not stored, and read as zeros.
    pub is_hole: bool,
    /// How many bytes.
    pub length: u64,
}

/// A file below a format. Lives on the engine's thread.
pub trait Storage {
    /// Starts `operation`; `ticket` is completed later, never from within this call.
    fn start(&self, operation: Operation, ticket: Ticket);

    /// The length of the file in bytes.
    fn length(&self) -> io::Result<u64>;

    /// Whether the bytes from `offset` on are stored or a hole, and how far that goes, at most `length` bytes and at least one.
    fn run(&self, offset: u64, length: u64) -> io::Result<Run>;

    /// Whether bytes that were never written, and those beyond the end, read as zeros (a regular file, not a block device).
    fn fresh_reads_zero(&self) -> bool;
}

#[derive(Default)]
struct Outcome {
    result: Cell<Option<io::Result<usize>>>,
    waker: RefCell<Option<Waker>>,
}

/// The storage's end of an operation in flight.
pub struct Ticket(Receiver);

/// Who is told that an operation is done.
enum Receiver {
    /// A task that waits for it.
    Task(Rc<Outcome>),
    /// A request that is nothing but this operation: the one with this number.
    Request(Rc<dyn Completion>, usize),
}

/// Keeps requests that are not tasks.
pub(crate) trait Completion {
    /// The operation of request `id` is done: the number of bytes transferred, or the error.
    fn complete(&self, id: usize, result: io::Result<usize>);
}

impl Ticket {
    /// Of an operation that is the whole of a request.
    pub(crate) fn of_request(requests: Rc<dyn Completion>, id: usize) -> Self {
        Self(Receiver::Request(requests, id))
    }

    /// Reports the number of bytes transferred, or the error.
    pub fn complete(self, result: io::Result<usize>) {
        match self.0 {
            Receiver::Task(outcome) => {
                outcome.result.set(Some(result));
                let waker = outcome.waker.borrow_mut().take();
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Receiver::Request(requests, id) => requests.complete(id, result),
        }
    }
}

/// The waiting end of an operation in flight.
struct Pending(Rc<Outcome>);

impl Pending {
    fn start(storage: &dyn Storage, operation: Operation) -> Self {
        let outcome = Rc::new(Outcome::default());
        storage.start(operation, Ticket(Receiver::Task(outcome.clone())));
        Self(outcome)
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self.0.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                *self.0.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The file of an image, shared by everything that reads and writes it.
#[derive(Clone)]
pub struct ImageFile {
    storage: Rc<dyn Storage>,
}

impl ImageFile {
    /// A file on `storage`.
    pub fn new(storage: Rc<dyn Storage>) -> Self {
        Self { storage }
    }

    /// Starts reading at `offset` until the pieces are full. What lies beyond the end of the file reads as zeros.
    pub fn read(&self, offset: u64, pieces: Pieces) -> Transfer {
        self.transfer(Operation::Read { offset, pieces })
    }

    /// Starts writing all of the pieces at `offset`.
    pub fn write(&self, offset: u64, pieces: Pieces) -> Transfer {
        self.transfer(Operation::Write { offset, pieces })
    }

    /// Starts giving the space of a range back to the file system; it reads as zeros then.
    pub fn punch_hole(&self, offset: u64, length: u64) -> Transfer {
        self.transfer(Operation::PunchHole { offset, length })
    }

    /// Starts making all writes that completed before now durable.
    pub fn sync(&self) -> Transfer {
        self.transfer(Operation::Sync)
    }

    /// Reads `length` bytes at `offset` into memory of our own.
    pub async fn read_bytes(&self, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
        let buffer = Buffer::zeroed(length);
        self.read(offset, SmallVec::from_iter([Piece::whole(buffer.clone())]))
            .await?;
        Ok(buffer.to_vec())
    }

    /// Writes `bytes` at `offset`.
    pub async fn write_bytes(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.write(offset, SmallVec::from_iter([Piece::whole(Buffer::from_slice(bytes))]))
            .await
    }

    /// The length of the file in bytes.
    pub fn length(&self) -> Result<u64, DiskError> {
        let failed = |error| DiskError::Io {
            operation: "length",
            offset: 0,
            error,
        };
        self.storage.length().map_err(failed)
    }

    /// Whether the bytes from `offset` on are stored or a hole, and how far that goes, at most `length` bytes.
    pub fn run(&self, offset: u64, length: u64) -> Result<Run, DiskError> {
        let failed = |error| DiskError::Io {
            operation: "seek to data",
            offset,
            error,
        };
        self.storage.run(offset, length).map_err(failed)
    }

    /// Whether bytes that were never written read as zeros.
    pub fn fresh_reads_zero(&self) -> bool {
        self.storage.fresh_reads_zero()
    }

    /// Starts an operation whose completion `ticket` takes; what a short transfer leaves over is the receiver's business.
    pub(crate) fn start(&self, operation: Operation, ticket: Ticket) {
        self.storage.start(operation, ticket);
    }

    fn transfer(&self, operation: Operation) -> Transfer {
        let pending = Pending::start(&*self.storage, operation.clone());
        Transfer {
            storage: self.storage.clone(),
            operation,
            pending,
        }
    }
}

/// An operation that was started; as a future, it finishes what a short transfer left over.
#[must_use = "a transfer that is not awaited loses its error"]
pub struct Transfer {
    storage: Rc<dyn Storage>,
    /// What is still to do, that which is in flight included.
    operation: Operation,
    pending: Pending,
}

impl Future for Transfer {
    type Output = Result<(), DiskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let result = match self.pending.poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(result) => result,
            };
            match self.advance(result) {
                Ok(true) => return Poll::Ready(Ok(())),
                Ok(false) => self.pending = Pending::start(&*self.storage, self.operation.clone()),
                Err(error) => {
                    let (operation, offset) = (self.operation.name(), self.operation.offset());
                    return Poll::Ready(Err(DiskError::Io {
                        operation,
                        offset,
                        error,
                    }));
                }
            }
        }
    }
}

impl Transfer {
    /// Takes account of one completion. Returns whether the operation is finished.
    fn advance(&mut self, result: io::Result<usize>) -> io::Result<bool> {
        let transferred = match result {
            Ok(transferred) => transferred,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            Err(error) => return Err(error),
        };
        match &mut self.operation {
            Operation::Sync | Operation::PunchHole { .. } => Ok(true),
            // The end of the file.
            Operation::Read { pieces, .. } if transferred == 0 => {
                for piece in pieces {
                    piece.buffer.zero(piece.range.clone());
                }
                Ok(true)
            }
            Operation::Write { pieces, .. } if transferred == 0 && total_length(pieces) > 0 => {
                Err(io::ErrorKind::WriteZero.into())
            }
            Operation::Read { offset, pieces } | Operation::Write { offset, pieces } => {
                *offset += transferred as u64;
                drop_front(pieces, transferred);
                Ok(pieces.is_empty())
            }
        }
    }
}

/// Takes `count` bytes off the front.
fn drop_front(pieces: &mut Pieces, mut count: usize) {
    while let Some(first) = pieces.first_mut() {
        let taken = count.min(first.range.len());
        first.range.start += taken;
        count -= taken;
        if !first.range.is_empty() {
            return;
        }
        pieces.remove(0);
    }
}

/// The longest list of memory segments that one operation takes (UIO_MAXIOV). What is beyond is a short transfer.
const MAX_SEGMENTS: usize = 1024;

/// The memory of an operation as the kernel wants it named.
type Segments = SmallVec<[libc::iovec; 4]>;

fn segments(operation: &Operation) -> Segments {
    operation.segments().take(MAX_SEGMENTS).collect()
}

/// fallocate's mode for a hole within a file.
const PUNCH_HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// Whether what was never written to `file` reads as zeros.
fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.file_type().is_file())
}

/// What lseek(2) says of the bytes from `offset` on. The file system answers from its own tables, so this does not wait for data.
fn file_run(file: &File, offset: u64, length: u64) -> io::Result<Run> {
    use rustix::fs::SeekFrom;
    use rustix::io::Errno;

    let end = offset + length;
    let up_to = |is_hole, next: u64| Run {
        is_hole,
        length: next.min(end) - offset,
    };
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        // There is no data from here on.
        Err(Errno::NXIO) => Ok(up_to(true, end)),
        Ok(data) if data > offset => Ok(up_to(true, data)),
        Ok(_) => match rustix::fs::seek(file, SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => Ok(up_to(false, hole)),
            // Somebody has punched a hole just now, or cut the file off. To call it data is true enough.
            Ok(_) | Err(Errno::NXIO) => Ok(up_to(false, offset + SECTOR_SIZE)),
            Err(error) => Err(error.into()),
        },
        // A file system that does not know of holes.
        Err(Errno::INVAL | Errno::NOTSUP) => Ok(up_to(false, end)),
        Err(error) => Err(error.into()),
    }
}

/// The length of a regular file or a block device in bytes.
pub(crate) fn file_length(mut file: &File) -> io::Result<u64> {
    // Nothing else uses the file position: all transfers name their offset.
    file.seek(io::SeekFrom::End(0))
}
