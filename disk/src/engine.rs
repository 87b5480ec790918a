//! The engine: one thread, one executor, one way down to the host, any number of images.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use crate::direct::DirectRequests;
use crate::doorbell::Doorbell;
use crate::image::Image;
use crate::lock;
use crate::open::{OpenError, OpenOptions, Opener};
use crate::options::{CacheMode, DetectZeroes, Discard};
use crate::readiness::Readiness;
use crate::storage::{Ring, Storage, ThreadPool};
use crate::tasks::Tasks;
use crate::workers::Workers;
use crate::{Command, Disk, DiskError, Request, ResizeError, Snapshot, SnapshotError};

/// How operations reach the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    /// io_uring; where the host forbids it, threads, with a warning.
    #[default]
    IoUring,
    /// A pool of threads.
    Threads,
}

/// How an engine works.
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineOptions {
    /// How operations reach the host.
    pub aio: Aio,
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
#[error("Cannot set up asynchronous I/O: {0}")]
pub struct EngineError(io::Error);

impl From<io::Error> for EngineError {
    fn from(error: io::Error) -> Self {
        EngineError(error)
    }
}

/// Why an engine could not be closed properly: what it did not make durable.
#[derive(Debug, thiserror::Error)]
#[error("Closing {} failed, so the last writes to it may be lost: {cause}", path.display())]
pub struct CloseError {
    /// The image.
    pub path: std::path::PathBuf,
    /// What failed.
    pub cause: DiskError,
}

/// How many times one [`Engine::poll`] looks for work before others on the same event loop get their turn.
const MAX_TURNS: usize = 64;

/// The thread-bound half of all disks: it runs their requests whenever it is polled.
///
/// An engine that is dropped without [`Engine::close`] drops its requests, waits for what the host is doing for them, and leaves its
/// images as a killed process does.
pub struct Engine {
    tasks: Tasks,
    direct: Rc<DirectRequests>,
    images: RefCell<Vec<Rc<OpenImage>>>,
    backend: Backend,
    workers: Rc<Workers>,
    doorbell: Arc<Doorbell>,
    readiness: Readiness,
    inbox: Arc<Inbox>,
    /// Requests that are being taken out of the inbox; empty otherwise, kept for its memory.
    taken: RefCell<VecDeque<(usize, Request)>>,
    /// Of all images and their backing files, by which their locks are given up.
    locked: RefCell<Vec<File>>,
    /// The host does not take what was started; said once, until it does again.
    refused: Cell<bool>,
}

struct OpenImage {
    options: OpenOptions,
    image: Image,
    handle: Arc<Handle>,
    /// Since when metadata waits to be written back.
    dirty_since: Cell<Option<Instant>>,
}

enum Backend {
    Uring(Rc<Ring>),
    Threads(Rc<ThreadPool>),
}

/// Requests on their way to the engine's thread.
struct Inbox {
    /// `None` when the engine is closed.
    queue: Mutex<Option<VecDeque<(usize, Request)>>>,
    doorbell: Arc<Doorbell>,
}

impl Engine {
    /// Sets up an engine on this thread.
    pub fn new(options: EngineOptions) -> Result<Self, EngineError> {
        let doorbell = Arc::new(Doorbell::new()?);
        let readiness = Readiness::new()?;
        readiness.add(doorbell.as_fd())?;
        let backend = match options.aio {
            Aio::IoUring => match Ring::new() {
                Ok(ring) => Backend::Uring(ring),
                Err(error) => {
                    tracing::warn!(%error, "io_uring is not available; using threads");
                    Backend::Threads(ThreadPool::new(&doorbell)?)
                }
            },
            Aio::Threads => Backend::Threads(ThreadPool::new(&doorbell)?),
        };
        if let Backend::Uring(ring) = &backend {
            ring.with_fd(|fd| readiness.add(fd))?;
        }
        let workers = Rc::new(Workers::new(doorbell.clone()));
        let tasks = Tasks::new(Some(workers.clone()));
        let inbox = Arc::new(Inbox {
            queue: Mutex::new(Some(VecDeque::new())),
            doorbell: doorbell.clone(),
        });
        Ok(Self {
            direct: DirectRequests::new(tasks.clone()),
            tasks,
            images: RefCell::default(),
            backend,
            workers,
            doorbell,
            readiness,
            inbox,
            taken: RefCell::default(),
            locked: RefCell::default(),
            refused: Cell::new(false),
        })
    }

    /// Opens an image and the chain of backing files below it. Blocks.
    pub fn open(&self, options: &OpenOptions) -> Result<Arc<dyn Disk>, OpenError> {
        let opener = Opener {
            tasks: &self.tasks,
            locked: &self.locked,
            storage: &|file| self.backend.file(file),
            run: &|open| self.run_to_end(open),
        };
        let image = opener.open(options)?;
        let mut images = self.images.borrow_mut();
        let handle = Arc::new(Handle {
            capacity: AtomicU64::new(image.capacity()),
            read_only: options.read_only,
            index: images.len(),
            inbox: self.inbox.clone(),
        });
        images.push(Rc::new(OpenImage {
            options: options.clone(),
            image,
            handle: handle.clone(),
            dirty_since: Cell::new(None),
        }));
        Ok(handle)
    }

    /// The internal snapshots of a disk that this engine opened.
    pub fn snapshots(&self, disk: &Arc<dyn Disk>) -> Result<Vec<Snapshot>, SnapshotError> {
        let (image, _) = self.find(disk).ok_or(DiskError::Closed)?;
        image.snapshots()
    }

    /// Takes an internal snapshot of a disk that this engine opened. A request that is in flight comes wholly before it or wholly
    /// after it; one that has completed is part of it. Complete means durable. Blocks.
    pub fn snapshot_create(&self, disk: &Arc<dyn Disk>, name: &str) -> Result<Snapshot, SnapshotError> {
        let (image, _) = self.find(disk).ok_or(DiskError::Closed)?;
        let name = name.to_owned();
        self.run_to_end(async move { image.snapshot_create(&name).await })
    }

    /// Makes a disk that this engine opened what it was when the snapshot was taken, size included; what it holds now
    /// is lost. A guest that runs on it would not know what happened to it. Complete means durable. Blocks.
    pub fn snapshot_apply(&self, disk: &Arc<dyn Disk>, id_or_name: &str) -> Result<(), SnapshotError> {
        let (image, handle) = self.find(disk).ok_or(DiskError::Closed)?;
        let (applied, wanted) = (image.clone(), id_or_name.to_owned());
        let result = self.run_to_end(async move { applied.snapshot_apply(&wanted).await });
        handle.capacity.store(image.capacity(), Ordering::Release);
        result
    }

    /// Deletes an internal snapshot of a disk that this engine opened. Complete means durable. Blocks.
    pub fn snapshot_delete(&self, disk: &Arc<dyn Disk>, id_or_name: &str) -> Result<(), SnapshotError> {
        let (image, _) = self.find(disk).ok_or(DiskError::Closed)?;
        let wanted = id_or_name.to_owned();
        self.run_to_end(async move { image.snapshot_delete(&wanted).await })
    }

    /// Makes a disk that this engine opened `size` bytes long. What is added reads as zeros; what is cut off is lost,
    /// and only if `may_shrink`. Complete means durable. Blocks.
    pub fn resize(&self, disk: &Arc<dyn Disk>, size: u64, may_shrink: bool) -> Result<(), ResizeError> {
        let (image, handle) = self.find(disk).ok_or(DiskError::Closed)?;
        let resized = image.clone();
        let result = self.run_to_end(async move { resized.resize(size, may_shrink).await });
        handle.capacity.store(image.capacity(), Ordering::Release);
        result
    }

    /// Gives up all that a disk, which this engine opened, has of its own, so that its backing file shows everywhere. Complete means
    /// durable. Blocks.
    pub fn make_empty(&self, disk: &Arc<dyn Disk>) -> Result<(), DiskError> {
        let (image, _) = self.find(disk).ok_or(DiskError::Closed)?;
        self.run_to_end(async move { image.make_empty().await })
    }

    /// The image behind a handle of this engine.
    fn find(&self, disk: &Arc<dyn Disk>) -> Option<(Image, Arc<Handle>)> {
        let images = self.images.borrow();
        let found = images
            .iter()
            .find(|open| std::ptr::addr_eq(Arc::as_ptr(&open.handle), Arc::as_ptr(disk)))?;
        Some((found.image.clone(), found.handle.clone()))
    }

    /// Readable when [`Engine::poll`] has something to do.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.readiness.as_fd()
    }

    /// Saves this thread from waking itself: requests made from now on wait for its next [`Engine::poll`], which the caller makes.
    pub fn expect_requests(&self) {
        self.doorbell.answer();
    }

    /// Runs everything that can go on: new requests, and those whose storage operations completed. Never blocks, and
    /// returns after a while even if there is more to do; then [`Engine::event_fd`] is still readable.
    pub fn poll(&self) {
        // The order is argued in `doorbell`: first the ring is answered, then everything is looked at; and when nothing was found
        // everything is looked at once more, with rings allowed again. Completions need no ring: as long as one is there, the
        // descriptor is readable.
        self.doorbell.answer();
        self.write_back_what_is_old();
        for _ in 0..MAX_TURNS {
            if self.turn() {
                continue;
            }
            self.set_timer();
            self.doorbell.doze();
            if !self.turn() {
                if self.refused.get() {
                    self.doorbell.ring();
                }
                return;
            }
            self.doorbell.answer();
        }
        self.set_timer();
        self.doorbell.doze();
        self.doorbell.ring();
    }

    /// Looks at everything once. Returns whether there was anything to do.
    fn turn(&self) -> bool {
        let mut progress = self.take_requests();
        progress |= self.workers.reap() > 0;
        progress |= self.tasks.run();
        // Many operations complete within this call, so that it pays to look at once.
        match self.backend.submit() {
            Ok(()) => self.refused.set(false),
            Err(error) => {
                if !self.refused.replace(true) {
                    tracing::error!(%error, "the host does not take storage operations; trying on");
                }
            }
        }
        progress |= self.backend.reap() > 0;
        progress
    }

    /// Starts to write back metadata that has been dirty for long enough.
    fn write_back_what_is_old(&self) {
        if !self.readiness.timer_rang() {
            return;
        }
        let now = Instant::now();
        for open in &*self.images.borrow() {
            if open.write_back_is_due().is_some_and(|due| due <= now) {
                open.dirty_since.set(None);
                open.image.write_back_by_age();
            }
        }
    }

    /// Sets the timer for the metadata that will be old first; off, if none is dirty.
    fn set_timer(&self) {
        let images = self.images.borrow();
        let due = images.iter().filter_map(|open| {
            open.notice_dirty();
            open.write_back_is_due()
        });
        self.readiness.set_timer(due.min());
    }

    /// Waits for every request, makes everything durable and releases the images. Requests that are submitted
    /// from now on are dropped. Blocks.
    pub fn close(self) -> Result<(), CloseError> {
        let last = self.inbox.lock().take();
        self.start_requests(last.unwrap_or_default().into_iter());
        self.drain();
        let mut result = Ok(());
        for open in self.images.take() {
            if open.options.read_only {
                continue;
            }
            if let Err(cause) = self.close_image(&open.image) {
                let path = open.options.path.clone();
                tracing::error!(error = %cause, path = %path.display(), "closing an image failed");
                result = result.and(Err(CloseError { path, cause }));
            }
        }
        result
    }

    /// In two steps: what the first sets free is written by the second.
    fn close_image(&self, image: &Image) -> Result<(), DiskError> {
        let flushing = image.clone();
        self.run_to_end(async move { flushing.execute(Command::Flush).await })?;
        self.drain();
        let finishing = image.clone();
        self.run_to_end(async move { finishing.finish().await })?;
        Ok(())
    }

    fn take_requests(&self) -> bool {
        let mut requests = self.taken.take();
        if let Some(waiting) = &mut *self.inbox.lock() {
            // Not swapped: each of the two keeps the memory that it has grown to.
            requests.append(waiting);
        }
        let progress = !requests.is_empty();
        self.start_requests(requests.drain(..));
        self.taken.replace(requests);
        progress
    }

    fn start_requests(&self, requests: impl Iterator<Item = (usize, Request)>) {
        for (index, Request { command, done }) in requests {
            let found = self.images.borrow().get(index).cloned();
            let Some(open) = found else {
                done(Err(DiskError::Closed));
                continue;
            };
            if let Err(error) = command.check(open.image.capacity(), open.options.read_only) {
                done(Err(error));
                continue;
            }
            let command = open.zeroes_detected(command);
            let started = if open.is_written_through(&command) {
                Err((command, done as _))
            } else {
                self.direct.start(&open.image, command, done)
            };
            if let Err((command, tell)) = started {
                self.tasks.spawn(async move { tell(open.run(command).await) });
            }
        }
    }

    /// Runs until no task is left.
    fn drain(&self) {
        self.poll();
        while self.tasks.live() > 0 || self.direct.len() > 0 {
            self.wait();
            self.poll();
        }
    }

    /// Runs `future`, and everything else meanwhile, until it ends.
    fn run_to_end<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let slot = Rc::new(RefCell::new(None));
        let result = slot.clone();
        self.tasks.spawn(async move {
            let value = future.await;
            *result.borrow_mut() = Some(value);
        });
        loop {
            self.poll();
            if let Some(value) = slot.borrow_mut().take() {
                return value;
            }
            self.wait();
        }
    }

    /// Blocks until there may be something to do.
    fn wait(&self) {
        let mut fds = [PollFd::new(&self.readiness, PollFlags::IN)];
        // Interrupted is as good as woken: the caller looks again.
        let _ = rustix::event::poll(&mut fds, None);
    }
}

impl Drop for Engine {
    /// Nothing stays behind: no request, no file, no memory that the kernel may still write to.
    fn drop(&mut self) {
        // What is dropped here may hold anything of its owner's, so not under the lock.
        let unseen = self.inbox.lock().take();
        drop(unseen);
        self.tasks.abandon();
        // Requests that are in flight hold on to the image, and the image to the storage that they are in flight on.
        self.backend.quiesce();
        for file in self.locked.take() {
            if let Err(error) = lock::unlock(&file) {
                tracing::debug!(%error, "an image stays locked until its file is closed");
            }
        }
    }
}

impl OpenImage {
    /// Runs a guest's command, whose range was checked, as the image's options say.
    async fn run(&self, command: Command) -> Result<(), DiskError> {
        match &command {
            Command::Flush if self.options.cache == CacheMode::Unsafe => return Ok(()),
            Command::Discard { .. } if self.options.discard == Discard::Ignore => return Ok(()),
            _ => {}
        }
        let write_through = self.is_written_through(&command);
        self.image.execute(command).await?;
        if write_through {
            self.image.execute(Command::Flush).await
        } else {
            Ok(())
        }
    }

    /// Whether the command is complete only when it is durable.
    fn is_written_through(&self, command: &Command) -> bool {
        self.options.cache.is_write_through() && command.modifies()
    }

    /// Takes note of when metadata became dirty, or that none is.
    fn notice_dirty(&self) {
        if !self.image.has_unsaved_changes() {
            self.dirty_since.set(None);
        } else if self.dirty_since.get().is_none() {
            self.dirty_since.set(Some(Instant::now()));
        }
    }

    /// When dirty metadata is to be written back by itself.
    fn write_back_is_due(&self) -> Option<Instant> {
        self.dirty_since.get()?.checked_add(self.options.write_back_after)
    }

    fn zeroes_detected(&self, command: Command) -> Command {
        match command {
            Command::Write { offset, buffer }
                if self.options.detect_zeroes != DetectZeroes::Off && buffer.is_zero() =>
            {
                Command::WriteZeroes {
                    offset,
                    length: buffer.len() as u64,
                }
            }
            other => other,
        }
    }
}

impl Backend {
    fn file(&self, file: File) -> Rc<dyn Storage> {
        match self {
            Backend::Uring(ring) => ring.file(file),
            Backend::Threads(pool) => pool.file(file),
        }
    }

    fn reap(&self) -> usize {
        match self {
            Backend::Uring(ring) => ring.reap(),
            Backend::Threads(pool) => pool.reap(),
        }
    }

    fn submit(&self) -> io::Result<()> {
        match self {
            Backend::Uring(ring) => ring.submit(),
            Backend::Threads(_) => Ok(()),
        }
    }

    fn quiesce(&self) {
        match self {
            Backend::Uring(ring) => ring.quiesce(),
            Backend::Threads(pool) => pool.quiesce(),
        }
    }
}

/// The handle of one image.
struct Handle {
    capacity: AtomicU64,
    read_only: bool,
    index: usize,
    inbox: Arc<Inbox>,
}

impl Disk for Handle {
    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn submit(&self, request: Request) {
        self.inbox.push(self.index, request);
    }
}

impl Inbox {
    fn push(&self, index: usize, request: Request) {
        let mut queue = self.lock();
        let Some(waiting) = &mut *queue else {
            drop(queue);
            // Nobody is left to call `done` later; dropping it tells its owner as much as there is to know.
            tracing::warn!("a request came after its disk was closed");
            return;
        };
        waiting.push_back((index, request));
        drop(queue);
        self.doorbell.ring();
    }

    fn lock(&self) -> MutexGuard<'_, Option<VecDeque<(usize, Request)>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
