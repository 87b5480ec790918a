//! Storage on a thread pool, for hosts where io_uring is forbidden.
#![expect(unsafe_code, reason = "operations carry memory that is not ours to borrow")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::{Operation, Run, Storage, Ticket};

/// How many operations run at once.
const THREADS: usize = 8;

/// The threads, and the way back from them.
pub(crate) struct ThreadPool {
    jobs: RefCell<Option<Sender<Job>>>,
    finished: Arc<Finished>,
    tickets: RefCell<Vec<Option<Ticket>>>,
    threads: RefCell<Vec<thread::JoinHandle<()>>>,
}

/// Results on their way back: the operation's number and its outcome.
type Finished = Mutex<VecDeque<(usize, io::Result<usize>)>>;

struct Job {
    id: usize,
    file: Arc<File>,
    operation: Operation,
}

impl ThreadPool {
    /// A pool whose completions make `event_fd` readable.
    pub(crate) fn new(event_fd: &Arc<OwnedFd>) -> io::Result<Rc<Self>> {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let finished = Arc::new(Finished::default());
        let mut threads = Vec::new();
        for index in 0..THREADS {
            let (receiver, finished, event_fd) = (receiver.clone(), finished.clone(), event_fd.clone());
            let name = format!("disk-io-{index}");
            threads.push(
                thread::Builder::new()
                    .name(name)
                    .spawn(move || work(&receiver, &finished, &event_fd))?,
            );
        }
        let jobs = RefCell::new(Some(sender));
        Ok(Rc::new(Self {
            jobs,
            finished,
            tickets: RefCell::default(),
            threads: RefCell::new(threads),
        }))
    }

    /// A file on this pool.
    pub(crate) fn file(self: &Rc<Self>, file: File) -> Rc<dyn Storage> {
        Rc::new(PooledFile {
            pool: self.clone(),
            file: Arc::new(file),
        })
    }

    /// Completes the tickets of finished operations. Returns how many.
    pub(crate) fn reap(&self) -> usize {
        let finished = std::mem::take(&mut *self.finished.lock().unwrap_or_else(PoisonError::into_inner));
        let count = finished.len();
        for (id, result) in finished {
            let ticket = self.tickets.borrow_mut()[id].take();
            if let Some(ticket) = ticket {
                ticket.complete(result);
            }
        }
        count
    }

    fn start(&self, file: &Arc<File>, operation: Operation, ticket: Ticket) {
        let mut tickets = self.tickets.borrow_mut();
        let id = tickets.iter().position(Option::is_none).unwrap_or_else(|| {
            tickets.push(None);
            tickets.len() - 1
        });
        tickets[id] = Some(ticket);
        drop(tickets);
        let job = Job {
            id,
            file: file.clone(),
            operation,
        };
        let sent = self.jobs.borrow().as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        debug_assert!(sent, "the threads outlive the pool");
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.jobs.take();
        for thread in self.threads.take() {
            // A worker does not panic; should it, its operation's memory is not touched any more.
            let _ = thread.join();
        }
    }
}

fn work(jobs: &Mutex<Receiver<Job>>, finished: &Finished, event_fd: &OwnedFd) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let result = execute(&job.file, &job.operation);
        finished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back((job.id, result));
        // An eventfd whose counter is full is readable already.
        let _ = rustix::io::write(event_fd, &1u64.to_ne_bytes());
    }
}

fn execute(file: &File, operation: &Operation) -> io::Result<usize> {
    let fd = file.as_raw_fd();
    match operation {
        Operation::PunchHole { offset, length } => rustix::fs::fallocate(file, super::PUNCH_HOLE, *offset, *length)
            .map(|()| 0)
            .map_err(io::Error::from),
        Operation::Sync => rustix::fs::fdatasync(file).map(|()| 0).map_err(io::Error::from),
        Operation::Read { offset, .. } | Operation::Write { offset, .. } => {
            let segments = super::segments(operation);
            let count = segments.len() as libc::c_int;
            let offset = libc::off_t::try_from(*offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
            // SAFETY: the segments name memory that `operation` keeps alive until this returns.
            let transferred = unsafe {
                match operation {
                    Operation::Read { .. } => libc::preadv(fd, segments.as_ptr(), count, offset),
                    _ => libc::pwritev(fd, segments.as_ptr(), count, offset),
                }
            };
            usize::try_from(transferred).map_err(|_| io::Error::last_os_error())
        }
    }
}

struct PooledFile {
    pool: Rc<ThreadPool>,
    file: Arc<File>,
}

impl Storage for PooledFile {
    fn start(&self, operation: Operation, ticket: Ticket) {
        self.pool.start(&self.file, operation, ticket);
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
