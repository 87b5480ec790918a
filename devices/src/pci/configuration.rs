//! PCI configuration space, and configuration mechanism #1 at ports 0xcf8..=0xcff (PCI 2.2, 3.2.2.3).

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex, PoisonError};

use crate::bus::PortDevice;
use crate::reset::{RESET_PORT, ResetControl};

/// CONFIG_ADDRESS, CONFIG_DATA, and the reset control register among them.
pub const CONFIGURATION_PORTS: RangeInclusive<u16> = 0xcf8..=0xcff;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// CONFIG_ADDRESS bit 31: accesses to CONFIG_DATA are configuration cycles.
const ENABLE: u32 = 1 << 31;

/// Where in configuration space the standard registers lie, in bytes (PCI 2.2, 6.1).
pub mod register {
    /// Command, 16 bits.
    pub const COMMAND: usize = 0x04;
    /// Status, 16 bits.
    pub const STATUS: usize = 0x06;
    /// Programming interface, 8 bits.
    pub const INTERFACE: usize = 0x09;
    /// Interrupt pin, 8 bits.
    pub const INTERRUPT_PIN: usize = 0x3d;
    /// The fifth base address register, 32 bits.
    pub const BAR4: usize = 0x20;
}

/// Bits of the command register (PCI 2.2, 6.2.2).
pub mod command {
    /// Answer I/O accesses.
    pub const IO_SPACE: u16 = 1 << 0;
    /// Answer memory accesses.
    pub const MEMORY_SPACE: u16 = 1 << 1;
    /// Act as a master: DMA.
    pub const BUS_MASTER: u16 = 1 << 2;
}

/// A function's place on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

/// A PCI function, as configuration cycles see it.
pub trait PciFunction: Send + Sync {
    /// Reads `data.len()` bytes (1, 2 or 4, within one doubleword) from byte `offset` of configuration space.
    fn read_configuration(&self, offset: usize, data: &mut [u8]);

    /// Writes `data.len()` bytes (1, 2 or 4, within one doubleword) to byte `offset` of configuration space.
    fn write_configuration(&self, offset: usize, data: &[u8]);
}

/// The 256 bytes of one function: what they hold, and what a guest can change.
#[derive(Clone, Debug)]
pub struct ConfigurationSpace {
    bytes: [u8; 256],
    /// Bits that a write sets and clears.
    writable: [u8; 256],
    /// Bits that a write of 1 clears.
    clear_by_one: [u8; 256],
}

/// Who a function is: the read-only part of the header.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, subclass and programming interface.
    pub class: [u8; 3],
    /// Whether the device has other functions; said by function 0.
    pub multifunction: bool,
}

impl ConfigurationSpace {
    /// A header of type 0. The interrupt line register stores what is written, as scratch for software.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; 256],
            writable: [0; 256],
            clear_by_one: [0; 256],
        };
        space.set_u16(0x00, identity.vendor);
        space.set_u16(0x02, identity.device);
        space.bytes[0x08] = identity.revision;
        let [base, sub, interface] = identity.class;
        space.bytes[0x09..0x0c].copy_from_slice(&[interface, sub, base]);
        space.bytes[0x0e] = if identity.multifunction { 0x80 } else { 0 };
        space.writable[0x3c] = 0xff;
        space
    }

    /// Lets a guest store anything in these bytes.
    pub fn allow_all(mut self, offsets: Range<usize>) -> Self {
        self.writable[offsets].fill(0xff);
        self
    }

    /// Lets a guest change the bits of `mask` in the byte at `offset`.
    pub fn allow_u8(mut self, offset: usize, mask: u8) -> Self {
        self.writable[offset] = mask;
        self
    }

    /// Lets a guest change the bits of `mask` in the 16-bit register at `offset`.
    pub fn allow_u16(mut self, offset: usize, mask: u16) -> Self {
        self.writable[offset..offset + 2].copy_from_slice(&mask.to_le_bytes());
        self
    }

    /// Lets a guest change the bits of `mask` in the 32-bit register at `offset`. What is not in the mask of a base
    /// address register is its size: sizing by writing all ones works by itself.
    pub fn allow_u32(mut self, offset: usize, mask: u32) -> Self {
        self.writable[offset..offset + 4].copy_from_slice(&mask.to_le_bytes());
        self
    }

    /// Lets a guest clear the bits of `mask` in the 16-bit register at `offset` by writing ones.
    pub fn clear_u16(mut self, offset: usize, mask: u16) -> Self {
        self.clear_by_one[offset..offset + 2].copy_from_slice(&mask.to_le_bytes());
        self
    }

    /// Sets a reset value.
    pub fn with_u8(mut self, offset: usize, value: u8) -> Self {
        self.bytes[offset] = value;
        self
    }

    /// Sets a reset value.
    pub fn with_u16(mut self, offset: usize, value: u16) -> Self {
        self.set_u16(offset, value);
        self
    }

    /// Sets a reset value.
    pub fn with_u32(mut self, offset: usize, value: u32) -> Self {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    /// The byte at `offset`.
    pub fn u8(&self, offset: usize) -> u8 {
        self.bytes[offset]
    }

    /// The 16-bit register at `offset`.
    pub fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    /// The 32-bit register at `offset`.
    pub fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    fn set_u16(&mut self, offset: usize, value: u16) {
        self.bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8; 256] {
        &self.bytes
    }

    /// Takes on what [`ConfigurationSpace::bytes`] gave, as far as a guest can have changed it; `None` if the rest differs.
    pub fn restore(&mut self, bytes: &[u8]) -> Option<()> {
        let bytes: &[u8; 256] = bytes.try_into().ok()?;
        let changeable = |at: usize| self.writable[at] | self.clear_by_one[at];
        if (0..256).any(|at| (self.bytes[at] ^ bytes[at]) & !changeable(at) != 0) {
            return None;
        }
        self.bytes = *bytes;
        Some(())
    }

    /// A configuration read by the guest.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0xff);
        }
    }

    /// A configuration write by the guest.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, byte) in (offset..self.bytes.len()).zip(data) {
            let writable = self.writable[at];
            self.bytes[at] = self.bytes[at] & !writable | byte & writable;
            self.bytes[at] &= !(byte & self.clear_by_one[at]);
        }
    }
}

/// Ports 0xcf8..=0xcff: the way to every function on bus 0, and the reset control register at 0xcf9, which only
/// byte accesses reach.
pub struct ConfigurationPorts {
    address: Mutex<u32>,
    functions: BTreeMap<Address, Arc<dyn PciFunction>>,
    reset: ResetControl,
}

impl ConfigurationPorts {
    /// A bus 0 with these functions.
    pub fn new(functions: impl IntoIterator<Item = (Address, Arc<dyn PciFunction>)>, reset: ResetControl) -> Self {
        Self {
            address: Mutex::new(0),
            functions: functions.into_iter().collect(),
            reset,
        }
    }

    /// The function and byte offset that an access to a CONFIG_DATA port means.
    fn target(&self, port: u16) -> Option<(&Arc<dyn PciFunction>, usize)> {
        let address = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
        let bus = (address >> 16) as u8;
        if address & ENABLE == 0 || bus != 0 {
            return None;
        }
        let place = Address {
            device: (address >> 11) as u8 & 0x1f,
            function: (address >> 8) as u8 & 0x7,
        };
        let function = self.functions.get(&place)?;
        Some((function, (address & 0xfc) as usize + usize::from(port - CONFIG_DATA)))
    }
}

/// How many of the bytes of an access at `port` lie within the doubleword of CONFIG_DATA.
fn within_doubleword(port: u16, length: usize) -> usize {
    length.min(4 - usize::from(port & 3))
}

impl PortDevice for ConfigurationPorts {
    fn read(&self, port: u16, data: &mut [u8]) {
        match (port, data.len()) {
            (CONFIG_ADDRESS, 4) => {
                let address = *self.address.lock().unwrap_or_else(PoisonError::into_inner);
                data.copy_from_slice(&address.to_le_bytes());
            }
            (RESET_PORT, 1) => data[0] = self.reset.read(),
            (CONFIG_DATA..=0xcff, length) => {
                data.fill(0xff);
                // An absent function leaves all ones: a master abort.
                if let Some((function, offset)) = self.target(port) {
                    function.read_configuration(offset, &mut data[..within_doubleword(port, length)]);
                }
            }
            _ => data.fill(0xff),
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        match (port, data) {
            (CONFIG_ADDRESS, &[a, b, c, d]) => {
                // Bits 24 to 30 and 0 to 1 are reserved and read as zero.
                let address = u32::from_le_bytes([a, b, c, d]) & (ENABLE | 0x00ff_fffc);
                *self.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
            }
            (RESET_PORT, &[value]) => self.reset.write(value),
            (CONFIG_DATA..=0xcff, data) => {
                if let Some((function, offset)) = self.target(port) {
                    function.write_configuration(offset, &data[..within_doubleword(port, data.len())]);
                }
            }
            _ => {}
        }
    }
}
