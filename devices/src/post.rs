//! Port 0x80: power-on self test codes, and the port that Linux writes to for a delay.

use crate::bus::ByteRegisters;

/// The diagnostic port.
pub const POST_PORT: u16 = 0x80;

/// Takes POST codes and forgets them.
#[derive(Debug, Default)]
pub struct PostCode;

impl ByteRegisters for PostCode {
    fn read_byte(&self, _port: u16) -> u8 {
        0xff
    }

    fn write_byte(&self, _port: u16, _value: u8) {}
}
