//! One request: the commands for the disk that it takes, one after the other, and the reply at the end.

use disk::{Buffer, Command as DiskCommand, DiskError, Extent, ExtentKind, Extents, SECTOR_SIZE};
use nbd::{Agreement, Command, CommandFlags, ErrorCode, Request, reply};

/// The longest payload of a request, in bytes.
pub const MAX_PAYLOAD: u32 = 32 << 20;

/// Ranges without a payload that are read or written piece by piece are so in pieces of this many bytes.
const PIECE: u64 = 1 << 20;

/// The most extents in one answer; a client that wants more asks again from where it ended.
const MAX_EXTENTS: usize = 2048;

/// What an export can do, as far as it decides what is answered.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// Size in bytes.
    pub size: u64,
    /// Whatever would change it is refused.
    pub read_only: bool,
    /// Zeros are stored as such, which is faster than writing them.
    pub fast_zero: bool,
}

/// A request that is being worked on.
#[derive(Debug)]
pub struct Job {
    request: Request,
    flags: CommandFlags,
    structured: bool,
    /// What is read or written.
    buffer: Buffer,
    extents: Extents,
    /// How many bytes of the range are done.
    done: u64,
    /// The flush of a request with FUA is on its way.
    flushing: bool,
}

/// A reply: its head, and the data that follow.
#[derive(Debug)]
pub struct Reply {
    /// The bytes of the protocol.
    pub head: Vec<u8>,
    /// The data of a read.
    pub payload: Option<Buffer>,
    /// Bytes that the request counted for while it was in flight.
    pub bytes: usize,
}

impl Job {
    /// Accepts a request. One that cannot be is answered at once.
    pub fn accept(request: Request, agreement: Agreement, export: Capabilities) -> Result<Self, Reply> {
        let job = Self {
            request,
            flags: request.flags().unwrap_or(CommandFlags::empty()),
            structured: agreement.structured_replies,
            buffer: Buffer::zeroed(0),
            extents: Extents::default(),
            done: 0,
            flushing: false,
        };
        let refused = match request.flags() {
            Err(error) => Some((error, "The command does not have these flags")),
            Ok(flags) => refusal(&request, flags, agreement, export),
        };
        match refused {
            Some((error, text)) => Err(job.refuse(error, text)),
            None => Ok(job.with_memory()),
        }
    }

    fn with_memory(mut self) -> Self {
        let length = u64::from(self.request.length);
        self.buffer = match self.request.command {
            Command::Read | Command::Write => Buffer::zeroed(length as usize),
            Command::Cache => Buffer::zeroed(length.min(PIECE) as usize),
            Command::WriteZeroes if self.flags.contains(CommandFlags::NO_HOLE) => {
                Buffer::zeroed(length.min(PIECE) as usize)
            }
            _ => self.buffer,
        };
        self
    }

    /// The memory that the payload of a write is to be put into.
    pub fn payload(&self) -> &Buffer {
        &self.buffer
    }

    /// Bytes that this holds.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The next command for the disk. `None` when all are done.
    pub fn next_command(&mut self) -> Option<DiskCommand> {
        let (start, length) = (self.request.offset, u64::from(self.request.length));
        let offset = start + self.done;
        let left = length - self.done;
        if left == 0 || self.flushing {
            return self.durability();
        }
        let (command, taken) = match self.request.command {
            Command::Read => (
                DiskCommand::Read {
                    offset,
                    buffer: self.buffer.clone(),
                },
                left,
            ),
            Command::Write => (
                DiskCommand::Write {
                    offset,
                    buffer: self.buffer.clone(),
                },
                left,
            ),
            Command::Trim => (DiskCommand::Discard { offset, length }, left),
            Command::WriteZeroes if !self.flags.contains(CommandFlags::NO_HOLE) => {
                (DiskCommand::WriteZeroes { offset, length }, left)
            }
            Command::WriteZeroes => {
                let buffer = self.piece(left);
                let taken = buffer.len() as u64;
                (DiskCommand::Write { offset, buffer }, taken)
            }
            Command::Cache => {
                let buffer = self.piece(left);
                let taken = buffer.len() as u64;
                (DiskCommand::Read { offset, buffer }, taken)
            }
            Command::BlockStatus => {
                let extents = self.extents.clone();
                (
                    DiskCommand::Map {
                        offset,
                        length,
                        extents,
                    },
                    left,
                )
            }
            Command::Flush | Command::Disconnect | Command::Unknown(_) => return self.durability(),
        };
        self.done += taken;
        Some(command)
    }

    /// The part of the buffer that the next piece takes.
    fn piece(&self, left: u64) -> Buffer {
        if left < self.buffer.len() as u64 {
            Buffer::zeroed(left as usize)
        } else {
            self.buffer.clone()
        }
    }

    /// The flush that a request ends with, once.
    fn durability(&mut self) -> Option<DiskCommand> {
        let changes = matches!(
            self.request.command,
            Command::Write | Command::WriteZeroes | Command::Trim
        );
        let wanted = self.request.command == Command::Flush || changes && self.flags.contains(CommandFlags::FUA);
        let flush = wanted && !self.flushing;
        self.flushing = true;
        flush.then_some(DiskCommand::Flush)
    }

    /// The reply, when all commands succeeded.
    pub fn succeed(self) -> Reply {
        let Request {
            command,
            cookie,
            offset,
            length,
            ..
        } = self.request;
        let bytes = self.bytes();
        let (head, payload) = match command {
            Command::Read if self.structured => (reply::data(cookie, offset, length), Some(self.buffer)),
            Command::Read => (reply::simple(cookie, None), Some(self.buffer)),
            Command::BlockStatus => {
                let one = self.flags.contains(CommandFlags::REQ_ONE);
                let mut extents = states(&self.extents.take(), offset, length);
                extents.truncate(if one { 1 } else { MAX_EXTENTS });
                if extents.is_empty() {
                    // The disk has said less than a sector; "data" is true of everything.
                    extents.push((length, 0));
                }
                (reply::block_status(cookie, &extents), None)
            }
            _ if self.structured => (reply::done(cookie), None),
            _ => (reply::simple(cookie, None), None),
        };
        Reply { head, payload, bytes }
    }

    /// The reply, when a command failed.
    pub fn fail(self, error: &DiskError) -> Reply {
        let code = match error {
            DiskError::OutOfRange { .. } | DiskError::Unaligned { .. } => ErrorCode::Invalid,
            DiskError::ReadOnly => ErrorCode::NotPermitted,
            DiskError::Closed => ErrorCode::ShuttingDown,
            error if error.is_no_space() => ErrorCode::NoSpace,
            _ => ErrorCode::Io,
        };
        self.refuse(code, &error.to_string())
    }

    fn refuse(self, error: ErrorCode, text: &str) -> Reply {
        let cookie = self.request.cookie;
        let head = if self.structured {
            reply::error(cookie, error, text)
        } else {
            reply::simple(cookie, Some(error))
        };
        Reply {
            head,
            payload: None,
            bytes: self.bytes(),
        }
    }
}

/// Why a request is not even tried.
fn refusal(
    request: &Request,
    flags: CommandFlags,
    agreement: Agreement,
    export: Capabilities,
) -> Option<(ErrorCode, &'static str)> {
    let writes = matches!(request.command, Command::Write | Command::Trim | Command::WriteZeroes);
    if writes && export.read_only {
        return Some((ErrorCode::NotPermitted, "The export is read-only"));
    }
    match request.command {
        // Its offset and length mean nothing.
        Command::Flush => return None,
        Command::Unknown(_) | Command::Disconnect => return Some((ErrorCode::Invalid, "There is no such command")),
        Command::Read | Command::Write if request.length > MAX_PAYLOAD => {
            return Some((ErrorCode::Invalid, "The payload is longer than the maximum block size"));
        }
        Command::BlockStatus if !agreement.allocation => {
            return Some((ErrorCode::Invalid, "No metadata context was negotiated"));
        }
        Command::WriteZeroes
            if flags.contains(CommandFlags::FAST_ZERO)
                && (!export.fast_zero || flags.contains(CommandFlags::NO_HOLE)) =>
        {
            return Some((ErrorCode::NotSupported, "These zeros would have to be written"));
        }
        _ => {}
    }
    let length = u64::from(request.length);
    if length == 0 {
        return Some((ErrorCode::Invalid, "The length is zero"));
    }
    if !request.offset.is_multiple_of(SECTOR_SIZE) || !length.is_multiple_of(SECTOR_SIZE) {
        return Some((
            ErrorCode::Invalid,
            "Offset and length must be multiples of the minimum block size, 512",
        ));
    }
    if request.offset.checked_add(length).is_none_or(|end| end > export.size) {
        let error = if writes { ErrorCode::NoSpace } else { ErrorCode::Invalid };
        return Some((error, "The range ends beyond the export"));
    }
    None
}

/// Extents of the disk as base:allocation says them: from `offset` on, at most `length` bytes, whole sectors. What a sector holds
/// besides a hole makes it data.
fn states(extents: &[Extent], offset: u64, length: u32) -> Vec<(u32, u32)> {
    let limit = offset + u64::from(length);
    let mut states: Vec<(u32, u32)> = Vec::new();
    let mut at = offset;
    for extent in extents {
        let end = extent.offset + extent.length;
        let (end, state) = match extent.kind {
            ExtentKind::Data => (end.next_multiple_of(SECTOR_SIZE), 0),
            ExtentKind::Zero | ExtentKind::Unallocated => {
                (end - end % SECTOR_SIZE, reply::STATE_HOLE | reply::STATE_ZERO)
            }
        };
        let end = end.min(limit);
        if end <= at {
            continue;
        }
        // Not more than `length`, which has 32 bits.
        let run = (end - at) as u32;
        match states.last_mut() {
            Some((last, same)) if *same == state => *last += run,
            _ => states.push((run, state)),
        }
        at = end;
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPORT: Capabilities = Capabilities {
        size: 8 << 30,
        read_only: false,
        fast_zero: true,
    };

    const AGREED: Agreement = Agreement {
        structured_replies: true,
        allocation: true,
    };

    fn request(command: Command, flags: CommandFlags, offset: u64, length: u32) -> Request {
        Request {
            command,
            flag_bits: flags.bits(),
            cookie: 1,
            offset,
            length,
        }
    }

    /// The commands that a request takes, by name and range.
    fn commands(request: Request) -> Vec<(&'static str, u64, u64)> {
        let mut job = Job::accept(request, AGREED, EXPORT).expect("accepted");
        let mut commands = Vec::new();
        while let Some(command) = job.next_command() {
            let (offset, length) = command.range();
            let name = match command {
                DiskCommand::Read { .. } => "read",
                DiskCommand::Write { .. } => "write",
                DiskCommand::Flush => "flush",
                DiskCommand::Discard { .. } => "discard",
                DiskCommand::WriteZeroes { .. } => "zeroes",
                DiskCommand::Map { .. } => "map",
            };
            commands.push((name, offset, length));
        }
        commands
    }

    #[test]
    fn requests_become_commands_of_the_disk() {
        let none = CommandFlags::empty();
        let fua = CommandFlags::FUA;
        let piece = PIECE as u32;
        let cases = [
            (request(Command::Read, fua, 512, 1024), vec![("read", 512, 1024)]),
            (request(Command::Flush, none, 0, 0), vec![("flush", 0, 0)]),
            (
                request(Command::Write, fua, 0, 512),
                vec![("write", 0, 512), ("flush", 0, 0)],
            ),
            (
                request(Command::Trim, fua, 0, 512),
                vec![("discard", 0, 512), ("flush", 0, 0)],
            ),
            (
                request(Command::WriteZeroes, none, 0, 1 << 31),
                vec![("zeroes", 0, 1 << 31)],
            ),
            (
                request(Command::WriteZeroes, CommandFlags::NO_HOLE, 512, piece + 512),
                vec![("write", 512, PIECE), ("write", 512 + PIECE, 512)],
            ),
            (
                request(Command::Cache, none, 0, piece + 512),
                vec![("read", 0, PIECE), ("read", PIECE, 512)],
            ),
            (
                request(Command::BlockStatus, none, 0, 1 << 31),
                vec![("map", 0, 1 << 31)],
            ),
        ];
        for (request, expected) in cases {
            assert_eq!(commands(request), expected, "{request:?}");
        }
    }

    /// The error code in a structured reply.
    fn code(reply: &Reply) -> u32 {
        u32::from_be_bytes(reply.head[20..24].try_into().expect("four bytes"))
    }

    #[test]
    fn requests_that_cannot_be_are_refused() {
        let none = CommandFlags::empty();
        let end = EXPORT.size;
        let cases = [
            (request(Command::Read, none, 0, 0), 22),
            (request(Command::Read, none, 1, 512), 22),
            (request(Command::Read, none, 0, 511), 22),
            (request(Command::Read, none, end, 512), 22),
            (request(Command::Read, none, u64::MAX - 511, 512), 22),
            (request(Command::Read, none, 0, MAX_PAYLOAD + 512), 22),
            (request(Command::Write, none, end - 512, 1024), 28),
            (request(Command::Write, CommandFlags::DF, 0, 512), 22),
            (request(Command::Unknown(99), none, 0, 512), 22),
            (
                request(
                    Command::WriteZeroes,
                    CommandFlags::FAST_ZERO | CommandFlags::NO_HOLE,
                    0,
                    512,
                ),
                95,
            ),
        ];
        for (request, expected) in cases {
            let reply = Job::accept(request, AGREED, EXPORT).expect_err("refused");
            assert_eq!(code(&reply), expected, "{request:?}");
        }
        let read_only = Capabilities {
            read_only: true,
            ..EXPORT
        };
        let reply = Job::accept(request(Command::Trim, none, 0, 512), AGREED, read_only).expect_err("refused");
        assert_eq!(code(&reply), 1);
        let status = request(Command::BlockStatus, none, 0, 512);
        let reply = Job::accept(status, Agreement::default(), EXPORT).expect_err("refused");
        assert_eq!(reply.head[4..8], 22u32.to_be_bytes());
    }

    #[test]
    fn extents_become_states_of_whole_sectors() {
        let extent = |offset, length, kind| Extent {
            offset,
            length,
            kind,
            depth: 0,
            host_offset: None,
            compressed: false,
        };
        let extents = [
            extent(512, 1000, ExtentKind::Data),
            extent(1512, 536, ExtentKind::Zero),
            extent(2048, 512, ExtentKind::Unallocated),
            extent(2560, 512, ExtentKind::Data),
            extent(3072, 1 << 40, ExtentKind::Unallocated),
        ];
        assert_eq!(states(&extents, 512, 4096), [(1024, 0), (1024, 3), (512, 0), (1536, 3)]);
        assert_eq!(states(&extents, 512, 512), [(512, 0)]);
    }
}
