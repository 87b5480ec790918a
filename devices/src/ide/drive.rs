//! What a channel asks of a drive, whatever kind of drive it is.
//!
//! Each entry point takes one event (a register write, a command, a word of data, a completion, a reset), moves the
//! drive on, and returns the request that it now wants to make of its disk, if any.

use std::sync::Arc;

use disk::{BufferError, Command as DiskCommand, Disk, DiskError};
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use super::ata::{self, Statistics};
use super::atapi::{CdRom, SavedCdRom};
use super::memory::Memory;
use super::registers::{Status, TaskFile};

/// What a drive wants of its disk next. It is busy until it is told the outcome by [`Drive::completed`].
pub(super) type Step = Option<DiskCommand>;

/// What a drive asks of the bus master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DmaRequest {
    /// From the drive to memory.
    pub to_memory: bool,
    /// Bytes that are still to be transferred.
    pub bytes: usize,
    /// The drive takes memory for all of these bytes, or for a multiple of this many.
    pub granule: usize,
}

/// The state of a drive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum SavedDrive {
    /// An ATA disk.
    Disk(Box<ata::SavedDrive>),
    /// An ATAPI CD-ROM.
    CdRom(Box<SavedCdRom>),
}

impl SavedDrive {
    /// What kind of drive it is, as [`Drive::kind`] says.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Disk(_) => "a disk",
            Self::CdRom(_) => "a CD-ROM drive",
        }
    }
}

/// A state that no drive can be in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveStateError {
    /// A part that contradicts the rest, or itself.
    #[error("The {0} is none that a drive can have")]
    Unsound(&'static str),
    /// A transfer to or from memory that this machine does not have.
    #[error(transparent)]
    Memory(#[from] BufferError),
}

/// A drive on a cable.
pub(crate) enum Drive {
    /// An ATA disk.
    Disk(Box<ata::Drive>),
    /// An ATAPI CD-ROM.
    CdRom(Box<CdRom>),
}

/// Calls the same method of whichever drive it is.
macro_rules! delegate {
    ($drive:expr, $method:ident($($argument:expr),*)) => {
        match $drive {
            Drive::Disk(drive) => drive.$method($($argument),*),
            Drive::CdRom(drive) => drive.$method($($argument),*),
        }
    };
}

/// Registers.
impl Drive {
    /// The disk behind the drive, if there is one.
    pub(super) fn disk(&self) -> Option<&Arc<dyn Disk>> {
        match self {
            Self::Disk(drive) => Some(drive.disk()),
            Self::CdRom(drive) => drive.disk(),
        }
    }

    /// Whether it is a packet device.
    pub(super) fn is_packet_device(&self) -> bool {
        matches!(self, Self::CdRom(_))
    }

    /// The CD-ROM drive, if it is one.
    pub(super) fn cd_rom_mut(&mut self) -> Option<&mut CdRom> {
        match self {
            Self::Disk(_) => None,
            Self::CdRom(drive) => Some(drive),
        }
    }

    /// The status register, without any effect.
    pub(super) fn status(&self) -> Status {
        delegate!(self, status())
    }

    /// Whether a command, or a reset, is under way: the task file is the drive's.
    pub(super) fn engaged(&self) -> bool {
        delegate!(self, engaged())
    }

    /// Whether the drive asks for an interrupt.
    pub(super) fn interrupt(&self) -> bool {
        delegate!(self, interrupt())
    }

    /// The host read the status register or wrote a command: the interrupt is acknowledged.
    pub(super) fn acknowledge(&mut self) {
        delegate!(self, acknowledge());
    }

    /// The error register.
    pub(super) fn error(&self) -> u8 {
        delegate!(self, error())
    }

    /// The registers with parameters.
    pub(super) fn registers(&self) -> &TaskFile {
        delegate!(self, registers())
    }

    /// The registers with parameters, for the host to write. Not while [`Drive::engaged`].
    pub(super) fn registers_mut(&mut self) -> &mut TaskFile {
        delegate!(self, registers_mut())
    }
}

/// Events.
impl Drive {
    /// SRST was set: whatever the drive does, it stops doing.
    pub(super) fn hold_reset(&mut self) {
        delegate!(self, hold_reset());
    }

    /// SRST was cleared: the reset ends as soon as no request is in flight.
    pub(super) fn release_reset(&mut self) {
        delegate!(self, release_reset());
    }

    /// EXECUTE DEVICE DIAGNOSTIC, as either drive of the channel does it.
    pub(super) fn diagnose(&mut self, interrupt: bool) {
        delegate!(self, diagnose(interrupt));
    }

    /// The host wrote the command register.
    pub(super) fn execute(&mut self, opcode: u8) -> Step {
        delegate!(self, execute(opcode))
    }

    /// The host reads `data.len()` bytes (2 or 4) from the data register. Without DRQ it reads zeros.
    pub(super) fn read_data(&mut self, data: &mut [u8]) -> Step {
        delegate!(self, read_data(data))
    }

    /// The host writes `data.len()` bytes (2 or 4) to the data register. Without DRQ they are lost.
    pub(super) fn write_data(&mut self, data: &[u8]) -> Step {
        delegate!(self, write_data(data))
    }

    /// RST#.
    pub(super) fn hardware_reset(&mut self) {
        delegate!(self, hardware_reset());
    }

    /// The machine goes on: the request that waited for that is made again.
    pub(super) fn resume(&mut self) -> Step {
        match self {
            Self::Disk(drive) => drive.resume(),
            Self::CdRom(_) => None,
        }
    }

    /// The error for which the drive wants the machine to stop.
    pub(super) fn stopped(&self) -> Option<&DiskError> {
        match self {
            Self::Disk(drive) => drive.stopped(),
            Self::CdRom(_) => None,
        }
    }

    /// Nobody can stop the machine: the guest gets the error.
    pub(super) fn report_stopped(&mut self) -> Step {
        match self {
            Self::Disk(drive) => drive.report_stopped(),
            Self::CdRom(_) => None,
        }
    }

    /// What a disk drive has done.
    pub(super) fn statistics(&self) -> Option<Statistics> {
        match self {
            Self::Disk(drive) => Some(*drive.statistics()),
            Self::CdRom(_) => None,
        }
    }

    /// What kind of drive this is.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Disk(_) => "a disk",
            Self::CdRom(_) => "a CD-ROM drive",
        }
    }

    /// The state now.
    pub(super) fn save(&self) -> SavedDrive {
        match self {
            Self::Disk(drive) => SavedDrive::Disk(Box::new(drive.save())),
            Self::CdRom(drive) => SavedDrive::CdRom(Box::new(drive.save())),
        }
    }

    /// Takes on the state of a drive of the same kind. Returns the request that was at its disk.
    pub(super) fn restore(&mut self, saved: SavedDrive, memory: &GuestMemoryMmap) -> Result<Step, DriveStateError> {
        match (self, saved) {
            (Self::Disk(drive), SavedDrive::Disk(saved)) => drive.restore(*saved, memory),
            (Self::CdRom(drive), SavedDrive::CdRom(saved)) => drive.restore(*saved, memory),
            _ => Err(DriveStateError::Unsound("kind")),
        }
    }

    /// The request that the drive made of its disk is done.
    pub(super) fn completed(&mut self, outcome: Result<(), DiskError>) -> Step {
        delegate!(self, completed(outcome))
    }
}

/// The drive's side of DMA.
impl Drive {
    /// What the drive wants from the bus master now.
    pub(super) fn dma_request(&self) -> Option<DmaRequest> {
        delegate!(self, dma_request())
    }

    /// The bus master offers this memory: what was asked for, or a number of whole granules.
    pub(super) fn run_dma(&mut self, memory: Memory) -> Step {
        delegate!(self, run_dma(memory))
    }

    /// Whether disk and guest memory exchange data.
    pub(super) fn runs_dma(&self) -> bool {
        delegate!(self, runs_dma())
    }

    /// The bus master cannot transfer: its table or a region is not in memory.
    pub(super) fn refuse_dma(&mut self) {
        delegate!(self, refuse_dma());
    }

    /// The bus master was stopped.
    pub(super) fn stop_dma(&mut self) {
        delegate!(self, stop_dma());
    }
}
