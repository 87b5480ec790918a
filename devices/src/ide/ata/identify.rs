//! IDENTIFY DEVICE: the 256 words that say what the drive is (ATA8-ACS, 7.16; ATA/ATAPI-6, 8.15).

use super::features::{MOST_MULTIPLE, TransferMode};
use super::geometry::Geometry;
use super::transfer::LBA28_SECTORS;
use super::{Drive, trim};
use crate::ide::identify_page::{IdentifyPage, VALID};

/// Words 0: a fixed disk, whose IDENTIFY is complete without a spin-up, and a CompactFlash card.
const FIXED_DISK: u16 = 0x0040;
const COMPACT_FLASH: u16 = 0x848a;

/// Words 82 and 85: NOP, READ BUFFER, WRITE BUFFER; power management is mandatory.
const COMMANDS_ALWAYS: u16 = 1 << 14 | 1 << 13 | 1 << 12 | 1 << 3;
const PROTECTED_AREA: u16 = 1 << 10;
const READ_AHEAD: u16 = 1 << 6;
const WRITE_CACHE: u16 = 1 << 5;
const SECURITY: u16 = 1 << 1;
const SMART: u16 = 1 << 0;
/// Words 83 and 86: FLUSH CACHE EXT, FLUSH CACHE, 48-bit addresses.
const FLUSH_EXTENDED: u16 = 1 << 13;
const FLUSH: u16 = 1 << 12;
const CONFIGURATION_OVERLAY: u16 = 1 << 11;
const EXTENDED: u16 = 1 << 10;
const ACOUSTIC_MANAGEMENT: u16 = 1 << 9;
const SET_MAX_PASSWORD: u16 = 1 << 8;
const POWER_MANAGEMENT: u16 = 1 << 3;
const CFA_COMMANDS: u16 = 1 << 2;
/// Words 84 and 87: IDLE IMMEDIATE with unload, WRITE DMA FUA EXT, general purpose logging, SMART self-test, SMART error logging.
const UNLOAD: u16 = 1 << 13;
const WORLD_WIDE_NAME: u16 = 1 << 8;
const FUA: u16 = 1 << 6;
const LOGS: u16 = 1 << 5;
const SELF_TEST_AND_ERRORS: u16 = 1 << 1 | 1 << 0;
/// Words 119 and 120: WRITE UNCORRECTABLE EXT.
const WRITE_UNCORRECTABLE: u16 = 1 << 2;
/// Word 69: after TRIM a sector reads the same every time, and as zeros.
const DETERMINISTIC_ZEROS: u16 = 1 << 14 | 1 << 5;
/// Units of two minutes that SECURITY ERASE UNIT takes.
const ERASE_TIME: u16 = 1;

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
        let identity = &self.setup.identity;
        page.set(
            0,
            if identity.compact_flash() {
                COMPACT_FLASH
            } else {
                FIXED_DISK
            },
        );
        page.set(2, 0xc837);
        page.set_text(10, 10, identity.serial());
        // What ATA-1 calls the buffer: dual ported with look-ahead, 256 KiB, and four bytes of ECC on READ LONG.
        page.set(20, 3);
        page.set(21, 512);
        page.set(22, 4);
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
        if self.setup.identity.compact_flash() {
            let sectors = default.capacity();
            page.set(7, (sectors >> 16) as u16);
            page.set(8, sectors as u16);
        }
        // Words 54 to 58, 64 to 70 and 88 are valid.
        page.set(53, 0x0007);
        page.set(54, self.geometry.cylinders);
        page.set(55, u16::from(self.geometry.heads));
        page.set(56, u16::from(self.geometry.sectors));
        page.set_wide(57, 2, u64::from(self.geometry.capacity()));
        page.set_wide(60, 2, capacity.min(LBA28_SECTORS - 1));
        if self.kept.overlay.has_extended() {
            page.set_wide(100, 4, capacity);
        }
        // One 512-byte logical sector per physical sector: 512 bytes is what the disk below writes without tearing.
        page.set(106, VALID);
        page.set(209, VALID);
    }

    fn describe_transfers(&self, page: &mut IdentifyPage) {
        let overlay = &self.kept.overlay;
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
        let selected = |mode: u8| 0x0100 << mode;
        let (single, multiword, ultra) = match self.features.transfer_mode {
            TransferMode::Pio => (0, 0, 0),
            TransferMode::SingleWord(mode) => (selected(mode), 0, 0),
            TransferMode::Multiword(mode) => (0, selected(mode), 0),
            TransferMode::Ultra(mode) => (0, 0, selected(mode)),
        };
        page.set(62, 0x0007 | single);
        page.set(63, overlay.multiword_modes | multiword);
        page.set(88, overlay.ultra_modes | ultra);
        // PIO modes 3 and 4, and the shortest cycle of each kind of transfer in nanoseconds.
        page.set(64, 0x0003);
        for word in 65..=68 {
            page.set(word, 120);
        }
    }

    fn describe_commands(&self, page: &mut IdentifyPage) {
        let (features, overlay, kept) = (&self.features, &self.kept.overlay, &self.kept);
        let on = |set: bool, bit: u16| if set { bit } else { 0 };
        let protected_area = on(overlay.has_protected_area(), PROTECTED_AREA);
        let smart = on(overlay.has_smart(), SMART);
        let security = on(overlay.has_security(), SECURITY);
        page.set(
            82,
            COMMANDS_ALWAYS | READ_AHEAD | WRITE_CACHE | protected_area | smart | security,
        );
        let enabled = on(features.read_ahead, READ_AHEAD)
            | on(features.write_cache, WRITE_CACHE)
            | on(kept.smart.enabled(), smart)
            | on(kept.passwords.enabled(), security);
        page.set(85, COMMANDS_ALWAYS | protected_area | enabled);

        let always = FLUSH
            | CONFIGURATION_OVERLAY
            | on(overlay.has_extended(), EXTENDED | FLUSH_EXTENDED)
            | on(self.setup.identity.compact_flash(), CFA_COMMANDS);
        let set_max = on(overlay.has_protected_area(), SET_MAX_PASSWORD);
        let acoustic = on(overlay.has_acoustic_management(), ACOUSTIC_MANAGEMENT);
        page.set(83, VALID | always | set_max | acoustic | POWER_MANAGEMENT);
        let managed = on(features.acoustic_management.is_some(), acoustic)
            | on(features.power_management.is_some(), POWER_MANAGEMENT)
            | on(self.protected_area.has_password(), set_max);
        page.set(86, always | managed | 1 << 15);

        let more = UNLOAD
            | on(overlay.has_smart(), SELF_TEST_AND_ERRORS)
            | on(overlay.has_extended(), LOGS)
            | on(overlay.has_fua(), FUA)
            | on(self.setup.identity.world_wide_name().is_some(), WORLD_WIDE_NAME);
        page.set(84, VALID | more);
        page.set(87, VALID | more);

        if overlay.has_security() {
            page.set(89, ERASE_TIME);
            page.set(90, ERASE_TIME);
            page.set(92, kept.passwords.revision);
            page.set(128, self.security_status());
        }
        page.set(91, features.power_management.map_or(0, u16::from));
        page.set(94, features.acoustic_management.map_or(0, u16::from));
        let uncorrectable = on(overlay.has_extended(), WRITE_UNCORRECTABLE);
        page.set(119, VALID | uncorrectable);
        page.set(120, VALID | uncorrectable);
        if !self.setup.disk.read_only() && overlay.has_extended() {
            page.set(105, trim::MOST_BLOCKS);
            page.set(169, 0x0001);
            // Promised only where it is so.
            page.set(69, on(self.setup.disk.discarded_reads_as_zeros(), DETERMINISTIC_ZEROS));
        }
    }
}
