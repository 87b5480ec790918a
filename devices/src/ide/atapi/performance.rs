//! SET CD SPEED and GET PERFORMANCE: speeds that are told, and change nothing (MMC-5, 6.8 and 6.37).

use super::CdRom;
use super::answer::Answer;
use super::packet::Packet;
use super::sense::Sense;

impl CdRom {
    pub(super) fn set_cd_speed(&mut self, packet: &Packet) -> Answer {
        self.parameters.set_speed(packet.u16(2));
        Answer::Done
    }

    /// One speed from the first block to the last: that of reading, since nothing is written.
    pub(super) fn get_performance(&self, packet: &Packet) -> Result<Answer, Sense> {
        let medium = self.tray.loaded()?;
        // Only the nominal performance, in steps of any size.
        if packet.u8(10) != 0 {
            return Err(Sense::invalid_field(10));
        }
        // Writing, or exceptions only.
        packet.refuse(1, 0x07)?;
        let (last, speed) = (medium.blocks() - 1, u32::from(self.parameters.speed()));
        let mut bytes = vec![0; 8];
        if packet.u16(8) > 0 {
            for field in [0, speed, last, speed] {
                bytes.extend(field.to_be_bytes());
            }
        }
        let length = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        // Memory for this many descriptors.
        Ok(Answer::reply(bytes, 8 + 16 * usize::from(packet.u16(8))))
    }
}
