//! What the guest sees: the chipset, its IDE controller and the legacy devices around it.
//!
//! # Architecture
//!
//! Everything is a [`bus::PortDevice`]: it answers `in` and `out` on absolute ports, from any thread. [`chipset::Chipset`]
//! builds all of them over guest memory, interrupt lines and disks, and puts them on a [`bus::PortBus`]; nothing else
//! is needed, so a test drives a whole machine's ports without KVM.
//!
//! ```text
//!  PortBus ─┬─ 0x1f0 0x3f6 0x170 0x376  ide::channel ──> ide::ata ──> disk::Disk
//!           ├─ BAR4 (0xc000)            ide::bus_master (PRD lists) ──┘ in place, from and to guest memory
//!           ├─ 0xcf8..0xcff             pci::configuration: 00:00.0 host bridge, 00:01.{0,1,3} PIIX4
//!           ├─ 0x600..0x63f             piix4::power_management (ACPI PM1a, PM timer, S5)
//!           └─ 0x3f8 0x70 0x64 0xcf9    serial, rtc, reset
//! ```
//!
//! # I/O model
//!
//! No port access waits for a disk: a command that needs one sets BSY, submits a request and returns. Its completion
//! arrives on the engine's thread, takes the channel's lock, moves the drive's state on and drives the interrupt line.
//!
//! # Error model
//!
//! A guest cannot do wrong: whatever it writes, it gets the answer that the standard or the hardware gives, and guest
//! triggered messages are logged at debug level only. Errors exist where a user's configuration enters
//! ([`chipset::ChipsetError`]).
//!
//! This crate knows nothing of KVM.
#![forbid(unsafe_code)]

pub mod bus;
pub mod chipset;
pub mod clock;

pub mod ide;
pub mod interrupt;
pub mod pci;
pub mod piix4;
pub mod post;
pub mod power;
pub mod reset;
pub mod rtc;
pub mod serial;
