//! The hand-over of latched writes, with every interleaving of its threads (up to a bound on preemptions) tried by a model
//! checker. The kernel's half of the ring is modelled as Linux has it (virt/kvm/coalesced_mmio.c): a lock among vCPUs, the entry,
//! then the index.

#[path = "../src/kernel_ports/hand_over.rs"]
#[allow(
    dead_code,
    missing_docs,
    reason = "the module belongs to the crate; here it is run on other primitives"
)]
mod hand_over;

mod sync {
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    pub use loom::sync::{Mutex, MutexGuard};
}

use std::sync::PoisonError;

use hand_over::{HandOver, Latched, Ring};
use loom::sync::Arc;
use loom::thread;
use sync::{AtomicU32, Mutex, Ordering};

/// One more than fit. Two CPUs make more writes than that in one test, and a ring that is closed late never wraps in another.
const SLOTS: usize = 4;

struct ModelRing {
    kernel: Mutex<()>,
    first: AtomicU32,
    last: AtomicU32,
    slots: [AtomicU32; SLOTS],
}

impl ModelRing {
    fn new() -> Self {
        Self {
            kernel: Mutex::new(()),
            first: AtomicU32::new(0),
            last: AtomicU32::new(0),
            slots: std::array::from_fn(|_| AtomicU32::new(0)),
        }
    }

    /// What the kernel does with a guest's write. False: there is no room, the vCPU exits.
    fn push(&self, value: u32) -> bool {
        let _vcpus = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let last = self.last.load(Ordering::Relaxed);
        let next = (last + 1) % SLOTS as u32;
        if next == self.first.load(Ordering::Acquire) {
            return false;
        }
        self.slots[last as usize].store(value, Ordering::Relaxed);
        self.last.store(next, Ordering::Release);
        true
    }
}

impl Ring for Arc<ModelRing> {
    fn slots(&self) -> u32 {
        SLOTS as u32
    }

    fn last(&self) -> u32 {
        self.last.load(Ordering::Acquire)
    }

    fn set_first(&self, slot: u32) {
        self.first.store(slot, Ordering::Release);
    }

    fn entry(&self, slot: u32) -> Latched {
        Latched {
            port: 0,
            size: 4,
            data: self.slots[slot as usize].load(Ordering::Relaxed).to_le_bytes(),
        }
    }
}

struct Machine {
    kernel: Arc<ModelRing>,
    hand_over: HandOver<Arc<ModelRing>>,
    /// What reached the device.
    device: Mutex<Vec<u32>>,
}

impl Machine {
    fn new() -> Arc<Self> {
        let kernel = Arc::new(ModelRing::new());
        Arc::new(Self {
            hand_over: HandOver::new(kernel.clone()),
            kernel,
            device: Mutex::new(Vec::new()),
        })
    }

    fn apply(&self, write: Latched) {
        self.device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(u32::from_le_bytes(write.data));
    }

    fn settle(&self) {
        if !self.hand_over.is_settled() {
            self.hand_over.pass().apply(|write| self.apply(write));
        }
    }

    /// A guest's write: latched, or an exit.
    fn write(&self, value: u32) {
        if !self.kernel.push(value) {
            self.settle();
            self.apply(Latched {
                port: 0,
                size: 4,
                data: value.to_le_bytes(),
            });
        }
    }

    fn set_closed(&self, closed: bool) {
        self.hand_over.pass().set_closed(closed, |write| self.apply(write));
    }

    /// A guest's read: what the device knows of the values from `from` on.
    fn read(&self, from: u32) -> Vec<u32> {
        self.settle();
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        device
            .iter()
            .copied()
            .filter(|value| (from..from + 10).contains(value))
            .collect()
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn a_cpu_reads_what_it_wrote_whoever_applies_it() {
    check(|| {
        let machine = Machine::new();
        let other = {
            let machine = machine.clone();
            thread::spawn(move || {
                machine.write(20);
                machine.write(21);
                assert_eq!(machine.read(20), [20, 21]);
            })
        };
        machine.write(10);
        machine.write(11);
        assert_eq!(machine.read(10), [10, 11]);
        other.join().expect("no panic");
    });
}

#[test]
fn closing_and_opening_lose_nothing_and_keep_the_order() {
    check(|| {
        let machine = Machine::new();
        let other = {
            let machine = machine.clone();
            thread::spawn(move || {
                machine.write(20);
                machine.write(21);
                assert_eq!(machine.read(20), [20, 21]);
            })
        };
        machine.set_closed(true);
        machine.write(10);
        machine.set_closed(false);
        assert_eq!(machine.read(10), [10]);
        other.join().expect("no panic");
    });
}

#[test]
fn a_closed_ring_takes_nothing() {
    check(|| {
        let machine = Machine::new();
        for round in 0..SLOTS as u32 + 1 {
            machine.set_closed(true);
            assert!(!machine.kernel.push(99), "round {round}");
            machine.set_closed(false);
            assert!(machine.kernel.push(round), "round {round}");
            assert_eq!(machine.read(round), [round]);
            machine.device.lock().expect("no panic").clear();
        }
    });
}
