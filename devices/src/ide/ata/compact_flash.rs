//! The CFA feature set, for a drive that is a CompactFlash card in True IDE mode (ATA/ATAPI-6, 6.8 and 8.1 to 8.4).

use super::command::Protocol;
use super::work::{Erasure, Work};
use super::{Drive, Failure, SECTOR, Step};
use crate::ide::registers::Error;

/// Extended error codes.
const NO_ERROR: u8 = 0x00;
const INVALID_COMMAND: u8 = 0x20;
const INVALID_ADDRESS: u8 = 0x21;
const ADDRESS_OVERFLOW: u8 = 0x2f;
const UNCORRECTABLE: u8 = 0x11;

impl Drive {
    /// REQUEST EXTENDED ERROR: the error register says more of the command before.
    pub(super) fn request_extended_error(&mut self) -> Step {
        let error = Error::from_bits_truncate(self.error);
        let code = if error.contains(Error::UNC) {
            UNCORRECTABLE
        } else if error.contains(Error::IDNF) {
            if self.registers.lba28() >= self.capacity() {
                ADDRESS_OVERFLOW
            } else {
                INVALID_ADDRESS
            }
        } else if error.contains(Error::ABRT) {
            INVALID_COMMAND
        } else {
            NO_ERROR
        };
        let step = self.complete();
        self.error = code;
        step
    }

    /// TRANSLATE SECTOR: the address in both ways, and that the sector is neither erased nor worn.
    pub(super) fn translate_sector(&mut self) -> Result<Step, Failure> {
        self.registers.count.current = 1;
        let transfer = self.transfer(Protocol::Pio, false)?;
        let mut registers = self.registers;
        self.geometry.show(&mut registers, transfer.lba);
        let mut page = vec![0; SECTOR];
        page[0] = registers.lba_high.current;
        page[1] = registers.lba_mid.current;
        page[2] = registers.device;
        page[3] = registers.lba_low.current;
        for (byte, shift) in page[4..7].iter_mut().zip([16, 8, 0]) {
            *byte = (transfer.lba >> shift) as u8;
        }
        Ok(self.give(page))
    }

    /// ERASE SECTORS.
    pub(super) fn erase_sectors(&mut self) -> Result<Step, Failure> {
        if self.setup.disk.read_only() {
            return Err(Failure::ABORTED);
        }
        let transfer = self.transfer(Protocol::Pio, false)?;
        Ok(self.ask(Work::Erase {
            at: transfer.lba,
            end: transfer.lba + u64::from(transfer.sectors),
            purpose: Erasure::CompactFlash,
        }))
    }
}
