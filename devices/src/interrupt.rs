//! The wire from a device to an interrupt controller.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// An interrupt line. Shared between threads.
pub trait InterruptLine: Send + Sync {
    /// Drives the line high. On an edge-triggered line a rising edge is one interrupt; on a line that is high already, nothing happens.
    fn raise(&self);

    /// Drives the line low.
    fn lower(&self);
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
