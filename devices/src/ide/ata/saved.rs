//! The state of a drive, in mid-command, as it is saved and restored.
//!
//! A request that is at the disk is saved as the work that it does, and made again when the drive is restored: reads and
//! writes that are made twice do the same. Nothing of what is saved is trusted.

use std::io;
use std::time::Duration;

use disk::DiskError;
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use super::execute::Preceding;
use super::features::Features;
use super::geometry::Geometry;
use super::non_volatile::NonVolatile;
use super::phase::{Dma, Phase, Rest, Sink};
use super::power::Power;
use super::protected_area::ProtectedArea;
use super::security::Security;
use super::statistics::Statistics;
use super::transfer::{MOST_SECTORS, Transfer};
use super::work::{Purpose, Work};
use super::{Drive, SECTOR, Step};
use crate::ide::drive::DriveStateError;
use crate::ide::registers::{Status, TaskFile};

/// The most bytes that a drive has at hand for one command: all pages of the largest log.
const MOST_PAGES: usize = 16 * SECTOR;

/// One drive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::ide) struct SavedDrive {
    registers: TaskFile,
    status: Status,
    error: u8,
    interrupt: bool,
    phase: Phase,
    work: Option<Work>,
    /// The work waits for the machine to go on.
    stopped: bool,
    preceding: Option<Preceding>,
    last_opcode: u8,
    geometry: Geometry,
    features: Features,
    power: Power,
    security: Security,
    protected_area: ProtectedArea,
    overlay_frozen: bool,
    kept: NonVolatile,
    statistics: Statistics,
    on: Duration,
    sector_buffer: Vec<u8>,
}

impl Drive {
    /// The drive's state now.
    pub(in crate::ide) fn save(&self) -> SavedDrive {
        SavedDrive {
            registers: self.registers,
            status: self.status,
            error: self.error,
            interrupt: self.interrupt,
            phase: self.phase.clone(),
            work: self.work.clone(),
            stopped: self.stopped.is_some(),
            preceding: self.preceding,
            last_opcode: self.last_opcode,
            geometry: self.geometry,
            features: self.features.clone(),
            power: self.power.clone(),
            security: self.security.clone(),
            protected_area: self.protected_area.clone(),
            overlay_frozen: self.overlay_frozen,
            kept: self.kept.clone(),
            statistics: self.statistics,
            on: self.powered_for(),
            sector_buffer: self.sector_buffer.clone(),
        }
    }

    /// Takes on a saved state. The drive has done nothing yet since it was made. Returns the request that was at the
    /// disk. A request that waited for the machine to go on still does.
    pub(in crate::ide) fn restore(
        &mut self,
        mut saved: SavedDrive,
        memory: &GuestMemoryMmap,
    ) -> Result<Step, DriveStateError> {
        if let Some(work) = &mut saved.work {
            work.attach(memory)?;
        }
        saved.check().map_err(DriveStateError::Unsound)?;
        self.registers = saved.registers;
        self.status = saved.status;
        self.error = saved.error;
        self.interrupt = saved.interrupt;
        self.phase = saved.phase;
        self.work = saved.work;
        self.stopped = saved.stopped.then(|| DiskError::Io {
            operation: "a request before the state was saved",
            offset: 0,
            error: io::ErrorKind::Other.into(),
        });
        self.preceding = saved.preceding;
        self.last_opcode = saved.last_opcode;
        self.geometry = saved.geometry;
        self.features = saved.features;
        self.power = saved.power;
        self.security = saved.security;
        self.protected_area = saved.protected_area;
        self.overlay_frozen = saved.overlay_frozen;
        self.kept = saved.kept;
        self.statistics = saved.statistics;
        self.on_before = saved.on;
        self.powered_on = self.setup.clock.now();
        self.sector_buffer = saved.sector_buffer;
        self.changed = true;
        self.store();
        Ok(self.work.as_ref().filter(|_| self.stopped.is_none()).map(Work::command))
    }
}

impl SavedDrive {
    /// Whether all of it fits together. Fails with what does not.
    fn check(&self) -> Result<(), &'static str> {
        let sound = |holds: bool, what| if holds { Ok(()) } else { Err(what) };
        sound(self.sector_buffer.len() == SECTOR, "sector buffer")?;
        sound(self.geometry.is_sound(), "geometry")?;
        sound(self.features.is_sound(), "feature settings")?;
        sound(self.power.is_sound() && self.on < MOST_TIME, "power management")?;
        sound(self.statistics.is_sound(), "statistics")?;
        sound(self.kept.is_sound(), "non-volatile state")?;
        sound(self.protected_area.is_sound(), "protected area")?;
        sound(!self.stopped || self.work.is_some(), "stopped request")?;
        sound(self.work.as_ref().is_none_or(work_is_sound), "request")?;
        let idle = !self.status.intersects(Status::BSY | Status::DRQ);
        let busy = self.status.contains(Status::BSY);
        let data = !busy && self.status.contains(Status::DRQ);
        let at_work = self.work.is_some();
        let fits = match &self.phase {
            Phase::Idle => idle && !at_work,
            Phase::Reset { held } => busy && (*held || at_work),
            Phase::DataIn { block, rest } => {
                data && !at_work && block_is_sound(block.progress()) && rest_is_sound(rest)
            }
            Phase::DataOut { block, sink } => {
                data && !at_work && block_is_sound(block.progress()) && sink_is_sound(sink, block.progress().0)
            }
            Phase::DmaWait(dma) => busy && !at_work && dma_is_sound(dma),
            Phase::Working => busy && at_work,
            Phase::DmaStopped => busy && at_work,
        };
        sound(fits, "phase")
    }
}

/// More than any drive is on, and small enough to count with.
pub(super) const MOST_TIME: Duration = Duration::from_secs(1 << 40);

fn transfer_is_sound(transfer: &Transfer) -> bool {
    transfer.lba < 1 << 48
        && (1..=MOST_SECTORS).contains(&transfer.sectors)
        && (1..=u32::from(super::features::MOST_MULTIPLE)).contains(&transfer.block)
}

fn block_is_sound((length, at): (usize, usize)) -> bool {
    length > 0 && length.is_multiple_of(SECTOR) && length <= MOST_PAGES && at < length
}

fn rest_is_sound(rest: &Rest) -> bool {
    match rest {
        Rest::Nothing => true,
        Rest::Sectors(transfer) => transfer_is_sound(transfer),
        Rest::Pages(bytes) => !bytes.is_empty() && bytes.len() <= MOST_PAGES && bytes.len().is_multiple_of(SECTOR),
    }
}

fn sink_is_sound(sink: &Sink, length: usize) -> bool {
    match sink {
        Sink::Disk(transfer) => transfer_is_sound(transfer) && length == transfer.block_bytes(),
        Sink::Drive(payload) => length == SECTOR && payload.is_sound(),
    }
}

fn dma_is_sound(dma: &Dma) -> bool {
    match dma {
        Dma::Read(transfer) | Dma::Write(transfer) => transfer_is_sound(transfer),
        Dma::Trim { bytes } => {
            (SECTOR..=usize::from(super::trim::MOST_BLOCKS) * SECTOR).contains(bytes) && bytes.is_multiple_of(SECTOR)
        }
        Dma::Pages(bytes) => rest_is_sound(&Rest::Pages(bytes.clone())),
    }
}

fn work_is_sound(work: &Work) -> bool {
    let moves = |transfer: &Transfer, length: usize| {
        transfer_is_sound(transfer) && length > 0 && length.is_multiple_of(SECTOR) && length <= transfer.bytes()
    };
    match work {
        Work::Read {
            transfer,
            memory,
            search,
            ..
        } => {
            moves(transfer, memory.len())
                && search
                    .as_ref()
                    .is_none_or(|search| search.is_sound(memory.len() / SECTOR))
        }
        Work::Write {
            purpose,
            transfer,
            memory,
        } => moves(transfer, memory.len()) && *purpose != Purpose::Verify,
        Work::Flush(_) => true,
        Work::Trim { ranges } => {
            let sound = |(offset, length): &(u64, u64)| {
                *length > 0
                    && offset.is_multiple_of(SECTOR as u64)
                    && length.is_multiple_of(SECTOR as u64)
                    && offset.checked_add(*length).is_some()
            };
            (1..=super::trim::MOST_RANGES).contains(&ranges.len()) && ranges.iter().all(sound)
        }
        Work::Erase { at, end, .. } => at < end && *end <= 1 << 48,
    }
}
