//! A disk whose completions come after what the guest wrote before them.
//!
//! A completion changes what the channel's registers show and raises the interrupt. A latched write that clears a status bit
//! and was made before must not clear what the completion sets.

use std::sync::{Arc, OnceLock, Weak};

use disk::{Disk, Request};

use super::KernelPorts;

/// The ports that a disk's completions must be in order with, once they are there.
pub type PortsCell = Arc<OnceLock<Weak<KernelPorts>>>;

/// See the module.
pub struct InOrder {
    disk: Arc<dyn Disk>,
    ports: PortsCell,
}

impl InOrder {
    /// `disk` for a drive behind `ports`.
    pub fn new(disk: Arc<dyn Disk>, ports: PortsCell) -> Self {
        Self { disk, ports }
    }
}

impl Disk for InOrder {
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
        let ports = self.ports.clone();
        self.disk.submit(Request {
            command,
            done: Box::new(move |outcome| match ports.get().and_then(Weak::upgrade) {
                Some(ports) => {
                    ports.settle();
                    done(outcome);
                    ports.follow_drives();
                }
                None => done(outcome),
            }),
        });
    }
}
