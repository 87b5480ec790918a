//! Answers to requests: simple ones, and chunks of structured ones ("Simple reply message", "Structured reply chunk message").

use crate::ErrorCode;

/// The id of base:allocation in [`block_status`].
pub const ALLOCATION_CONTEXT: u32 = 1;

/// The longest text that goes with an error, in bytes.
const MAX_TEXT: usize = 512;

/// Flags of an extent in base:allocation: no space is taken, and it reads as zeros.
pub const STATE_HOLE: u32 = 1;
/// See [`STATE_HOLE`].
pub const STATE_ZERO: u32 = 2;

const DONE: u16 = 1;

/// The types of chunks.
mod chunk_type {
    pub(super) const NONE: u16 = 0;
    pub(super) const OFFSET_DATA: u16 = 1;
    pub(super) const BLOCK_STATUS: u16 = 5;
    pub(super) const ERROR: u16 = 1 << 15 | 1;
}

/// A simple reply. After a read that succeeded, the data follow.
pub fn simple(cookie: u64, error: Option<ErrorCode>) -> Vec<u8> {
    const MAGIC: u32 = 0x6744_6698;
    let mut bytes = MAGIC.to_be_bytes().to_vec();
    bytes.extend(error.map_or(0, |error| error as u32).to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes
}

/// The one chunk that says that all went well and there is no more to say.
pub fn done(cookie: u64) -> Vec<u8> {
    chunk(cookie, chunk_type::NONE, 0)
}

/// The head of the one chunk of data, of `length` bytes from byte `offset` of the export on, which follow.
pub fn data(cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = chunk(cookie, chunk_type::OFFSET_DATA, 8 + length);
    bytes.extend(offset.to_be_bytes());
    bytes
}

/// An error, with a text for people.
pub fn error(cookie: u64, error: ErrorCode, text: &str) -> Vec<u8> {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let text = &text.as_bytes()[..end];
    let mut bytes = chunk(cookie, chunk_type::ERROR, 6 + text.len() as u32);
    bytes.extend((error as u32).to_be_bytes());
    bytes.extend((text.len() as u16).to_be_bytes());
    bytes.extend_from_slice(text);
    bytes
}

/// How a range is stored in base:allocation: lengths in bytes, each with `STATE_` flags.
pub fn block_status(cookie: u64, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut bytes = chunk(cookie, chunk_type::BLOCK_STATUS, 4 + 8 * extents.len() as u32);
    bytes.extend(ALLOCATION_CONTEXT.to_be_bytes());
    for (length, flags) in extents {
        bytes.extend(length.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
    }
    bytes
}

/// The head of a chunk that is the last of its reply.
fn chunk(cookie: u64, kind: u16, length: u32) -> Vec<u8> {
    const MAGIC: u32 = 0x668e_33ef;
    let mut bytes = Vec::with_capacity(32);
    bytes.extend(MAGIC.to_be_bytes());
    bytes.extend(DONE.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_chunks_are_those_of_what_follows() {
        let length = |bytes: &[u8]| u32::from_be_bytes(bytes[16..20].try_into().expect("four")) as usize;
        let long = "é".repeat(1000);
        for bytes in [
            done(1),
            error(1, ErrorCode::Io, "text"),
            error(1, ErrorCode::Io, &long),
            block_status(1, &[(512, 0), (1024, 3)]),
        ] {
            assert_eq!(length(&bytes), bytes.len() - 20);
        }
        assert_eq!(length(&data(1, 0, 512)), 8 + 512);
    }
}
