//! What comes of a packet command that does not fail.

use super::blocks::Blocks;

/// How a packet command goes on.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is done, without data.
    Done,
    /// The host gets these bytes.
    Reply(Vec<u8>),
    /// The host gets what the medium holds.
    Read(Blocks),
    /// The host sends a parameter list of this many bytes, of which there is at least one.
    Take(usize),
}

impl Answer {
    /// What fits into the space that the host has allocated. To have less than there is to tell is no error (SPC-3,
    /// 4.3.4.6).
    pub(super) fn reply(mut bytes: Vec<u8>, allocated: usize) -> Self {
        bytes.truncate(allocated);
        if bytes.is_empty() {
            return Self::Done;
        }
        Self::Reply(bytes)
    }

    /// Fills in the length at the head of `bytes`: 16 bits that do not count themselves.
    pub(super) fn reply_with_length(mut bytes: Vec<u8>, allocated: usize) -> Self {
        let length = (bytes.len() - 2) as u16;
        bytes[..2].copy_from_slice(&length.to_be_bytes());
        Self::reply(bytes, allocated)
    }
}
