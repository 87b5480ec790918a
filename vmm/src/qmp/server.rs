//! The sockets of the control protocol.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::Machine;
use super::protocol::{self, Conversation, Event};

/// The most clients at once.
const MAX_CLIENTS: usize = 8;

/// Bytes that a client may leave unread before it is dropped.
const MAX_UNREAD: usize = 1 << 20;

/// A control socket that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("Cannot listen on the control socket \"{}\": {cause}", path.display())]
pub struct SocketError {
    path: PathBuf,
    cause: io::Error,
}

/// A listening socket and its clients. None of its calls blocks.
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
    clients: Vec<Client>,
}

struct Client {
    stream: UnixStream,
    conversation: Conversation,
    output: Vec<u8>,
    gone: bool,
}

impl Server {
    /// Listens at `path`, for this user only. A socket that nobody listens on any more is replaced.
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        let failed = |cause| SocketError {
            path: path.to_owned(),
            cause,
        };
        let listener = bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            listener,
            clients: Vec::new(),
        })
    }

    /// Readable when a client comes.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The descriptors of all clients.
    pub fn clients(&self) -> Vec<RawFd> {
        self.clients.iter().map(|client| client.stream.as_raw_fd()).collect()
    }

    /// Takes a client that has come. Returns its descriptor, which the event loop is to watch.
    pub fn accept(&mut self) -> Option<RawFd> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return None,
            Err(error) => {
                tracing::warn!(%error, "a client of the control socket is lost");
                return None;
            }
        };
        if self.clients.len() == MAX_CLIENTS {
            tracing::warn!("the control socket has {MAX_CLIENTS} clients and takes no more");
            return None;
        }
        if let Err(error) = stream.set_nonblocking(true) {
            tracing::warn!(%error, "a client of the control socket is lost");
            return None;
        }
        let mut client = Client {
            stream,
            conversation: Conversation::default(),
            output: Vec::new(),
            gone: false,
        };
        client.send(&protocol::greeting());
        let fd = client.stream.as_raw_fd();
        self.clients.push(client);
        Some(fd)
    }

    /// Serves the client behind `fd`, which is readable or has room. Returns whether it is still there; afterwards
    /// [`Server::wants_room`] says whether to wait for room, too.
    pub fn serve(&mut self, fd: RawFd, machine: &dyn Machine) -> bool {
        let Some(client) = self.clients.iter_mut().find(|client| client.stream.as_raw_fd() == fd) else {
            return false;
        };
        client.serve(machine);
        !client.gone
    }

    /// Whether there is something that the client behind `fd` has not taken yet.
    pub fn wants_room(&self, fd: RawFd) -> bool {
        let client = self.clients.iter().find(|client| client.stream.as_raw_fd() == fd);
        client.is_some_and(|client| !client.output.is_empty())
    }

    /// Forgets the client behind `fd`.
    pub fn forget(&mut self, fd: RawFd) {
        self.clients.retain(|client| client.stream.as_raw_fd() != fd);
    }

    /// Tells all clients of an event. Returns the descriptors of those that have no room for it now.
    pub fn tell(&mut self, event: &Event) -> Vec<RawFd> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let bytes = protocol::event(event, u64::try_from(now.as_micros()).unwrap_or(u64::MAX));
        let listening = self
            .clients
            .iter_mut()
            .filter(|client| client.conversation.is_negotiated());
        listening.for_each(|client| client.send(&bytes));
        let waiting = self.clients.iter().filter(|client| !client.output.is_empty());
        waiting.map(|client| client.stream.as_raw_fd()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, "the control socket stays behind");
        }
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    // What a killed process left is in the way; whatever else is there is not ours to remove.
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() && UnixStream::connect(path).is_err() => fs::remove_file(path)?,
        _ => {}
    }
    // Made with no rights for others, and not given them away afterwards.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener
}

impl Client {
    fn serve(&mut self, machine: &dyn Machine) {
        let mut bytes = [0; 4096];
        loop {
            // Whoever does not read the answers is not asked for more.
            self.send(&[]);
            if self.gone || !self.output.is_empty() {
                return;
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    self.gone = true;
                    return;
                }
                Ok(count) => {
                    let answers = self.conversation.take(&bytes[..count], machine);
                    self.send(&answers);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }

    /// Sends what waits and then `bytes`, as far as there is room; keeps the rest.
    fn send(&mut self, bytes: &[u8]) {
        if self.gone {
            return;
        }
        self.output.extend_from_slice(bytes);
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.gone = true,
            }
            if self.gone {
                return;
            }
        }
        if self.output.len() > MAX_UNREAD {
            tracing::warn!("a client of the control socket reads nothing and is dropped");
            self.gone = true;
            let _ = self.stream.shutdown(std::net::Shutdown::Both);
        }
    }
}
