//! READ, READ CD and SEEK: what is on the medium (MMC-5, 6.16 to 6.25; SEEK in SFF-8020i, 10.8.29).

use super::answer::Answer;
use super::blocks::{Blocks, Layout};
use super::packet::Packet;
use super::sector::{Errors, Parts};
use super::sense::Sense;
use super::{CdRom, address};

impl CdRom {
    /// READ(10) and READ(12): `blocks` from the address in bytes 2 to 5.
    pub(super) fn read(&mut self, packet: &Packet, blocks: u32) -> Result<Answer, Sense> {
        // Relative addresses are obsolete.
        packet.refuse(1, 0x01)?;
        self.start_reading(packet.u32(2), blocks, Layout::Data)
    }

    pub(super) fn read_cd(&mut self, packet: &Packet) -> Result<Answer, Sense> {
        let layout = self.sector_layout(packet)?;
        self.start_reading(packet.u32(2), packet.u24(6), layout)
    }

    /// READ CD MSF: from a time up to another one.
    pub(super) fn read_cd_msf(&mut self, packet: &Packet) -> Result<Answer, Sense> {
        let layout = self.sector_layout(packet)?;
        let time = |at: usize| {
            address::block([packet.u8(at), packet.u8(at + 1), packet.u8(at + 2)]).ok_or(Sense::invalid_field(at as u16))
        };
        let (start, end) = (time(3)?, time(6)?);
        let blocks = end.checked_sub(start).ok_or(Sense::invalid_field(6))?;
        self.start_reading(start, blocks, layout)
    }

    pub(super) fn seek(&mut self, packet: &Packet) -> Result<Answer, Sense> {
        let block = packet.u32(2);
        self.tray.loaded()?.check(block, 1)?;
        self.position = block;
        Ok(Answer::Done)
    }

    fn start_reading(&mut self, first: u32, count: u32, layout: Layout) -> Result<Answer, Sense> {
        let blocks = Blocks::new(self.tray.loaded()?, self.tray.generation(), first, count, layout)?;
        self.position = first;
        if blocks.bytes() == 0 {
            return Ok(Answer::Done);
        }
        Ok(Answer::Read(blocks))
    }

    /// What READ CD wants of each sector (MMC-5, tables 350 to 354). All sectors are mode 1: they have no subheader,
    /// so that its selection means nothing.
    fn sector_layout(&self, packet: &Packet) -> Result<Layout, Sense> {
        // A DVD has no such sectors.
        if self.tray.loaded()?.is_dvd() {
            return Err(Sense::INCOMPATIBLE_MEDIUM);
        }
        match packet.u8(1) >> 2 & 0x07 {
            // Any, or mode 1.
            0 | 2 => {}
            1 | 3..=5 => return Err(Sense::WRONG_TRACK_MODE),
            _ => return Err(Sense::invalid_field(1)),
        }
        let errors = match packet.u8(9) >> 1 & 0x03 {
            0 => Errors::None,
            1 => Errors::Pointers,
            2 => Errors::PointersAndBlock,
            _ => return Err(Sense::invalid_field(9)),
        };
        let sub_channel_q = match packet.u8(10) & 0x07 {
            0 => false,
            2 => true,
            _ => return Err(Sense::invalid_field(10)),
        };
        let parts = Parts {
            sync: packet.has(9, 0x80),
            header: packet.has(9, 0x20),
            data: packet.has(9, 0x10),
            codes: packet.has(9, 0x08),
            errors,
            sub_channel_q,
        };
        // Sync without what follows it, and codes without what they are for, are combinations that do not exist.
        if parts.sync && parts.data && !parts.header || parts.codes && !parts.data {
            return Err(Sense::invalid_field(9));
        }
        let only_data = Parts {
            data: true,
            ..Parts::default()
        };
        Ok(if parts == only_data {
            Layout::Data
        } else {
            Layout::Parts(parts)
        })
    }
}
