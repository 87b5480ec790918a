//! The Network Block Device protocol as a server speaks it: bytes in, checked messages out, and back.
//!
//! # Architecture
//!
//! A connection begins with [`Negotiation`], which takes the client's options off the bytes that came and says what to answer,
//! until both sides agree on an export and on how to talk ([`Agreement`]). From then on each [`Request`] is
//! decoded alone, and [`reply`] makes the answers.
//!
//! Nothing here reads or writes a socket or a disk, waits, or keeps more than a few bytes: a server of any kind can stand on it,
//! and a fuzzer can feed it. The names of fields and constants are those of the specification
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>), to which the comments refer by section.
//!
//! # Error model
//!
//! A client that breaks the protocol so that nothing after it can be understood is a [`ProtocolError`], and its connection must be closed.
//! Whatever can be answered is answered with an error of the protocol. Nothing that a client sends makes this crate panic.

#![forbid(unsafe_code)]

mod bytes;
mod negotiation;
mod option;
pub mod reply;
mod request;

pub use negotiation::{Agreement, BlockSizes, Export, Negotiation, Step};
pub use option::MAX_OPTION_LENGTH;
pub use request::{Command, CommandFlags, REQUEST_LENGTH, Request};

bitflags::bitflags! {
    /// What an export can do ("Transmission flags").
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TransmissionFlags: u16 {
        /// Always set.
        const HAS_FLAGS = 1 << 0;
        /// Writes are refused.
        const READ_ONLY = 1 << 1;
        /// [`Command::Flush`] is understood.
        const SEND_FLUSH = 1 << 2;
        /// [`CommandFlags::FUA`] is understood.
        const SEND_FUA = 1 << 3;
        /// The disk is a spinning one.
        const ROTATIONAL = 1 << 4;
        /// [`Command::Trim`] is understood.
        const SEND_TRIM = 1 << 5;
        /// [`Command::WriteZeroes`] is understood.
        const SEND_WRITE_ZEROES = 1 << 6;
        /// [`CommandFlags::DF`] is understood.
        const SEND_DF = 1 << 7;
        /// What one connection wrote and flushed, another one reads; a flush covers the writes of all.
        const CAN_MULTI_CONN = 1 << 8;
        /// [`Command::Cache`] is understood.
        const SEND_CACHE = 1 << 10;
        /// [`CommandFlags::FAST_ZERO`] is understood.
        const SEND_FAST_ZERO = 1 << 11;
    }
}

/// Errors that a reply can carry ("Error values").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// EPERM: the export is read-only.
    NotPermitted = 1,
    /// EIO.
    Io = 5,
    /// ENOMEM.
    OutOfMemory = 12,
    /// EINVAL: the request is not a valid one.
    Invalid = 22,
    /// ENOSPC: no room, or a write beyond the end.
    NoSpace = 28,
    /// EOVERFLOW: more than fits into a reply.
    Overflow = 75,
    /// ENOTSUP: zeros would not be faster than a write.
    NotSupported = 95,
    /// ESHUTDOWN: the server is about to end.
    ShuttingDown = 108,
}

/// A client that cannot be understood any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The client's first word.
    #[error("Client flags are {found:#x}; bits 0 and 1 are known")]
    ClientFlags {
        /// What came.
        found: u32,
    },
    /// An option, or a request, that does not begin as one.
    #[error("{what} begins with {found:#x} instead of {expected:#x}")]
    Magic {
        /// What it should be.
        what: &'static str,
        /// What came.
        found: u64,
        /// What announces such a thing.
        expected: u64,
    },
    /// An option that is longer than any can be.
    #[error("Option {option} has {length} bytes; at most {MAX_OPTION_LENGTH} are taken")]
    OptionTooLong {
        /// Its number.
        option: u32,
        /// Its length in bytes.
        length: u32,
    },
    /// A client that negotiates without end.
    #[error("The client sent more than {0} options")]
    TooManyOptions(u32),
    /// NBD_OPT_EXPORT_NAME has no other way to say no.
    #[error("There is no export \"{0}\"")]
    NoSuchExport(String),
}
