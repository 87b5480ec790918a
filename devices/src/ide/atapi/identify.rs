//! IDENTIFY PACKET DEVICE: who the drive is (ATA8-ACS, 7.17; ATA/ATAPI-6, 8.16).

use super::super::identify_page::{IdentifyPage, VALID};
use super::CdRom;
use super::transfer_mode::{MULTIWORD_DMA_MODES, TransferMode, ULTRA_DMA_MODES};

/// Words 82 and 85: NOP, DEVICE RESET, PACKET, power management.
const COMMANDS: u16 = 1 << 14 | 1 << 9 | 1 << 4 | 1 << 3;

impl CdRom {
    /// The data of IDENTIFY PACKET DEVICE, as the drive is set now.
    pub(super) fn identify(&self) -> Vec<u8> {
        let mut page = IdentifyPage::new();
        // A packet device, CD-ROM, removable medium, ready for the packet at once, packets of 12 bytes.
        page.set(0, 0x85c0);
        page.set_text(10, 10, self.identity.serial());
        page.set_text(23, 4, self.identity.firmware());
        page.set_text(27, 20, self.identity.model());
        // DMA, LBA, IORDY that can be disabled.
        page.set(49, 0x0f00);
        // Words 64 to 70 and 88 are valid.
        page.set(53, 0x0006);
        let bit = |mode: u8| 0x0100 << mode;
        let (multiword, ultra) = match self.transfer_mode {
            TransferMode::Default => (0, 0),
            TransferMode::MultiwordDma(mode) => (bit(mode), 0),
            TransferMode::UltraDma(mode) => (0, bit(mode)),
        };
        page.set(63, supported(MULTIWORD_DMA_MODES) | multiword);
        page.set(88, supported(ULTRA_DMA_MODES) | ultra);
        // PIO modes 3 and 4, and the shortest cycle of each kind of transfer in nanoseconds.
        page.set(64, 0x0003);
        for word in 65..=68 {
            page.set(word, 120);
        }
        // ATA/ATAPI-4 to ATA8-ACS.
        page.set(80, 0x01f0);
        page.set(82, COMMANDS);
        page.set(83, VALID);
        page.set(84, VALID);
        page.set(85, COMMANDS);
        page.set(87, VALID);
        page.set(93, self.identity.reset_result());
        page.into_bytes()
    }
}

/// The bits of modes 0 to `highest`.
fn supported(highest: u8) -> u16 {
    (2 << highest) - 1
}
