//! Storage on io_uring: operations become submission queue entries, which are handed over in batches.
//!
//! The ring itself is what one waits on: its descriptor is readable as long as a completion has not been taken, however it came
//! about. So no completion is announced once and missed.
//!
//! The ring belongs to one thread, which is not interrupted by completions while it works (IORING_SETUP_SINGLE_ISSUER,
//! IORING_SETUP_COOP_TASKRUN), where the kernel knows that. IORING_SETUP_DEFER_TASKRUN would spare a little more, but then nothing that a
//! descriptor can be waited for with happens before the thread asks for it: the ring's own stays silent, and an eventfd costs a
//! call for each batch. Files are not registered with the ring: a registered file is let go only when the kernel takes the ring
//! apart, some time after its process was killed, and with it the image's lock, for which the next process waits.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes the memory of operations in flight"
)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;

use io_uring::{IoUring, opcode, squeue, types};

use super::{Operation, Run, Segments, Storage, Ticket};

/// Entries of the submission queue. More operations than this can be in flight; they are submitted in batches.
const QUEUE_DEPTH: u32 = 256;

/// Entries of the completion queue. What is beyond, the kernel keeps until it is asked.
const COMPLETIONS: u32 = 1024;

/// The most bytes of one read or write (Linux's limit; what is beyond is a short transfer).
const MAX_BYTES: usize = 0x7fff_f000;

/// One io_uring, shared by all files of an engine.
pub(crate) struct Ring {
    state: RefCell<State>,
    /// Completions on their way from the queue to their tickets; empty otherwise, kept for its memory.
    finished: RefCell<Vec<(Ticket, i32)>>,
}

struct State {
    ring: IoUring,
    in_flight: Vec<Option<InFlight>>,
    vacant: Vec<usize>,
    /// Entries for which the submission queue had no room.
    backlog: VecDeque<squeue::Entry>,
}

/// What the kernel may still touch, and whom to tell.
struct InFlight {
    ticket: Ticket,
    _operation: Operation,
    /// Where the memory is in several parts. Boxed: the kernel knows its address.
    _segments: Option<Box<Segments>>,
    _file: Rc<File>,
}

impl Ring {
    /// A ring for this thread. Fails where io_uring is not allowed.
    pub(crate) fn new() -> io::Result<Rc<Self>> {
        let state = State {
            ring: build()?,
            in_flight: Vec::new(),
            vacant: Vec::new(),
            backlog: VecDeque::new(),
        };
        Ok(Rc::new(Self {
            state: RefCell::new(state),
            finished: RefCell::new(Vec::with_capacity(COMPLETIONS as usize)),
        }))
    }

    /// A file on this ring.
    pub(crate) fn file(self: &Rc<Self>, file: File) -> Rc<dyn Storage> {
        Rc::new(UringFile {
            ring: self.clone(),
            file: Rc::new(file),
        })
    }

    /// Makes `use_fd` of the descriptor that is readable while there is something to reap.
    pub(crate) fn with_fd<T>(&self, use_fd: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        let state = self.state.borrow();
        // SAFETY: the ring, which owns the descriptor, lives as long as the borrow of `state`.
        use_fd(unsafe { BorrowedFd::borrow_raw(state.ring.as_raw_fd()) })
    }

    /// Hands what was started to the kernel, and asks for the completions that it kept back. After an error the entries stay
    /// queued, for the next time.
    pub(crate) fn submit(&self) -> io::Result<()> {
        self.state.borrow_mut().submit()
    }

    /// Completes the tickets of finished operations. Returns how many.
    pub(crate) fn reap(&self) -> usize {
        let mut finished = self.finished.take();
        let mut state = self.state.borrow_mut();
        let State {
            ring,
            in_flight,
            vacant,
            ..
        } = &mut *state;
        for entry in ring.completion() {
            let index = entry.user_data() as usize;
            if let Some(operation) = in_flight.get_mut(index).and_then(Option::take) {
                vacant.push(index);
                finished.push((operation.ticket, entry.result()));
            }
        }
        // Tickets wake tasks and end requests; those must be free to start new operations.
        drop(state);
        let count = finished.len();
        for (ticket, result) in finished.drain(..) {
            let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            ticket.complete(result);
        }
        self.finished.replace(finished);
        count
    }

    /// Waits until nothing is in flight: the kernel must not write to memory that is about to be freed.
    pub(crate) fn quiesce(&self) {
        while self.state.borrow().is_busy() {
            let waited = self
                .submit()
                .and_then(|()| self.state.borrow().ring.submit_and_wait(1).map(drop));
            if waited.is_err_and(|error| !is_passing(&error)) {
                tracing::error!("io_uring broke with operations in flight; their memory is leaked");
                std::mem::forget(std::mem::take(&mut self.state.borrow_mut().in_flight));
                return;
            }
            self.reap();
        }
    }

    fn start(&self, file: &Rc<File>, operation: Operation, ticket: Ticket) {
        let fd = types::Fd(file.as_raw_fd());
        let (entry, segments) = match &operation {
            Operation::Read { offset, .. } | Operation::Write { offset, .. } => transfer(fd, &operation, *offset),
            Operation::PunchHole { offset, length } => {
                let punch = opcode::Fallocate::new(fd, *length).offset(*offset);
                (punch.mode(super::PUNCH_HOLE.bits() as i32).build(), None)
            }
            Operation::Sync => {
                let sync = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC);
                (sync.build(), None)
            }
        };
        let in_flight = InFlight {
            ticket,
            _operation: operation,
            _segments: segments,
            _file: file.clone(),
        };
        self.state.borrow_mut().push(entry, in_flight);
    }
}

/// The entry for a read or write, and the list of its memory if there is one.
fn transfer(fd: types::Fd, operation: &Operation, offset: u64) -> (squeue::Entry, Option<Box<Segments>>) {
    let reads = matches!(operation, Operation::Read { .. });
    let mut segments = operation.segments();
    if let (Some(only), None) = (segments.next(), segments.next()) {
        // Most are of this kind, and need no list.
        let (start, length) = (only.iov_base.cast::<u8>(), only.iov_len.min(MAX_BYTES) as u32);
        let entry = if reads {
            opcode::Read::new(fd, start, length).offset(offset).build()
        } else {
            opcode::Write::new(fd, start, length).offset(offset).build()
        };
        return (entry, None);
    }
    let segments = Box::new(super::segments(operation));
    let (list, count) = (segments.as_ptr(), segments.len() as u32);
    let entry = if reads {
        opcode::Readv::new(fd, list, count).offset(offset).build()
    } else {
        opcode::Writev::new(fd, list, count).offset(offset).build()
    };
    (entry, Some(segments))
}

/// The best ring that the kernel makes.
fn build() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETIONS);
    let plain = builder.clone();
    // Linux 6.0.
    builder.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
    match builder.build(QUEUE_DEPTH) {
        // It does not know one of these; whether it allows io_uring at all, the next call tells.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => plain.build(QUEUE_DEPTH),
        outcome => outcome,
    }
}

/// Whether the same call may succeed a little later.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

impl State {
    fn is_busy(&self) -> bool {
        self.in_flight.len() > self.vacant.len()
    }

    fn push(&mut self, entry: squeue::Entry, in_flight: InFlight) {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.in_flight.push(None);
            self.in_flight.len() - 1
        });
        self.in_flight[index] = Some(in_flight);
        let entry = entry.user_data(index as u64);
        if !self.backlog.is_empty() {
            self.backlog.push_back(entry);
            return;
        }
        // SAFETY: the segments, the memory they name and the file stay in `in_flight` until the completion is reaped.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.backlog.push_back(entry);
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        loop {
            self.refill();
            let queue = self.ring.submission();
            let nothing_new = queue.is_empty();
            // Completions that the kernel keeps back: those for which the queue had no room, and work that it does when the thread comes by.
            let kept_back = queue.cq_overflow() || queue.taskrun();
            drop(queue);
            if nothing_new && !kept_back {
                return Ok(());
            }
            // The kernel may take less than all of it, so what is left is looked at again.
            match self.ring.submit() {
                Ok(_) if nothing_new => return Ok(()),
                Ok(0) => return Err(io::Error::from_raw_os_error(libc::EAGAIN)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Moves entries into the submission queue as far as there is room.
    fn refill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: as in `push`.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.quiesce();
    }
}

struct UringFile {
    ring: Rc<Ring>,
    file: Rc<File>,
}

impl Storage for UringFile {
    fn start(&self, operation: Operation, ticket: Ticket) {
        self.ring.start(&self.file, operation, ticket);
    }

    fn length(&self) -> io::Result<u64> {
        super::file_length(&self.file)
    }

    fn run(&self, offset: u64, length: u64) -> io::Result<Run> {
        super::file_run(&self.file, offset, length)
    }

    fn fresh_reads_zero(&self) -> bool {
        super::is_regular(&self.file)
    }
}
