//! DEVICE CONFIGURATION: a drive that pretends to have less than it has (ATA/ATAPI-6, 8.7; ATA8-ACS, 7.11).

use disk::SECTOR_SIZE;
use serde::{Deserialize, Serialize};

use super::command::Command;
use super::features::TransferMode;
use super::geometry::Geometry;
use super::payload::{Payload, word};
use super::smart::checksum;
use super::{Drive, Failure, SECTOR, Step};

/// Multiword DMA modes 0 to 2, Ultra DMA modes 0 to 5.
const MULTIWORD_MODES: u16 = 0x0007;
const ULTRA_MODES: u16 = 0x003f;

/// Word 7: SMART, its self-tests and error log, SECURITY, acoustic management, the host protected area, 48-bit addresses, FUA.
const SMART: u16 = 1 << 0;
const SECURITY: u16 = 1 << 3;
const ACOUSTIC_MANAGEMENT: u16 = 1 << 6;
const PROTECTED_AREA: u16 = 1 << 7;
const EXTENDED: u16 = 1 << 8;
const FUA: u16 = 1 << 11;
const FEATURES: u16 = SMART | 1 << 1 | 1 << 2 | SECURITY | ACOUSTIC_MANAGEMENT | PROTECTED_AREA | EXTENDED | FUA;

/// Word 0.
const REVISION: u16 = 2;
/// Word 255, low byte.
const SIGNATURE: u8 = 0xa5;

/// Sector count register after a command that was refused: why.
mod reason {
    pub const FROZEN: u8 = 0x01;
    pub const MODIFIED: u8 = 0x03;
    pub const ENABLED: u8 = 0x04;
    pub const SET_MAX_CLOSED: u8 = 0x05;
    pub const PROTECTED_AREA: u8 = 0x06;
    pub const SUBCOMMAND: u8 = 0x08;
    pub const OTHER: u8 = 0xff;
}

/// What is left of the drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Overlay {
    pub multiword_modes: u16,
    pub ultra_modes: u16,
    /// Sectors, if fewer than there are.
    pub sectors: Option<u64>,
    features: u16,
    /// DEVICE CONFIGURATION SET works once, then only after a RESTORE.
    modified: bool,
}

impl Default for Overlay {
    fn default() -> Self {
        Self {
            multiword_modes: MULTIWORD_MODES,
            ultra_modes: ULTRA_MODES,
            sectors: None,
            features: FEATURES,
            modified: false,
        }
    }
}

impl Overlay {
    /// Whether it leaves a drive.
    pub(super) fn is_sound(&self) -> bool {
        self.multiword_modes & !MULTIWORD_MODES == 0
            && self.ultra_modes & !ULTRA_MODES == 0
            && self.features & !FEATURES == 0
            && self.sectors.is_none_or(|sectors| (1..=1 << 48).contains(&sectors))
    }

    fn has(&self, feature: u16) -> bool {
        self.features & feature != 0
    }

    pub(super) fn has_smart(&self) -> bool {
        self.has(SMART)
    }

    pub(super) fn has_security(&self) -> bool {
        self.has(SECURITY)
    }

    pub(super) fn has_acoustic_management(&self) -> bool {
        self.has(ACOUSTIC_MANAGEMENT)
    }

    pub(super) fn has_protected_area(&self) -> bool {
        self.has(PROTECTED_AREA)
    }

    pub(super) fn has_extended(&self) -> bool {
        self.has(EXTENDED)
    }

    pub(super) fn has_fua(&self) -> bool {
        self.has(FUA) && self.has_extended()
    }

    /// Whether the command is not hidden.
    pub(super) fn allows(&self, command: Command) -> bool {
        match command {
            Command::Smart => self.has_smart(),
            Command::SecuritySetPassword
            | Command::SecurityUnlock
            | Command::SecurityErasePrepare
            | Command::SecurityEraseUnit
            | Command::SecurityFreezeLock
            | Command::SecurityDisablePassword => self.has_security(),
            Command::ReadNativeMaxAddress { extended: true } | Command::SetMaxAddressExtended => {
                self.has_protected_area() && self.has_extended()
            }
            Command::ReadNativeMaxAddress { extended: false } | Command::SetMax => self.has_protected_area(),
            Command::Write { fua: true, .. } => self.has_fua(),
            Command::Read { extended: true, .. }
            | Command::Write { extended: true, .. }
            | Command::Verify { extended: true }
            | Command::WriteUncorrectable
            | Command::DataSetManagement
            | Command::ReadLog { .. }
            | Command::WriteLog => self.has_extended(),
            _ => true,
        }
    }
}

impl Drive {
    pub(super) fn device_configuration(&mut self) -> Result<Step, Failure> {
        if self.overlay_frozen {
            return Err(self.refuse_configuration(reason::FROZEN));
        }
        match self.registers.features.current {
            // RESTORE, FREEZE LOCK, IDENTIFY, SET.
            0xc0 => self.restore_configuration(),
            0xc1 => {
                self.overlay_frozen = true;
                Ok(self.complete())
            }
            0xc2 => {
                let page = self.configuration();
                Ok(self.give(page))
            }
            0xc3 => {
                self.check_configurable()?;
                Ok(self.take_sector(Payload::Configuration, false))
            }
            _ => Err(self.refuse_configuration(reason::SUBCOMMAND)),
        }
    }

    fn refuse_configuration(&mut self, reason: u8) -> Failure {
        self.registers.count.current = reason;
        Failure::ABORTED
    }

    /// Names the word and the bits in it that cannot be set so.
    fn refuse_word(&mut self, word: usize, bits: u16, reason: u8) -> Failure {
        let [low, high] = bits.to_le_bytes();
        self.registers.lba_high.current = word as u8;
        self.registers.lba_mid.current = low;
        self.registers.lba_low.current = high;
        self.refuse_configuration(reason)
    }

    fn check_configurable(&mut self) -> Result<(), Failure> {
        if self.protected_area.closed() {
            return Err(self.refuse_configuration(reason::SET_MAX_CLOSED));
        }
        if self.has_protected_area() {
            return Err(self.refuse_configuration(reason::PROTECTED_AREA));
        }
        if self.kept.overlay.modified {
            return Err(self.refuse_configuration(reason::MODIFIED));
        }
        Ok(())
    }

    fn restore_configuration(&mut self) -> Result<Step, Failure> {
        if self.has_protected_area() {
            return Err(self.refuse_configuration(reason::PROTECTED_AREA));
        }
        self.kept.overlay = Overlay::default();
        self.changed = true;
        self.geometry = Geometry::default_for(self.capacity());
        Ok(self.complete())
    }

    /// Sectors of the disk itself.
    fn factory_sectors(&self) -> u64 {
        self.setup.disk.capacity() / SECTOR_SIZE
    }

    /// The data of DEVICE CONFIGURATION IDENTIFY: what could be hidden.
    fn configuration(&self) -> Vec<u8> {
        let overlay = &self.kept.overlay;
        let mut page = vec![0; SECTOR];
        let mut set = |word: usize, value: u16| page[2 * word..2 * word + 2].copy_from_slice(&value.to_le_bytes());
        set(0, REVISION);
        set(1, overlay.multiword_modes);
        set(2, overlay.ultra_modes);
        let last = self.native_capacity() - 1;
        for index in 0..4 {
            set(3 + index, (last >> (16 * index)) as u16);
        }
        set(7, overlay.features);
        page[510] = SIGNATURE;
        page[511] = checksum(&page[..511]);
        page
    }

    /// The host has given the data of DEVICE CONFIGURATION SET.
    pub(super) fn set_configuration(&mut self, sector: &[u8]) -> Result<Step, Failure> {
        let sum = sector.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        if sum != 0 || sector[510] != SIGNATURE || !matches!(word(sector, 0), 1 | REVISION) {
            return Err(self.refuse_word(0, 0, reason::OTHER));
        }
        let last = (0..4).fold(0, |last, index| {
            last | u64::from(word(sector, 3 + index)) << (16 * index)
        });
        let factory = self.factory_sectors();
        let (multiword_modes, ultra_modes, features) = (word(sector, 1), word(sector, 2), word(sector, 7));
        for (index, value, known) in [
            (1, multiword_modes, MULTIWORD_MODES),
            (2, ultra_modes, ULTRA_MODES),
            (7, features, FEATURES),
        ] {
            if value & !known != 0 {
                return Err(self.refuse_word(index, value & !known, reason::OTHER));
            }
        }
        if last >= factory {
            return Err(self.refuse_word(3, word(sector, 3), reason::OTHER));
        }
        if features & SECURITY == 0 && self.kept.passwords.enabled() {
            return Err(self.refuse_word(7, SECURITY, reason::ENABLED));
        }
        self.kept.overlay = Overlay {
            multiword_modes,
            ultra_modes,
            sectors: (last + 1 < factory).then_some(last + 1),
            features,
            modified: true,
        };
        self.changed = true;
        let gone = match self.features.transfer_mode {
            TransferMode::Multiword(mode) => multiword_modes & 1 << mode == 0,
            TransferMode::Ultra(mode) => ultra_modes & 1 << mode == 0,
            TransferMode::Pio | TransferMode::SingleWord(_) => false,
        };
        if gone {
            self.features.transfer_mode = TransferMode::Pio;
        }
        self.geometry = Geometry::default_for(self.capacity());
        Ok(self.complete())
    }
}
