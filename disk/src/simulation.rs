//! The engine on a simulated disk: one seed decides the order of completions, the faults and the crash.
//!
//! The same code runs as in production, above [`Storage`](crate::storage::Storage); only time is ours. It is for tests, and for
//! whoever wants to repeat what a test printed.

use std::cell::RefCell;
use std::error::Error;
use std::io;
use std::rc::Rc;

use async_executor::Task;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::direct::{DirectRequests, Tell};
use crate::image::Image;
use crate::open::OpenCause;
use crate::qcow2::cache_memory::{Identity, LastingMemory};
use crate::qcow2::header::Header;
use crate::qcow2::{self, CachePlan, Opening};
use crate::raw::Raw;
use crate::storage::ImageFile;
use crate::tasks::Tasks;
use crate::{Buffer, Command, DiskError};

pub use crate::storage::{CrashModel, Operation, SimulatedDisk};

/// An engine with one image on a [`SimulatedDisk`].
pub struct Simulation {
    tasks: Tasks,
    direct: Rc<DirectRequests>,
    disk: Rc<SimulatedDisk>,
    memory: Rc<SimulatedMemory>,
    image: Image,
    rng: SmallRng,
}

/// Memory that outlives a simulated process.
#[derive(Default)]
struct SimulatedMemory(RefCell<Option<Buffer>>);

impl LastingMemory for SimulatedMemory {
    fn make(&self, length: usize) -> io::Result<Buffer> {
        let buffer = Buffer::zeroed(length);
        *self.0.borrow_mut() = Some(buffer.clone());
        Ok(buffer)
    }

    fn remove(&self) {
        self.0.borrow_mut().take();
    }
}

/// What became of a command.
#[derive(Clone, Default)]
pub struct Outcome(Rc<RefCell<Option<Finished>>>);

type Finished = Result<(), Box<dyn Error>>;

impl Outcome {
    /// Whether the command is done.
    pub fn is_done(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Whether the command is done, and without an error.
    pub fn succeeded(&self) -> bool {
        matches!(*self.0.borrow(), Some(Ok(())))
    }

    /// Why the command failed, if it is done and did.
    pub fn error(&self) -> Option<String> {
        match &*self.0.borrow() {
            Some(Err(error)) => Some(error.to_string()),
            Some(Ok(())) | None => None,
        }
    }
}

/// A command that can be given up.
#[must_use = "a command that is dropped is cancelled"]
pub struct Cancellable {
    /// What became of it; nothing, if it was cancelled.
    pub outcome: Outcome,
    _task: Task<()>,
}

impl Simulation {
    /// Opens the qcow2 image `bytes` for writing, above the raw image `backing`; `left_behind` is the metadata cache of a process
    /// that was killed. Its metadata cache is as small as can be, so
    /// that slices come and go.
    pub fn open(
        bytes: Vec<u8>,
        backing: Option<Vec<u8>>,
        left_behind: Option<Vec<u8>>,
        seed: u64,
    ) -> Result<Self, OpenCause> {
        Self::open_with(bytes, backing, left_behind, None, seed)
    }

    /// Opens a snapshot in the qcow2 image `bytes` for reading, above the raw image `backing`.
    pub fn open_snapshot(
        bytes: Vec<u8>,
        backing: Option<Vec<u8>>,
        id_or_name: &str,
        seed: u64,
    ) -> Result<Self, OpenCause> {
        Self::open_with(bytes, backing, None, Some(id_or_name.to_owned()), seed)
    }

    fn open_with(
        bytes: Vec<u8>,
        backing: Option<Vec<u8>>,
        left_behind: Option<Vec<u8>>,
        snapshot: Option<String>,
        seed: u64,
    ) -> Result<Self, OpenCause> {
        let header = Header::parse(&bytes)?;
        let tasks = Tasks::default();
        let mut rng = SmallRng::seed_from_u64(seed);
        let backing = match backing {
            None => None,
            Some(bytes) => {
                let storage = SimulatedDisk::new(bytes);
                Some((storage.clone(), Image::Raw(Rc::new(Raw::new(ImageFile::new(storage))?))))
            }
        };
        let (backing_disk, backing) = backing.unzip();
        let disk = SimulatedDisk::new(bytes);
        if let Some(backing_disk) = backing_disk {
            disk.complete_along_with(backing_disk);
        }
        let slot = Rc::new(RefCell::new(None));
        let memory = Rc::new(SimulatedMemory::default());
        let lasting = memory.clone();
        let (result, file, opener) = (slot.clone(), ImageFile::new(disk.clone()), tasks.clone());
        tasks.spawn(async move {
            let cache = CachePlan {
                bytes: 0,
                identity: Identity::default(),
                left_behind,
                lasting: Some(lasting),
            };
            let opening = Opening {
                tasks: opener,
                file,
                header,
                backing,
                read_only: snapshot.is_some(),
                unmap: true,
                snapshot,
                cache,
            };
            let opened = qcow2::open(opening).await;
            *result.borrow_mut() = Some(opened);
        });
        while tasks.run() || disk.complete_one(&mut rng) {}
        let opened = slot.borrow_mut().take();
        let image = Image::Qcow2(opened.ok_or(OpenCause::NotAFile)??);
        Ok(Self {
            direct: DirectRequests::new(tasks.clone()),
            tasks,
            disk,
            memory,
            image,
            rng,
        })
    }

    /// The disk below.
    pub fn disk(&self) -> &SimulatedDisk {
        &self.disk
    }

    /// The size of the virtual disk in bytes.
    pub fn capacity(&self) -> u64 {
        self.image.capacity()
    }

    /// Starts a command, as the engine does.
    pub fn submit(&self, command: Command) -> Outcome {
        let outcome = Outcome::default();
        if let Err(error) = command.check(self.image.capacity(), false) {
            outcome.0.replace(Some(Err(error.into())));
            return outcome;
        }
        let slot = outcome.clone();
        let tell: Tell = Box::new(move |result| drop(slot.0.replace(Some(result.map_err(Into::into)))));
        if let Err((command, tell)) = self.direct.start(&self.image, command, tell) {
            let image = self.image.clone();
            self.tasks.spawn(async move { tell(image.execute(command).await) });
        }
        self.tasks.run();
        outcome
    }

    /// Lets metadata that is dirty become old, so that it is written back by itself.
    pub fn let_metadata_age(&self) {
        self.image.write_back_by_age();
        self.tasks.run();
    }

    /// Starts a command that ends, wherever it is, when what this returns is dropped.
    pub fn submit_cancellable(&self, command: Command) -> Cancellable {
        let outcome = Outcome::default();
        let task = self.tasks.spawn_cancellable(self.execution(command, &outcome));
        self.tasks.run();
        Cancellable { outcome, _task: task }
    }

    fn execution(&self, command: Command, outcome: &Outcome) -> impl Future<Output = ()> + use<> {
        let (slot, image) = (outcome.clone(), self.image.clone());
        async move {
            let result = match command.check(image.capacity(), false) {
                Ok(()) => image.execute(command).await,
                Err(error) => Err(error),
            };
            *slot.0.borrow_mut() = Some(result.map_err(Into::into));
        }
    }

    /// Starts taking a snapshot.
    pub fn snapshot_create(&self, name: &str) -> Outcome {
        let (image, name) = (self.image.clone(), name.to_owned());
        self.start(async move { Ok(image.snapshot_create(&name).await.map(drop)?) })
    }

    /// Starts applying a snapshot.
    pub fn snapshot_apply(&self, id_or_name: &str) -> Outcome {
        let (image, wanted) = (self.image.clone(), id_or_name.to_owned());
        self.start(async move { Ok(image.snapshot_apply(&wanted).await?) })
    }

    /// Starts deleting a snapshot.
    pub fn snapshot_delete(&self, id_or_name: &str) -> Outcome {
        let (image, wanted) = (self.image.clone(), id_or_name.to_owned());
        self.start(async move { Ok(image.snapshot_delete(&wanted).await?) })
    }

    /// Starts resizing the disk, to `size` bytes.
    pub fn resize(&self, size: u64, may_shrink: bool) -> Outcome {
        let image = self.image.clone();
        self.start(async move { Ok(image.resize(size, may_shrink).await?) })
    }

    /// The names of the snapshots.
    pub fn snapshots(&self) -> Vec<String> {
        let snapshots = self.image.snapshots().unwrap_or_default();
        snapshots.into_iter().map(|snapshot| snapshot.name).collect()
    }

    fn start(&self, work: impl Future<Output = Finished> + 'static) -> Outcome {
        let outcome = Outcome::default();
        let slot = outcome.clone();
        self.tasks.spawn(async move {
            let result = work.await;
            *slot.0.borrow_mut() = Some(result);
        });
        self.tasks.run();
        outcome
    }

    /// Lets one storage operation complete, and everything go on that waited for it. Returns false when none is in flight.
    pub fn step(&mut self) -> bool {
        let progress = self.disk.complete_one(&mut self.rng);
        self.tasks.run();
        progress
    }

    /// Lets the oldest of those storage operations in flight that `chosen` picks complete, and everything go on that waited
    /// for it. Returns false when there is none.
    pub fn step_where(&mut self, chosen: impl FnMut(&Operation) -> bool) -> bool {
        let progress = self.disk.complete_first(chosen);
        self.tasks.run();
        progress
    }

    /// Lets everything in flight come to its end.
    pub fn settle(&mut self) {
        while self.step() {}
    }

    /// Closes the image properly. Returns the file.
    pub fn close(mut self) -> Result<Vec<u8>, DiskError> {
        self.settle();
        let slot = Rc::new(RefCell::new(None));
        for step in 0..2 {
            let (result, image) = (slot.clone(), self.image.clone());
            self.tasks.spawn(async move {
                let outcome = if step == 0 {
                    image.execute(Command::Flush).await
                } else {
                    image.finish().await
                };
                *result.borrow_mut() = Some(outcome);
            });
            self.tasks.run();
            self.settle();
            slot.borrow_mut().take().unwrap_or(Err(DiskError::Closed))?;
        }
        Ok(self.disk.contents())
    }

    /// One of the files that a crash at this moment can leave, drawn from the seed, and the metadata cache that outlives
    /// it: after a kill that is there, after a power loss it is not.
    pub fn crash(&mut self, model: CrashModel) -> (Vec<u8>, Option<Vec<u8>>) {
        (self.disk.crash(model, &mut self.rng), self.left_behind(model))
    }

    /// The metadata cache that outlives a crash at this moment.
    pub fn left_behind(&self, model: CrashModel) -> Option<Vec<u8>> {
        match model {
            CrashModel::Kill => self.memory.0.borrow().as_ref().map(Buffer::to_vec),
            CrashModel::PowerLoss => None,
        }
    }
}
