//! Medium, tray and events: START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, GET EVENT STATUS NOTIFICATION, MECHANISM
//! STATUS (MMC-5, 6.7, 6.10, 6.14, 6.42).

use super::CdRom;
use super::answer::Answer;
use super::packet::Packet;
use super::sense::Sense;

/// The media class of events, as a number and as a bit.
const MEDIA: u8 = 4;
const MEDIA_CLASS: u8 = 1 << MEDIA;
/// In the header: there is no event of a class that was asked for.
const NO_EVENT_AVAILABLE: u8 = 1 << 7;

impl CdRom {
    pub(super) fn start_stop_unit(&mut self, packet: &Packet) -> Result<Answer, Sense> {
        let (start, load_or_eject) = (packet.has(4, 0x01), packet.has(4, 0x02));
        match (packet.u8(4) >> 4, load_or_eject, start) {
            // Power conditions: active, idle, standby, and sleep, which asks for a reset at the ATA level only.
            (1..=3 | 5, _, _) => {}
            (0, true, false) => self.tray.eject()?,
            (0, true, true) => self.tray.load(),
            // Spinning up takes a disc; spinning down does not.
            (0, false, true) => drop(self.tray.loaded()?),
            (0, false, false) => {}
            _ => return Err(Sense::invalid_field(4)),
        }
        Ok(Answer::Done)
    }

    pub(super) fn prevent_allow_medium_removal(&mut self, packet: &Packet) -> Answer {
        // Bit 1 is a second, persistent lock for changers; one lock serves both.
        self.tray.lock(packet.u8(4) & 0x03 != 0);
        Answer::Done
    }

    pub(super) fn get_event_status_notification(&mut self, packet: &Packet) -> Result<Answer, Sense> {
        // Events are polled for: there is no tagged queue to wait in.
        if !packet.has(1, 0x01) {
            return Err(Sense::invalid_field(1));
        }
        let allocated = usize::from(packet.u16(7));
        let mut bytes = vec![0, 0, NO_EVENT_AVAILABLE, MEDIA_CLASS];
        if packet.has(4, MEDIA_CLASS) {
            bytes[2] = MEDIA;
            // Who has room for the header alone does not see the event, so it stays.
            let event = if allocated > 4 { self.tray.take_event() } else { None };
            let present = self.tray.loaded().is_ok();
            let status = u8::from(self.tray.is_open()) | u8::from(present) << 1;
            bytes.extend([event.map_or(0, |event| event as u8), status, 0, 0]);
        }
        Ok(Answer::reply_with_length(bytes, allocated))
    }

    pub(super) fn mechanism_status(&self, packet: &Packet) -> Answer {
        let [_, high, middle, low] = self.position.to_be_bytes();
        // No changer, so no slots; idle; whether the door is open; where the laser is.
        let door = u8::from(self.tray.is_open()) << 4;
        Answer::reply(vec![0, door, high, middle, low, 0, 0, 0], packet.u16(8).into())
    }
}
