//! The I/O port bus: which device answers which port.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError, RwLock};

/// A device with I/O ports. Shared between vCPU threads and the event loop, so it locks what it must.
/// Every access is legal at any time: a device answers nonsense with what hardware would, never with a panic.
pub trait PortDevice: Send + Sync {
    /// One `in` of `data.len()` bytes (1, 2 or 4) from the absolute port `port`.
    fn read(&self, port: u16, data: &mut [u8]);

    /// One `out` of `data.len()` bytes (1, 2 or 4) to the absolute port `port`.
    fn write(&self, port: u16, data: &[u8]);

    /// A `rep ins`: several reads of `size` bytes each from one port. `data` is a whole number of them.
    fn read_string(&self, port: u16, size: usize, data: &mut [u8]) {
        for element in data.chunks_exact_mut(size) {
            self.read(port, element);
        }
    }

    /// A `rep outs`: several writes of `size` bytes each to one port. `data` is a whole number of them.
    fn write_string(&self, port: u16, size: usize, data: &[u8]) {
        for element in data.chunks_exact(size) {
            self.write(port, element);
        }
    }
}

/// A device whose registers are all one byte wide. A wider access is split into bytes at consecutive ports,
/// as the ISA bus does for 8-bit cards; the last of them may lie beyond the ports that the device claimed.
pub trait ByteRegisters: Send + Sync {
    /// An `in` of one byte from the absolute port `port`.
    fn read_byte(&self, port: u16) -> u8;

    /// An `out` of one byte to the absolute port `port`.
    fn write_byte(&self, port: u16, value: u8);
}

impl<T: ByteRegisters> PortDevice for T {
    fn read(&self, port: u16, data: &mut [u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            *byte = self.read_byte(port);
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        for (port, byte) in (port..=u16::MAX).zip(data) {
            self.write_byte(port, *byte);
        }
    }
}

/// Two devices want the same port.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Ports {first:#x}..={last:#x} of {name} overlap those of {other}")]
pub struct BusError {
    first: u16,
    last: u16,
    name: &'static str,
    other: &'static str,
}

/// The I/O port space. Ranges can come and go while the guest runs (PCI base address registers move).
#[derive(Default)]
pub struct PortBus {
    ranges: RwLock<BTreeMap<u16, Claim>>,
}

struct Claim {
    last: u16,
    name: &'static str,
    device: Arc<dyn PortDevice>,
}

impl PortBus {
    /// Gives `ports` to `device`.
    pub fn insert(
        &self,
        ports: RangeInclusive<u16>,
        name: &'static str,
        device: Arc<dyn PortDevice>,
    ) -> Result<(), BusError> {
        let (first, last) = ports.into_inner();
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let below = ranges.range(..=last).next_back();
        if let Some((_, claim)) = below.filter(|(_, claim)| claim.last >= first) {
            return Err(BusError {
                first,
                last,
                name,
                other: claim.name,
            });
        }
        ranges.insert(first, Claim { last, name, device });
        Ok(())
    }

    /// Takes back the range that begins at port `first`. Returns whether there was one.
    pub fn remove(&self, first: u16) -> bool {
        self.ranges
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&first)
            .is_some()
    }

    /// The device behind `port`.
    pub fn device(&self, port: u16) -> Option<Arc<dyn PortDevice>> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let (_, claim) = ranges.range(..=port).next_back()?;
        (claim.last >= port).then(|| claim.device.clone())
    }

    /// `in` or `rep ins` with elements of `size` bytes. A port that nobody answers floats: all bits set.
    pub fn read(&self, port: u16, size: usize, data: &mut [u8]) {
        match self.device(port) {
            Some(device) if data.len() == size => device.read(port, data),
            Some(device) => device.read_string(port, size, data),
            None => data.fill(0xff),
        }
    }

    /// `out` or `rep outs` with elements of `size` bytes. Returns whether a device took it.
    pub fn write(&self, port: u16, size: usize, data: &[u8]) -> bool {
        let Some(device) = self.device(port) else { return false };
        if data.len() == size {
            device.write(port, data);
        } else {
            device.write_string(port, size, data);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Constant(u8);

    impl PortDevice for Constant {
        fn read(&self, _port: u16, data: &mut [u8]) {
            data.fill(self.0);
        }

        fn write(&self, _port: u16, _data: &[u8]) {}
    }

    #[test]
    fn overlapping_claims_are_refused_and_unclaimed_ports_float() {
        let bus = PortBus::default();
        bus.insert(0x1f0..=0x1f7, "ide", Arc::new(Constant(1))).expect("free");
        bus.insert(0x1f8..=0x1f8, "next", Arc::new(Constant(2))).expect("free");
        let refused = bus
            .insert(0x1f7..=0x200, "other", Arc::new(Constant(3)))
            .expect_err("taken");
        assert_eq!(
            refused.to_string(),
            "Ports 0x1f7..=0x200 of other overlap those of next"
        );
        let mut data = [0];
        for (port, expected) in [(0x1ef, 0xff), (0x1f0, 1), (0x1f7, 1), (0x1f8, 2), (0x1f9, 0xff)] {
            bus.read(port, 1, &mut data);
            assert_eq!(data[0], expected, "port {port:#x}");
        }
    }
}
