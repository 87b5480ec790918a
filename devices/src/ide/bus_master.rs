//! The bus-master registers of one channel (Programming Interface for Bus Master IDE Controller 1.0, chapter 2).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

bitflags! {
    /// The command register, BMICX.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub(super) struct Command: u8 {
        /// 1: from the drive to memory.
        const TO_MEMORY = 1 << 3;
        /// 0 to 1 starts, 1 to 0 stops.
        const START = 1 << 0;
    }
}

bitflags! {
    /// The status register, BMISX. Bit 7 (simplex) is 0: both channels work at the same time.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub(super) struct Status: u8 {
        /// Scratch for software: drive 1 can do DMA.
        const DRIVE_1_CAPABLE = 1 << 6;
        /// Scratch for software: drive 0 can do DMA.
        const DRIVE_0_CAPABLE = 1 << 5;
        /// The interrupt line rose. Cleared by writing 1.
        const INTERRUPT = 1 << 2;
        /// A transfer to or from memory failed. Cleared by writing 1.
        const ERROR = 1 << 1;
        /// Started, and neither stopped nor at the end of the table.
        const ACTIVE = 1 << 0;
    }
}

/// What a write to the registers did to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Nothing, or it started: it runs as soon as a drive asks for it.
    Ready,
    Stopped,
}

/// The registers.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct BusMaster {
    pub command: Command,
    pub status: Status,
    /// Guest-physical address of the PRD table.
    pub table: u32,
    /// Whether the transfer that runs, or ran last, uses the table up.
    pub last_of_table: bool,
}

impl BusMaster {
    /// Registers after a reset.
    pub(super) fn new() -> Self {
        Self {
            command: Command::empty(),
            status: Status::empty(),
            table: 0,
            last_of_table: false,
        }
    }

    /// Whether the engine is ready to transfer.
    pub(super) fn active(&self) -> bool {
        self.status.contains(Status::ACTIVE)
    }

    /// Whether the start bit is set.
    pub(super) fn started(&self) -> bool {
        self.command.contains(Command::START)
    }

    /// Reads the byte at `offset` (0 to 7).
    pub(super) fn read(&self, offset: u16) -> u8 {
        match offset {
            0 => self.command.bits(),
            2 => self.status.bits(),
            4..=7 => self.table.to_le_bytes()[usize::from(offset - 4)],
            _ => 0,
        }
    }

    /// Writes the byte at `offset` (0 to 7).
    pub(super) fn write(&mut self, offset: u16, value: u8) -> Event {
        match offset {
            0 => return self.write_command(Command::from_bits_truncate(value)),
            2 => {
                let written = Status::from_bits_truncate(value);
                let scratch = Status::DRIVE_0_CAPABLE | Status::DRIVE_1_CAPABLE;
                let cleared = written & (Status::INTERRUPT | Status::ERROR);
                self.status = (self.status - scratch - cleared) | written & scratch;
            }
            4..=7 => {
                let mut bytes = self.table.to_le_bytes();
                bytes[usize::from(offset - 4)] = value;
                // Tables are aligned to doublewords: the low bits do not exist.
                self.table = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
        Event::Ready
    }

    fn write_command(&mut self, written: Command) -> Event {
        let (was, is) = (self.command.contains(Command::START), written.contains(Command::START));
        if was && is {
            // The direction shall not change while the engine runs.
            return Event::Ready;
        }
        self.command = written;
        self.status.set(Status::ACTIVE, is);
        if was { Event::Stopped } else { Event::Ready }
    }
}
