//! IDENTIFY DEVICE: the 256 words that say what the drive is (ATA8-ACS, 7.16; ATA/ATAPI-6, 8.15).

use super::super::identify_page::{IdentifyPage, VALID};
use super::features::{DmaMode, Features, MOST_MULTIPLE};
use super::geometry::Geometry;
use super::transfer::LBA28_SECTORS;
use super::{Drive, trim};

/// Words 82 and 85: NOP, READ BUFFER, WRITE BUFFER; power management is mandatory.
const COMMANDS_ALWAYS: u16 = 1 << 14 | 1 << 13 | 1 << 12 | 1 << 3;
const READ_AHEAD: u16 = 1 << 6;
const WRITE_CACHE: u16 = 1 << 5;
const SMART: u16 = 1 << 0;
/// Words 83 and 86: FLUSH CACHE EXT, FLUSH CACHE, 48-bit addresses.
const COMMANDS_48_BIT: u16 = 1 << 13 | 1 << 12 | 1 << 10;
const ACOUSTIC_MANAGEMENT: u16 = 1 << 9;
const POWER_MANAGEMENT: u16 = 1 << 3;
/// Words 84 and 87: WRITE DMA FUA EXT, SMART self-test, SMART error logging.
const FUA_AND_SELF_TEST: u16 = 1 << 6 | 1 << 1 | 1 << 0;
const WORLD_WIDE_NAME: u16 = 1 << 8;

impl Drive {
    /// The data of IDENTIFY DEVICE, as the drive is set now.
    pub(super) fn identify(&self) -> Vec<u8> {
        let mut page = IdentifyPage::new();
        self.describe_identity(&mut page);
        self.describe_capacity(&mut page);
        self.describe_transfers(&mut page);
        self.describe_commands(&mut page);
        page.into_bytes()
    }

    fn describe_identity(&self, page: &mut IdentifyPage) {
        let identity = &self.identity;
        // A fixed disk, whose IDENTIFY is complete without a spin-up.
        page.set(0, 0x0040);
        page.set(2, 0xc837);
        page.set_text(10, 10, identity.serial());
        page.set_text(23, 4, identity.firmware());
        page.set_text(27, 20, identity.model());
        // ATA/ATAPI-4 to ATA8-ACS, over a parallel cable.
        page.set(80, 0x01f0);
        page.set(222, 0x0001);
        page.set(93, identity.reset_result());
        if let Some(name) = identity.world_wide_name() {
            for (index, word) in (108..112).enumerate() {
                page.set(word, (name >> (48 - 16 * index)) as u16);
            }
        }
        // A solid-state medium: no seek is worth avoiding.
        page.set(217, 0x0001);
    }

    fn describe_capacity(&self, page: &mut IdentifyPage) {
        let capacity = self.capacity();
        let default = Geometry::default_for(capacity);
        page.set(1, default.cylinders);
        page.set(3, u16::from(default.heads));
        page.set(6, u16::from(default.sectors));
        // Words 54 to 58, 64 to 70 and 88 are valid.
        page.set(53, 0x0007);
        page.set(54, self.geometry.cylinders);
        page.set(55, u16::from(self.geometry.heads));
        page.set(56, u16::from(self.geometry.sectors));
        page.set_wide(57, 2, u64::from(self.geometry.capacity()));
        page.set_wide(60, 2, capacity.min(LBA28_SECTORS - 1));
        page.set_wide(100, 4, capacity);
        // One 512-byte logical sector per physical sector: 512 bytes is what the disk below writes without tearing.
        page.set(106, VALID);
        page.set(209, VALID);
    }

    fn describe_transfers(&self, page: &mut IdentifyPage) {
        let Features { dma_mode, .. } = self.features;
        page.set(47, 0x8000 | u16::from(MOST_MULTIPLE));
        page.set(
            59,
            self.features.multiple().map_or(0, |sectors| 0x0100 | sectors as u16),
        );
        // LBA, DMA, IORDY that can be disabled, standard standby timer values.
        page.set(49, 0x2f00);
        page.set(48, VALID);
        page.set(50, VALID);
        page.set(51, 0x0200);
        let (multiword, ultra) = match dma_mode {
            DmaMode::None => (0, 0),
            DmaMode::Multiword(mode) => (0x0100 << mode, 0),
            DmaMode::Ultra(mode) => (0, 0x0100 << mode),
        };
        page.set(63, 0x0007 | multiword);
        page.set(88, 0x003f | ultra);
        // PIO modes 3 and 4, and the shortest cycle of each kind of transfer in nanoseconds.
        page.set(64, 0x0003);
        for word in 65..=68 {
            page.set(word, 120);
        }
    }

    fn describe_commands(&self, page: &mut IdentifyPage) {
        let features = &self.features;
        let on = |set: bool, bit: u16| if set { bit } else { 0 };
        page.set(82, COMMANDS_ALWAYS | READ_AHEAD | WRITE_CACHE | SMART);
        page.set(83, VALID | COMMANDS_48_BIT | ACOUSTIC_MANAGEMENT | POWER_MANAGEMENT);
        let named = on(self.identity.world_wide_name().is_some(), WORLD_WIDE_NAME);
        page.set(84, VALID | FUA_AND_SELF_TEST | named);
        let enabled = on(features.read_ahead, READ_AHEAD)
            | on(features.write_cache, WRITE_CACHE)
            | on(self.smart.enabled(), SMART);
        page.set(85, COMMANDS_ALWAYS | enabled);
        let managed = on(features.acoustic_management.is_some(), ACOUSTIC_MANAGEMENT)
            | on(features.power_management.is_some(), POWER_MANAGEMENT);
        page.set(86, COMMANDS_48_BIT | managed);
        page.set(87, VALID | FUA_AND_SELF_TEST | named);
        page.set(91, features.power_management.map_or(0, u16::from));
        page.set(94, features.acoustic_management.map_or(0, u16::from));
        page.set(119, VALID);
        page.set(120, VALID);
        if !self.disk.read_only() {
            page.set(105, trim::MOST_BLOCKS);
            // TRIM. Words 69 and 248 promise nothing of what trimmed sectors read as.
            page.set(169, 0x0001);
        }
    }
}
