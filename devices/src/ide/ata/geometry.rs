//! Cylinders, heads and sectors, for software that does not know LBA (ATA/ATAPI-5, 6.2).

use serde::{Deserialize, Serialize};

use crate::ide::registers::TaskFile;

/// A translation between CHS and LBA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Geometry {
    pub cylinders: u16,
    pub heads: u8,
    pub sectors: u8,
}

impl Geometry {
    /// The most sectors that CHS addresses: 16383 cylinders of 16 heads of 63 sectors.
    const MOST: u64 = 16_383 * 16 * 63;

    /// The translation after power-on, for a disk of this many sectors.
    pub(super) fn default_for(capacity: u64) -> Self {
        let cylinders = (capacity / (16 * 63)).clamp(1, 16_383);
        Self {
            cylinders: cylinders as u16,
            heads: 16,
            sectors: 63,
        }
    }

    /// The translation that INITIALIZE DEVICE PARAMETERS asks for; `None` without sectors.
    pub(super) fn translated(capacity: u64, heads: u8, sectors: u8) -> Option<Self> {
        let per_cylinder = u64::from(heads) * u64::from(sectors);
        let cylinders = capacity.min(Self::MOST).checked_div(per_cylinder)?.clamp(1, 65_535);
        Some(Self {
            cylinders: cylinders as u16,
            heads,
            sectors,
        })
    }

    /// Sectors that the translation reaches.
    pub(super) fn capacity(&self) -> u32 {
        u32::from(self.cylinders) * u32::from(self.heads) * u32::from(self.sectors)
    }

    /// Whether there is something to divide by.
    pub(super) fn is_sound(&self) -> bool {
        self.cylinders > 0 && (1..=16).contains(&self.heads) && self.sectors > 0
    }

    /// The LBA of the address in the task file; `None` where there is no such sector.
    pub(super) fn lba(&self, registers: &TaskFile) -> Option<u64> {
        let cylinder = u16::from_be_bytes([registers.lba_high.current, registers.lba_mid.current]);
        let head = registers.device & 0x0f;
        let sector = registers.lba_low.current;
        if cylinder >= self.cylinders || head >= self.heads || sector == 0 || sector > self.sectors {
            return None;
        }
        let track = u64::from(cylinder) * u64::from(self.heads) + u64::from(head);
        Some(track * u64::from(self.sectors) + u64::from(sector) - 1)
    }

    /// Puts the address of `lba` into the task file.
    pub(super) fn show(&self, registers: &mut TaskFile, lba: u64) {
        let (track, sector) = (lba / u64::from(self.sectors), lba % u64::from(self.sectors));
        let (cylinder, head) = (track / u64::from(self.heads), track % u64::from(self.heads));
        let [high, mid] = (cylinder.min(0xffff) as u16).to_be_bytes();
        registers.lba_low.current = sector as u8 + 1;
        registers.lba_mid.current = mid;
        registers.lba_high.current = high;
        registers.device = registers.device & 0xf0 | head as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sector_has_one_address() {
        let geometry = Geometry::translated(1000, 4, 17).expect("sectors");
        assert_eq!(geometry.cylinders, 14);
        let mut registers = TaskFile::default();
        for lba in 0..u64::from(geometry.capacity()) {
            geometry.show(&mut registers, lba);
            assert_eq!(geometry.lba(&registers), Some(lba));
        }
        geometry.show(&mut registers, u64::from(geometry.capacity()));
        assert_eq!(geometry.lba(&registers), None);
    }

    #[test]
    fn no_sectors_is_no_geometry() {
        assert_eq!(Geometry::translated(1000, 4, 0), None);
    }
}
