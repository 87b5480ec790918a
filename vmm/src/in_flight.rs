//! Knowing when a disk is quiet, and what it did.
//!
//! A machine that is reset may leave requests behind. They must reach the disk before the next machine's first
//! request does, or an old write could land on top of a new one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use disk::{Command, Disk, Request};

use crate::metrics::DiskMetrics;

/// A disk that counts the requests that are not done, and those that are.
pub struct Counted {
    disk: Arc<dyn Disk>,
    metrics: Arc<DiskMetrics>,
    in_flight: Arc<AtomicUsize>,
}

impl Counted {
    /// Counts what goes to `disk`.
    pub fn new(disk: Arc<dyn Disk>, metrics: Arc<DiskMetrics>) -> Self {
        Self {
            disk,
            metrics,
            in_flight: Arc::default(),
        }
    }

    /// Whether all requests are done.
    pub fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) == 0
    }
}

impl Disk for Counted {
    fn capacity(&self) -> u64 {
        self.disk.capacity()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn discarded_reads_as_zeros(&self) -> bool {
        self.disk.discarded_reads_as_zeros()
    }

    fn submit(&self, request: Request) {
        let Request { command, done } = request;
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let in_flight = self.in_flight.clone();
        let metrics = self.metrics.clone();
        let (counters, bytes) = (counters_of(&command), command.range().1);
        self.disk.submit(Request {
            command,
            done: Box::new(move |outcome| {
                count(&metrics, counters, bytes, outcome.is_ok());
                // First the front end, which may follow up with another request, then the count.
                done(outcome);
                in_flight.fetch_sub(1, Ordering::SeqCst);
            }),
        });
    }
}

/// The counters of a kind of request: how many, and how many bytes.
type Counters = (
    Option<fn(&DiskMetrics) -> &AtomicU64>,
    Option<fn(&DiskMetrics) -> &AtomicU64>,
);

fn counters_of(command: &Command) -> Counters {
    match command {
        Command::Read { .. } => (Some(|metrics| &metrics.reads), Some(|metrics| &metrics.read_bytes)),
        Command::Write { .. } => (Some(|metrics| &metrics.writes), Some(|metrics| &metrics.written_bytes)),
        Command::Flush => (Some(|metrics| &metrics.flushes), None),
        Command::Discard { .. } | Command::WriteZeroes { .. } => (Some(|metrics| &metrics.discards), None),
        Command::Map { .. } => (None, None),
    }
}

fn count(metrics: &DiskMetrics, (requests, transferred): Counters, bytes: u64, succeeded: bool) {
    if !succeeded {
        metrics.errors.fetch_add(1, Ordering::Relaxed);
        return;
    }
    if let Some(requests) = requests {
        requests(metrics).fetch_add(1, Ordering::Relaxed);
    }
    if let Some(transferred) = transferred {
        transferred(metrics).fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use disk::MemoryDisk;

    use super::*;

    #[test]
    fn a_disk_is_idle_again_once_its_requests_are_done() {
        let memory = Arc::new(MemoryDisk::new(vec![0; 512], false));
        let metrics = Arc::new(DiskMetrics::default());
        let counted = Counted::new(memory.clone(), metrics.clone());
        assert!(counted.is_idle());
        counted.submit(Request {
            command: Command::Flush,
            done: Box::new(|outcome| outcome.expect("flushes succeed")),
        });
        assert!(!counted.is_idle());
        memory.run();
        assert!(counted.is_idle());
        assert_eq!(metrics.flushes.load(Ordering::Relaxed), 1);
        assert_eq!(metrics.errors.load(Ordering::Relaxed), 0);
    }
}
