//! What follows when a request at the medium's disk is done.

use disk::DiskError;

use super::super::data_block::DataBlock;
use super::super::drive::Step;
use super::CdRom;
use super::blocks::Blocks;
use super::phase::{Destination, Dma, Phase, Reading};
use super::sense::Sense;

impl CdRom {
    /// The request that the drive made of its medium is done.
    pub(in crate::ide) fn completed(&mut self, outcome: Result<(), DiskError>) -> Step {
        self.in_flight = false;
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            phase @ (Phase::Reset { held: false } | Phase::DeviceReset) => {
                self.phase = phase;
                self.finish_reset();
                None
            }
            Phase::DmaStopped => self.check(Sense::DATA_PHASE),
            Phase::Reading(reading) if reading.blocks.generation != self.tray.generation() => self.lost_the_medium(),
            Phase::Reading(reading) => match outcome {
                Ok(()) => self.was_read(reading),
                Err(error) => {
                    tracing::debug!(%error, block = reading.blocks.first, "a medium could not be read");
                    self.was_not_read(reading)
                }
            },
            phase => {
                self.phase = phase;
                None
            }
        }
    }

    fn was_read(&mut self, reading: Reading) -> Step {
        let Reading {
            blocks,
            count,
            memory: read,
            to,
        } = reading;
        let rest = blocks.advanced(count);
        self.position = rest.first;
        match to {
            Destination::Port => {
                let data = blocks.present(read.buffer().to_vec());
                self.give(DataBlock::full(data), (rest.count > 0).then_some(rest))
            }
            Destination::InPlace => self.filled_memory(rest),
            Destination::Guest { memory, at } => {
                let data = blocks.present(read.buffer().to_vec());
                memory.buffer().copy_from_slice(at, &data);
                let at = at + data.len();
                let room = memory.len() - at;
                if room == 0 || rest.count == 0 {
                    return self.filled_memory(rest);
                }
                self.read_apart(rest, room, Destination::Guest { memory, at })
            }
        }
    }

    /// The memory that the bus master offered is full.
    fn filled_memory(&mut self, rest: Blocks) -> Step {
        if rest.count == 0 {
            return self.complete();
        }
        self.wait_for_bus_master(Dma::Read(rest))
    }

    /// Several blocks are read again one by one, so that the host gets those before the bad one, and its address. If none
    /// is bad then, there was no error.
    fn was_not_read(&mut self, reading: Reading) -> Step {
        if reading.count == 1 {
            return self.check(Sense::unreadable(reading.blocks.first));
        }
        let blocks = reading.blocks.one_by_one();
        match reading.to {
            Destination::Port => self.read_for_port(blocks),
            Destination::InPlace => {
                let memory = reading.memory;
                self.read_apart(blocks, memory.len(), Destination::Guest { memory, at: 0 })
            }
            Destination::Guest { memory, at } => {
                let room = memory.len() - at;
                self.read_apart(blocks, room, Destination::Guest { memory, at })
            }
        }
    }
}
