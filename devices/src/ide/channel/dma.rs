//! When a DMA transfer runs: as soon as a drive asks for one and the bus master is started, whichever comes first.

use disk::BufferError;

use super::State;
use crate::ide::bus_master::{Command as BusMasterCommand, Status as BusMasterStatus};
use crate::ide::drive::{DmaRequest, Step};
use crate::ide::memory::Memory;
use crate::ide::prd::{self, PrdError};

/// Why a transfer cannot be made, which the guest learns from the bus master's error bit.
#[derive(Debug, thiserror::Error)]
enum DmaError {
    #[error(transparent)]
    Table(#[from] PrdError),
    #[error(transparent)]
    Region(#[from] BufferError),
    #[error("The bus master's direction is not the command's")]
    Direction,
}

/// The bus master's work.
impl State {
    /// Begins the DMA transfer for which drive and bus master are ready, in whichever order they became so.
    pub(super) fn run_dma(&mut self) -> Option<(usize, Step)> {
        if !self.bus_master.active() || !self.mastering {
            return None;
        }
        let (index, request) = (0..2).find_map(|index| Some((index, self.drives[index].as_ref()?.dma_request()?)))?;
        let offer = self.regions(request);
        let drive = self.drives[index].as_mut()?;
        let buffer = match offer {
            Ok(buffer) => buffer,
            Err(error) => {
                tracing::debug!(%error, "bus-master transfer refused");
                drive.refuse_dma();
                self.bus_master.status.remove(BusMasterStatus::ACTIVE);
                self.bus_master.status.insert(BusMasterStatus::ERROR);
                return None;
            }
        };
        // A table too short for a granule moves nothing; the drive goes on waiting.
        let step = if buffer.is_empty() { None } else { drive.run_dma(buffer) };
        if !drive.runs_dma() {
            self.end_dma();
        }
        Some((index, step))
    }

    /// The memory for the next part of a transfer: all that is asked for, or as many whole granules as the table has.
    fn regions(&mut self, request: DmaRequest) -> Result<Memory, DmaError> {
        if self.bus_master.command.contains(BusMasterCommand::TO_MEMORY) != request.to_memory {
            return Err(DmaError::Direction);
        }
        let mut regions = prd::read(&self.memory, self.bus_master.table, request.bytes)?;
        if regions.length < request.bytes {
            regions.truncate(regions.length - regions.length % request.granule);
        }
        self.bus_master.last_of_table = regions.exhausted;
        Ok(Memory::guest(&self.memory, regions.ranges)?)
    }

    /// A transfer came to its end. With the table used up the bus master is no longer active; with a rest of it, it is
    /// (BMIDE 1.0, 3.1: both are valid, and the interrupt bit tells a short table from a long one).
    pub(super) fn end_dma(&mut self) {
        if self.bus_master.last_of_table {
            self.bus_master.status.remove(BusMasterStatus::ACTIVE);
        }
    }
}
