//! READ DVD STRUCTURE: what the lead-in of a DVD says (MMC-5, 6.23).

use super::CdRom;
use super::answer::Answer;
use super::packet::Packet;
use super::sense::Sense;
use super::tray::Medium;

const PHYSICAL_FORMAT: u8 = 0x00;
const COPYRIGHT: u8 = 0x01;
const BURST_CUTTING_AREA: u8 = 0x03;
const MANUFACTURING: u8 = 0x04;
const LIST: u8 = 0xff;

/// Physical sector of block 0 of a DVD-ROM.
const FIRST_SECTOR: u32 = 0x03_0000;

impl CdRom {
    pub(super) fn read_dvd_structure(&self, packet: &Packet) -> Result<Answer, Sense> {
        let medium = self.tray.loaded()?;
        let (media_type, format, layer) = (packet.u8(1) & 0x0f, packet.u8(7), packet.u8(6));
        if media_type != 0 {
            return Err(Sense::invalid_field(1));
        }
        if !medium.is_dvd() {
            return Err(Sense::INCOMPATIBLE_MEDIUM);
        }
        let content = match format {
            PHYSICAL_FORMAT | MANUFACTURING if layer != 0 => return Err(Sense::invalid_field(6)),
            PHYSICAL_FORMAT => physical_format(medium),
            // No copy protection, and playable in all regions.
            COPYRIGHT => vec![0; 4],
            // There is none on the disc.
            BURST_CUTTING_AREA => return Err(Sense::invalid_field(7)),
            MANUFACTURING => vec![0; 2048],
            LIST => list(medium),
            _ => return Err(Sense::invalid_field(7)),
        };
        let mut bytes = vec![0; 4];
        bytes.extend(content);
        Ok(Answer::reply_with_length(bytes, packet.u16(8).into()))
    }
}

/// A DVD-ROM of 12 cm, one layer, track path parallel; the lead-in's copy is of 2048 bytes.
fn physical_format(medium: &Medium) -> Vec<u8> {
    let mut bytes = vec![0; 2048];
    // Version 1; maximum rate not specified; an embossed layer.
    bytes[0] = 0x01;
    bytes[1] = 0x0f;
    bytes[2] = 0x01;
    let last = FIRST_SECTOR.saturating_add(medium.blocks() - 1).min(0x00ff_ffff);
    bytes[4..8].copy_from_slice(&FIRST_SECTOR.to_be_bytes());
    bytes[8..12].copy_from_slice(&last.to_be_bytes());
    bytes
}

/// Format code, readable, length of each structure.
fn list(medium: &Medium) -> Vec<u8> {
    let structures = [
        (PHYSICAL_FORMAT, 4 + physical_format(medium).len()),
        (COPYRIGHT, 8),
        (MANUFACTURING, 4 + 2048),
    ];
    structures
        .into_iter()
        .flat_map(|(format, length)| {
            let [high, low] = (length as u16).to_be_bytes();
            [format, 0x40, high, low]
        })
        .collect()
}
