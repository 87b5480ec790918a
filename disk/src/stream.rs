//! Buffers to and from a stream, such as a socket, without copying them on the way.
#![expect(unsafe_code, reason = "the kernel reads and writes memory that is never borrowed")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use smallvec::SmallVec;

use crate::Buffer;

/// The longest list of memory segments that the kernel takes (UIO_MAXIOV).
const MAX_SEGMENTS: usize = 1024;

/// A part of what is to be sent.
#[derive(Clone, Debug)]
pub enum Part<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// A range of a buffer.
    Buffer(&'a Buffer, Range<usize>),
}

/// Sends the parts in order, in one system call, without a SIGPIPE. Returns how many bytes the socket took.
pub fn send(socket: impl AsFd, parts: &[Part<'_>]) -> io::Result<usize> {
    let mut segments: SmallVec<[libc::iovec; 16]> = SmallVec::new();
    for part in parts {
        match part {
            Part::Bytes(bytes) => segments.push(libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            }),
            Part::Buffer(buffer, range) => segments.extend(buffer.iovecs(range.clone())),
        }
    }
    // SAFETY: all zeros are a valid msghdr: no address, no segments, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = segments.as_mut_ptr();
    message.msg_iovlen = segments.len().min(MAX_SEGMENTS);
    // SAFETY: `message` names `msg_iovlen` segments, each memory that `parts` keeps alive and that is only read.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Fills a range of `buffer` from its start with what `stream` has. Returns how many bytes that were, 0 at the end of the stream.
pub fn receive(stream: impl AsFd, buffer: &Buffer, range: Range<usize>) -> io::Result<usize> {
    let segments: SmallVec<[libc::iovec; 4]> = buffer.iovecs(range).take(MAX_SEGMENTS).collect();
    let count = segments.len() as libc::c_int;
    // SAFETY: the segments name memory that `buffer` keeps alive, and nobody borrows it.
    let received = unsafe { libc::readv(stream.as_fd().as_raw_fd(), segments.as_ptr(), count) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn parts_arrive_in_order_and_in_place() {
        let (here, there) = UnixStream::pair().expect("sockets");
        let payload = Buffer::from_slice(b"0123456789");
        let parts = [Part::Bytes(b"head"), Part::Buffer(&payload, 2..6), Part::Bytes(b"!")];
        assert_eq!(send(&here, &parts).expect("sent"), 9);
        let target = Buffer::zeroed(16);
        assert_eq!(receive(&there, &target, 1..16).expect("received"), 9);
        assert_eq!(&target.to_vec()[..11], b"\0head2345!\0");
        drop(here);
        assert_eq!(receive(&there, &target, 0..16).expect("the end"), 0);
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error() {
        let (here, there) = UnixStream::pair().expect("sockets");
        drop(there);
        let error = send(&here, &[Part::Bytes(b"x")]).expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
