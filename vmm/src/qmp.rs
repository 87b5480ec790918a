//! A control socket that speaks QMP, the QEMU Machine Protocol: for scripts and people who know it from there.
//!
//! The socket takes a few clients. Everything runs on the event loop's thread: [`Server`] moves bytes, [`protocol`] turns them into
//! commands and back without any I/O, and a [`Machine`] carries them out. What a client says is not trusted any more than what an image
//! holds: lines, answers that it does not read, and clients are limited.
//!
//! Source: QEMU documentation, "QEMU Machine Protocol Specification" and "QEMU QMP Reference Manual". Of the commands
//! there is what a machine with disks and CDs has a use for; `query-commands` lists them.

pub mod protocol;
mod server;

pub use protocol::{BlockInfo, Event, Failure, MediumInfo, Status};
pub use server::{Server, SocketError};

use disk::Limits;

/// What carries commands out. Devices are named as `--disk` names their slots.
pub trait Machine {
    /// What it does now.
    fn status(&self) -> Status;

    /// Stops its CPUs.
    fn pause(&self);

    /// Lets them go on; requests that wait since an error are made again.
    fn resume(&self);

    /// Ends the machine.
    fn quit(&self);

    /// Resets it.
    fn reset(&self);

    /// Its drives.
    fn blocks(&self) -> Vec<BlockInfo>;

    /// Opens the tray of a CD drive and takes the medium out; with `force` even if the guest has locked it.
    fn eject(&self, device: &str, force: bool) -> Result<(), Failure>;

    /// Puts another medium into a CD drive, in place of the one that is there.
    fn change_medium(&self, device: &str, filename: &str, force: bool) -> Result<(), Failure>;

    /// Makes a disk `size` bytes long, and tells the guest at its next IDENTIFY.
    fn resize(&self, device: &str, size: u64) -> Result<(), Failure>;

    /// Takes an internal snapshot of a disk.
    fn snapshot(&self, device: &str, name: &str) -> Result<(), Failure>;

    /// Deletes an internal snapshot of a disk.
    fn delete_snapshot(&self, device: &str, name: &str) -> Result<(), Failure>;

    /// Limits how fast a disk may be from now on.
    fn limit(&self, device: &str, limits: Limits) -> Result<(), Failure>;
}
