//! An ATA disk drive: a state machine between a task file and a disk.
//!
//! Each entry point of the drive takes one event (a command, a word of data, a completion, a reset), moves the drive on, and
//! returns the request that it now wants to make of its disk, if any. It knows no threads and no ports: the channel
//! does the calling, the submitting and the interrupt line.

mod command;
mod dma;
mod features;
mod geometry;
mod identify;
mod power;
mod read_write;
mod smart;
mod transfer;
mod trim;

use std::collections::VecDeque;
use std::sync::Arc;

use disk::{Buffer, Command as DiskCommand, Disk, DiskError, SECTOR_SIZE};

use self::command::Command;
use self::features::Features;
use self::geometry::Geometry;
use self::power::PowerMode;
use self::smart::Smart;
use self::transfer::{Addressing, Transfer};
use super::data_block::DataBlock;
use super::drive::{DmaRequest, Step};
use super::identity::Identity;
use super::registers::{Error, Status, TaskFile};

/// Bytes of a sector, as a length in memory.
const SECTOR: usize = SECTOR_SIZE as usize;

/// The most sectors that READ VERIFY reads at once, to bound its memory.
const VERIFY_SECTORS: u32 = 256;

/// A command's end other than success: bits for the error register, and the address to report with them.
struct Failure {
    error: Error,
    address: Option<(u64, Addressing)>,
}

impl Failure {
    /// The drive does not do this.
    const ABORTED: Self = Self {
        error: Error::ABRT,
        address: None,
    };

    fn at(error: Error, lba: u64, addressing: Addressing) -> Self {
        Self {
            error,
            address: Some((lba, addressing)),
        }
    }
}

/// What a command that is not finished waits for.
enum Phase {
    /// No command.
    Idle,
    /// A reset: waits for the end of SRST (`held`) and of the request in flight.
    Reset { held: bool },
    /// The disk fills a block that the guest will read.
    ReadBlock { transfer: Transfer, buffer: Buffer },
    /// The guest reads a block; then `rest` of the command follows.
    DataIn { block: DataBlock, rest: Option<Transfer> },
    /// The guest fills a block.
    DataOut { block: DataBlock, sink: Sink },
    /// The disk takes a block that the guest filled.
    WriteBlock { transfer: Transfer },
    /// The bus master has not started, or its table was too short for all of it.
    DmaWait(Dma),
    /// The disk and guest memory exchange data, for this many sectors.
    DmaRun { dma: Dma, buffer: Buffer },
    /// The bus master was stopped in mid-transfer.
    DmaStopped,
    /// READ VERIFY.
    Verify { transfer: Transfer },
    /// Everything written becomes durable; then the command is complete.
    Flush,
    /// Ranges to discard, in bytes: offset and length.
    Trim { ranges: VecDeque<(u64, u64)> },
}

/// Who takes the data that the guest writes by PIO.
enum Sink {
    Disk(Transfer),
    WriteBuffer,
}

/// What a DMA command transfers.
#[derive(Clone, Copy)]
enum Dma {
    Read(Transfer),
    Write(Transfer),
    /// The ranges of DATA SET MANAGEMENT.
    Trim {
        bytes: usize,
    },
}

/// One disk drive.
pub(crate) struct Drive {
    identity: Identity,
    disk: Arc<dyn Disk>,
    registers: TaskFile,
    status: Status,
    error: u8,
    /// INTRQ, before device selection and nIEN.
    interrupt: bool,
    phase: Phase,
    /// Whether a request is at the disk.
    in_flight: bool,
    geometry: Geometry,
    features: Features,
    smart: Smart,
    power: PowerMode,
    /// READ BUFFER and WRITE BUFFER.
    sector_buffer: Box<[u8; SECTOR]>,
}

impl Drive {
    /// A drive after power-on.
    pub(crate) fn new(identity: Identity, disk: Arc<dyn Disk>) -> Self {
        let geometry = Geometry::default_for(disk.capacity() / SECTOR_SIZE);
        let mut drive = Self {
            identity,
            disk,
            registers: TaskFile::default(),
            status: Status::BSY,
            error: 0,
            interrupt: false,
            phase: Phase::Idle,
            in_flight: false,
            geometry,
            features: Features::default(),
            smart: Smart::default(),
            power: PowerMode::default(),
            sector_buffer: Box::new([0; SECTOR]),
        };
        drive.show_signature();
        drive
    }

    /// The disk behind the drive.
    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
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

    /// The registers with parameters, for the host to write. Not while [`Drive::engaged`].
    pub(super) fn registers_mut(&mut self) -> &mut TaskFile {
        &mut self.registers
    }

    /// Sectors of the disk.
    fn capacity(&self) -> u64 {
        self.disk.capacity() / SECTOR_SIZE
    }
}

/// How commands end, and how they wait. Every change of status, error and interrupt is here.
impl Drive {
    /// The drive works on the command itself.
    fn busy(&mut self) {
        self.status = Status::BSY;
    }

    /// The drive waits for the host to move a block of data.
    fn request_data(&mut self, interrupt: bool) {
        self.status = Status::DRDY | Status::DSC | Status::DRQ;
        self.interrupt |= interrupt;
    }

    /// The command is done.
    fn complete(&mut self) -> Step {
        self.phase = Phase::Idle;
        self.status = Status::DRDY | Status::DSC;
        self.error = 0;
        self.interrupt = true;
        None
    }

    /// The last block of a PIO read was fetched: the command is done, and its interrupt was the block's.
    fn complete_silently(&mut self) -> Step {
        let interrupt = self.interrupt;
        let step = self.complete();
        self.interrupt = interrupt;
        step
    }

    /// The command failed.
    fn fail(&mut self, failure: &Failure) -> Step {
        self.phase = Phase::Idle;
        self.status = Status::DRDY | Status::DSC | Status::ERR;
        self.error = failure.error.bits();
        self.interrupt = true;
        match failure.address {
            Some((lba, Addressing::Lba48)) => self.registers.set_lba48(lba),
            Some((lba, Addressing::Lba28)) => self.registers.set_lba28(lba),
            Some((lba, Addressing::Chs)) => self.geometry.show(&mut self.registers, lba),
            None => {}
        }
        self.smart.note_error(self.registers, self.error);
        None
    }

    /// The drive asks its disk for something.
    fn ask(&mut self, phase: Phase, command: DiskCommand) -> Step {
        debug_assert!(!self.in_flight, "one request at a time");
        self.busy();
        self.phase = phase;
        self.in_flight = true;
        Some(command)
    }

    /// The drive gives the guest a block that it has at hand, as the whole data of a command.
    fn give(&mut self, bytes: Vec<u8>) -> Step {
        self.phase = Phase::DataIn {
            block: DataBlock::full(bytes),
            rest: None,
        };
        self.request_data(true);
        None
    }

    /// The drive takes one sector from the guest. The first block of a command comes without an interrupt.
    fn take_sector(&mut self, sink: Sink) -> Step {
        self.phase = Phase::DataOut {
            block: DataBlock::empty(SECTOR),
            sink,
        };
        self.request_data(false);
        None
    }
}

/// Resets.
impl Drive {
    /// SRST was set: whatever the drive does, it stops doing.
    pub(super) fn hold_reset(&mut self) {
        self.phase = Phase::Reset { held: true };
        self.interrupt = false;
        self.busy();
    }

    /// SRST was cleared: the reset ends as soon as no request is in flight. Until then the drive is busy, so nothing
    /// stale happens after the reset.
    pub(super) fn release_reset(&mut self) {
        if matches!(self.phase, Phase::Reset { .. }) {
            self.phase = Phase::Reset { held: false };
            self.finish_reset();
        }
    }

    /// EXECUTE DEVICE DIAGNOSTIC, as either drive of the channel does it. A drive that is still in a reset shows the
    /// same result when that is done.
    pub(super) fn diagnose(&mut self, interrupt: bool) {
        if !self.in_flight {
            self.show_signature();
            self.interrupt = interrupt;
        }
    }

    fn finish_reset(&mut self) {
        if !self.in_flight {
            self.features.software_reset();
            self.power = PowerMode::default();
            self.show_signature();
        }
    }

    fn show_signature(&mut self) {
        self.phase = Phase::Idle;
        self.registers = TaskFile::signature();
        self.status = Status::DRDY | Status::DSC;
        self.error = Error::DIAGNOSTIC_PASSED.bits();
        self.interrupt = false;
    }
}

/// Commands.
impl Drive {
    /// The host wrote the command register. Commands while [`Drive::engaged`] are lost, as on hardware.
    pub(super) fn execute(&mut self, opcode: u8) -> Step {
        if self.engaged() {
            tracing::debug!(opcode, "ATA command to a busy drive");
            return None;
        }
        self.acknowledge();
        // A sleeping drive only hears resets (ATA/ATAPI-6, 6.10.3).
        if self.power == PowerMode::Sleep {
            return None;
        }
        let Some(command) = Command::decode(opcode) else {
            tracing::debug!(opcode, "ATA command that the drive does not have");
            return self.fail(&Failure::ABORTED);
        };
        self.smart.note_command(opcode);
        tracing::trace!(?command, registers = ?self.registers, "ATA command");
        self.dispatch(command).unwrap_or_else(|failure| self.fail(&failure))
    }

    fn dispatch(&mut self, command: Command) -> Result<Step, Failure> {
        match command {
            Command::Read { protocol, extended } => self.start_read(protocol, extended),
            Command::Write {
                protocol,
                extended,
                fua,
            } => self.start_write(protocol, extended, fua),
            Command::Verify { extended } => self.start_verify(extended),
            Command::FlushCache => Ok(self.ask(Phase::Flush, DiskCommand::Flush)),
            Command::DataSetManagement => self.start_trim(),
            Command::IdentifyDevice => {
                let page = self.identify();
                Ok(self.give(page))
            }
            Command::SetFeatures => self.set_features(),
            Command::SetMultipleMode => self.set_multiple_mode(),
            Command::InitializeDeviceParameters => self.initialize_device_parameters(),
            Command::ReadNativeMaxAddress { extended } => self.read_native_max_address(extended),
            Command::ReadBuffer => {
                let bytes = self.sector_buffer.to_vec();
                Ok(self.give(bytes))
            }
            Command::WriteBuffer => Ok(self.take_sector(Sink::WriteBuffer)),
            Command::Smart => self.smart_command(),
            Command::CheckPowerMode => {
                self.registers.count.current = self.power.sector_count();
                Ok(self.complete())
            }
            Command::Power { mode, flush } => {
                self.power = mode;
                // Spinning down parks the heads over a disk that has everything.
                Ok(if flush {
                    self.ask(Phase::Flush, DiskCommand::Flush)
                } else {
                    self.complete()
                })
            }
            Command::Accept => Ok(self.complete()),
            // NOP always ends with ABRT (ATA/ATAPI-6, 8.17). DEVICE RESET is for packet devices (8.8).
            Command::Nop | Command::DeviceReset => Err(Failure::ABORTED),
            // The channel does it, for both drives.
            Command::ExecuteDeviceDiagnostic => Ok(None),
        }
    }

    fn set_multiple_mode(&mut self) -> Result<Step, Failure> {
        self.features
            .set_multiple(self.registers.count.current)
            .ok_or(Failure::ABORTED)?;
        Ok(self.complete())
    }

    fn initialize_device_parameters(&mut self) -> Result<Step, Failure> {
        let heads = (self.registers.device & 0x0f) + 1;
        self.geometry =
            Geometry::translated(self.capacity(), heads, self.registers.count.current).ok_or(Failure::ABORTED)?;
        Ok(self.complete())
    }

    fn read_native_max_address(&mut self, extended: bool) -> Result<Step, Failure> {
        let last = self.capacity() - 1;
        if extended {
            self.registers.set_lba48(last);
        } else {
            self.registers.set_lba28(last.min(transfer::LBA28_SECTORS - 1));
        }
        Ok(self.complete())
    }
}

/// Completions.
impl Drive {
    /// The request that the drive made of its disk is done.
    pub(super) fn completed(&mut self, outcome: Result<(), DiskError>) -> Step {
        self.in_flight = false;
        if let Err(error) = &outcome {
            tracing::debug!(%error, "a drive's disk request failed");
        }
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Reset { held } => {
                self.phase = Phase::Reset { held };
                if !held {
                    self.finish_reset();
                }
                None
            }
            Phase::DmaStopped => self.fail(&Failure::ABORTED),
            phase => match outcome {
                Ok(()) => self.succeeded(phase),
                Err(error) => {
                    let failure = failure_of(&phase, &error);
                    self.fail(&failure)
                }
            },
        }
    }

    fn succeeded(&mut self, phase: Phase) -> Step {
        match phase {
            Phase::ReadBlock { transfer, buffer } => {
                let rest = transfer.advanced(transfer.block_sectors());
                self.phase = Phase::DataIn {
                    block: DataBlock::full(buffer.to_vec()),
                    rest: (rest.sectors > 0).then_some(rest),
                };
                self.request_data(true);
                None
            }
            Phase::WriteBlock { transfer } => {
                let rest = transfer.advanced(transfer.block_sectors());
                if rest.sectors == 0 {
                    return self.written(rest.durable);
                }
                self.take_block(rest, true);
                None
            }
            Phase::DmaRun { dma, buffer } => self.ran_dma(dma, buffer.len()),
            Phase::Verify { transfer } => {
                let rest = transfer.advanced(transfer.sectors.min(VERIFY_SECTORS));
                if rest.sectors > 0 {
                    self.verify(rest)
                } else {
                    self.complete()
                }
            }
            Phase::Trim { ranges } => self.discard_next(ranges),
            _ => self.complete(),
        }
    }
}

/// What a failed request means to the guest. Reads fail with UNC, and the address of the request's first sector:
/// nothing at or beyond it was transferred for sure. Writes and flushes fail with ABRT, since the standard has no bit
/// of its own for a medium that cannot be written (ATA/ATAPI-6, 8.51 to 8.60).
fn failure_of(phase: &Phase, error: &DiskError) -> Failure {
    let (reading, transfer) = match phase {
        Phase::ReadBlock { transfer, .. } | Phase::Verify { transfer } => (true, transfer),
        Phase::DmaRun {
            dma: Dma::Read(transfer),
            ..
        } => (true, transfer),
        Phase::WriteBlock { transfer }
        | Phase::DmaRun {
            dma: Dma::Write(transfer),
            ..
        } => (false, transfer),
        _ => return Failure::ABORTED,
    };
    let bits = match error {
        DiskError::OutOfRange { .. } => Error::IDNF,
        _ if reading => Error::UNC,
        _ => Error::ABRT,
    };
    Failure::at(bits, transfer.lba, transfer.addressing)
}
