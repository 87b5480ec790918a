//! Requests ("Request message").

use crate::bytes::Reader;
use crate::{ErrorCode, ProtocolError};

/// Bytes of a request, without the payload of a write.
pub const REQUEST_LENGTH: usize = 28;

const MAGIC: u32 = 0x2560_9513;

bitflags::bitflags! {
    /// What a request asks for beyond its command ("Command flags").
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CommandFlags: u16 {
        /// What is written is durable before the answer.
        const FUA = 1 << 0;
        /// Zeros must not become a hole.
        const NO_HOLE = 1 << 1;
        /// A read is answered in one chunk.
        const DF = 1 << 2;
        /// One extent is enough.
        const REQ_ONE = 1 << 3;
        /// Zeros only if that is faster than writing them.
        const FAST_ZERO = 1 << 4;
    }
}

/// What a client wants ("Request types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Bytes of the export.
    Read,
    /// The payload, written.
    Write,
    /// To leave. There is no answer.
    Disconnect,
    /// Everything that was answered, durable.
    Flush,
    /// A range that is not needed any more.
    Trim,
    /// A range made ready to be read.
    Cache,
    /// A range of zeros.
    WriteZeroes,
    /// How a range is stored.
    BlockStatus,
    /// Something that this protocol does not have.
    Unknown(u16),
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is wanted.
    pub command: Command,
    /// Bits as they came; see [`Request::flags`].
    pub flag_bits: u16,
    /// Names the request in its answer.
    pub cookie: u64,
    /// First byte of the export.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Request {
    /// Decodes a request.
    pub fn decode(bytes: &[u8; REQUEST_LENGTH]) -> Result<Self, ProtocolError> {
        let mut reader = Reader::new(bytes);
        let (magic, flag_bits, command) = (reader.u32(), reader.u16(), reader.u16());
        let found = magic.unwrap_or_default();
        if found != MAGIC {
            return Err(ProtocolError::Magic {
                what: "A request",
                found: u64::from(found),
                expected: u64::from(MAGIC),
            });
        }
        let command = match command.unwrap_or_default() {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            other => Command::Unknown(other),
        };
        Ok(Self {
            command,
            flag_bits: flag_bits.unwrap_or_default(),
            cookie: reader.u64().unwrap_or_default(),
            offset: reader.u64().unwrap_or_default(),
            length: reader.u32().unwrap_or_default(),
        })
    }

    /// Bytes that follow the request.
    pub fn payload(&self) -> usize {
        match self.command {
            Command::Write => self.length as usize,
            _ => 0,
        }
    }

    /// The flags, if the command has all of them.
    pub fn flags(&self) -> Result<CommandFlags, ErrorCode> {
        // "A client MAY set FUA on any command" that changes something, and servers ignore it elsewhere.
        let allowed = CommandFlags::FUA
            | match self.command {
                Command::Read => CommandFlags::DF,
                Command::WriteZeroes => CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
                Command::BlockStatus => CommandFlags::REQ_ONE,
                _ => CommandFlags::empty(),
            };
        CommandFlags::from_bits(self.flag_bits)
            .filter(|flags| allowed.contains(*flags))
            .ok_or(ErrorCode::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(flags: u16, command: u16) -> [u8; REQUEST_LENGTH] {
        let mut bytes = [0; REQUEST_LENGTH];
        bytes[..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&command.to_be_bytes());
        bytes[8..16].copy_from_slice(&7u64.to_be_bytes());
        bytes[16..24].copy_from_slice(&0x1000u64.to_be_bytes());
        bytes[24..].copy_from_slice(&512u32.to_be_bytes());
        bytes
    }

    #[test]
    fn a_request_is_what_its_bytes_say() {
        let request = Request::decode(&bytes(1, 1)).expect("a request");
        let expected = Request {
            command: Command::Write,
            flag_bits: 1,
            cookie: 7,
            offset: 0x1000,
            length: 512,
        };
        assert_eq!(request, expected);
        assert_eq!((request.flags(), request.payload()), (Ok(CommandFlags::FUA), 512));
    }

    #[test]
    fn flags_belong_to_commands() {
        for (flags, command, valid) in [
            (2u16, 6u16, true),
            (2, 1, false),
            (4, 0, true),
            (8, 7, true),
            (8, 0, false),
            (16, 6, true),
            (1 << 9, 3, false),
        ] {
            let request = Request::decode(&bytes(flags, command)).expect("a request");
            assert_eq!(request.flags().is_ok(), valid, "{flags} {command}");
        }
    }

    #[test]
    fn what_is_no_request_is_an_error() {
        assert!(Request::decode(&[0; REQUEST_LENGTH]).is_err());
    }
}
