//! The wire from a device to an interrupt controller.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// An interrupt line. Shared between threads.
pub trait InterruptLine: Send + Sync {
    /// Drives the line high. On an edge-triggered line a rising edge is one interrupt, which [`InterruptLine::deliver`] delivers; on a
    /// line that is high already, nothing happens.
    fn raise(&self);

    /// Drives the line low.
    fn lower(&self);

    /// Delivers the interrupt of a rise that has not been delivered. To be called after [`InterruptLine::raise`], best by a caller
    /// that holds no lock: the CPU that it wakes wants the device's at once.
    fn deliver(&self) {}
}

/// A line that only counts: for tests, and for devices whose interrupt goes nowhere.
#[derive(Debug, Default)]
pub struct CountingLine {
    high: AtomicBool,
    edges: AtomicUsize,
}

impl CountingLine {
    /// Whether the line is high.
    pub fn is_high(&self) -> bool {
        self.high.load(Ordering::SeqCst)
    }

    /// Rising edges so far.
    pub fn edges(&self) -> usize {
        self.edges.load(Ordering::SeqCst)
    }
}

impl InterruptLine for CountingLine {
    fn raise(&self) {
        if !self.high.swap(true, Ordering::SeqCst) {
            self.edges.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn lower(&self) {
        self.high.store(false, Ordering::SeqCst);
    }
}

/// One of the sources that share a level-triggered line: the line is high while one of them is.
pub struct SharedLine {
    line: Arc<dyn InterruptLine>,
    /// Bit `source` of it is set while that source is high.
    levels: Arc<Mutex<u8>>,
    source: u8,
}

impl SharedLine {
    /// Two sources of one line.
    pub fn split(line: &Arc<dyn InterruptLine>) -> [Arc<dyn InterruptLine>; 2] {
        let levels = Arc::new(Mutex::new(0));
        [0, 1].map(|source| -> Arc<dyn InterruptLine> {
            Arc::new(Self {
                line: line.clone(),
                levels: levels.clone(),
                source,
            })
        })
    }

    fn set(&self, high: bool) {
        // The line is driven under the lock, so that two sources cannot overtake each other.
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *levels;
        let bit = 1 << self.source;
        *levels = if high { before | bit } else { before & !bit };
        match (before, *levels) {
            (0, 0) => {}
            (0, _) => self.line.raise(),
            (_, 0) => self.line.lower(),
            _ => {}
        }
    }
}

impl InterruptLine for SharedLine {
    fn raise(&self) {
        self.set(true);
    }

    fn lower(&self) {
        self.set(false);
    }

    fn deliver(&self) {
        self.line.deliver();
    }
}
