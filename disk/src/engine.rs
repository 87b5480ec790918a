//! The engine: one thread, one executor, one way down to the host, any number of images.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, PollFd, PollFlags};

use crate::image::Image;
use crate::lock;
use crate::open::{OpenError, OpenOptions, Opener};
use crate::options::{CacheMode, DetectZeroes, Discard};
use crate::storage::{Ring, Storage, ThreadPool};
use crate::tasks::Tasks;
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

/// The thread-bound half of all disks: it runs their requests whenever it is polled.
pub struct Engine {
    tasks: Tasks,
    backend: Backend,
    event_fd: Arc<OwnedFd>,
    inbox: Arc<Inbox>,
    images: RefCell<Vec<Rc<OpenImage>>>,
    /// Of all images and their backing files, by which their locks are given up.
    locked: RefCell<Vec<File>>,
}

struct OpenImage {
    options: OpenOptions,
    image: Image,
    handle: Arc<Handle>,
}

enum Backend {
    Uring(Rc<Ring>),
    Threads(Rc<ThreadPool>),
}

/// Requests on their way to the engine's thread.
struct Inbox {
    /// `None` when the engine is closed.
    queue: Mutex<Option<VecDeque<(usize, Request)>>>,
    event_fd: Arc<OwnedFd>,
}

impl Engine {
    /// Sets up an engine on this thread.
    pub fn new(options: EngineOptions) -> Result<Self, EngineError> {
        let event_fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let event_fd = Arc::new(event_fd.map_err(io::Error::from)?);
        let backend = match options.aio {
            Aio::IoUring => match Ring::new(event_fd.as_fd()) {
                Ok(ring) => Backend::Uring(ring),
                Err(error) => {
                    tracing::warn!(%error, "io_uring is not available; using threads");
                    Backend::Threads(ThreadPool::new(&event_fd)?)
                }
            },
            Aio::Threads => Backend::Threads(ThreadPool::new(&event_fd)?),
        };
        let inbox = Arc::new(Inbox {
            queue: Mutex::new(Some(VecDeque::new())),
            event_fd: event_fd.clone(),
        });
        Ok(Self {
            tasks: Tasks::default(),
            backend,
            event_fd,
            inbox,
            images: RefCell::default(),
            locked: RefCell::default(),
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
        self.event_fd.as_fd()
    }

    /// Runs everything that can go on: new requests, and those whose storage operations completed. Never blocks.
    pub fn poll(&self) {
        let mut counter = [0; 8];
        // Nothing to read is fine: then there is no news.
        let _ = rustix::io::read(&*self.event_fd, &mut counter);
        loop {
            let mut progress = self.take_requests();
            progress |= self.backend.reap() > 0;
            progress |= self.tasks.run();
            if !progress {
                break;
            }
        }
        if let Err(error) = self.backend.submit() {
            // The entries stay queued; the next poll tries again.
            tracing::error!(%error, "io_uring does not take submissions");
        }
    }

    /// Waits for every request, makes everything durable and releases the images. Requests that are submitted
    /// from now on fail. Blocks.
    pub fn close(self) -> Result<(), CloseError> {
        let last = self.inbox.lock().take();
        self.spawn_requests(last.unwrap_or_default());
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
        for file in self.locked.take() {
            if let Err(error) = lock::unlock(&file) {
                tracing::debug!(%error, "an image stays locked until its file is closed");
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
        let requests = self.inbox.lock().as_mut().map(std::mem::take).unwrap_or_default();
        let progress = !requests.is_empty();
        self.spawn_requests(requests);
        progress
    }

    fn spawn_requests(&self, requests: VecDeque<(usize, Request)>) {
        for (index, request) in requests {
            let found = self.images.borrow().get(index).cloned();
            match found {
                Some(image) => self.tasks.spawn(async move {
                    let outcome = image.run(request.command).await;
                    (request.done)(outcome);
                }),
                None => (request.done)(Err(DiskError::Closed)),
            }
        }
    }

    /// Runs until no task is left.
    fn drain(&self) {
        self.poll();
        while self.tasks.live() > 0 {
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
        let mut fds = [PollFd::new(&*self.event_fd, PollFlags::IN)];
        // Interrupted is as good as woken: the caller looks again.
        let _ = rustix::event::poll(&mut fds, None);
    }
}

impl OpenImage {
    /// Runs a guest's command as the image's options say.
    async fn run(&self, command: Command) -> Result<(), DiskError> {
        command.check(self.image.capacity(), self.options.read_only)?;
        match &command {
            Command::Flush if self.options.cache == CacheMode::Unsafe => return Ok(()),
            Command::Discard { .. } if self.options.discard == Discard::Ignore => return Ok(()),
            _ => {}
        }
        let write_through = self.options.cache.is_write_through() && command.modifies();
        self.image.execute(self.zeroes_detected(command)).await?;
        if write_through {
            self.image.execute(Command::Flush).await
        } else {
            Ok(())
        }
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
        let Some(queue) = &mut *self.lock() else {
            // Nobody is left to call `done` later; dropping it tells its owner as much as there is to know.
            tracing::warn!("a request came after its disk was closed");
            return;
        };
        queue.push_back((index, request));
        // An eventfd whose counter is full is readable already.
        let _ = rustix::io::write(&*self.event_fd, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, Option<VecDeque<(usize, Request)>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
