//! GET CONFIGURATION: profiles and features (MMC-5, 5.3 and 6.6).

use super::CdRom;
use super::answer::Answer;
use super::packet::Packet;
use super::sense::Sense;

const CD_ROM_PROFILE: u16 = 0x0008;
const DVD_ROM_PROFILE: u16 = 0x0010;

/// One feature.
struct Feature {
    code: u16,
    version: u8,
    /// The drive always has it.
    persistent: bool,
    current: bool,
    data: Vec<u8>,
}

impl Feature {
    fn into_bytes(self) -> Vec<u8> {
        let [high, low] = self.code.to_be_bytes();
        let flags = self.version << 2 | u8::from(self.persistent) << 1 | u8::from(self.current);
        let mut bytes = vec![high, low, flags, self.data.len() as u8];
        bytes.extend(self.data);
        bytes
    }
}

impl CdRom {
    pub(super) fn get_configuration(&self, packet: &Packet) -> Result<Answer, Sense> {
        let start = packet.u16(2);
        let features = self.features().into_iter();
        let chosen: Vec<Feature> = match packet.u8(1) & 0x03 {
            0 => features.filter(|feature| feature.code >= start).collect(),
            1 => features
                .filter(|feature| feature.code >= start && feature.current)
                .collect(),
            2 => features.filter(|feature| feature.code == start).collect(),
            _ => return Err(Sense::invalid_field(1)),
        };
        let mut bytes = vec![0; 8];
        bytes[6..8].copy_from_slice(&self.profile().unwrap_or(0).to_be_bytes());
        bytes.extend(chosen.into_iter().flat_map(Feature::into_bytes));
        let length = (bytes.len() - 4) as u32;
        bytes[..4].copy_from_slice(&length.to_be_bytes());
        Ok(Answer::reply(bytes, packet.u16(7).into()))
    }

    /// What kind of medium is in the drive.
    fn profile(&self) -> Option<u16> {
        let medium = self.tray.loaded().ok()?;
        Some(if medium.is_dvd() {
            DVD_ROM_PROFILE
        } else {
            CD_ROM_PROFILE
        })
    }

    /// All features, in order of their codes.
    fn features(&self) -> Vec<Feature> {
        let (profile, serial) = (self.profile(), self.identity.serial());
        let loaded = profile.is_some();
        let feature = |code, version, persistent, current, data: &[u8]| Feature {
            code,
            version,
            persistent,
            current,
            data: data.to_vec(),
        };
        let profiles: Vec<u8> = [DVD_ROM_PROFILE, CD_ROM_PROFILE]
            .into_iter()
            .flat_map(|known| {
                let [high, low] = known.to_be_bytes();
                [high, low, u8::from(profile == Some(known)), 0]
            })
            .collect();
        // A serial number takes whole words.
        let mut serial = serial.as_bytes().to_vec();
        serial.resize(serial.len().next_multiple_of(4), b' ');
        vec![
            feature(0x0000, 0, true, true, &profiles),
            // Core: ATAPI, device busy events are not there.
            feature(0x0001, 2, true, true, &[0, 0, 0, 2, 0, 0, 0, 0]),
            // Morphing: events are polled for.
            feature(0x0002, 1, true, true, &[0, 0, 0, 0]),
            // Removable medium: a tray, which loads, ejects and locks.
            feature(0x0003, 1, true, true, &[0x39, 0, 0, 0]),
            // Random readable: blocks of 2048 bytes, one a read at least; page 01 is there.
            feature(0x0010, 0, false, loaded, &[0, 0, 8, 0, 0, 1, 1, 0]),
            feature(0x001d, 0, true, true, &[]),
            // CD read: with error pointers, without CD-Text.
            feature(0x001e, 2, false, profile == Some(CD_ROM_PROFILE), &[0x02, 0, 0, 0]),
            feature(0x001f, 0, false, profile == Some(DVD_ROM_PROFILE), &[]),
            feature(0x0100, 0, true, true, &[]),
            // Timeouts, and real-time streaming without more than GET PERFORMANCE and SET CD SPEED.
            feature(0x0105, 1, true, true, &[0, 0, 0, 0]),
            feature(0x0108, 0, true, true, &serial),
        ]
    }
}
