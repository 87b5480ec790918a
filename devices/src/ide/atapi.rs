//! An ATAPI CD-ROM drive: a state machine between a task file and a read-only disk.
//!
//! It is built as the ATA disk is: each entry point takes one event, moves the drive on, and returns the request that it
//! now wants to make of its medium, if any. A packet command goes through it in this order:
//!
//! ```text
//!  out 1F7 A0        execute      the command, and then the packet through the data register
//!  12 bytes          operation    code -> operation; the handlers (read, disc, mode, ...) say what comes of it: an answer
//!  answer, sense     transfer     data in blocks that the byte count limit allows, or by bus master
//!  the end           ending       status, interrupt reason, sense data
//! ```
//!
//! Handlers look at the packet and the drive's state and nothing else. They know nothing of registers, and `transfer`
//! knows nothing of operations.

mod address;
mod answer;
mod blocks;
mod completion;
mod disc;
mod dvd;
mod ending;
mod events;
mod execute;
mod features;
mod identify;
mod inquiry;
mod mode;
mod operation;
mod packet;
mod performance;
mod phase;
mod read;
mod reset;
mod saved;
mod sector;
mod sense;
mod transfer;
mod transfer_mode;
mod tray;

use std::sync::Arc;

use disk::Disk;

use self::mode::Parameters;
use self::phase::Phase;
pub(super) use self::saved::SavedCdRom;
use self::sense::Sense;
use self::transfer_mode::TransferMode;
use self::tray::Tray;
pub use self::tray::{ButtonOutcome, EjectOutcome, Medium, MediumError, TrayLocked, TrayObserver, TrayState};
use super::identity::Identity;
use super::registers::{Status, TaskFile};

/// A CD-ROM drive.
pub(crate) struct CdRom {
    identity: Identity,
    registers: TaskFile,
    status: Status,
    error: u8,
    /// INTRQ, before device selection and nIEN.
    interrupt: bool,
    phase: Phase,
    /// The most bytes of a block of data, as the last PACKET had it.
    byte_count_limit: u16,
    /// Whether a request is at the medium's disk.
    in_flight: bool,
    tray: Tray,
    /// Why the last command failed.
    sense: Sense,
    /// The guest was not told yet that the drive was powered on.
    powered_on: bool,
    /// The block that was addressed last.
    position: u32,
    parameters: Parameters,
    transfer_mode: TransferMode,
    /// SLEEP: only a reset wakes the drive.
    asleep: bool,
    /// STANDBY.
    standby: bool,
}

impl CdRom {
    /// A drive after power-on, with its tray closed over `medium` or nothing.
    pub(crate) fn new(identity: Identity, medium: Option<Medium>) -> Self {
        let mut drive = Self {
            identity,
            registers: TaskFile::default(),
            status: Status::empty(),
            error: 0,
            interrupt: false,
            phase: Phase::Idle,
            byte_count_limit: 0,
            in_flight: false,
            tray: Tray::new(medium),
            sense: Sense::NONE,
            powered_on: true,
            position: 0,
            parameters: Parameters::default(),
            transfer_mode: TransferMode::default(),
            asleep: false,
            standby: false,
        };
        drive.show_signature();
        drive
    }

    /// The disk behind the medium that can be read, if there is one.
    pub(super) fn disk(&self) -> Option<&Arc<dyn Disk>> {
        self.tray.loaded().ok().map(Medium::disk)
    }

    /// The status register, without any effect.
    pub(super) fn status(&self) -> Status {
        self.status
    }

    /// Whether a command, or a reset, is under way: the task file is the drive's.
    pub(super) fn engaged(&self) -> bool {
        self.status.intersects(Status::BSY | Status::DRQ)
    }

    /// Whether the drive asks for an interrupt.
    pub(super) fn interrupt(&self) -> bool {
        self.interrupt
    }

    /// The host read the status register or wrote a command: the interrupt is acknowledged.
    pub(super) fn acknowledge(&mut self) {
        self.interrupt = false;
    }

    /// The error register.
    pub(super) fn error(&self) -> u8 {
        self.error
    }

    /// The registers with parameters.
    pub(super) fn registers(&self) -> &TaskFile {
        &self.registers
    }

    /// The registers with parameters, for the host to write. Not while [`CdRom::engaged`].
    pub(super) fn registers_mut(&mut self) -> &mut TaskFile {
        &mut self.registers
    }
}

/// What the host does. A command that reads the medium meanwhile fails.
impl CdRom {
    /// Puts a medium in, in place of what lay there, and closes the tray.
    pub(super) fn insert(&mut self, medium: Medium) -> Result<(), TrayLocked> {
        self.tray.insert(medium)
    }

    /// Presses the eject button.
    pub(super) fn request_eject(&mut self) -> EjectOutcome {
        self.tray.request_eject()
    }

    /// Presses the button of a tray that may be open: then it closes.
    pub(super) fn press_button(&mut self) -> ButtonOutcome {
        self.tray.press_button()
    }

    /// How the tray is.
    pub(super) fn tray_state(&self) -> TrayState {
        self.tray.state()
    }

    /// Calls `observer` whenever the tray opens or closes.
    pub(super) fn observe_tray(&mut self, observer: TrayObserver) {
        self.tray.observe(observer);
    }

    /// Opens the tray although the guest has locked it, and takes the medium out.
    pub(super) fn force_out(&mut self) {
        self.tray.force_out();
    }
}
