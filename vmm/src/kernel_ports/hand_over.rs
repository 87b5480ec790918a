//! Handing latched writes over from the kernel's ring to the devices, in order, whoever asks first.
//!
//! The kernel appends a guest's write to a ring and lets the guest go on. A thread that is about to show the guest
//! anything the write could have changed must see it applied first. The rules:
//!
//! - A write counts as taken only after it was *applied*. So "nothing is left" needs no lock: if the last entry is taken, it
//!   is in the device, whoever put it there.
//! - Entries are applied under one lock, in the ring's order, which is each vCPU's program order.
//! - One pass goes no further than the ring reached when it began. What a vCPU wrote before its own access is there by then;
//!   a guest that keeps writing cannot keep a pass going.
//! - The ring can be *closed*: it then looks full to the kernel, which hands every write over as an exit. Nothing tells
//!   in which order an entry of the ring and an event were made, so while that order matters there must be no entries. Another vCPU
//!   that the kernel is just letting into the ring opens it again by its entry; the next pass sees that and closes it. (A ring
//!   that is opened so holds one entry less than it seems to: a guest would have to make 170 writes without one read, on
//!   another vCPU and in the moment before that pass, to lose them.)

use std::sync::PoisonError;

use super::sync::{AtomicBool, AtomicU32, Mutex, MutexGuard, Ordering};

/// A write that the kernel took from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latched {
    /// The port.
    pub port: u16,
    /// Bytes written: 1, 2 or 4.
    pub size: usize,
    /// The bytes, in the first `size`.
    pub data: [u8; 4],
}

/// The ring: the kernel appends at `last`, and finds the ring full when the slot behind `last` is `first`.
pub trait Ring {
    /// How many slots there are; one of them always stays empty.
    fn slots(&self) -> u32;
    /// The slot that the kernel fills next. What is before it can be read.
    fn last(&self) -> u32;
    /// Tells the kernel which slot is in use the longest.
    fn set_first(&self, slot: u32);
    /// What is in a slot before `last`.
    fn entry(&self, slot: u32) -> Latched;
}

/// How often a ring is closed anew in one pass because others got in between.
const CLOSE_ATTEMPTS: u32 = 4;

/// A ring and how far it has been applied.
pub struct HandOver<R> {
    ring: R,
    /// All slots before this one have been applied.
    taken: AtomicU32,
    closed: AtomicBool,
    applying: Mutex<()>,
}

/// One pass over the ring: whoever holds it is the only one who applies entries.
pub struct Pass<'a, R> {
    hand_over: &'a HandOver<R>,
    _applying: MutexGuard<'a, ()>,
}

impl<R: Ring> HandOver<R> {
    /// Takes over a ring that is empty.
    pub fn new(ring: R) -> Self {
        let start = ring.last() % ring.slots();
        ring.set_first(start);
        Self {
            ring,
            taken: AtomicU32::new(start),
            closed: AtomicBool::new(false),
            applying: Mutex::new(()),
        }
    }

    /// Whether every write that a vCPU made before the exit that it is in now has been applied.
    pub fn is_settled(&self) -> bool {
        self.ring.last() == self.taken.load(Ordering::Acquire)
    }

    /// Whether the ring was closed, so that writes are exits.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Begins a pass; waits for one that runs.
    pub fn pass(&self) -> Pass<'_, R> {
        // The lock guards no data of its own, so a holder that panicked left nothing half done but its own entry.
        let applying = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        Pass {
            hand_over: self,
            _applying: applying,
        }
    }
}

impl<R: Ring> Pass<'_, R> {
    /// Applies what is in the ring now. Returns how many writes that were.
    pub fn apply(&mut self, mut apply: impl FnMut(Latched)) -> u64 {
        let HandOver {
            ring, taken, closed, ..
        } = self.hand_over;
        let (mut slot, end) = (taken.load(Ordering::Relaxed), ring.last() % ring.slots());
        let mut count = 0;
        while slot != end {
            apply(ring.entry(slot));
            count += 1;
            slot = (slot + 1) % ring.slots();
            // Only now: others take it as a promise that the write is in the device.
            taken.store(slot, Ordering::Release);
        }
        if count > 0 && !closed.load(Ordering::Relaxed) {
            ring.set_first(slot);
        }
        count
    }

    /// Lets the kernel take writes into the ring, or not. Applies what is in it first.
    pub fn set_closed(&mut self, close: bool, mut apply: impl FnMut(Latched)) -> u64 {
        let HandOver {
            ring, taken, closed, ..
        } = self.hand_over;
        let mut count = self.apply(&mut apply);
        if close {
            closed.store(true, Ordering::Release);
            for _ in 0..CLOSE_ATTEMPTS {
                let slot = taken.load(Ordering::Relaxed);
                ring.set_first((slot + 1) % ring.slots());
                if ring.last() == slot {
                    return count;
                }
                count += self.apply(&mut apply);
            }
        }
        closed.store(false, Ordering::Release);
        ring.set_first(taken.load(Ordering::Relaxed));
        count
    }
}
