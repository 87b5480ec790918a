//! Knowing when a disk is quiet.
//!
//! A machine that is reset may leave requests behind. They must reach the disk before the next machine's first
//! request does, or an old write could land on top of a new one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use disk::{Disk, Request};

/// A disk that counts the requests that are not done.
pub struct Counted {
    disk: Arc<dyn Disk>,
    in_flight: Arc<AtomicUsize>,
}

impl Counted {
    /// Counts what goes to `disk`.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
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
        self.disk.submit(Request {
            command,
            done: Box::new(move |outcome| {
                // First the front end, which may follow up with another request, then the count.
                done(outcome);
                in_flight.fetch_sub(1, Ordering::SeqCst);
            }),
        });
    }
}

#[cfg(test)]
mod tests {
    use disk::{Command, MemoryDisk};

    use super::*;

    #[test]
    fn a_disk_is_idle_again_once_its_requests_are_done() {
        let memory = Arc::new(MemoryDisk::new(vec![0; 512], false));
        let counted = Counted::new(memory.clone());
        assert!(counted.is_idle());
        counted.submit(Request {
            command: Command::Flush,
            done: Box::new(|outcome| outcome.expect("flushes succeed")),
        });
        assert!(!counted.is_idle());
        memory.run();
        assert!(counted.is_idle());
    }
}
