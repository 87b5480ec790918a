//! Storage on io_uring: operations become submission queue entries, an eventfd tells of completions.
#![expect(
    unsafe_code,
    reason = "the kernel reads and writes the memory of operations in flight"
)]

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;

use io_uring::{IoUring, opcode, squeue, types};
use smallvec::SmallVec;

use super::{Operation, Run, Segments, Storage, Ticket};

/// Entries of the submission queue. More operations than this can be in flight; they are submitted in batches.
const QUEUE_DEPTH: u32 = 256;

/// One io_uring, shared by all files of an engine.
pub(crate) struct Ring {
    state: RefCell<State>,
}

struct State {
    ring: IoUring,
    in_flight: Vec<Option<InFlight>>,
    vacant: Vec<usize>,
    /// Entries pushed but not yet submitted.
    unsubmitted: usize,
}

/// What the kernel may still touch, and whom to tell.
struct InFlight {
    ticket: Ticket,
    _operation: Operation,
    /// Boxed: the kernel knows its address.
    _segments: Box<Segments>,
    _file: Rc<File>,
}

impl Ring {
    /// A ring whose completions make `event_fd` readable. Fails where io_uring is not allowed.
    pub(crate) fn new(event_fd: BorrowedFd<'_>) -> io::Result<Rc<Self>> {
        let ring = IoUring::new(QUEUE_DEPTH)?;
        ring.submitter().register_eventfd(event_fd.as_raw_fd())?;
        let state = State {
            ring,
            in_flight: Vec::new(),
            vacant: Vec::new(),
            unsubmitted: 0,
        };
        Ok(Rc::new(Self {
            state: RefCell::new(state),
        }))
    }

    /// A file on this ring.
    pub(crate) fn file(self: &Rc<Self>, file: File) -> Rc<dyn Storage> {
        Rc::new(UringFile {
            ring: self.clone(),
            file: Rc::new(file),
        })
    }

    /// Hands what was started to the kernel.
    pub(crate) fn submit(&self) -> io::Result<()> {
        self.state.borrow_mut().submit()
    }

    /// Completes the tickets of finished operations. Returns how many.
    pub(crate) fn reap(&self) -> usize {
        let mut finished: SmallVec<[(InFlight, i32); 32]> = SmallVec::new();
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
                finished.push((operation, entry.result()));
            }
        }
        // Tickets wake tasks; those must be free to start new operations.
        drop(state);
        let count = finished.len();
        for (operation, result) in finished {
            let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            operation.ticket.complete(result);
        }
        count
    }

    fn start(&self, file: &Rc<File>, operation: Operation, ticket: Ticket) {
        let segments = Box::new(super::segments(&operation));
        let fd = types::Fd(file.as_raw_fd());
        let count = segments.len() as u32;
        let entry = match &operation {
            Operation::Read { offset, .. } => opcode::Readv::new(fd, segments.as_ptr(), count).offset(*offset).build(),
            Operation::Write { offset, .. } => opcode::Writev::new(fd, segments.as_ptr(), count)
                .offset(*offset)
                .build(),
            Operation::PunchHole { offset, length } => opcode::Fallocate::new(fd, *length)
                .offset(*offset)
                .mode(super::PUNCH_HOLE.bits() as i32)
                .build(),
            Operation::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
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

impl State {
    fn push(&mut self, entry: squeue::Entry, in_flight: InFlight) {
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.in_flight.push(None);
            self.in_flight.len() - 1
        });
        self.in_flight[index] = Some(in_flight);
        let entry = entry.user_data(index as u64);
        // SAFETY: the segments, the memory they name and the file stay in `in_flight` until the completion is reaped.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            if let Err(error) = self.submit() {
                if let Some(failed) = self.in_flight[index].take() {
                    self.vacant.push(index);
                    failed.ticket.complete(Err(error));
                }
                return;
            }
        }
        self.unsubmitted += 1;
    }

    fn submit(&mut self) -> io::Result<()> {
        while self.unsubmitted > 0 {
            match self.ring.submit() {
                Ok(submitted) => self.unsubmitted -= submitted.min(self.unsubmitted),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for Ring {
    /// Waits for what is in flight: the kernel must not write to memory that is about to be freed.
    fn drop(&mut self) {
        while self.state.borrow().in_flight.iter().any(Option::is_some) {
            let waited = self
                .submit()
                .and_then(|()| self.state.borrow().ring.submit_and_wait(1).map(drop));
            if waited.is_err_and(|error| error.kind() != io::ErrorKind::Interrupted) {
                tracing::error!("io_uring broke with operations in flight; their memory is leaked");
                std::mem::forget(std::mem::take(&mut self.state.borrow_mut().in_flight));
                return;
            }
            self.reap();
        }
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
