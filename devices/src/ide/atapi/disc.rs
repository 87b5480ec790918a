//! What the disc is: its capacity, its table of contents, its one session and its one track (MMC-5, 6.22 to 6.31).

use super::answer::Answer;
use super::packet::Packet;
use super::sense::Sense;
use super::{CdRom, address};

/// The Q sub-channel's control and address fields for a data track, whose address is its position.
const DATA_TRACK: u8 = 0x14;
/// The number that tables of contents give the lead-out.
const LEAD_OUT: u8 = 0xaa;
/// Byte 1: addresses are times.
const AS_TIME: u8 = 0x02;

impl CdRom {
    pub(super) fn read_capacity(&self) -> Result<Answer, Sense> {
        let last = self.tray.loaded()?.blocks() - 1;
        let mut bytes = last.to_be_bytes().to_vec();
        bytes.extend(2048u32.to_be_bytes());
        Ok(Answer::Reply(bytes))
    }

    pub(super) fn read_toc(&self, packet: &Packet) -> Result<Answer, Sense> {
        let lead_out = self.tray.loaded()?.blocks();
        let as_time = packet.has(1, AS_TIME);
        let form = |block| address::in_form(block, as_time);
        let first = packet.u8(6);
        // Drives before MMC had the format in the last byte.
        let format = match packet.u8(2) & 0x0f {
            0 => packet.u8(9) >> 6,
            format => format,
        };
        let bytes = match format {
            0 => table_of_contents(first, form(0), form(lead_out)).ok_or(Sense::invalid_field(6))?,
            1 => session_information(form(0)),
            2 if first <= 1 => raw_table_of_contents(lead_out),
            2 => return Err(Sense::invalid_field(6)),
            _ => return Err(Sense::invalid_field(2)),
        };
        Ok(Answer::reply_with_length(bytes, packet.u16(7).into()))
    }

    pub(super) fn read_sub_channel(&self, packet: &Packet) -> Result<Answer, Sense> {
        self.tray.loaded()?;
        // Nothing plays, and there was nothing to play.
        let mut bytes = vec![0, 0x15, 0, 0];
        if packet.has(2, 0x40) {
            bytes.extend(self.sub_channel_data(packet)?);
        }
        let length = (bytes.len() - 4) as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        Ok(Answer::reply(bytes, packet.u16(7).into()))
    }

    fn sub_channel_data(&self, packet: &Packet) -> Result<Vec<u8>, Sense> {
        let form = |block| address::in_form(block, packet.has(1, AS_TIME));
        match packet.u8(3) {
            // The position, from the disc's and from the track's beginning.
            1 => {
                let mut bytes = vec![1, DATA_TRACK, 1, 1];
                bytes.extend(form(self.position));
                bytes.extend(form(self.position));
                Ok(bytes)
            }
            // Media catalogue number; international standard recording code of track 1: there are none.
            2 => Ok([&[2][..], &[0; 19]].concat()),
            3 if packet.u8(6) == 1 => Ok([&[3, DATA_TRACK, 1][..], &[0; 17]].concat()),
            3 => Err(Sense::invalid_field(6)),
            _ => Err(Sense::invalid_field(3)),
        }
    }

    pub(super) fn read_disc_information(&self, packet: &Packet) -> Result<Answer, Sense> {
        self.tray.loaded()?;
        // Only the standard information; a disc that cannot be written has no other.
        packet.refuse(1, 0x07)?;
        let mut bytes = vec![0; 34];
        // The disc and its last session are complete.
        bytes[2] = 0x0e;
        // First track of the disc, sessions, first and last track of the last session.
        bytes[3..7].fill(1);
        // Unrestricted use.
        bytes[7] = 0x20;
        // Where the next session would begin and end: nowhere.
        bytes[16..24].fill(0xff);
        Ok(Answer::reply_with_length(bytes, packet.u16(7).into()))
    }

    pub(super) fn read_track_information(&self, packet: &Packet) -> Result<Answer, Sense> {
        let blocks = self.tray.loaded()?.blocks();
        let number = packet.u32(2);
        let exists = match packet.u8(1) & 0x03 {
            // The track that a block is on; a track by its number; the first track of a session.
            0 => number < blocks,
            1 | 2 => number == 1,
            _ => return Err(Sense::invalid_field(1)),
        };
        if !exists {
            return Err(Sense::invalid_field(2));
        }
        let mut bytes = vec![0; 36];
        // Track and session; a data track, in mode 1.
        bytes[2..4].fill(1);
        bytes[5] = DATA_TRACK & 0x0f;
        bytes[6] = 0x01;
        bytes[24..28].copy_from_slice(&blocks.to_be_bytes());
        Ok(Answer::reply_with_length(bytes, packet.u16(7).into()))
    }
}

/// Format 0: the tracks from `first` on, and the lead-out. `None` if there are none from there on.
fn table_of_contents(first: u8, start: [u8; 4], lead_out: [u8; 4]) -> Option<Vec<u8>> {
    if first > 1 && first != LEAD_OUT {
        return None;
    }
    let mut bytes = vec![0, 0, 1, 1];
    for (track, address) in [(1, start), (LEAD_OUT, lead_out)] {
        if track >= first {
            bytes.extend([0, DATA_TRACK, track, 0]);
            bytes.extend(address);
        }
    }
    Some(bytes)
}

/// Format 1: the first and last session, and where the first track of the last one is.
fn session_information(start: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 1, 0, DATA_TRACK, 1, 0];
    bytes.extend(start);
    bytes
}

/// Format 2: the lead-in as it is on the disc: the first track's number, the last one's, the lead-out and the track.
fn raw_table_of_contents(lead_out: u32) -> Vec<u8> {
    let time = address::minute_second_frame;
    let mut bytes = vec![0, 0, 1, 1];
    for (point, [minute, second, frame]) in [
        (0xa0, [1, 0, 0]),
        (0xa1, [1, 0, 0]),
        (0xa2, time(lead_out)),
        (1, time(0)),
    ] {
        bytes.extend([1, DATA_TRACK, 0, point, 0, 0, 0, 0, minute, second, frame]);
    }
    bytes
}
