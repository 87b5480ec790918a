//! Self-tests and their logs (ATA8-ACS, 7.49.5, A.9 and A.11).
//!
//! There is nothing mechanical to test, so a test is over as soon as it begins. It fails when the drive knows of a sector that
//! cannot be read.

use serde::{Deserialize, Serialize};

use super::super::{Drive, Failure, SECTOR, Step};
use super::{Record, with_checksum};

/// Tests that are kept: as many as the self-test log has room for. The extended log has room for 19 in one page.
pub(super) const KEPT: usize = 21;
const EXTENDED: usize = 19;

/// Status: completed without error, and failed to read, in the high half of the byte.
const PASSED: u8 = 0x00;
const READ_FAILURE: u8 = 0x70;

/// The bit that makes a test captive: the drive stays busy until it is over, and says how it ended.
const CAPTIVE: u8 = 0x80;
/// What RETURN STATUS and captive tests make of the keys when something is wrong.
const FAILED_KEYS: (u8, u8) = (0xf4, 0x2c);

/// A test that ran.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SelfTest {
    kind: u8,
    hours: u16,
    /// The first sector that cannot be read.
    failed_at: Option<u64>,
}

impl SelfTest {
    /// The self-test execution status.
    pub(super) fn status(&self) -> u8 {
        if self.failed_at.is_some() { READ_FAILURE } else { PASSED }
    }
}

impl Record {
    /// The self-test log: 21 entries in a ring; byte 508 is the index (from 1) of the newest.
    pub(super) fn self_test_log(&self) -> Vec<u8> {
        let mut page = vec![0; SECTOR];
        page[..2].copy_from_slice(&1u16.to_le_bytes());
        for (entry, test) in page[2..506].chunks_exact_mut(24).zip(self.self_tests.iter().rev()) {
            entry[0] = test.kind;
            entry[1] = test.status();
            entry[2..4].copy_from_slice(&test.hours.to_le_bytes());
            let at = test.failed_at.map_or(0xffff_ffff, |lba| lba.min(0x0fff_ffff) as u32);
            entry[5..9].copy_from_slice(&at.to_le_bytes());
        }
        page[508] = self.self_tests.len() as u8;
        with_checksum(page)
    }

    /// The extended self-test log, with addresses of 48 bits.
    pub(in crate::ide::ata) fn extended_self_test_log(&self) -> Vec<u8> {
        let mut page = vec![0; SECTOR];
        page[0] = 1;
        let shown = self.self_tests.len().min(EXTENDED);
        page[2..4].copy_from_slice(&(shown as u16).to_le_bytes());
        for (entry, test) in page[4..498]
            .chunks_exact_mut(26)
            .zip(self.self_tests.iter().take(shown).rev())
        {
            entry[0] = test.kind;
            entry[1] = test.status();
            entry[2..4].copy_from_slice(&test.hours.to_le_bytes());
            let at = test.failed_at.unwrap_or(0xffff_ffff_ffff);
            entry[5..11].copy_from_slice(&at.to_le_bytes()[..6]);
        }
        with_checksum(page)
    }
}

impl Drive {
    /// SMART EXECUTE OFF-LINE IMMEDIATE.
    pub(in crate::ide::ata) fn execute_offline(&mut self, kind: u8) -> Result<Step, Failure> {
        match kind {
            // Off-line collection; abort.
            0x00 | 0x7f => return Ok(self.complete()),
            // Short and extended self-test, off-line and captive.
            0x01 | 0x02 | 0x81 | 0x82 => {}
            _ => return Err(Failure::ABORTED),
        }
        let failed_at = self
            .kept
            .uncorrectable
            .first_from(0)
            .filter(|lba| *lba < self.capacity());
        let hours = self.hours();
        let tests = &mut self.kept.smart.self_tests;
        tests.truncate(KEPT - 1);
        tests.push_front(SelfTest { kind, hours, failed_at });
        if kind & CAPTIVE != 0 && failed_at.is_some() {
            (self.registers.lba_mid.current, self.registers.lba_high.current) = FAILED_KEYS;
            return Err(Failure::ABORTED);
        }
        Ok(self.complete())
    }
}
