//! The way back from the disk: commands that it has answered.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};

use disk::DiskError;
use rustix::event::{EventfdFlags, eventfd};

use super::job::Job;

/// An answer of the disk.
pub(super) struct Answer {
    /// Whose request it was.
    pub client: u32,
    /// The request.
    pub job: Box<Job>,
    /// What became of its last command.
    pub outcome: Result<(), DiskError>,
}

/// Answers that nobody has looked at yet.
pub(super) struct Finished {
    queue: Mutex<Vec<Answer>>,
    /// The loop's thread, which looks at the queue anyhow.
    owner: ThreadId,
    /// Wakes it from others: a disk that dawdles on purpose answers from a thread of its own.
    event: OwnedFd,
}

impl Finished {
    /// Belongs to the thread that makes it.
    pub(super) fn new() -> rustix::io::Result<Self> {
        Ok(Self {
            queue: Mutex::default(),
            owner: thread::current().id(),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Readable when there is an answer that its owner did not put there itself.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Takes note that [`Finished::event`] was readable.
    pub(super) fn woken(&self) {
        // An empty counter means that somebody else has taken note.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }

    pub(super) fn push(&self, answer: Answer) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        if thread::current().id() != self.owner {
            // A counter that is full is readable already.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    pub(super) fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
