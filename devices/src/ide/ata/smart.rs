//! SMART (ATA/ATAPI-6, 8.48; ATA8-ACS, 7.49): status, data, thresholds, the summary error log and self-tests.

use std::collections::VecDeque;
use std::time::Instant;

use super::super::registers::{Error, Status, TaskFile};
use super::{Drive, Failure, SECTOR, Step};

/// The two keys that every SMART command carries in LBA mid and LBA high, and what RETURN STATUS makes of them when a
/// threshold is exceeded (which never happens).
const KEYS: (u8, u8) = (0x4f, 0xc2);

/// Structure revision of data and thresholds.
const REVISION: [u8; 2] = 0x0010u16.to_le_bytes();

/// Attributes: power-on hours, and errors that were reported as uncorrectable.
const POWER_ON_HOURS: u8 = 9;
const REPORTED_UNCORRECTABLE: u8 = 187;

/// Self-tests: the log keeps 21, the summary error log 5 errors.
const SELF_TESTS_KEPT: usize = 21;
const ERRORS_KEPT: usize = 5;

/// The SMART state of a drive.
pub(super) struct Smart {
    enabled: bool,
    autosave: bool,
    powered_on: Instant,
    /// The last command's opcode, for the error log.
    last_command: u8,
    error_count: u16,
    uncorrectable: u64,
    errors: VecDeque<LoggedError>,
    self_tests: VecDeque<SelfTest>,
}

struct LoggedError {
    registers: TaskFile,
    error: u8,
    command: u8,
    milliseconds: u32,
    hours: u16,
}

struct SelfTest {
    kind: u8,
    hours: u16,
}

impl Default for Smart {
    fn default() -> Self {
        Self {
            enabled: true,
            autosave: true,
            powered_on: Instant::now(),
            last_command: 0,
            error_count: 0,
            uncorrectable: 0,
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

impl Smart {
    pub(super) fn enabled(&self) -> bool {
        self.enabled
    }

    fn hours(&self) -> u16 {
        (self.powered_on.elapsed().as_secs() / 3600).min(0xffff) as u16
    }

    /// Remembers the command that runs, in case it fails.
    pub(super) fn note_command(&mut self, opcode: u8) {
        self.last_command = opcode;
    }

    /// A command failed. Only what concerns the medium is logged: a command that does not exist is no sign of wear.
    pub(super) fn note_error(&mut self, registers: TaskFile, error: u8) {
        let error_bits = Error::from_bits_truncate(error);
        if !self.enabled || !error_bits.intersects(Error::UNC | Error::IDNF) {
            return;
        }
        self.error_count = self.error_count.saturating_add(1);
        self.uncorrectable += u64::from(error_bits.contains(Error::UNC));
        self.errors.truncate(ERRORS_KEPT - 1);
        self.errors.push_front(LoggedError {
            registers,
            error,
            command: self.last_command,
            milliseconds: self.powered_on.elapsed().as_millis() as u32,
            hours: self.hours(),
        });
    }

    /// SMART READ DATA.
    fn data(&self) -> Vec<u8> {
        let mut page = vec![0; SECTOR];
        page[..2].copy_from_slice(&REVISION);
        let attributes = [
            (POWER_ON_HOURS, u64::from(self.hours())),
            (REPORTED_UNCORRECTABLE, self.uncorrectable),
        ];
        for (entry, (id, raw)) in page[2..362].chunks_exact_mut(12).zip(attributes) {
            // Flags: updated online, an event count. Current and worst value: as good as new.
            entry[..5].copy_from_slice(&[id, 0x12, 0x00, 100, 100]);
            entry[5..11].copy_from_slice(&raw.to_le_bytes()[..6]);
        }
        // Off-line collection was never started; EXECUTE OFF-LINE IMMEDIATE and self-tests are there; data is saved and
        // autosaved; errors are logged; either self-test takes a minute at most.
        page[362] = if self.autosave { 0x80 } else { 0 };
        page[367] = 0x11;
        page[368] = 0x03;
        page[370] = 0x01;
        page[372] = 1;
        page[373] = 1;
        with_checksum(page)
    }

    /// SMART READ THRESHOLDS. A threshold of 0 never fails.
    fn thresholds() -> Vec<u8> {
        let mut page = vec![0; SECTOR];
        page[..2].copy_from_slice(&REVISION);
        for (entry, id) in page[2..362]
            .chunks_exact_mut(12)
            .zip([POWER_ON_HOURS, REPORTED_UNCORRECTABLE])
        {
            entry[0] = id;
        }
        with_checksum(page)
    }

    /// SMART READ LOG.
    fn log(&self, address: u8) -> Option<Vec<u8>> {
        match address {
            0x00 => Some(log_directory()),
            0x01 => Some(self.error_log()),
            0x06 => Some(self.self_test_log()),
            _ => None,
        }
    }

    /// The summary error log: five entries in a ring, of which the index (from 1) names the newest.
    fn error_log(&self) -> Vec<u8> {
        let mut page = vec![0; SECTOR];
        page[0] = 1;
        page[1] = self.errors.len() as u8;
        for (entry, logged) in page[2..452].chunks_exact_mut(90).zip(self.errors.iter().rev()) {
            let registers = &logged.registers;
            let address = [
                registers.count.current,
                registers.lba_low.current,
                registers.lba_mid.current,
                registers.lba_high.current,
                registers.device,
            ];
            // The fifth of five commands is the one that failed.
            let command = &mut entry[48..60];
            command[1] = registers.features.current;
            command[2..7].copy_from_slice(&address);
            command[7] = logged.command;
            command[8..12].copy_from_slice(&logged.milliseconds.to_le_bytes());
            let error = &mut entry[60..90];
            error[1] = logged.error;
            error[2..7].copy_from_slice(&address);
            error[7] = (Status::DRDY | Status::DSC | Status::ERR).bits();
            // State: active.
            error[27] = 0x03;
            error[28..30].copy_from_slice(&logged.hours.to_le_bytes());
        }
        page[452..454].copy_from_slice(&self.error_count.to_le_bytes());
        with_checksum(page)
    }

    /// The self-test log: 21 entries in a ring; byte 508 is the index (from 1) of the newest.
    fn self_test_log(&self) -> Vec<u8> {
        let mut page = vec![0; SECTOR];
        page[..2].copy_from_slice(&1u16.to_le_bytes());
        for (entry, test) in page[2..506].chunks_exact_mut(24).zip(self.self_tests.iter().rev()) {
            entry[0] = test.kind;
            entry[2..4].copy_from_slice(&test.hours.to_le_bytes());
            // No failing address.
            entry[5..9].fill(0xff);
        }
        page[508] = self.self_tests.len() as u8;
        with_checksum(page)
    }

    /// EXECUTE OFF-LINE IMMEDIATE. There is nothing mechanical to test: a test is over as soon as it begins, and passes.
    fn execute_offline(&mut self, kind: u8) -> Option<()> {
        match kind {
            // Off-line collection; abort.
            0x00 | 0x7f => {}
            // Short and extended self-test, off-line and captive.
            0x01 | 0x02 | 0x81 | 0x82 => {
                self.self_tests.truncate(SELF_TESTS_KEPT - 1);
                let hours = self.hours();
                self.self_tests.push_front(SelfTest { kind, hours });
            }
            _ => return None,
        }
        Some(())
    }
}

/// The log directory: one sector each for the logs at addresses 1 and 6.
fn log_directory() -> Vec<u8> {
    let mut page = vec![0; SECTOR];
    page[0] = 1;
    for address in [0x01, 0x06] {
        page[2 * address] = 1;
    }
    page
}

impl Drive {
    pub(super) fn smart_command(&mut self) -> Result<Step, Failure> {
        let registers = &mut self.registers;
        if (registers.lba_mid.current, registers.lba_high.current) != KEYS {
            return Err(Failure::ABORTED);
        }
        let subcommand = registers.features.current;
        // Everything but ENABLE OPERATIONS is refused while SMART is off.
        if !self.smart.enabled && subcommand != 0xd8 {
            return Err(Failure::ABORTED);
        }
        let log_address = registers.lba_low.current;
        match subcommand {
            0xd0 => return Ok(self.give(self.smart.data())),
            0xd1 => return Ok(self.give(Smart::thresholds())),
            0xd2 => match registers.count.current {
                0x00 => self.smart.autosave = false,
                0xf1 => self.smart.autosave = true,
                _ => return Err(Failure::ABORTED),
            },
            // Save attribute values: they live as long as the drive.
            0xd3 => {}
            0xd4 => self.smart.execute_offline(log_address).ok_or(Failure::ABORTED)?,
            0xd5 if registers.count.current == 1 => {
                let log = self.smart.log(log_address).ok_or(Failure::ABORTED)?;
                return Ok(self.give(log));
            }
            0xd8 => self.smart.enabled = true,
            0xd9 => self.smart.enabled = false,
            // RETURN STATUS: the keys come back unchanged, no threshold is exceeded.
            0xda => {}
            _ => return Err(Failure::ABORTED),
        }
        Ok(self.complete())
    }
}
