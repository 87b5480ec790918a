//! Asynchronous virtual disks: qcow2 and raw images on io_uring.
//!
//! # Architecture
//!
//! A front end (an IDE channel, an NBD connection, a test) holds an `Arc<dyn Disk>` and hands it
//! [`Request`]s from any thread. Behind it stands one single-threaded [`Engine`], which runs each request
//! as an `async fn` on a local executor and wakes it from the completions of the storage below.
//! The engine lives on the thread of the event loop and offers one file descriptor to wait on.
//!
//! ```text
//!  Disk::submit ──> Engine ──> qcow2 or raw ──> Storage (io_uring, threads, simulated)
//!  Request::done <─────────────────────────────────┘
//! ```
//!
//! # I/O model
//!
//! Offsets and lengths are bytes and multiples of [`SECTOR_SIZE`]. Data moves straight between the image
//! file and the memory that a [`Buffer`] names; nobody copies it on the way unless the format demands it.
//! Requests that are in flight together may complete in any order; a front end that needs an order waits.
//!
//! # Error model
//!
//! A request ends in `Ok` or in one [`DiskError`], which names the operation, the offset and the cause.
//! A failed request leaves the image consistent. Nothing that an image contains makes this crate panic.
//!
//! This crate knows nothing of KVM or of IDE.

mod at_rest;
mod block_status;
mod buffer;
mod cache_file;
mod delay;
mod direct;
mod disk;
mod doorbell;
mod engine;
#[doc(hidden)]
pub mod failpoint;
#[doc(hidden)]
pub mod five_steps;
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod in_flight;
mod inject;
mod lock;
mod memory_disk;
mod open;
mod options;
#[cfg(feature = "planted-bugs")]
pub mod planted_bug;
#[cfg(not(feature = "planted-bugs"))]
mod planted_bug;
mod qcow2;
mod raw;
mod readiness;
pub mod simulation;
mod storage;
pub mod stream;
mod tasks;
mod throttle;
mod wait;
mod workers;

pub use at_rest::{ImageAtRest, LockedFile, MapEntry, NewImage, NewImageError, Place, RestOptions, is_zero};
pub use block_status::{Extent, ExtentKind, Extents};
pub use buffer::{Buffer, BufferError};
pub use cache_file::CacheFileError;
pub use disk::{Command, Corruption, Disk, DiskError, Done, Request, SECTOR_SIZE};
pub use engine::{Aio, CloseError, Engine, EngineError, EngineOptions};
pub use inject::{InjectingDisk, Injection, InjectionError};
pub use lock::LockError;
pub use memory_disk::MemoryDisk;
pub use open::{Format, OpenCause, OpenError, OpenOptions};
pub use options::{CacheMode, CacheSize, CacheSizeError, DetectZeroes, Discard, OptionError};
pub use qcow2::cache_memory::CacheError;
pub use qcow2::change_backing::change_backing;
pub use qcow2::check::Usage;
pub use qcow2::compress::compress_cluster;
pub use qcow2::create::CreateOptions;
pub use qcow2::findings::Damage;
pub use qcow2::header::{BackingReference, Compression, Header, HeaderError};
pub use qcow2::measure::{Measure, measure};
pub use qcow2::repair::{CheckError, CheckReport, RepairMode, check_image, repair_image};
pub use qcow2::resize::ResizeError;
pub use qcow2::snapshot::{Snapshot, SnapshotError};
pub use throttle::{Limit, LimitError, Limits, ThrottledDisk};
