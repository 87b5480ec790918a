//! The engine on a simulated disk: one seed decides the order of completions, the faults and the crash.
//!
//! The same code runs as in production, above [`Storage`](crate::storage::Storage); only time is ours. It is for tests, and for
//! whoever wants to repeat what a test printed.

pub(crate) mod memory;

use std::cell::RefCell;
use std::error::Error;
use std::rc::Rc;

use async_executor::Task;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::direct::{DirectRequests, Tell};
use crate::image::Image;
use crate::open::OpenCause;
use crate::qcow2::cache_memory::Identity;
use crate::qcow2::header::Header;
use crate::qcow2::{self, CachePlan, Opening, Qcow2};
use crate::raw::Raw;
use crate::storage::ImageFile;
use crate::tasks::Tasks;
use crate::{Command, DiskError, Request};

use memory::SimulatedMemory;

pub use crate::storage::{CrashModel, CrashPoint, FaultKind, Operation, Platter, SimulatedDisk};
pub use memory::Instant;

/// What there is before a simulation begins.
#[derive(Clone)]
pub struct Setup {
    /// The qcow2 image.
    pub platter: Platter,
    /// The images below it, the nearest first.
    pub below: Vec<Layer>,
    /// The metadata cache of a process that was killed.
    pub left_behind: Option<Vec<u8>>,
    /// The id or name of a snapshot to read, in place of the disk.
    pub snapshot: Option<String>,
    /// The size of the metadata cache in bytes; 0 is as small as can be, so that slices come and go.
    pub cache_bytes: usize,
    /// Decides the order of completions.
    pub seed: u64,
}

/// An image in a chain of backing files.
#[derive(Clone, Debug)]
pub enum Layer {
    /// The bytes of a disk.
    Raw(Vec<u8>),
    /// A qcow2 image.
    Qcow2(Vec<u8>),
}

impl Setup {
    /// Just this image.
    pub fn new(platter: impl Into<Platter>, seed: u64) -> Self {
        Self {
            platter: platter.into(),
            below: Vec::new(),
            left_behind: None,
            snapshot: None,
            cache_bytes: 0,
            seed,
        }
    }
}

/// An engine with one image on a [`SimulatedDisk`].
pub struct Simulation {
    tasks: Tasks,
    direct: Rc<DirectRequests>,
    disk: Rc<SimulatedDisk>,
    memory: Rc<SimulatedMemory>,
    opening: Slot<Rc<Qcow2>, OpenCause>,
    image: Option<Image>,
    closing: Option<Closing>,
    rng: SmallRng,
}

/// Where a task leaves its result.
type Slot<T, E> = Rc<RefCell<Option<Result<T, E>>>>;

/// How far closing has come.
struct Closing {
    finishing: bool,
    result: Slot<(), DiskError>,
}

/// What became of a command.
#[derive(Clone, Default)]
pub struct Outcome(Rc<RefCell<Option<(Finished, u64)>>>);

type Finished = Result<(), Box<dyn Error>>;

impl Outcome {
    fn set(&self, result: Finished) {
        *self.0.borrow_mut() = Some((result, memory::moment()));
    }

    /// Whether the command is done.
    pub fn is_done(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Whether the command is done, and without an error.
    pub fn succeeded(&self) -> bool {
        matches!(*self.0.borrow(), Some((Ok(()), _)))
    }

    /// Why the command failed, if it is done and did.
    pub fn error(&self) -> Option<String> {
        match &*self.0.borrow() {
            Some((Err(error), _)) => Some(error.to_string()),
            Some((Ok(()), _)) | None => None,
        }
    }

    /// When the command was done: how many stores to metadata caches this thread had made by then.
    pub fn moment(&self) -> Option<u64> {
        self.0.borrow().as_ref().map(|(_, moment)| *moment)
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
        Self::open_setup(Setup {
            below: backing.into_iter().map(Layer::Raw).collect(),
            left_behind,
            ..Setup::new(bytes, seed)
        })
    }

    /// Opens a snapshot in the qcow2 image `bytes` for reading, above the raw image `backing`.
    pub fn open_snapshot(
        bytes: Vec<u8>,
        backing: Option<Vec<u8>>,
        id_or_name: &str,
        seed: u64,
    ) -> Result<Self, OpenCause> {
        Self::open_setup(Setup {
            below: backing.into_iter().map(Layer::Raw).collect(),
            snapshot: Some(id_or_name.to_owned()),
            ..Setup::new(bytes, seed)
        })
    }

    /// Opens an image.
    pub fn open_setup(setup: Setup) -> Result<Self, OpenCause> {
        let mut simulation = Self::begin(setup)?;
        simulation.settle();
        simulation.opened()?;
        Ok(simulation)
    }

    /// Begins to open an image; each [`Simulation::step`] lets one storage operation of that complete.
    pub fn begin(setup: Setup) -> Result<Self, OpenCause> {
        let header = Header::parse(setup.platter.current())?;
        let tasks = Tasks::default();
        let mut rng = SmallRng::seed_from_u64(setup.seed);
        let token = rng.random();
        let disk = SimulatedDisk::holding(setup.platter);
        let backing = open_below(&tasks, &disk, setup.below)?;
        let read_only = setup.snapshot.is_some();
        // Of an image that is not dirty, its cache is out of date.
        let left_behind = setup.left_behind.filter(|_| header.is_dirty());
        let memory = Rc::new(SimulatedMemory::found(left_behind.clone(), token));
        let opening = Opening {
            tasks: tasks.clone(),
            file: ImageFile::new(disk.clone()),
            header,
            backing,
            read_only,
            unmap: true,
            snapshot: setup.snapshot,
            cache: CachePlan {
                bytes: setup.cache_bytes,
                identity: Identity::default(),
                left_behind,
                lasting: Some(memory.clone()),
            },
        };
        let simulation = Self {
            direct: DirectRequests::new(tasks.clone()),
            opening: run(&tasks, qcow2::open(opening)),
            tasks,
            disk,
            memory,
            image: None,
            closing: None,
            rng,
        };
        simulation.tasks.run();
        Ok(simulation)
    }

    /// Whether opening is done; why it failed, if it did. To be asked before the first command.
    pub fn opened(&mut self) -> Result<bool, OpenCause> {
        if let Some(opened) = self.opening.borrow_mut().take() {
            self.image = Some(Image::Qcow2(opened?));
        }
        Ok(self.image.is_some())
    }

    /// # Panics
    /// If the test that drives this gives a command before [`Simulation::opened`] said yes: a mistake of the test.
    fn image(&self) -> &Image {
        self.image.as_ref().expect("the image is open")
    }

    /// The disk below.
    pub fn disk(&self) -> &SimulatedDisk {
        &self.disk
    }

    /// The size of the virtual disk in bytes.
    pub fn capacity(&self) -> u64 {
        self.image().capacity()
    }

    /// Starts a command, as the engine does.
    pub fn submit(&self, command: Command) -> Outcome {
        let outcome = Outcome::default();
        if let Err(error) = command.check(self.capacity(), false) {
            outcome.set(Err(error.into()));
            return outcome;
        }
        let slot = outcome.clone();
        self.start_command(command, Box::new(move |result| slot.set(result.map_err(Into::into))));
        outcome
    }

    /// Starts the request of a front end, as the engine does.
    pub fn serve(&self, request: Request) {
        let Request { command, done } = request;
        match command.check(self.capacity(), false) {
            Ok(()) => self.start_command(command, done),
            Err(error) => done(Err(error)),
        }
    }

    fn start_command(&self, command: Command, tell: Tell) {
        if let Err((command, tell)) = self.direct.start(self.image(), command, tell) {
            let image = self.image().clone();
            self.tasks.spawn(async move { tell(image.execute(command).await) });
        }
        self.tasks.run();
    }

    /// Lets metadata that is dirty become old, so that it is written back by itself.
    pub fn let_metadata_age(&self) {
        self.image().write_back_by_age();
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
        let (outcome, image) = (outcome.clone(), self.image().clone());
        async move {
            let result = match command.check(image.capacity(), false) {
                Ok(()) => image.execute(command).await,
                Err(error) => Err(error),
            };
            outcome.set(result.map_err(Into::into));
        }
    }

    /// Starts taking a snapshot.
    pub fn snapshot_create(&self, name: &str) -> Outcome {
        let (image, name) = (self.image().clone(), name.to_owned());
        self.start(async move { Ok(image.snapshot_create(&name).await.map(drop)?) })
    }

    /// Starts applying a snapshot.
    pub fn snapshot_apply(&self, id_or_name: &str) -> Outcome {
        let (image, wanted) = (self.image().clone(), id_or_name.to_owned());
        self.start(async move { Ok(image.snapshot_apply(&wanted).await?) })
    }

    /// Starts deleting a snapshot.
    pub fn snapshot_delete(&self, id_or_name: &str) -> Outcome {
        let (image, wanted) = (self.image().clone(), id_or_name.to_owned());
        self.start(async move { Ok(image.snapshot_delete(&wanted).await?) })
    }

    /// Starts resizing the disk, to `size` bytes.
    pub fn resize(&self, size: u64, may_shrink: bool) -> Outcome {
        let image = self.image().clone();
        self.start(async move { Ok(image.resize(size, may_shrink).await?) })
    }

    /// The names of the snapshots.
    pub fn snapshots(&self) -> Vec<String> {
        let snapshots = self.image().snapshots().unwrap_or_default();
        snapshots.into_iter().map(|snapshot| snapshot.name).collect()
    }

    fn start(&self, work: impl Future<Output = Finished> + 'static) -> Outcome {
        let outcome = Outcome::default();
        let slot = outcome.clone();
        self.tasks.spawn(async move { slot.set(work.await) });
        self.tasks.run();
        outcome
    }

    /// From now on the order of completions is drawn from this seed.
    pub fn reseed(&mut self, seed: u64) {
        self.rng = SmallRng::seed_from_u64(seed);
    }

    /// Lets one storage operation complete, and everything go on that waited for it. Returns false when none is in flight.
    pub fn step(&mut self) -> bool {
        let progress = self.disk.complete_one(&mut self.rng);
        self.tasks.run();
        progress || self.go_on_closing()
    }

    /// The same, but what was delayed by [`SimulatedDisk::delay_last`] stays in flight.
    pub fn step_undelayed(&mut self) -> bool {
        let progress = self.disk.complete_undelayed(&mut self.rng);
        self.tasks.run();
        progress || self.go_on_closing()
    }

    /// Lets storage operations complete until so many fdatasyncs more have begun, or nothing is in flight that is not delayed. The
    /// last of them is in flight then, and what it is to make durable is not.
    pub fn step_to_barrier(&mut self, barriers: u64) {
        let enough = self.disk.started_syncs() + barriers;
        while self.disk.started_syncs() < enough && self.step_undelayed() {}
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
        self.begin_close();
        self.settle();
        self.closed().unwrap_or(Err(DiskError::Closed))?;
        Ok(self.disk.contents())
    }

    /// Lets everything come to its end, and begins to close the image; [`Simulation::step`] goes on with that.
    pub fn begin_close(&mut self) {
        self.settle();
        let image = self.image().clone();
        let flush = async move { image.execute(Command::Flush).await };
        let result = run(&self.tasks, flush);
        self.closing = Some(Closing {
            finishing: false,
            result,
        });
        self.tasks.run();
    }

    /// In two steps: what the first sets free is written by the second, when nothing is in flight any more.
    fn go_on_closing(&mut self) -> bool {
        let image = self.image.clone();
        let (Some(closing), Some(image)) = (&mut self.closing, image) else {
            return false;
        };
        let flushed = matches!(*closing.result.borrow(), Some(Ok(())));
        if closing.finishing || !flushed {
            return false;
        }
        let result = run(&self.tasks, async move { image.finish().await });
        self.closing = Some(Closing {
            finishing: true,
            result,
        });
        self.tasks.run();
        true
    }

    /// What became of closing, if it has come to an end.
    pub fn closed(&self) -> Option<Result<(), DiskError>> {
        let closing = self.closing.as_ref()?;
        let result = closing.result.borrow();
        match &*result {
            Some(Err(error)) => Some(Err(error.duplicate())),
            Some(Ok(())) => closing.finishing.then_some(Ok(())),
            None => None,
        }
    }

    /// One of the files that a crash at this moment can leave, drawn from the seed, and the metadata cache that outlives
    /// it: after a kill that is there, after a power loss it is not.
    pub fn crash(&mut self, model: CrashModel) -> (Vec<u8>, Option<Vec<u8>>) {
        (self.disk.crash(model, &mut self.rng), self.left_behind(model))
    }

    /// The metadata cache that outlives a crash at this moment.
    pub fn left_behind(&self, model: CrashModel) -> Option<Vec<u8>> {
        match model {
            CrashModel::Kill => self.memory.contents(),
            CrashModel::PowerLoss => None,
        }
    }

    /// Looks at what a kill would leave after so many stores to the metadata cache more, which is mostly in the middle of what
    /// runs between two storage operations; only in builds with debug assertions.
    pub fn watch(&self, stores: u64) {
        memory::watch(stores, &self.disk, &self.memory);
    }

    /// What was seen then, once.
    pub fn seen(&self) -> Option<Instant> {
        memory::seen()
    }
}

impl Drop for Simulation {
    /// What is in flight names the image, and the image the disk.
    fn drop(&mut self) {
        self.tasks.abandon();
        self.disk.abandon();
    }
}

/// Runs `work` as a task that leaves its result.
fn run<T: 'static, E: 'static>(tasks: &Tasks, work: impl Future<Output = Result<T, E>> + 'static) -> Slot<T, E> {
    let slot = Rc::new(RefCell::new(None));
    let result = slot.clone();
    tasks.spawn(async move {
        let value = work.await;
        *result.borrow_mut() = Some(value);
    });
    slot
}

/// Opens a chain of backing files, the last one first.
fn open_below(tasks: &Tasks, disk: &SimulatedDisk, below: Vec<Layer>) -> Result<Option<Image>, OpenCause> {
    let mut image = None;
    for layer in below.into_iter().rev() {
        let (bytes, header) = match layer {
            Layer::Raw(bytes) => (bytes, None),
            Layer::Qcow2(bytes) => {
                let header = Header::parse(&bytes)?;
                (bytes, Some(header))
            }
        };
        let storage = SimulatedDisk::new(bytes);
        disk.complete_along_with(storage.clone());
        let file = ImageFile::new(storage);
        let Some(header) = header else {
            image = Some(Image::Raw(Rc::new(Raw::new(file)?)));
            continue;
        };
        let opening = Opening {
            tasks: tasks.clone(),
            file,
            header,
            backing: image.take(),
            read_only: true,
            unmap: false,
            snapshot: None,
            cache: CachePlan {
                bytes: 0,
                identity: Identity::default(),
                left_behind: None,
                lasting: None,
            },
        };
        let opened = run(tasks, qcow2::open(opening));
        let mut rng = SmallRng::seed_from_u64(0);
        while tasks.run() || disk.complete_one(&mut rng) {}
        let opened = opened.borrow_mut().take();
        image = Some(Image::Qcow2(opened.ok_or(OpenCause::NotAFile)??));
    }
    Ok(image)
}
