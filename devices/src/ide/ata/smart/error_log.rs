//! The error logs: a summary (SMART log 1) and, with 48-bit addresses, an extended one (general purpose log 3) (ATA8-ACS,
//! A.7 and A.10).

use serde::{Deserialize, Serialize};

use super::super::SECTOR;
use super::{Record, with_checksum};
use crate::ide::registers::{Status, TaskFile};

/// Errors that are kept: as many as the summary has room for. The extended log has room for four in one page.
pub(super) const KEPT: usize = 5;
const EXTENDED: usize = 4;

/// State of the drive when the command failed: active.
const ACTIVE: u8 = 0x03;

/// A command that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LoggedError {
    pub registers: TaskFile,
    pub error: u8,
    pub command: u8,
    pub milliseconds: u32,
    pub hours: u16,
}

impl Record {
    pub(super) fn push_error(&mut self, error: LoggedError) {
        self.error_count = self.error_count.saturating_add(1);
        self.errors.truncate(KEPT - 1);
        self.errors.push_front(error);
    }

    /// The summary error log: five entries in a ring, of which the index (from 1) names the newest.
    pub(super) fn summary_error_log(&self) -> Vec<u8> {
        let mut page = vec![0; SECTOR];
        page[0] = 1;
        page[1] = self.errors.len() as u8;
        for (entry, logged) in page[2..452].chunks_exact_mut(90).zip(self.errors.iter().rev()) {
            logged.write_summary(entry);
        }
        page[452..454].copy_from_slice(&self.error_count.to_le_bytes());
        with_checksum(page)
    }

    /// The extended comprehensive error log.
    pub(in crate::ide::ata) fn extended_error_log(&self) -> Vec<u8> {
        let mut page = vec![0; SECTOR];
        page[0] = 1;
        let shown = self.errors.len().min(EXTENDED);
        page[2..4].copy_from_slice(&(shown as u16).to_le_bytes());
        for (entry, logged) in page[4..500]
            .chunks_exact_mut(124)
            .zip(self.errors.iter().take(shown).rev())
        {
            logged.write_extended(entry);
        }
        page[500..502].copy_from_slice(&self.error_count.to_le_bytes());
        with_checksum(page)
    }
}

impl LoggedError {
    /// Five command structures of 12 bytes, of which the last is the command that failed, and 30 bytes about the error.
    fn write_summary(&self, entry: &mut [u8]) {
        let registers = &self.registers;
        let address = [
            registers.count.current,
            registers.lba_low.current,
            registers.lba_mid.current,
            registers.lba_high.current,
            registers.device,
        ];
        let command = &mut entry[48..60];
        command[1] = registers.features.current;
        command[2..7].copy_from_slice(&address);
        command[7] = self.command;
        command[8..12].copy_from_slice(&self.milliseconds.to_le_bytes());
        let error = &mut entry[60..90];
        error[1] = self.error;
        error[2..7].copy_from_slice(&address);
        error[7] = (Status::DRDY | Status::DSC | Status::ERR).bits();
        error[27] = ACTIVE;
        error[28..30].copy_from_slice(&self.hours.to_le_bytes());
    }

    /// Five command structures of 18 bytes and 34 bytes about the error.
    fn write_extended(&self, entry: &mut [u8]) {
        let registers = &self.registers;
        let [count, low, mid, high] = [
            registers.count,
            registers.lba_low,
            registers.lba_mid,
            registers.lba_high,
        ];
        let wide = [count, low, mid, high].map(|register| [register.current, register.previous]);
        let command = &mut entry[72..90];
        command[1] = registers.features.current;
        command[2] = registers.features.previous;
        command[3..11].copy_from_slice(wide.as_flattened());
        command[11] = registers.device;
        command[12] = self.command;
        command[14..18].copy_from_slice(&self.milliseconds.to_le_bytes());
        let error = &mut entry[90..124];
        error[1] = self.error;
        error[2..10].copy_from_slice(wide.as_flattened());
        error[10] = registers.device;
        error[11] = (Status::DRDY | Status::DSC | Status::ERR).bits();
        error[31] = ACTIVE;
        error[32..34].copy_from_slice(&self.hours.to_le_bytes());
    }
}
