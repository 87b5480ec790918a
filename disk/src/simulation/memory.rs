//! Memory that outlives a simulated process, and the moments at which one can be killed between two stores to it.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};

use crate::Buffer;
use crate::qcow2::cache_memory::LastingMemory;
use crate::qcow2::token::Token;
use crate::storage::{CrashModel, CrashPoint, SimulatedDisk};

thread_local! {
    /// Stores to metadata caches that this thread has made.
    static STORES: Cell<u64> = const { Cell::new(0) };
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// Memory that outlives a simulated process.
pub(super) struct SimulatedMemory {
    memory: RefCell<Memory>,
    /// What is made and not to be found yet.
    unpublished: RefCell<Option<Buffer>>,
    token: Token,
}

#[derive(Default)]
enum Memory {
    #[default]
    None,
    /// What an earlier process left, until this one makes its own.
    Found(Vec<u8>),
    Made(Buffer),
}

impl SimulatedMemory {
    /// What there is before, and what tells the cache that is made from others.
    pub(super) fn found(left_behind: Option<Vec<u8>>, token: Token) -> Self {
        Self {
            memory: RefCell::new(left_behind.map_or(Memory::None, Memory::Found)),
            unpublished: RefCell::default(),
            token,
        }
    }

    /// What the next process finds.
    pub(super) fn contents(&self) -> Option<Vec<u8>> {
        match &*self.memory.borrow() {
            Memory::None => None,
            Memory::Found(bytes) => Some(bytes.clone()),
            Memory::Made(buffer) => Some(buffer.to_vec()),
        }
    }
}

impl LastingMemory for SimulatedMemory {
    fn make(&self, length: usize) -> io::Result<Buffer> {
        let buffer = Buffer::zeroed(length);
        *self.unpublished.borrow_mut() = Some(buffer.clone());
        Ok(buffer)
    }

    fn publish(&self) -> io::Result<()> {
        if let Some(buffer) = self.unpublished.take() {
            *self.memory.borrow_mut() = Memory::Made(buffer);
        }
        stored();
        Ok(())
    }

    fn remove(&self) {
        *self.memory.borrow_mut() = Memory::None;
        stored();
    }

    fn new_token(&self) -> Option<Token> {
        Some(self.token)
    }
}

/// A process that ended between two stores to its metadata cache.
pub struct Instant {
    /// What it left of the image file.
    pub point: CrashPoint,
    /// What it left of its metadata cache.
    pub left_behind: Option<Vec<u8>>,
    /// When that was, as [`Outcome::moment`](super::Outcome::moment) counts.
    pub moment: u64,
}

struct Watch {
    at: u64,
    disk: Weak<SimulatedDisk>,
    memory: Weak<SimulatedMemory>,
    seen: Option<Instant>,
}

/// How many stores to metadata caches this thread has made.
pub(super) fn moment() -> u64 {
    STORES.get()
}

/// Looks at everything after so many stores more.
pub(super) fn watch(stores: u64, disk: &Rc<SimulatedDisk>, memory: &Rc<SimulatedMemory>) {
    let watch = Watch {
        at: moment() + stores.max(1),
        disk: Rc::downgrade(disk),
        memory: Rc::downgrade(memory),
        seen: None,
    };
    WATCH.set(Some(watch));
}

/// What was seen then. The watch goes on until something was.
pub(super) fn seen() -> Option<Instant> {
    WATCH.with_borrow_mut(|watch| watch.as_mut().and_then(|watch| watch.seen.take()))
}

/// A store to a metadata cache has just been made.
pub(crate) fn stored() {
    let now = moment() + 1;
    STORES.set(now);
    WATCH.with_borrow_mut(|watch| {
        if let Some(watch) = watch.as_mut().filter(|watch| watch.at == now)
            && let (Some(disk), Some(memory)) = (watch.disk.upgrade(), watch.memory.upgrade())
        {
            watch.seen = Some(Instant {
                point: disk.crash_point(CrashModel::Kill),
                left_behind: memory.contents(),
                moment: now,
            });
        }
    });
}
