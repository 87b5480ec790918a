//! SET FEATURES, SET MULTIPLE MODE, and what they set (ATA/ATAPI-6, 8.46; ATA8-ACS, 7.45).

use serde::{Deserialize, Serialize};

use super::work::{Reason, Work};
use super::{Drive, Failure, Step};

/// The largest block of READ and WRITE MULTIPLE, in sectors (IDENTIFY word 47).
pub(super) const MOST_MULTIPLE: u8 = 16;

/// The highest mode of each kind.
const PIO_FLOW_CONTROL_MODES: u8 = 4;
const SINGLE_WORD_DMA_MODES: u8 = 2;

/// The DMA mode that the host set. It changes nothing but what IDENTIFY says: memory has one speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum TransferMode {
    /// No DMA mode was set yet.
    Pio,
    /// Of ATA-1 and ATA-2.
    SingleWord(u8),
    Multiword(u8),
    Ultra(u8),
}

/// The settings of a drive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Features {
    pub transfer_mode: TransferMode,
    pub write_cache: bool,
    pub read_ahead: bool,
    /// Advanced power management level, when it is on.
    pub power_management: Option<u8>,
    /// Acoustic management level, when it is on.
    pub acoustic_management: Option<u8>,
    /// Sectors of a block of READ and WRITE MULTIPLE; 0 while they are off.
    multiple: u8,
    /// Whether a software reset goes back to the power-on settings.
    revert: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            transfer_mode: TransferMode::Pio,
            write_cache: true,
            read_ahead: true,
            power_management: None,
            acoustic_management: None,
            // On from the start, so that a guest without DMA does not pay an interrupt per sector.
            multiple: MOST_MULTIPLE,
            revert: false,
        }
    }
}

impl Features {
    /// SRST.
    pub(super) fn software_reset(&mut self) {
        if self.revert {
            *self = Self {
                transfer_mode: self.transfer_mode,
                revert: true,
                ..Self::default()
            };
        }
    }

    /// Whether a software reset goes back to the power-on settings.
    pub(super) fn reverts(&self) -> bool {
        self.revert
    }

    /// Whether commands could have set this.
    pub(super) fn is_sound(&self) -> bool {
        let known = match self.transfer_mode {
            TransferMode::Pio => true,
            TransferMode::SingleWord(mode) | TransferMode::Multiword(mode) | TransferMode::Ultra(mode) => mode < 8,
        };
        known && self.multiple <= MOST_MULTIPLE
    }

    /// Sectors of a block of READ and WRITE MULTIPLE; `None` while they are off.
    pub(super) fn multiple(&self) -> Option<u32> {
        (self.multiple != 0).then_some(u32::from(self.multiple))
    }

    /// SET MULTIPLE MODE. `None` if the drive does not do such blocks (8.47: the command is aborted, and multiple mode
    /// goes off). 0 switches it off.
    pub(super) fn set_multiple(&mut self, sectors: u8) -> Option<()> {
        self.multiple = 0;
        if sectors > MOST_MULTIPLE || sectors != 0 && !sectors.is_power_of_two() {
            return None;
        }
        self.multiple = sectors;
        Some(())
    }

    /// Set transfer mode: the mode's kind in the high five bits, its number in the low three. `multiword` and `ultra`
    /// are masks of the modes that the drive has.
    fn set_transfer_mode(&mut self, value: u8, multiword: u16, ultra: u16) -> Option<()> {
        let number = value & 0x07;
        let has = |modes: u16| modes & 1 << number != 0;
        match value >> 3 {
            // PIO default mode, with or without IORDY; PIO flow control mode.
            0 if number <= 1 => {}
            1 if number <= PIO_FLOW_CONTROL_MODES => {}
            2 if number <= SINGLE_WORD_DMA_MODES => self.transfer_mode = TransferMode::SingleWord(number),
            4 if has(multiword) => self.transfer_mode = TransferMode::Multiword(number),
            8 if has(ultra) => self.transfer_mode = TransferMode::Ultra(number),
            _ => return None,
        }
        Some(())
    }
}

impl Drive {
    pub(super) fn set_features(&mut self) -> Result<Step, Failure> {
        let value = self.registers.count.current;
        let overlay = &self.kept.overlay;
        let (multiword, ultra) = (overlay.multiword_modes, overlay.ultra_modes);
        let acoustic = overlay.has_acoustic_management();
        let features = &mut self.features;
        match self.registers.features.current {
            0x02 => features.write_cache = true,
            0x82 => {
                features.write_cache = false;
                // What the cache held must not wait any longer.
                return Ok(self.ask(Work::Flush(Reason::Command)));
            }
            0x03 => features
                .set_transfer_mode(value, multiword, ultra)
                .ok_or(Failure::ABORTED)?,
            0x05 if (0x01..=0xfe).contains(&value) => features.power_management = Some(value),
            0x85 => features.power_management = None,
            0x42 if acoustic => features.acoustic_management = Some(value),
            0xc2 if acoustic => features.acoustic_management = None,
            0x55 => features.read_ahead = false,
            0xaa => features.read_ahead = true,
            0x66 => features.revert = false,
            0xcc => features.revert = true,
            // CFA power mode 1 (0Ah, 8Ah), and a data register of 8 bits (81h switches it off, which it is).
            0x0a | 0x8a | 0x81 if self.setup.identity.compact_flash() => {}
            subcommand => {
                tracing::debug!(subcommand, value, "SET FEATURES that the drive does not have");
                return Err(Failure::ABORTED);
            }
        }
        Ok(self.complete())
    }
}
