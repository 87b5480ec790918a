//! The harness of the whole-system tests: boots guests with spindle where this machine can.
//!
//! # Architecture
//!
//! A [`Host`] is a place with a full `/dev/kvm`. On a machine with VMX or SVM that is the machine itself; elsewhere it
//! is the *nested host*, a stock Linux in QEMU's TCG, which emulates an AMD CPU with SVM. The same call does the same
//! in both: files are put in ([`Host::add_file`]), spindle or any other static program is run ([`Host::run`]) in the folder
//! that has them, and files are taken back out ([`Host::fetch`]).
//!
//! ```text
//!  hardware KVM:  Host::run ─> ./spindle run ... in the work folder
//!  nested host:   Host::run ─> qemu (TCG) ─> Linux ─> ./spindle run ... in /work
//!                   virtio-blk   scratch.ext4 (spindle, disks/) at /work, the guest's ext4 at /work/base
//!                   virtio-serial console (spindle's stdin and stdout), stderr, control (shell commands, results)
//! ```
//!
//! Paths are relative and the same in both: `spindle`, `base/vmlinux`, `base/initrd.img`, `base/disk.qcow2` (read-only),
//! and `disks/NAME` for what was added. [`Boot`] writes the command line for one of the guests of `guest-images`.
//!
//! By hand: `cargo xtask nested [--file PATH]... -- COMMAND` runs a shell command in the nested host.
//!
//! # Error model
//!
//! The harness fails with `anyhow` errors that name what could not be done. How spindle and the guest ended is not
//! an error but an [`Outcome`].

mod boot;
pub mod crash;
mod direct;
mod exec_output;
mod host;
mod nested;
mod qemu_img;
mod run;
mod spindle;
mod standing;

pub use boot::Boot;
pub use exec_output::ExecOutput;
pub use host::{Host, HostKind};
pub use qemu_img::{check_image, convert_to_raw, create_overlay};
pub use run::{ConsoleObserver, End, Input, Outcome, Run, Times};
pub use spindle::{static_spindle, static_spindle_with_failpoints, target_folder, workspace_folder};
pub use standing::{Happening, StandingHost};
