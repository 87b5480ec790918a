//! The PIIX4's IDE controller and the drives on its two channels.
//!
//! ```text
//!  controller   the PCI function 00:01.1: which ports the channels and the bus master answer
//!  channel      one cable: its two drives, the selected one, the interrupt, and when a DMA transfer can run
//!  drive        what the channel asks of a drive, whatever kind it is
//!  bus_master   the channel's bus-master registers          prd   the list of memory that it transfers
//!  registers    what both ends of the cable call things     ata   a disk drive's state machine and commands
//!                                                           atapi a CD-ROM drive's
//! ```
//!
//! A drive never has more than one request at its disk. It stays busy (BSY) until that request is done, even when a
//! reset or a stopped bus master made its outcome pointless. So nothing stale is ever written to guest memory, a later
//! command cannot overtake an earlier write, and no completion can be mistaken for another's.

pub mod ata;
pub mod atapi;
mod bus_master;
pub mod cd_rom_handle;
pub(crate) mod channel;
pub mod controller;
mod data_block;
pub(crate) mod drive;
pub mod error_policy;
mod identify_page;
pub mod identity;
pub mod kernel_ports;
mod memory;
mod ports;
mod prd;
pub mod registers;
