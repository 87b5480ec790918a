//! SMART (ATA/ATAPI-6, 8.48; ATA8-ACS, 7.49): status, data, thresholds. The error logs are in `error_log`, the self-tests
//! in `self_test`.

mod error_log;
mod self_test;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use self::error_log::LoggedError;
use self::self_test::SelfTest;
use super::logs::{address, directory, smart_pages};
use super::{Drive, Failure, SECTOR, Step};
use crate::ide::registers::Error;

/// The two keys that every SMART command carries in LBA mid and LBA high, and what RETURN STATUS makes of them when a
/// threshold is exceeded (which never happens).
const KEYS: (u8, u8) = (0x4f, 0xc2);

/// Structure revision of data and thresholds.
const REVISION: [u8; 2] = 0x0010u16.to_le_bytes();

/// Attributes.
mod attribute {
    pub const POWER_ON_HOURS: u8 = 9;
    pub const POWER_CYCLES: u8 = 12;
    pub const REPORTED_UNCORRECTABLE: u8 = 187;
    pub const PENDING_SECTORS: u8 = 197;
    pub const INTERFACE_CRC_ERRORS: u8 = 199;
    pub const SECTORS_WRITTEN: u8 = 241;
    pub const SECTORS_READ: u8 = 242;
}

/// How many attributes there are.
const ATTRIBUTES: usize = 7;

/// What SMART keeps without power.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    enabled: bool,
    autosave: bool,
    /// Off-line data collection by itself.
    automatic_offline: bool,
    power_cycles: u32,
    error_count: u16,
    uncorrectable: u64,
    crc_errors: u64,
    /// The newest first.
    errors: VecDeque<LoggedError>,
    self_tests: VecDeque<SelfTest>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            enabled: true,
            autosave: true,
            automatic_offline: false,
            power_cycles: 0,
            error_count: 0,
            uncorrectable: 0,
            crc_errors: 0,
            errors: VecDeque::new(),
            self_tests: VecDeque::new(),
        }
    }
}

/// The byte that makes the sum of all bytes 0.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

fn with_checksum(mut page: Vec<u8>) -> Vec<u8> {
    page[SECTOR - 1] = checksum(&page[..SECTOR - 1]);
    page
}

impl Record {
    pub(super) fn enabled(&self) -> bool {
        self.enabled
    }

    /// Whether the logs are no longer than they get.
    pub(super) fn is_sound(&self) -> bool {
        self.errors.len() <= error_log::KEPT && self.self_tests.len() <= self_test::KEPT
    }

    /// The drive was switched on.
    pub(super) fn power_on(&mut self) {
        self.power_cycles = self.power_cycles.saturating_add(1);
    }

    pub(super) fn power_cycles(&self) -> u32 {
        self.power_cycles
    }

    pub(super) fn uncorrectable_errors(&self) -> u64 {
        self.uncorrectable
    }

    /// SMART READ THRESHOLDS. A threshold of 0 never fails.
    fn thresholds(ids: [u8; ATTRIBUTES]) -> Vec<u8> {
        let mut page = vec![0; SECTOR];
        page[..2].copy_from_slice(&REVISION);
        for (entry, id) in page[2..362].chunks_exact_mut(12).zip(ids) {
            entry[0] = id;
        }
        with_checksum(page)
    }
}

impl Drive {
    fn smart_attributes(&self) -> [(u8, u64); ATTRIBUTES] {
        let (record, counted) = (&self.kept.smart, &self.statistics);
        [
            (attribute::POWER_ON_HOURS, u64::from(self.hours())),
            (attribute::POWER_CYCLES, u64::from(record.power_cycles)),
            (attribute::REPORTED_UNCORRECTABLE, record.uncorrectable),
            (attribute::PENDING_SECTORS, self.kept.uncorrectable.count()),
            (attribute::INTERFACE_CRC_ERRORS, record.crc_errors),
            (attribute::SECTORS_WRITTEN, counted.sectors_written),
            (attribute::SECTORS_READ, counted.sectors_read),
        ]
    }

    fn hours(&self) -> u16 {
        (self.powered_for().as_secs() / 3600).min(0xffff) as u16
    }

    /// SMART READ DATA.
    fn smart_data(&self) -> Vec<u8> {
        let record = &self.kept.smart;
        let mut page = vec![0; SECTOR];
        page[..2].copy_from_slice(&REVISION);
        for (entry, (id, raw)) in page[2..362].chunks_exact_mut(12).zip(self.smart_attributes()) {
            // Flags: updated online, an event count. Current and worst value: as good as new.
            entry[..5].copy_from_slice(&[id, 0x12, 0x00, 100, 100]);
            entry[5..11].copy_from_slice(&raw.to_le_bytes()[..6]);
        }
        // Off-line collection was never started, or by itself.
        page[362] = if record.automatic_offline { 0x80 } else { 0 };
        // How the last self-test ended, in the high half.
        page[363] = record.self_tests.front().map_or(0, SelfTest::status);
        // EXECUTE OFF-LINE IMMEDIATE, automatic off-line collection, self-tests; data is saved and autosaved; errors are
        // logged, and the general purpose logs are there; either self-test takes a minute at most.
        page[367] = 0x13;
        page[368] = 0x03;
        page[370] = 0x01;
        page[372] = 1;
        page[373] = 1;
        with_checksum(page)
    }

    /// A command failed. Only what concerns the medium or the cable is counted: a command that does not exist is no sign of
    /// wear.
    pub(super) fn log_error(&mut self, failure: &Failure) {
        let error = failure.error;
        let record = &mut self.kept.smart;
        if error.contains(Error::ICRC) {
            record.crc_errors = record.crc_errors.saturating_add(1);
            self.changed = true;
        }
        let flagged = failure
            .address
            .is_some_and(|(lba, _)| error.contains(Error::UNC) && self.kept.uncorrectable.is_flagged(lba));
        if !record.enabled || flagged || !error.intersects(Error::UNC | Error::IDNF | Error::ICRC) {
            return;
        }
        record.uncorrectable = record
            .uncorrectable
            .saturating_add(u64::from(error.contains(Error::UNC)));
        let logged = LoggedError {
            registers: self.registers,
            error: error.bits(),
            command: self.last_opcode,
            milliseconds: self.powered_for().as_millis() as u32,
            hours: self.hours(),
        };
        self.kept.smart.push_error(logged);
        self.changed = true;
    }

    pub(super) fn smart_command(&mut self) -> Result<Step, Failure> {
        let registers = &mut self.registers;
        if (registers.lba_mid.current, registers.lba_high.current) != KEYS {
            return Err(Failure::ABORTED);
        }
        let subcommand = registers.features.current;
        // Everything but ENABLE OPERATIONS is refused while SMART is off.
        if !self.kept.smart.enabled && subcommand != 0xd8 {
            return Err(Failure::ABORTED);
        }
        let log_address = registers.lba_low.current;
        let count = registers.count.current;
        self.changed |= matches!(subcommand, 0xd2 | 0xd4 | 0xd8 | 0xd9 | 0xdb);
        let record = &mut self.kept.smart;
        match (subcommand, count) {
            (0xd0, _) => {
                let page = self.smart_data();
                return Ok(self.give(page));
            }
            (0xd1, _) => {
                let page = Record::thresholds(self.smart_attributes().map(|(id, _)| id));
                return Ok(self.give(page));
            }
            (0xd2, 0x00) => record.autosave = false,
            (0xd2, 0xf1) => record.autosave = true,
            // Save attribute values: they are kept anyway.
            (0xd3, _) => {}
            (0xd4, _) => return self.execute_offline(log_address),
            (0xd5, _) => {
                let log = self.smart_log(log_address, count).ok_or(Failure::ABORTED)?;
                return Ok(self.give(log));
            }
            (0xd6, _) => return self.start_log_write(log_address, 0, u16::from(count)),
            (0xd8, _) => record.enabled = true,
            (0xd9, _) => record.enabled = false,
            // RETURN STATUS: the keys come back unchanged, no threshold is exceeded.
            (0xda, _) => {}
            (0xdb, 0x00) => record.automatic_offline = false,
            (0xdb, 0xf8) => record.automatic_offline = true,
            _ => return Err(Failure::ABORTED),
        }
        Ok(self.complete())
    }

    /// SMART READ LOG.
    fn smart_log(&self, log: u8, count: u8) -> Option<Vec<u8>> {
        let record = &self.kept.smart;
        match (log, count) {
            (address::DIRECTORY, 1) => Some(directory(smart_pages)),
            (address::SUMMARY_ERRORS, 1) => Some(record.summary_error_log()),
            (address::SELF_TESTS, 1) => Some(record.self_test_log()),
            _ => self.host_log(log, u16::from(count)),
        }
    }
}
