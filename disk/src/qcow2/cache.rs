//! The metadata cache: slices of L2 tables and of refcount blocks.
//!
//! A slice is 4 KiB (or a cluster, if that is smaller), so that one lookup in a large image does not cost a
//! whole table. The cache knows which slices are dirty; *when* they may be written is the business of
//! [write-back](super::write_back).
//!
//! Slots and a small index of them (which slice, dirty or not) lie in a [`CacheMemory`], which may outlive the process: then the
//! next one finds what was not written back. One thread does all the stores, each change after the entry of the index that
//! announces it, so whenever the process is killed the memory holds a prefix of them in program order.
//!
//! A [`Slice`] is good until the task that holds it awaits something: afterwards another task may have
//! evicted it. Using one that is gone is a bug, and is asserted.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use super::cache_memory::CacheMemory;
use crate::Buffer;
use crate::failpoint::{self, Point};
use crate::planted_bug::{Bug, planted};
use crate::storage::Piece;
use crate::wait::WaitList;

/// What a slice is part of. They are written at different times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    RefcountBlock = 0,
    RefcountTable = 1,
    L2Table = 2,
    L1Table = 3,
}

/// A slice in the cache.
#[derive(Clone, Copy)]
pub(crate) struct Slice {
    slot: usize,
    /// Where it lies in the image file, in bytes.
    pub offset: u64,
}

/// What [`Cache::request`] answers.
pub(crate) enum Found {
    /// It is here.
    Ready(Slice),
    /// The caller shall read it from the image, then call [`Loading::loaded`].
    Load(Loading),
    /// Another task reads it; look again.
    InProgress,
    /// Every slot is dirty or being read; look again when something was written back.
    Full,
}

/// A slot that is being filled. Dropped without [`Loading::loaded`], it is vacant again.
pub(crate) struct Loading {
    cache: Rc<Cache>,
    slot: usize,
    offset: u64,
    finished: bool,
}

/// A copy of a dirty slice, taken to be written.
pub(crate) struct DirtySlice {
    slot: usize,
    generation: u64,
    pub class: Class,
    /// Where it belongs in the image file, in bytes.
    pub offset: u64,
    /// Its content when the copy was taken.
    pub content: Buffer,
}

pub(crate) struct Cache {
    slice_size: usize,
    memory: CacheMemory,
    slots: RefCell<Slots>,
    /// Woken when a slice was read, or became clean.
    pub(crate) changed: WaitList,
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    by_offset: HashMap<u64, usize>,
    capacity: usize,
    /// Where the search for a victim goes on (second chance).
    hand: usize,
    dirty: [usize; 4],
    /// By class, the slots that became dirty. Some may be clean again; `Slot::listed` says which are in here.
    became_dirty: [Vec<usize>; 4],
    next_generation: u64,
}

struct Slot {
    offset: u64,
    class: Class,
    state: State,
    recently_used: bool,
    /// In which lists of those that became dirty it is: a bit per class.
    listed: u8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Vacant,
    Loading,
    Clean,
    /// Changed; the number grows with each change, so that a write-back knows whether it wrote the last one.
    Dirty(u64),
}

impl Cache {
    /// A cache in `memory`.
    pub(crate) fn new(memory: CacheMemory) -> Self {
        let slots = Slots {
            capacity: memory.slots(),
            ..Slots::default()
        };
        Self {
            slice_size: memory.slice_size(),
            memory,
            slots: RefCell::new(slots),
            changed: WaitList::default(),
        }
    }

    /// Bytes of a slice.
    pub(crate) fn slice_size(&self) -> u64 {
        self.slice_size as u64
    }

    /// The slice at `offset` of the image file, if it is here.
    pub(crate) fn peek(&self, offset: u64) -> Option<Slice> {
        let mut slots = self.slots.borrow_mut();
        let slot = *slots.by_offset.get(&offset)?;
        let entry = &mut slots.slots[slot];
        if entry.state == State::Loading {
            return None;
        }
        entry.recently_used = true;
        Some(Slice { slot, offset })
    }

    /// Looks for the slice at `offset` of the image file, or makes room for it.
    pub(crate) fn request(self: &Rc<Self>, offset: u64, class: Class) -> Found {
        debug_assert!(offset.is_multiple_of(self.slice_size()) && offset != 0);
        let mut slots = self.slots.borrow_mut();
        if let Some(&slot) = slots.by_offset.get(&offset) {
            let entry = &mut slots.slots[slot];
            if entry.state == State::Loading {
                return Found::InProgress;
            }
            entry.recently_used = true;
            return Found::Ready(Slice { slot, offset });
        }
        let Some(slot) = slots.vacate() else { return Found::Full };
        let listed = slots.slots[slot].listed;
        slots.slots[slot] = Slot {
            offset,
            class,
            state: State::Loading,
            recently_used: true,
            listed,
        };
        slots.by_offset.insert(offset, slot);
        Found::Load(Loading {
            cache: self.clone(),
            slot,
            offset,
            finished: false,
        })
    }

    /// Whether a task is reading the slice at `offset`.
    pub(crate) fn is_loading(&self, offset: u64) -> bool {
        let slots = self.slots.borrow();
        slots
            .by_offset
            .get(&offset)
            .is_some_and(|&slot| slots.slots[slot].state == State::Loading)
    }

    /// The 64-bit big-endian entry number `index` of a slice.
    pub(crate) fn entry(&self, slice: Slice, index: usize) -> u64 {
        let mut bytes = [0; 8];
        self.read(slice, index * 8, &mut bytes);
        u64::from_be_bytes(bytes)
    }

    /// Sets the 64-bit big-endian entry number `index` of a slice.
    pub(crate) fn set_entry(&self, slice: Slice, index: usize, value: u64) {
        self.write(slice, index * 8, &value.to_be_bytes());
    }

    /// Copies bytes out of a slice.
    pub(crate) fn read(&self, slice: Slice, at: usize, bytes: &mut [u8]) {
        let at = self.place(slice, at, bytes.len());
        self.memory.buffer().copy_to_slice(at, bytes);
    }

    /// Copies bytes into a slice, which becomes dirty.
    pub(crate) fn write(&self, slice: Slice, at: usize, bytes: &[u8]) {
        let at = self.place(slice, at, bytes.len());
        if let Some(class) = self.slots.borrow_mut().mark_dirty(slice.slot)
            && !planted(Bug::DirtyNotAnnounced)
        {
            self.memory.announce_dirty(slice.slot, slice.offset, class);
            failpoint::hit(Point::CacheAnnounce);
        }
        self.memory.store(at, bytes);
        failpoint::hit(Point::CacheStore);
    }

    /// Bytes of all dirty slices.
    pub(crate) fn dirty_bytes(&self) -> usize {
        self.slots.borrow().dirty.iter().sum::<usize>() * self.slice_size
    }

    /// Bytes that the cache can hold.
    pub(crate) fn capacity(&self) -> usize {
        self.memory.slots() * self.slice_size
    }

    /// Whether slices of this class are dirty.
    pub(crate) fn has_dirty(&self, class: Class) -> bool {
        self.slots.borrow().dirty[class as usize] > 0
    }

    /// A number that grows with each change, and says which was the last.
    pub(crate) fn generation(&self) -> u64 {
        self.slots.borrow().next_generation
    }

    /// Copies of all dirty slices of a class, in file order.
    pub(crate) fn dirty_slices(&self, class: Class) -> Vec<DirtySlice> {
        let mut slots = self.slots.borrow_mut();
        let mut copies = Vec::with_capacity(slots.dirty[class as usize]);
        let mut listed = std::mem::take(&mut slots.became_dirty[class as usize]);
        listed.retain(|&slot| {
            let entry = &mut slots.slots[slot];
            match entry.state {
                State::Dirty(generation) if entry.class == class => {
                    let place = self.memory.content(slot);
                    copies.push(DirtySlice {
                        slot,
                        generation,
                        class,
                        offset: entry.offset,
                        content: self.memory.buffer().duplicate(place),
                    });
                    true
                }
                _ => {
                    entry.listed &= !(1 << class as u8);
                    false
                }
            }
        });
        slots.became_dirty[class as usize] = listed;
        copies.sort_by_key(|copy| copy.offset);
        copies
    }

    /// These copies are in the image file now. Slices that did not change since are clean.
    pub(crate) fn written_back(&self, written: &[DirtySlice]) {
        let mut slots = self.slots.borrow_mut();
        for copy in written {
            let entry = &slots.slots[copy.slot];
            let unchanged = entry.state == State::Dirty(copy.generation)
                || (planted(Bug::LastChangeForgotten) && matches!(entry.state, State::Dirty(_)));
            if entry.offset == copy.offset && unchanged {
                slots.set_state(copy.slot, State::Clean);
                if !planted(Bug::CleanNotAnnounced) {
                    self.memory.announce_clean(copy.slot);
                }
                failpoint::hit(Point::CacheClean);
            }
        }
        drop(slots);
        self.changed.wake_all();
    }

    /// Drops slices within these bytes of the image file: they are not the table any more that they were part of.
    /// A slice that is just being read stays; [`Cache::is_loading_within`] tells.
    pub(crate) fn forget(&self, range: Range<u64>) {
        let mut slots = self.slots.borrow_mut();
        for offset in range.step_by(self.slice_size) {
            match slots.by_offset.get(&offset).copied() {
                Some(slot) if slots.slots[slot].state != State::Loading => {
                    slots.by_offset.remove(&offset);
                    slots.set_state(slot, State::Vacant);
                    self.memory.announce_clean(slot);
                }
                _ => {}
            }
        }
        drop(slots);
        self.changed.wake_all();
    }

    /// Whether a task is reading a slice within these bytes of the image file.
    pub(crate) fn is_loading_within(&self, range: Range<u64>) -> bool {
        range.step_by(self.slice_size).any(|offset| self.is_loading(offset))
    }

    fn place(&self, slice: Slice, at: usize, length: usize) -> usize {
        let slots = self.slots.borrow();
        let entry = &slots.slots[slice.slot];
        let usable = matches!(entry.state, State::Clean | State::Dirty(_));
        assert!(
            usable && entry.offset == slice.offset,
            "slice {:#x} was used after an await",
            slice.offset
        );
        assert!(at + length <= self.slice_size);
        self.memory.content(slice.slot).start + at
    }
}

impl Loading {
    /// The memory to fill.
    pub(crate) fn piece(&self) -> Piece {
        let memory = &self.cache.memory;
        Piece {
            buffer: memory.buffer().clone(),
            range: memory.content(self.slot),
        }
    }

    /// The memory holds the slice now.
    pub(crate) fn loaded(mut self) -> Slice {
        self.finished = true;
        self.cache.slots.borrow_mut().set_state(self.slot, State::Clean);
        self.cache.changed.wake_all();
        Slice {
            slot: self.slot,
            offset: self.offset,
        }
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if !self.finished {
            let mut slots = self.cache.slots.borrow_mut();
            slots.by_offset.remove(&self.offset);
            slots.set_state(self.slot, State::Vacant);
            drop(slots);
            self.cache.changed.wake_all();
        }
    }
}

impl Slots {
    /// A vacant slot: a new one, or that of a clean slice which was not used for a while.
    fn vacate(&mut self) -> Option<usize> {
        if self.slots.len() < self.capacity {
            self.slots.push(Slot {
                offset: 0,
                class: Class::L2Table,
                state: State::Vacant,
                recently_used: false,
                listed: 0,
            });
            return Some(self.slots.len() - 1);
        }
        // Two turns: the first takes the second chances away.
        for _ in 0..2 * self.slots.len() {
            let slot = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let entry = &mut self.slots[slot];
            match entry.state {
                State::Vacant => return Some(slot),
                State::Clean if !entry.recently_used => {
                    self.by_offset.remove(&entry.offset);
                    return Some(slot);
                }
                State::Clean => entry.recently_used = false,
                State::Loading | State::Dirty(_) => {}
            }
        }
        None
    }

    /// Returns the class of a slice that was clean.
    fn mark_dirty(&mut self, slot: usize) -> Option<Class> {
        let was_clean = self.slots[slot].state == State::Clean;
        self.next_generation += 1;
        self.set_state(slot, State::Dirty(self.next_generation));
        was_clean.then_some(self.slots[slot].class)
    }

    fn set_state(&mut self, slot: usize, state: State) {
        let entry = &mut self.slots[slot];
        let was_dirty = matches!(entry.state, State::Dirty(_));
        let is_dirty = matches!(state, State::Dirty(_));
        self.dirty[entry.class as usize] += usize::from(is_dirty);
        self.dirty[entry.class as usize] -= usize::from(was_dirty);
        entry.state = state;
        let (class, bit) = (entry.class as usize, 1 << entry.class as u8);
        if is_dirty && entry.listed & bit == 0 {
            entry.listed |= bit;
            self.became_dirty[class].push(slot);
        }
    }
}
