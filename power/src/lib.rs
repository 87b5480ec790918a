//! What a host that loses power leaves of a file.
//!
//! # Architecture
//!
//! [`RecordedFile`] mounts a file system (FUSE) with one file on it, whose content is in memory. Whoever writes to that file, a VMM or
//! QEMU, does so by the same system calls as ever; each write, hole and sync is recorded in the order in which it reached
//! the file system. The [`Recording`] then makes crash states: all that was synced, and of what came later any part, with writes
//! torn at 512 bytes.
//!
//! ```text
//!  spindle, qemu ──write, fdatasync──> kernel ──> RecordedFile ──> Recording ──> CrashState, CrashState, ...
//!                                                     │ asks, at each event
//!                                                     └──> the observer: how far has the guest come?
//! ```
//!
//! # Model
//!
//! The file system is served by one thread, so a sync that it is given comes after every write that was complete before. Between two syncs
//! each write is on the disk wholly, not at all, or in part, independently of all others. That is more than a real disk
//! does, so what survives this survives a real disk.
//!
//! # Error model
//!
//! The file takes up to [`MAX_LENGTH`] bytes; beyond that a writer gets EFBIG. Mounting needs `/dev/fuse`, and root or `fusermount3`.

mod filesystem;
mod recording;

pub use filesystem::{MAX_LENGTH, MountError, RecordedFile};
pub use recording::{Change, CrashState, Event, Mark, Recording, Tear};
