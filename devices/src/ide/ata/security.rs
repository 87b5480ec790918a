//! The SECURITY feature set: passwords that lock the drive at power-on (ATA/ATAPI-6, 6.13; ATA8-ACS, 4.21).

use serde::{Deserialize, Serialize};

use super::payload::{password, word};
use super::work::{Erasure, Work};
use super::{Drive, Failure, Step};

/// Wrong passwords that a locked drive takes before only power-on helps.
const ATTEMPTS: u8 = 5;

/// Word 0 of the data: whose password, an erase by pattern, and what the master password may do.
const MASTER: u16 = 1 << 0;
const MAXIMUM: u16 = 1 << 8;

/// What the drive keeps of passwords.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Passwords {
    /// There is one while security is enabled.
    user: Option<[u8; 32]>,
    master: [u8; 32],
    /// Says who set the master password (IDENTIFY word 92).
    pub revision: u16,
    /// Security level maximum: the master password does not unlock, it only erases.
    pub maximum: bool,
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            user: None,
            // What a master password is at first is the maker's choice.
            master: [0; 32],
            revision: 0xfffe,
            maximum: false,
        }
    }
}

impl Passwords {
    /// Whether the drive locks at power-on.
    pub(super) fn enabled(&self) -> bool {
        self.user.is_some()
    }

    fn matches(&self, master: bool, password: &[u8; 32]) -> bool {
        if master {
            self.master == *password
        } else {
            self.user.as_ref() == Some(password)
        }
    }
}

/// What power-on sets right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Security {
    pub locked: bool,
    pub frozen: bool,
    attempts: u8,
}

impl Security {
    /// After power-on or a hardware reset.
    pub(super) fn at_power_on(passwords: &Passwords) -> Self {
        Self {
            locked: passwords.enabled(),
            frozen: false,
            attempts: ATTEMPTS,
        }
    }

    /// Whether too many passwords were wrong.
    pub(super) fn expired(&self) -> bool {
        self.attempts == 0
    }
}

impl Drive {
    /// IDENTIFY word 128.
    pub(super) fn security_status(&self) -> u16 {
        let passwords = &self.kept.passwords;
        let bit = |set: bool, index: u32| u16::from(set) << index;
        // Supported, and so is enhanced erase.
        bit(true, 0)
            | bit(passwords.enabled(), 1)
            | bit(self.security.locked, 2)
            | bit(self.security.frozen, 3)
            | bit(self.security.expired(), 4)
            | bit(true, 5)
            | bit(passwords.maximum, 8)
    }

    /// Checks a password that may be guessed at only a few times while the drive is locked.
    fn check_password(&mut self, master: bool, sector: &[u8]) -> Result<(), Failure> {
        if self.security.expired() {
            return Err(Failure::ABORTED);
        }
        if self.kept.passwords.matches(master, &password(sector)) {
            return Ok(());
        }
        if self.security.locked {
            self.security.attempts -= 1;
        }
        Err(Failure::ABORTED)
    }

    pub(super) fn set_password(&mut self, sector: &[u8]) -> Result<Step, Failure> {
        let control = word(sector, 0);
        let passwords = &mut self.kept.passwords;
        if control & MASTER != 0 {
            passwords.master = password(sector);
            let revision = word(sector, 17);
            // 0 and FFFFh say nothing.
            if !matches!(revision, 0 | 0xffff) {
                passwords.revision = revision;
            }
        } else {
            passwords.user = Some(password(sector));
            passwords.maximum = control & MAXIMUM != 0;
        }
        self.changed = true;
        Ok(self.complete())
    }

    pub(super) fn unlock(&mut self, sector: &[u8]) -> Result<Step, Failure> {
        let master = word(sector, 0) & MASTER != 0;
        if master && self.kept.passwords.maximum && self.kept.passwords.enabled() {
            return Err(Failure::ABORTED);
        }
        self.check_password(master, sector)?;
        self.security.locked = false;
        Ok(self.complete())
    }

    pub(super) fn disable_password(&mut self, sector: &[u8]) -> Result<Step, Failure> {
        let master = word(sector, 0) & MASTER != 0;
        if master && self.kept.passwords.maximum && self.kept.passwords.enabled() {
            return Err(Failure::ABORTED);
        }
        self.check_password(master, sector)?;
        self.disable_security();
        Ok(self.complete())
    }

    /// SECURITY ERASE UNIT. An enhanced erase does the same: no sector is out of reach of a write.
    pub(super) fn erase_unit(&mut self, sector: &[u8]) -> Result<Step, Failure> {
        if self.setup.disk.read_only() {
            return Err(Failure::ABORTED);
        }
        self.check_password(word(sector, 0) & MASTER != 0, sector)?;
        Ok(self.ask(Work::Erase {
            at: 0,
            end: self.native_capacity(),
            purpose: Erasure::Security,
        }))
    }

    /// All sectors are overwritten.
    pub(super) fn erased(&mut self, purpose: Erasure) -> Step {
        if purpose == Erasure::Security {
            self.disable_security();
        }
        self.complete()
    }

    /// The user password goes, and with it the lock. The master password stays.
    fn disable_security(&mut self) {
        let passwords = &mut self.kept.passwords;
        passwords.user = None;
        passwords.maximum = false;
        self.security.locked = false;
        self.changed = true;
    }
}
