//! The transfer mode that SET FEATURES chooses (ATA/ATAPI-6, 8.46.10). Memory has one speed: it changes nothing but
//! what IDENTIFY PACKET DEVICE says.

use serde::{Deserialize, Serialize};

/// The highest mode of each kind.
const PIO_FLOW_CONTROL_MODES: u8 = 4;
pub(super) const MULTIWORD_DMA_MODES: u8 = 2;
pub(super) const ULTRA_DMA_MODES: u8 = 5;

/// The mode in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum TransferMode {
    /// No DMA mode was chosen yet.
    #[default]
    Default,
    MultiwordDma(u8),
    UltraDma(u8),
}

impl TransferMode {
    /// Whether it is a mode that the drive has.
    pub(super) fn is_sound(self) -> bool {
        match self {
            Self::Default => true,
            Self::MultiwordDma(mode) => mode <= MULTIWORD_DMA_MODES,
            Self::UltraDma(mode) => mode <= ULTRA_DMA_MODES,
        }
    }

    /// The mode after the host chose `value`: a kind in the high five bits, a number in the low three. `None` if the drive
    /// does not have it.
    pub(super) fn chosen(self, value: u8) -> Option<Self> {
        let number = value & 0x07;
        match value >> 3 {
            // PIO default mode, with or without IORDY; PIO flow control mode.
            0 if number <= 1 => Some(self),
            1 if number <= PIO_FLOW_CONTROL_MODES => Some(self),
            4 if number <= MULTIWORD_DMA_MODES => Some(Self::MultiwordDma(number)),
            8 if number <= ULTRA_DMA_MODES => Some(Self::UltraDma(number)),
            _ => None,
        }
    }
}
