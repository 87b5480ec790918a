//! The state of a CD-ROM drive, in mid-command, as it is saved and restored. Nothing of what is saved is trusted.

use disk::{Buffer, Command as DiskCommand};
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

use super::super::drive::{DriveStateError, Step};
use super::super::registers::{Status, TaskFile};
use super::CdRom;
use super::blocks::{Blocks, Layout};
use super::mode::Parameters;
use super::phase::{Destination, Dma, Phase, Reading};
use super::sense::Sense;
use super::transfer_mode::TransferMode;
use super::tray::{BLOCK, SavedTray};

/// The most bytes that the drive has at hand: a reply, or 32 blocks in the layout with the most parts.
const MOST_BYTES: usize = 128 << 10;

/// One CD-ROM drive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::ide) struct SavedCdRom {
    registers: TaskFile,
    status: Status,
    error: u8,
    interrupt: bool,
    phase: Phase,
    byte_count_limit: u16,
    in_flight: bool,
    tray: SavedTray,
    sense: Sense,
    powered_on: bool,
    position: u32,
    parameters: Parameters,
    transfer_mode: TransferMode,
    asleep: bool,
    standby: bool,
}

impl CdRom {
    /// The drive's state now.
    pub(in crate::ide) fn save(&self) -> SavedCdRom {
        SavedCdRom {
            registers: self.registers,
            status: self.status,
            error: self.error,
            interrupt: self.interrupt,
            phase: self.phase.clone(),
            byte_count_limit: self.byte_count_limit,
            in_flight: self.in_flight,
            tray: self.tray.save(),
            sense: self.sense,
            powered_on: self.powered_on,
            position: self.position,
            parameters: self.parameters.clone(),
            transfer_mode: self.transfer_mode,
            asleep: self.asleep,
            standby: self.standby,
        }
    }

    /// Takes on a saved state. The drive has done nothing yet since it was made. Returns the request that was at the
    /// medium.
    pub(in crate::ide) fn restore(
        &mut self,
        mut saved: SavedCdRom,
        memory: &GuestMemoryMmap,
    ) -> Result<Step, DriveStateError> {
        if let Phase::Reading(reading) = &mut saved.phase {
            reading.memory.attach(memory)?;
            if let Destination::Guest { memory: whole, .. } = &mut reading.to {
                whole.attach(memory)?;
            }
        }
        saved.check().map_err(DriveStateError::Unsound)?;
        self.registers = saved.registers;
        self.status = saved.status;
        self.error = saved.error;
        self.interrupt = saved.interrupt;
        self.phase = saved.phase;
        self.byte_count_limit = saved.byte_count_limit;
        self.in_flight = saved.in_flight;
        self.tray.restore(saved.tray);
        self.sense = saved.sense;
        self.powered_on = saved.powered_on;
        self.position = saved.position;
        self.parameters = saved.parameters;
        self.transfer_mode = saved.transfer_mode;
        self.asleep = saved.asleep;
        self.standby = saved.standby;
        if !self.in_flight {
            return Ok(None);
        }
        let Some(disk) = self.disk() else {
            // The medium is gone, and the request with it.
            return Ok(self.completed(Ok(())));
        };
        let capacity = disk.capacity();
        Ok(Some(match &self.phase {
            Phase::Reading(reading) if reading.command().check(capacity, true).is_ok() => reading.command(),
            // Nobody waits for what it read, only for its end.
            _ => DiskCommand::Read {
                offset: 0,
                buffer: Buffer::zeroed(0),
            },
        }))
    }
}

impl SavedCdRom {
    /// Whether all of it fits together. Fails with what does not.
    fn check(&self) -> Result<(), &'static str> {
        let sound = |holds: bool, what| if holds { Ok(()) } else { Err(what) };
        sound(self.parameters.is_sound(), "mode pages")?;
        sound(self.transfer_mode.is_sound(), "transfer mode")?;
        let busy = self.status.contains(Status::BSY);
        let data = !busy && self.status.contains(Status::DRQ);
        let idle = !busy && !data;
        let block_fits = |block: usize, left: usize| (1..=left.next_multiple_of(2)).contains(&block);
        let fits = match &self.phase {
            Phase::Idle => idle && !self.in_flight,
            Phase::Reset { held } => busy && (*held || self.in_flight),
            Phase::DeviceReset | Phase::DmaStopped => busy && self.in_flight,
            Phase::PacketOut { packet, .. } => data && !self.in_flight && packet.is_sound(12) && packet.remaining() > 0,
            Phase::Page(page) => data && !self.in_flight && page.is_sound(512) && page.remaining() > 0,
            Phase::DataIn {
                data: bytes,
                block,
                rest,
            } => {
                data && !self.in_flight
                    && bytes.is_sound(MOST_BYTES)
                    && block_fits(*block, bytes.remaining())
                    && rest.as_ref().is_none_or(Blocks::is_sound)
            }
            Phase::DataOut { list, block } => {
                data && !self.in_flight && list.is_sound(MOST_BYTES) && block_fits(*block, list.remaining())
            }
            Phase::DmaWait(Dma::Reply(bytes)) => busy && !self.in_flight && (1..=MOST_BYTES).contains(&bytes.len()),
            Phase::DmaWait(Dma::Read(blocks)) => busy && !self.in_flight && blocks.is_sound(),
            Phase::DmaWait(Dma::Take(length)) => busy && !self.in_flight && (1..=MOST_BYTES).contains(length),
            Phase::Reading(reading) => busy && self.in_flight && reading_is_sound(reading),
        };
        sound(fits, "phase")
    }
}

fn reading_is_sound(reading: &Reading) -> bool {
    let Reading {
        blocks,
        count,
        memory,
        to,
    } = reading;
    let whole = blocks.is_sound() && (1..=blocks.count).contains(count) && memory.len() == *count as usize * BLOCK;
    whole
        && match to {
            Destination::Port => true,
            Destination::InPlace => blocks.layout == Layout::Data,
            Destination::Guest { memory, at } => {
                let end = blocks
                    .layout
                    .bytes()
                    .saturating_mul(*count as usize)
                    .saturating_add(*at);
                end <= memory.len()
            }
        }
}
