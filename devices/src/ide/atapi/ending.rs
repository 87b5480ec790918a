//! How commands end, and how they wait. Every change of status, error, interrupt reason and interrupt of a command is here.

use super::super::drive::Step;
use super::super::registers::{Error, Status, TaskFile};
use super::CdRom;
use super::phase::{Phase, Reading};
use super::sense::{Key, Sense};

/// The interrupt reason register, which is the sector count register (ATA/ATAPI-6, 7.11): a command is transferred, not
/// data; and the direction is to the host.
const COMMAND: u8 = 1 << 0;
const TO_HOST: u8 = 1 << 1;

impl CdRom {
    /// The drive waits for the host to send the packet. It says so without an interrupt (IDENTIFY PACKET DEVICE, word 0).
    pub(super) fn request_packet(&mut self) {
        self.status = Status::DRDY | Status::DSC | Status::DRQ;
        self.registers.count.current = COMMAND;
    }

    /// The drive waits for the host to move a block of data.
    pub(super) fn request_data(&mut self, to_host: bool, bytes: usize) {
        self.status = Status::DRDY | Status::DSC | Status::DRQ;
        self.registers.count.current = if to_host { TO_HOST } else { 0 };
        let [high, low] = (bytes as u16).to_be_bytes();
        self.registers.lba_mid.current = low;
        self.registers.lba_high.current = high;
        self.interrupt = true;
    }

    /// The drive works on the command itself.
    pub(super) fn busy(&mut self) {
        self.status = Status::BSY;
    }

    /// The drive asks its medium for something, if it is still there.
    pub(super) fn ask(&mut self, reading: Reading) -> Step {
        debug_assert!(!self.in_flight, "one request at a time");
        if reading.blocks.generation != self.tray.generation() {
            return self.lost_the_medium();
        }
        let command = reading.command();
        self.busy();
        self.phase = Phase::Reading(reading);
        self.in_flight = true;
        Some(command)
    }

    /// A packet command is done.
    pub(super) fn complete(&mut self) -> Step {
        self.registers.count.current = COMMAND | TO_HOST;
        self.end(Status::empty(), Error::empty().bits())
    }

    /// A packet command failed: CHECK CONDITION. An illegal request is an aborted command, too (ATA/ATAPI-6, 8.23.6).
    pub(super) fn check(&mut self, sense: Sense) -> Step {
        tracing::debug!(?sense, "a packet command failed");
        self.sense = sense;
        self.registers.count.current = COMMAND | TO_HOST;
        let aborted = matches!(sense.key, Key::IllegalRequest | Key::AbortedCommand);
        let error = (sense.key as u8) << 4 | if aborted { Error::ABRT.bits() } else { 0 };
        self.end(Status::ERR, error)
    }

    /// The medium went, and maybe another one came, while it was read.
    pub(super) fn lost_the_medium(&mut self) -> Step {
        let sense = match self.tray.loaded() {
            Err(sense) => sense,
            Ok(_) => Sense::MEDIUM_CHANGED,
        };
        self.tray.take_changed();
        self.check(sense)
    }

    /// A command of the ATA level is done.
    pub(super) fn complete_ata(&mut self) -> Step {
        self.end(Status::empty(), Error::empty().bits())
    }

    /// The drive does not do this at the ATA level.
    pub(super) fn abort(&mut self) -> Step {
        self.end(Status::ERR, Error::ABRT.bits())
    }

    /// The host took the drive for a disk: it gets the signature to see what it is (ATA/ATAPI-6, 8.15.5.2 and 8.27.5.2).
    pub(super) fn abort_with_signature(&mut self) -> Step {
        self.registers = TaskFile {
            device: self.registers.device,
            ..TaskFile::packet_signature()
        };
        self.abort()
    }

    fn end(&mut self, condition: Status, error: u8) -> Step {
        self.phase = Phase::Idle;
        self.status = Status::DRDY | Status::DSC | condition;
        self.error = error;
        self.interrupt = true;
        None
    }

    /// The last word of a page was fetched: the command is done, and its interrupt was the page's.
    pub(super) fn complete_silently(&mut self) -> Step {
        let interrupt = self.interrupt;
        let step = self.complete_ata();
        self.interrupt = interrupt;
        step
    }
}
