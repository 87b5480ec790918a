//! Where clients come in: a Unix socket that only its owner can use, or TCP.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::Mode;

/// A listening socket. The file of a Unix socket goes away with it.
pub enum Listener {
    /// In the file system.
    Unix {
        /// The socket.
        listener: UnixListener,
        /// Its file.
        path: PathBuf,
    },
    /// On the network.
    Tcp(TcpListener),
}

impl Listener {
    /// Listens at `path`, for this user alone (mode 0600). A socket that nobody listens on any more is replaced.
    pub fn unix(path: &Path) -> anyhow::Result<Self> {
        let listener = match bind_private(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => {
                tracing::info!(path = %path.display(), "replacing a socket that nobody listens on");
                fs::remove_file(path).and_then(|()| bind_private(path))
            }
            other => other,
        };
        let listener = listener.with_context(|| format!("Cannot listen on the socket {path:?}"))?;
        listener
            .set_nonblocking(true)
            .context("Cannot make the socket non-blocking")?;
        let path = path.to_owned();
        Ok(Listener::Unix { listener, path })
    }

    /// Listens on a TCP port; port 0 is any that is free.
    pub fn tcp(address: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("Cannot listen on {address}"))?;
        listener
            .set_nonblocking(true)
            .context("Cannot make the socket non-blocking")?;
        Ok(Listener::Tcp(listener))
    }

    /// The next client: its socket, which does not block, and who it is. `None` if nobody waits.
    pub fn accept(&self) -> io::Result<Option<(OwnedFd, String)>> {
        let accepted = match self {
            Listener::Unix { listener, .. } => listener.accept().and_then(|(socket, _)| {
                socket.set_nonblocking(true)?;
                Ok((socket.into(), "a local client".to_owned()))
            }),
            Listener::Tcp(listener) => listener.accept().and_then(|(socket, peer)| {
                socket.set_nonblocking(true)?;
                socket.set_nodelay(true)?;
                Ok((socket.into(), peer.to_string()))
            }),
        };
        match accepted {
            Ok(client) => Ok(Some(client)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The NBD URI of an export here (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>).
    pub fn uri(&self, export: &str) -> String {
        let export = percent_encoded(export.as_bytes());
        match self {
            Listener::Unix { path, .. } => {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let path = percent_encoded(path.as_os_str().as_encoded_bytes());
                format!("nbd+unix:///{export}?socket={path}")
            }
            Listener::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("nbd://{address}/{export}"),
                Err(_) => format!("nbd:///{export}"),
            },
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Listener::Unix { listener, .. } => listener.as_raw_fd(),
            Listener::Tcp(listener) => listener.as_raw_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix { path, .. } = self
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(%error, path = %path.display(), "the socket stays behind");
        }
    }
}

/// Refuses an address that other machines can reach: the protocol has neither passwords nor encryption.
pub fn check_is_loopback(address: IpAddr) -> anyhow::Result<()> {
    if !address.is_loopback() {
        bail!(
            "--bind {address}: other machines could read and write the disk, without a password and unencrypted; \
             bind 127.0.0.1 or ::1, or say --allow-remote"
        );
    }
    Ok(())
}

/// Binds with the mode that the socket is to have from its first moment.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    // The mask is the whole process's, in which nobody else makes files now.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    bound
}

/// Whether there is a socket whose server is gone.
fn is_abandoned(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn percent_encoded(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => text.push(char::from(*byte)),
            other => write!(text, "%{other:02X}").unwrap_or_default(),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_unix_socket_is_private_and_goes_away() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a socket");
        let listener = Listener::unix(&path).expect("listens");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(listener.uri("a/b c").ends_with("/a%20socket"), "{}", listener.uri(""));
        assert!(listener.uri("a/b c").starts_with("nbd+unix:///a/b%20c?socket=/"));
        let second = Listener::unix(&path).err().expect("somebody listens there");
        assert!(format!("{second:#}").contains("in use"), "{second:#}");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_was_left_behind_is_replaced_and_a_file_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("socket");
        // A listener of the standard library leaves its file.
        drop(UnixListener::bind(&path).expect("bound"));
        drop(Listener::unix(&path).expect("replaced"));
        fs::write(&path, b"mine").expect("written");
        assert!(Listener::unix(&path).is_err());
        assert_eq!(fs::read(&path).expect("there"), b"mine");
    }

    #[test]
    fn other_machines_are_kept_out() {
        for (address, allowed) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("0.0.0.0", false),
            ("192.0.2.1", false),
        ] {
            let address: IpAddr = address.parse().expect("an address");
            assert_eq!(check_is_loopback(address).is_ok(), allowed, "{address}");
        }
    }
}
