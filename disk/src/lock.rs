//! Image locks that QEMU understands.
//!
//! QEMU (docs, "Image locking") locks single bytes of the image file: byte 100 + n says "I use permission n", byte
//! 200 + n says "nobody else may use permission n", both as shared OFD locks that conflict with nothing by themselves; who
//! wants a permission tests whether somebody forbids it, and the other way round.
//!
//! The lock belongs to the open file that the ring writes through, so after a kill the kernel drops it only when
//! the last write in flight has ended: who gets it reads what is there to stay.
#![expect(unsafe_code, reason = "OFD locks are an fcntl that no safe wrapper offers")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

const CONSISTENT_READ: u32 = 0;
const WRITE: u32 = 1;
const RESIZE: u32 = 3;

const USED: i64 = 100;
const FORBIDDEN: i64 = 200;

/// How long a lock may still be held by a process that was killed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why an image could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it open in a way that excludes ours.
    #[error(
        "The image is in use: another process {0}, still after {patience} s (one that was killed has it until the disk has taken its last write)",
        patience = PATIENCE.as_secs()
    )]
    InUse(&'static str),
    /// The file system does not do locks.
    #[error("Cannot lock the image: {0}")]
    Io(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        LockError::Io(error)
    }
}

/// Locks an image for as long as `file` (or a duplicate) is open: for writing by us alone, or for reading
/// while nobody writes.
pub(crate) fn lock(file: &File, read_only: bool) -> Result<(), LockError> {
    let used: &[u32] = if read_only {
        &[CONSISTENT_READ]
    } else {
        &[CONSISTENT_READ, WRITE, RESIZE]
    };
    let forbidden = [WRITE, RESIZE];
    for &permission in used {
        set_shared(file, USED + i64::from(permission))?;
    }
    for permission in forbidden {
        set_shared(file, FORBIDDEN + i64::from(permission))?;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match conflict(file, used, &forbidden)? {
            None => return Ok(()),
            Some(reason) if Instant::now() >= deadline => return Err(LockError::InUse(reason)),
            Some(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Unlocks an image that nothing is in flight to. Without this the lock would end when the kernel has let go of the file, which is
/// a moment after the last transfer.
pub(crate) fn unlock(file: &File) -> io::Result<()> {
    let mut everything = libc::flock {
        l_len: 0,
        ..one_byte(libc::F_UNLCK, 0)
    };
    control(file, libc::F_OFD_SETLK, &mut everything)
}

fn conflict(file: &File, used: &[u32], forbidden: &[u32]) -> io::Result<Option<&'static str>> {
    for &permission in used {
        if is_locked_by_another(file, FORBIDDEN + i64::from(permission))? {
            return Ok(Some("has it open and allows no writer beside it"));
        }
    }
    for &permission in forbidden {
        if is_locked_by_another(file, USED + i64::from(permission))? {
            return Ok(Some("writes to it"));
        }
    }
    Ok(None)
}

fn set_shared(file: &File, byte: i64) -> io::Result<()> {
    let mut range = one_byte(libc::F_RDLCK, byte);
    control(file, libc::F_OFD_SETLK, &mut range)
}

/// Whether another open file holds a lock on `byte`, even a shared one.
fn is_locked_by_another(file: &File, byte: i64) -> io::Result<bool> {
    let mut range = one_byte(libc::F_WRLCK, byte);
    control(file, libc::F_OFD_GETLK, &mut range)?;
    Ok(i32::from(range.l_type) != libc::F_UNLCK)
}

fn one_byte(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn control(file: &File, command: i32, range: &mut libc::flock) -> io::Result<()> {
    // SAFETY: `file` is open, and `range` is a valid flock for the duration of the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
