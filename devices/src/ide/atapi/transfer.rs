//! Data of packet commands on its way: through the data register in blocks that the byte count limit allows, or by bus
//! master (ATA/ATAPI-6, 8.23.4, 9.8 and 9.9).

use disk::Buffer;

use super::super::data_block::DataBlock;
use super::super::drive::{DmaRequest, Step};
use super::super::memory::Memory;
use super::CdRom;
use super::answer::Answer;
use super::blocks::{Blocks, Layout};
use super::packet::Packet;
use super::phase::{Destination, Dma, Phase, Reading, Way};
use super::sense::Sense;
use super::tray::BLOCK;

impl CdRom {
    /// Moves what the answer says.
    pub(super) fn deliver(&mut self, answer: Answer, way: Way) -> Step {
        // Data through the register, and no limit: the command is aborted (ATA8-ACS, 7.18.4).
        if way == Way::Port && answer != Answer::Done && self.byte_count_limit == 0 {
            return self.abort();
        }
        match (answer, way) {
            (Answer::Done, _) => self.complete(),
            (Answer::Reply(bytes), Way::Port) => self.give(DataBlock::full(bytes), None),
            (Answer::Reply(bytes), Way::BusMaster) => self.wait_for_bus_master(Dma::Reply(bytes)),
            (Answer::Read(blocks), Way::Port) => self.read_for_port(blocks),
            (Answer::Read(blocks), Way::BusMaster) => self.wait_for_bus_master(Dma::Read(blocks)),
            (Answer::Take(length), Way::Port) => self.take(DataBlock::empty(length)),
            (Answer::Take(length), Way::BusMaster) => self.wait_for_bus_master(Dma::Take(length)),
        }
    }

    /// A parameter list is here. MODE SELECT is the only command that has one.
    fn took_list(&mut self, list: &[u8]) -> Step {
        self.busy();
        match self.select_parameters(list) {
            Ok(()) => self.complete(),
            Err(sense) => self.check(sense),
        }
    }

    /// Asks the medium for the next of `blocks`, into memory of the drive's own.
    pub(super) fn read_apart(&mut self, blocks: Blocks, room: usize, to: Destination) -> Step {
        let count = blocks.next_count(room);
        self.ask(Reading {
            blocks,
            count,
            memory: Memory::own(Buffer::zeroed(count as usize * BLOCK)),
            to,
        })
    }
}

/// Through the data register.
impl CdRom {
    /// The bytes of the next block of `left`. Only the last one may be odd, since the register passes words.
    fn next_block(&self, left: usize) -> usize {
        let limit = usize::from(self.byte_count_limit.min(0xfffe));
        if left <= limit { left } else { (limit & !1).max(2) }
    }

    pub(super) fn read_for_port(&mut self, blocks: Blocks) -> Step {
        self.read_apart(blocks, self.byte_count_limit.into(), Destination::Port)
    }

    /// Offers the next block of `data` to the host.
    pub(super) fn give(&mut self, data: DataBlock, rest: Option<Blocks>) -> Step {
        let block = self.next_block(data.remaining());
        self.phase = Phase::DataIn { data, block, rest };
        self.request_data(true, block);
        None
    }

    /// Asks the host for the next block of a parameter list.
    fn take(&mut self, list: DataBlock) -> Step {
        let block = self.next_block(list.remaining());
        self.phase = Phase::DataOut { list, block };
        self.request_data(false, block);
        None
    }

    /// The host reads `data.len()` bytes (2 or 4) from the data register. Without DRQ it reads zeros.
    pub(in crate::ide) fn read_data(&mut self, data: &mut [u8]) -> Step {
        data.fill(0);
        match &mut self.phase {
            Phase::Page(page) => {
                page.read(data);
                if page.done() { self.complete_silently() } else { None }
            }
            Phase::DataIn {
                data: source, block, ..
            } => {
                // The byte behind an odd block is a zero that makes it even.
                let length = data.len().min(*block);
                source.read(&mut data[..length]);
                *block -= length;
                if *block == 0 { self.gave_block() } else { None }
            }
            _ => None,
        }
    }

    fn gave_block(&mut self) -> Step {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::DataIn { data, rest, .. } if !data.done() => self.give(data, rest),
            Phase::DataIn { rest: Some(blocks), .. } => self.read_for_port(blocks),
            _ => self.complete(),
        }
    }

    /// The host writes `data.len()` bytes (2 or 4) to the data register. Without DRQ they are lost.
    pub(in crate::ide) fn write_data(&mut self, data: &[u8]) -> Step {
        match &mut self.phase {
            Phase::PacketOut { packet, way } => {
                packet.write(data);
                if !packet.done() {
                    return None;
                }
                let (packet, way) = (Packet::new(packet.bytes()), *way);
                self.took_packet(&packet, way)
            }
            Phase::DataOut { list, block, .. } => {
                let length = data.len().min(*block);
                list.write(&data[..length]);
                *block -= length;
                if *block == 0 { self.took_block() } else { None }
            }
            _ => None,
        }
    }

    fn took_block(&mut self) -> Step {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::DataOut { list, .. } if !list.done() => self.take(list),
            Phase::DataOut { list, .. } => self.took_list(list.bytes()),
            _ => None,
        }
    }
}

/// By bus master.
impl CdRom {
    /// Begins the data of a command, or what is left of it.
    pub(super) fn wait_for_bus_master(&mut self, dma: Dma) -> Step {
        self.busy();
        self.phase = Phase::DmaWait(dma);
        None
    }

    /// What the drive wants from the bus master now.
    pub(in crate::ide) fn dma_request(&self) -> Option<DmaRequest> {
        let Phase::DmaWait(dma) = &self.phase else { return None };
        let (to_memory, bytes, granule) = match dma {
            Dma::Reply(bytes) => (true, bytes.len(), 2),
            Dma::Read(blocks) => (true, blocks.bytes(), blocks.layout.bytes()),
            // All of it or nothing.
            Dma::Take(length) => (false, *length, *length),
        };
        Some(DmaRequest {
            to_memory,
            bytes,
            granule,
        })
    }

    /// The bus master offers this memory: what was asked for, or a number of whole granules.
    pub(in crate::ide) fn run_dma(&mut self, memory: Memory) -> Step {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::DmaWait(Dma::Reply(bytes)) => self.reply_by_dma(&bytes, memory.buffer()),
            Phase::DmaWait(Dma::Read(blocks)) => self.read_by_dma(blocks, memory),
            Phase::DmaWait(Dma::Take(..)) => self.took_list(&memory.buffer().to_vec()),
            phase => {
                self.phase = phase;
                None
            }
        }
    }

    fn reply_by_dma(&mut self, bytes: &[u8], memory: &Buffer) -> Step {
        let (now, later) = bytes.split_at(bytes.len().min(memory.len()));
        memory.copy_from_slice(0, now);
        if later.is_empty() {
            return self.complete();
        }
        self.wait_for_bus_master(Dma::Reply(later.to_vec()))
    }

    fn read_by_dma(&mut self, blocks: Blocks, memory: Memory) -> Step {
        let room = memory.len();
        match blocks.layout {
            Layout::Data => self.ask(Reading {
                blocks,
                count: (room / BLOCK) as u32,
                memory,
                to: Destination::InPlace,
            }),
            Layout::Parts(_) => self.read_apart(blocks, room, Destination::Guest { memory, at: 0 }),
        }
    }

    /// Whether medium and guest memory exchange data.
    pub(in crate::ide) fn runs_dma(&self) -> bool {
        matches!(&self.phase, Phase::Reading(reading) if !matches!(reading.to, Destination::Port))
    }

    /// The bus master cannot transfer: its table or a region is not in memory.
    pub(in crate::ide) fn refuse_dma(&mut self) {
        if matches!(self.phase, Phase::DmaWait(_)) {
            self.check(Sense::DATA_PHASE);
        }
    }

    /// The bus master was stopped. A transfer that runs cannot be recalled: when it is done, the command is aborted.
    pub(in crate::ide) fn stop_dma(&mut self) {
        if self.runs_dma() {
            self.phase = Phase::DmaStopped;
        }
    }
}
