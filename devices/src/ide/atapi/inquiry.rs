//! INQUIRY: who the drive is, in the terms of SCSI (SPC-3, 6.4 and 7.6).

use super::answer::Answer;
use super::packet::Packet;
use super::sense::Sense;
use super::{super::identity::Identity, CdRom};

/// A CD or DVD drive.
const PERIPHERAL: u8 = 0x05;
const VENDOR: &str = "SPINDLE";

/// Vital product data pages.
const SUPPORTED_PAGES: u8 = 0x00;
const UNIT_SERIAL_NUMBER: u8 = 0x80;
const DEVICE_IDENTIFICATION: u8 = 0x83;

impl CdRom {
    pub(super) fn inquiry(&self, packet: &Packet) -> Result<Answer, Sense> {
        // Command support data is obsolete.
        packet.refuse(1, 0x02)?;
        let allocated = packet.u16(3);
        let page = packet.u8(2);
        let bytes = match (packet.has(1, 0x01), page) {
            (true, _) => vital_product_data(&self.identity, page).ok_or(Sense::invalid_field(2))?,
            (false, 0) => standard(&self.identity),
            (false, _) => return Err(Sense::invalid_field(2)),
        };
        Ok(Answer::reply(bytes, allocated.into()))
    }
}

fn standard(identity: &Identity) -> Vec<u8> {
    // Removable; SPC-3, and its response format.
    let mut bytes = vec![PERIPHERAL, 0x80, 0x05, 0x02, 0, 0, 0, 0];
    bytes.extend(padded(VENDOR, 8));
    bytes.extend(padded(identity.model(), 16));
    bytes.extend(padded(identity.firmware(), 4));
    bytes[4] = (bytes.len() - 5) as u8;
    bytes
}

fn vital_product_data(identity: &Identity, page: u8) -> Option<Vec<u8>> {
    let content = match page {
        SUPPORTED_PAGES => vec![SUPPORTED_PAGES, UNIT_SERIAL_NUMBER, DEVICE_IDENTIFICATION],
        UNIT_SERIAL_NUMBER => identity.serial().into(),
        DEVICE_IDENTIFICATION => device_identification(identity),
        _ => return None,
    };
    let mut bytes = vec![PERIPHERAL, page, 0, content.len() as u8];
    bytes.extend(content);
    Some(bytes)
}

/// One designator: ASCII, of the logical unit, based on the vendor, which is followed by what this vendor chose.
fn device_identification(identity: &Identity) -> Vec<u8> {
    let mut name = padded(VENDOR, 8);
    name.extend(padded(identity.model(), 16));
    name.extend(identity.serial().bytes());
    let mut bytes = vec![0x02, 0x01, 0x00, name.len() as u8];
    bytes.extend(name);
    bytes
}

/// The first `length` characters, or as many with spaces behind.
fn padded(text: &str, length: usize) -> Vec<u8> {
    text.bytes().chain(std::iter::repeat(b' ')).take(length).collect()
}
