//! The command packet: 12 bytes with an operation code and big-endian fields (MMC-5, 4.2).

use super::sense::Sense;

/// Bytes of a packet (IDENTIFY PACKET DEVICE, word 0).
pub(super) const LENGTH: usize = 12;

/// A command packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet([u8; LENGTH]);

impl Packet {
    /// The packet in `bytes`; bytes that are missing are zeros.
    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut packet = [0; LENGTH];
        let length = bytes.len().min(LENGTH);
        packet[..length].copy_from_slice(&bytes[..length]);
        Self(packet)
    }

    pub(super) fn operation_code(&self) -> u8 {
        self.0[0]
    }

    pub(super) fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    pub(super) fn u24(&self, at: usize) -> u32 {
        u32::from_be_bytes([0, self.0[at], self.0[at + 1], self.0[at + 2]])
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// Whether all bits of `mask` in byte `at` are set.
    pub(super) fn has(&self, at: usize, mask: u8) -> bool {
        self.0[at] & mask == mask
    }

    /// Refuses the packet if a bit of `mask` in byte `at` is set: the drive does not have what it asks for.
    pub(super) fn refuse(&self, at: usize, mask: u8) -> Result<(), Sense> {
        if self.0[at] & mask == 0 {
            return Ok(());
        }
        Err(Sense::invalid_field(at as u16))
    }
}
