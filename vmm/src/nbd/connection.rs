//! One client: bytes that came, bytes that are to go, and what is between them. Nothing here waits.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use disk::stream::{Part, receive, send};
use nbd::{Agreement, Export, Negotiation, ProtocolError, REQUEST_LENGTH, Request, Step};

use super::job::{Capabilities, Job, MAX_PAYLOAD, Reply};

/// The most requests of one client in flight, replies that were not sent yet included.
pub const MAX_REQUESTS: usize = 128;

/// A client whose requests in flight hold more bytes than this is not read from: one request more is all that can come on top.
pub const MAX_BYTES: usize = 64 << 20;

/// How long a handshake may take.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(30);

/// Bytes that are read ahead; more than any message but a payload.
const INPUT: usize = 64 << 10;

/// A client that does not read the answers of its handshake is not read from when there are more bytes of them than this.
const MAX_ANSWERS: usize = 64 << 10;

/// Reads from one client before others have their turn.
const READS_AT_ONCE: usize = 64;

/// Replies that are sent by one system call.
const REPLIES_AT_ONCE: usize = 64;

/// A client, from its first byte to its last.
pub struct Connection {
    socket: OwnedFd,
    /// Who it is, for logs.
    peer: String,
    state: State,
    input: Input,
    /// How often the socket may be read before it is the others' turn; 0 once it has nothing more.
    reads_left: usize,
    /// Nothing is read any more; close when all is sent.
    leaving: bool,
    output: VecDeque<Reply>,
    /// How much of the first reply is sent, in bytes.
    sent: usize,
    in_flight: usize,
    bytes_in_flight: usize,
    handshake_until: Instant,
}

enum State {
    Negotiating(Negotiation),
    Transmitting(Agreement),
    /// A write whose payload is coming; `filled` bytes are here.
    Receiving {
        agreement: Agreement,
        job: Box<Job>,
        filled: usize,
    },
    /// A write that is refused, whose payload is coming all the same; `left` bytes of it.
    Skipping {
        agreement: Agreement,
        reply: Option<Reply>,
        left: usize,
    },
}

/// What a connection has to say when it is asked for work.
pub enum Next {
    /// A request for the disk.
    Job(Box<Job>),
    /// Nothing now.
    Wait,
    /// The client is gone, or cannot be understood.
    Gone(Gone),
}

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum Gone {
    /// The socket.
    #[error("{0}")]
    Socket(io::Error),
    /// The protocol.
    #[error("{0}")]
    Protocol(ProtocolError),
    /// A write that is too long even to be skipped.
    #[error("A write of {0} bytes is longer than the maximum block size of {MAX_PAYLOAD}")]
    PayloadTooLong(u32),
}

impl From<io::Error> for Gone {
    fn from(error: io::Error) -> Self {
        Gone::Socket(error)
    }
}

impl From<ProtocolError> for Gone {
    fn from(error: ProtocolError) -> Self {
        Gone::Protocol(error)
    }
}

impl Connection {
    /// Greets a client on `socket`, which must not block.
    pub fn new(socket: OwnedFd, peer: String) -> Self {
        let mut connection = Self {
            socket,
            peer,
            state: State::Negotiating(Negotiation::default()),
            input: Input::default(),
            reads_left: READS_AT_ONCE,
            leaving: false,
            output: VecDeque::new(),
            sent: 0,
            in_flight: 0,
            bytes_in_flight: 0,
            handshake_until: Instant::now() + HANDSHAKE_TIME,
        };
        connection.say(Negotiation::greeting());
        connection
    }

    /// The socket, to wait on.
    pub fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Who it is, for logs.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Whether the handshake succeeded.
    pub fn has_negotiated(&self) -> bool {
        !matches!(self.state, State::Negotiating(_))
    }

    /// Whether the handshake takes too long.
    pub fn is_late(&self, now: Instant) -> bool {
        !self.has_negotiated() && now >= self.handshake_until
    }

    /// The socket has something to read.
    pub fn set_readable(&mut self) {
        self.reads_left = READS_AT_ONCE;
    }

    /// Takes no more requests; what is in flight is still answered.
    pub fn leave(&mut self) {
        self.leaving = true;
    }

    /// Whether reading is of any use now.
    pub fn wants_input(&self) -> bool {
        !self.leaving && self.has_room()
    }

    /// Whether the socket did not take all that is to be sent.
    pub fn wants_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Whether everything is done that was to be done.
    pub fn is_over(&self) -> bool {
        self.leaving && self.in_flight == 0 && self.output.is_empty()
    }

    fn has_room(&self) -> bool {
        match self.state {
            State::Negotiating(_) => self.output.iter().map(|reply| reply.head.len()).sum::<usize>() < MAX_ANSWERS,
            State::Transmitting(_) => self.in_flight < MAX_REQUESTS && self.bytes_in_flight < MAX_BYTES,
            // This request is counted already.
            State::Receiving { .. } | State::Skipping { .. } => true,
        }
    }

    /// The next request, as far as one can be had without waiting.
    pub fn next(&mut self, export: &Export, capabilities: Capabilities) -> Next {
        loop {
            if !self.wants_input() {
                return Next::Wait;
            }
            let progress = match self.step(export, capabilities) {
                Ok(Some(job)) => return Next::Job(job),
                Ok(None) if self.leaving => return Next::Wait,
                Ok(None) => self.fill(),
                Err(gone) => return Next::Gone(gone),
            };
            match progress {
                Ok(true) => {}
                Ok(false) => return Next::Wait,
                Err(error) => return Next::Gone(error.into()),
            }
        }
    }

    /// Understands what has come. `None` when more must come first, or there is no room for more.
    fn step(&mut self, export: &Export, capabilities: Capabilities) -> Result<Option<Box<Job>>, Gone> {
        while self.wants_input() {
            match &mut self.state {
                State::Negotiating(negotiation) => {
                    let mut answers = Vec::new();
                    let step = negotiation.advance(export, self.input.bytes(), &mut answers)?;
                    if !answers.is_empty() {
                        self.say(answers);
                    }
                    match step {
                        Step::Incomplete => return Ok(None),
                        Step::Taken(count) => self.input.take(count),
                        Step::Transmission(count, agreement) => {
                            self.input.take(count);
                            self.state = State::Transmitting(agreement);
                        }
                        Step::Over => self.leave(),
                    }
                }
                State::Transmitting(agreement) => {
                    let agreement = *agreement;
                    let Some(bytes) = self.input.bytes().first_chunk::<REQUEST_LENGTH>() else {
                        return Ok(None);
                    };
                    let request = Request::decode(bytes)?;
                    self.input.take(REQUEST_LENGTH);
                    if let Some(job) = self.begin(request, agreement, capabilities)? {
                        return Ok(Some(job));
                    }
                }
                State::Receiving { agreement, job, filled } => {
                    let wanted = job.payload().len() - *filled;
                    let here = self.input.bytes();
                    let here = &here[..here.len().min(wanted)];
                    job.payload().copy_from_slice(*filled, here);
                    let count = here.len();
                    *filled += count;
                    self.input.take(count);
                    if *filled < job.payload().len() {
                        return Ok(None);
                    }
                    let next = State::Transmitting(*agreement);
                    if let State::Receiving { job, .. } = std::mem::replace(&mut self.state, next) {
                        return Ok(Some(job));
                    }
                }
                State::Skipping { agreement, reply, left } => {
                    let count = self.input.bytes().len().min(*left);
                    *left -= count;
                    self.input.take(count);
                    if *left > 0 {
                        return Ok(None);
                    }
                    let reply = reply.take();
                    self.state = State::Transmitting(*agreement);
                    if let Some(reply) = reply {
                        self.answer(reply);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Takes on one request. Returns it unless its payload is still to come, or it is answered already.
    fn begin(
        &mut self,
        request: Request,
        agreement: Agreement,
        capabilities: Capabilities,
    ) -> Result<Option<Box<Job>>, Gone> {
        if request.command == nbd::Command::Disconnect {
            self.leave();
            return Ok(None);
        }
        let payload = request.payload();
        if payload > MAX_PAYLOAD as usize {
            return Err(Gone::PayloadTooLong(request.length));
        }
        self.in_flight += 1;
        match Job::accept(request, agreement, capabilities) {
            Ok(job) => {
                self.bytes_in_flight += job.bytes();
                let job = Box::new(job);
                if payload == 0 {
                    return Ok(Some(job));
                }
                let filled = 0;
                self.state = State::Receiving { agreement, job, filled };
            }
            Err(reply) if payload == 0 => self.answer(reply),
            Err(reply) => {
                let reply = Some(reply);
                let left = payload;
                self.state = State::Skipping { agreement, reply, left };
            }
        }
        Ok(None)
    }

    /// Reads what the socket has: a payload to its place, anything else ahead. Returns whether anything came.
    fn fill(&mut self) -> io::Result<bool> {
        if self.reads_left == 0 {
            return Ok(false);
        }
        self.reads_left -= 1;
        let received = match &mut self.state {
            // What had come ahead is in the buffer already.
            State::Receiving { job, filled, .. } => {
                let payload = job.payload();
                let received = receive(&self.socket, payload, *filled..payload.len());
                if let Ok(count) = received {
                    *filled += count;
                }
                received
            }
            _ => self.input.fill(&self.socket),
        };
        match received {
            Ok(0) => {
                // The client says no more. What it asked for is still answered.
                self.leave();
                self.forget_unfinished();
                Ok(false)
            }
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.reads_left = 0;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// A request that did not come to its end is not in flight.
    pub fn forget_unfinished(&mut self) {
        let (agreement, bytes) = match &self.state {
            State::Receiving { agreement, job, .. } => (*agreement, job.bytes()),
            State::Skipping { agreement, .. } => (*agreement, 0),
            State::Negotiating(_) | State::Transmitting(_) => return,
        };
        self.state = State::Transmitting(agreement);
        self.in_flight -= 1;
        self.bytes_in_flight -= bytes;
    }

    /// Says something that answers no request.
    fn say(&mut self, head: Vec<u8>) {
        self.in_flight += 1;
        self.answer(Reply {
            head,
            payload: None,
            bytes: 0,
        });
    }

    /// Queues the reply to a request that is in flight.
    pub fn answer(&mut self, reply: Reply) {
        self.output.push_back(reply);
    }

    /// Sends as much as the socket takes.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            let mut parts = Vec::with_capacity(2 * self.output.len().min(REPLIES_AT_ONCE));
            let mut skip = self.sent;
            for reply in self.output.iter().take(REPLIES_AT_ONCE) {
                let head = &reply.head[skip.min(reply.head.len())..];
                skip -= reply.head.len().min(skip);
                if !head.is_empty() {
                    parts.push(Part::Bytes(head));
                }
                if let Some(payload) = &reply.payload {
                    parts.push(Part::Buffer(payload, skip..payload.len()));
                }
                skip = 0;
            }
            match send(&self.socket, &parts) {
                Ok(count) => self.take_sent(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes account of bytes that were sent.
    fn take_sent(&mut self, count: usize) {
        self.sent += count;
        while let Some(first) = self.output.front() {
            let length = first.head.len() + first.payload.as_ref().map_or(0, disk::Buffer::len);
            if self.sent < length {
                return;
            }
            self.sent -= length;
            self.in_flight -= 1;
            self.bytes_in_flight -= first.bytes;
            self.output.pop_front();
        }
    }
}

/// Bytes that were read and not understood yet.
struct Input {
    memory: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            memory: vec![0; INPUT].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }
}

impl Input {
    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    fn take(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads ahead, once. There is room, because no message is longer than this.
    fn fill(&mut self, socket: &OwnedFd) -> io::Result<usize> {
        if self.start > 0 {
            self.memory.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let count = rustix::io::read(socket, &mut self.memory[self.end..])?;
        self.end += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_handshake_must_end_in_time() {
        let (socket, _peer) = UnixStream::pair().expect("sockets");
        let mut connection = Connection::new(socket.into(), "a test".to_owned());
        let now = Instant::now();
        assert!(!connection.is_late(now));
        assert!(connection.is_late(now + HANDSHAKE_TIME));
        connection.state = State::Transmitting(Agreement::default());
        assert!(!connection.is_late(now + HANDSHAKE_TIME));
    }
}
