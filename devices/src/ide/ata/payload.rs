//! Sectors that the host gives to the drive itself.

use serde::{Deserialize, Serialize};

use super::logs::log_write_is_sound;
use super::{Drive, Failure, Step};

/// What a sector is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Payload {
    /// WRITE BUFFER.
    Buffer,
    SetPassword,
    Unlock,
    Erase,
    DisablePassword,
    /// SET MAX SET PASSWORD.
    SetMaxPassword,
    /// SET MAX UNLOCK.
    SetMaxUnlock,
    /// DEVICE CONFIGURATION SET.
    Configuration,
    /// WRITE LOG EXT and SMART WRITE LOG: which log, its next page, and how many pages are still to come.
    Log {
        address: u8,
        page: u16,
        left: u16,
    },
}

impl Payload {
    /// Whether a command could have asked for this.
    pub(super) fn is_sound(&self) -> bool {
        match *self {
            Self::Log { address, page, left } => log_write_is_sound(address, page, left),
            _ => true,
        }
    }
}

impl Drive {
    /// The host has filled a sector.
    pub(super) fn took_payload(&mut self, payload: Payload, bytes: &[u8]) -> Result<Step, Failure> {
        match payload {
            Payload::Buffer => {
                self.sector_buffer = bytes.to_vec();
                Ok(self.complete())
            }
            Payload::SetPassword => self.set_password(bytes),
            Payload::Unlock => self.unlock(bytes),
            Payload::Erase => self.erase_unit(bytes),
            Payload::DisablePassword => self.disable_password(bytes),
            Payload::SetMaxPassword => self.set_max_password(bytes),
            Payload::SetMaxUnlock => self.set_max_unlock(bytes),
            Payload::Configuration => self.set_configuration(bytes),
            Payload::Log { address, page, left } => self.took_log_page(address, page, left, bytes),
        }
    }
}

/// The password in words 1 to 16 of a sector.
pub(super) fn password(sector: &[u8]) -> [u8; 32] {
    std::array::from_fn(|index| sector.get(2 + index).copied().unwrap_or(0))
}

/// A word of a sector.
pub(super) fn word(sector: &[u8], index: usize) -> u16 {
    match sector.get(2 * index..2 * index + 2) {
        Some(bytes) => u16::from_le_bytes([bytes[0], bytes[1]]),
        None => 0,
    }
}
