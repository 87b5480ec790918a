//! 00:01.0: the PIIX4's ISA bridge, and the edge/level control registers.

use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use crate::bus::ByteRegisters;
use crate::pci::configuration::{ConfigurationSpace, Identity, PciFunction, command, register};

/// The PCI to ISA bridge (PIIX4 datasheet, chapter 4). What it routes is kept; nothing here has a PCI interrupt.
pub struct IsaBridge {
    space: Mutex<ConfigurationSpace>,
}

impl Default for IsaBridge {
    fn default() -> Self {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x7110,
            revision: 1,
            class: [0x06, 0x01, 0x00],
            multifunction: true,
        };
        let space = ConfigurationSpace::new(identity)
            .with_u16(
                register::COMMAND,
                command::IO_SPACE | command::MEMORY_SPACE | command::BUS_MASTER,
            )
            .allow_u16(register::COMMAND, 0x0008)
            .with_u16(register::STATUS, 0x0280)
            .clear_u16(register::STATUS, 0x7800)
            // XBCS: X-bus chip selects.
            .with_u16(0x4e, 0x0003)
            .allow_u16(0x4e, 0xffff)
            // PIRQRCA..PIRQRCD: bit 7 set, not routed.
            .with_u32(0x60, 0x8080_8080)
            .allow_u32(0x60, 0x8f8f_8f8f)
            // SERIRQC, TOM, the motherboard device routing and the general configuration: kept.
            .with_u8(0x64, 0x10)
            .allow_all(0x64..0x65)
            .with_u8(0x69, 0x02)
            .allow_all(0x69..0x6c)
            .allow_all(0x76..0x78)
            .allow_all(0x80..0x84)
            .allow_all(0x92..0x94)
            .allow_u32(0xb0, 0xffff_ffff);
        Self {
            space: Mutex::new(space),
        }
    }
}

impl PciFunction for IsaBridge {
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

/// The ports of the edge/level control registers.
pub const EDGE_LEVEL_PORTS: RangeInclusive<u16> = 0x4d0..=0x4d1;

/// ELCR1 and ELCR2: which interrupts are level-triggered (PIIX4 datasheet, 4.2.4). KVM's interrupt controllers
/// answer these ports themselves where they are in the kernel; this is for where they are not.
#[derive(Default)]
pub struct EdgeLevelControl {
    registers: Mutex<[u8; 2]>,
}

impl EdgeLevelControl {
    /// IRQ 0, 1, 2, 8 and 13 are edges, always.
    const WRITABLE: [u8; 2] = [0xf8, 0xde];
}

impl ByteRegisters for EdgeLevelControl {
    fn read_byte(&self, port: u16) -> u8 {
        let registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::from(port - EDGE_LEVEL_PORTS.start());
        registers.get(index).copied().unwrap_or(0xff)
    }

    fn write_byte(&self, port: u16, value: u8) {
        let mut registers = self.registers.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::from(port - EDGE_LEVEL_PORTS.start());
        if let Some(register) = registers.get_mut(index) {
            *register = value & Self::WRITABLE[index];
        }
    }
}
