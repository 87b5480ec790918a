//! Storage on a thread pool, for hosts where io_uring is forbidden.
#![expect(unsafe_code, reason = "operations carry memory that is not ours to borrow")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::{Operation, Run, Storage, Ticket};
use crate::doorbell::Doorbell;

/// How many operations run at once.
const THREADS: usize = 8;

/// The threads, and the way back from them.
pub(crate) struct ThreadPool {
    jobs: RefCell<Option<Sender<Job>>>,
    finished: Arc<Finished>,
    tickets: RefCell<Tickets>,
    threads: RefCell<Vec<thread::JoinHandle<()>>>,
}

#[derive(Default)]
struct Tickets {
    by_id: Vec<Option<Ticket>>,
    vacant: Vec<usize>,
}

/// Results on their way back: the operation's number and its outcome.
type Finished = Mutex<VecDeque<(usize, io::Result<usize>)>>;

struct Job {
    id: usize,
    file: Arc<File>,
    operation: Operation,
}

impl ThreadPool {
    /// A pool that rings when something is completed.
    pub(crate) fn new(doorbell: &Arc<Doorbell>) -> io::Result<Rc<Self>> {
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let finished = Arc::new(Finished::default());
        let mut threads = Vec::new();
        for index in 0..THREADS {
            let (receiver, finished, doorbell) = (receiver.clone(), finished.clone(), doorbell.clone());
            let name = format!("disk-io-{index}");
            threads.push(
                thread::Builder::new()
                    .name(name)
                    .spawn(move || work(&receiver, &finished, &doorbell))?,
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
            let ticket = self.tickets.borrow_mut().remove(id);
            if let Some(ticket) = ticket {
                ticket.complete(result);
            }
        }
        count
    }

    fn start(&self, file: &Arc<File>, operation: Operation, ticket: Ticket) {
        let id = self.tickets.borrow_mut().insert(ticket);
        let job = Job {
            id,
            file: file.clone(),
            operation,
        };
        let sent = self.jobs.borrow().as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            // The pool was quiesced: its engine is being dropped, and nobody waits.
            self.tickets.borrow_mut().remove(id);
        }
    }

    /// Waits until nothing is in flight. Nothing can be started afterwards.
    pub(crate) fn quiesce(&self) {
        self.jobs.take();
        for thread in self.threads.take() {
            // A worker does not panic; should it, its operation's memory is not touched any more.
            let _ = thread.join();
        }
        self.reap();
    }
}

impl Tickets {
    fn insert(&mut self, ticket: Ticket) -> usize {
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.by_id.push(None);
            self.by_id.len() - 1
        });
        self.by_id[id] = Some(ticket);
        id
    }

    fn remove(&mut self, id: usize) -> Option<Ticket> {
        let ticket = self.by_id.get_mut(id)?.take()?;
        self.vacant.push(id);
        Some(ticket)
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.quiesce();
    }
}

fn work(jobs: &Mutex<Receiver<Job>>, finished: &Finished, doorbell: &Doorbell) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let result = execute(&job.file, &job.operation);
        finished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back((job.id, result));
        doorbell.ring();
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
