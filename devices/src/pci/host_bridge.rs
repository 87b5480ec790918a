//! 00:00.0: the i440FX's host bridge, as far as software looks: its IDs and its registers as storage.

use std::sync::{Mutex, PoisonError};

use super::configuration::{ConfigurationSpace, Identity, PciFunction, command, register};

/// The host-to-PCI bridge (Intel 440FX PMC, 82441FX datasheet, chapter 3).
pub struct HostBridge {
    space: Mutex<ConfigurationSpace>,
}

impl Default for HostBridge {
    fn default() -> Self {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x1237,
            revision: 2,
            class: [0x06, 0x00, 0x00],
            multifunction: false,
        };
        let space = ConfigurationSpace::new(identity)
            // Memory and bus master are always on in the host bridge.
            .with_u16(register::COMMAND, command::MEMORY_SPACE | command::BUS_MASTER)
            .with_u16(register::STATUS, 0x0280)
            // PAM: all of 0xc0000..=0xfffff is RAM already; firmware's programming of it is kept, and has no effect.
            .allow_all(0x59..0x60)
            .allow_all(0x72..0x73);
        Self {
            space: Mutex::new(space),
        }
    }
}

impl PciFunction for HostBridge {
    fn read_configuration(&self, offset: usize, data: &mut [u8]) {
        self.space
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset, data);
    }

    fn write_configuration(&self, offset: usize, data: &[u8]) {
        self.space
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, data);
    }
}
