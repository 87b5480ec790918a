//! Kernels, initramfs and root disks for guests, made from Debian packages.
//!
//! # Architecture
//!
//! A [`Store`] keeps finished artefacts in `target/guest-images/`, each under its name and a hash of its recipe.
//! Asking for one returns its path: at once if it is there, after building it if not. Nothing is mounted and no
//! loop device is used: packages are unpacked by `dpkg-deb`, root disks written by `mke2fs -d`.
//!
//! ```text
//!  apt ──> Kernel (vmlinuz, vmlinux, modules) ──┬─> initramfs ────────┐
//!                                               └─> nested host       ├─> Guest (directory, and ext4 disk for the nested host)
//!  mmdebstrap ──> tree ──> ext4 ──> qcow2 root disk ──────────────────┘
//! ```
//!
//! # Error model
//!
//! Whatever fails, fails with the program that failed, its last words, and, where a program is missing, the
//! package that has it. A half-built artefact is never seen: it is renamed into place when it is complete.
//!
//! This crate knows nothing of KVM, of the VMM or of its disk engine.

mod apt;
pub mod bare_metal;
mod busybox;
mod error;
mod ext4;
mod guest;
mod initramfs;
mod kernel;
mod load_guest;
mod nested_host;
mod root_disk;
mod store;
mod tool;

pub use apt::{AptSource, apt_sources};
pub use error::Error;
pub use ext4::{check_ext4, dump_from_ext4, ext4_from_directory, folder_from_ext4};
pub use guest::{Guest, Image};
pub use kernel::Kernel;
pub use load_guest::LoadGuest;
pub use nested_host::NestedHost;
pub use store::Store;
pub use tool::{REQUIREMENTS, Requirement, find_program, run_tool};
