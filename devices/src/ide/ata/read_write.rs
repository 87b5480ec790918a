//! Reading, writing and verifying sectors, and the data register (ATA/ATAPI-6, 9.5 and 9.6).

use disk::Buffer;

use super::command::Protocol;
use super::phase::{Dma, Phase, Rest, Sink};
use super::transfer::Transfer;
use super::work::{Purpose, Reason, Work};
use super::{Drive, Failure, Step};
use crate::ide::data_block::DataBlock;
use crate::ide::memory::Memory;
use crate::ide::registers::Error;

/// The most sectors that READ VERIFY reads at once, to bound its memory.
const VERIFY_SECTORS: u32 = 256;

impl Drive {
    pub(super) fn transfer(&self, protocol: Protocol, extended: bool) -> Result<Transfer, Failure> {
        let mut transfer = Transfer::parse(&self.registers, extended, &self.geometry, self.capacity())?;
        transfer.block = match protocol {
            Protocol::Pio | Protocol::Dma => 1,
            Protocol::Multiple => self.features.multiple().ok_or(Failure::ABORTED)?,
        };
        Ok(transfer)
    }

    pub(super) fn start_read(&mut self, protocol: Protocol, extended: bool) -> Result<Step, Failure> {
        let transfer = self.transfer(protocol, extended)?;
        self.power.wake(self.powered_for());
        self.statistics.reads += 1;
        Ok(match protocol {
            Protocol::Dma => self.wait_for_bus_master(Dma::Read(transfer)),
            Protocol::Pio | Protocol::Multiple => self.read_block(transfer),
        })
    }

    pub(super) fn start_write(&mut self, protocol: Protocol, extended: bool, fua: bool) -> Result<Step, Failure> {
        if self.setup.disk.read_only() {
            return Err(Failure::ABORTED);
        }
        let mut transfer = self.transfer(protocol, extended)?;
        transfer.durable = fua || !self.features.write_cache;
        self.power.wake(self.powered_for());
        self.statistics.writes += 1;
        Ok(match protocol {
            Protocol::Dma => self.wait_for_bus_master(Dma::Write(transfer)),
            Protocol::Pio | Protocol::Multiple => {
                self.take_block(transfer, false);
                None
            }
        })
    }

    pub(super) fn start_verify(&mut self, extended: bool) -> Result<Step, Failure> {
        let transfer = self.transfer(Protocol::Pio, extended)?;
        self.power.wake(self.powered_for());
        Ok(self.verify(transfer))
    }

    pub(super) fn verify(&mut self, transfer: Transfer) -> Step {
        self.read(Purpose::Verify, transfer, transfer.sectors.min(VERIFY_SECTORS))
    }

    /// Asks the disk for the next block of a PIO read.
    pub(super) fn read_block(&mut self, transfer: Transfer) -> Step {
        let sectors = transfer.block_sectors();
        // A block is given whole or not at all.
        let good = self.kept.uncorrectable.good_sectors(transfer.lba, sectors);
        if good < sectors {
            return self.uncorrectable(&transfer.advanced(good));
        }
        self.read(Purpose::Block, transfer, sectors)
    }

    /// Asks the disk for the next `sectors` sectors, or as many of them as WRITE UNCORRECTABLE left readable.
    fn read(&mut self, purpose: Purpose, transfer: Transfer, sectors: u32) -> Step {
        let good = self.kept.uncorrectable.good_sectors(transfer.lba, sectors);
        if good == 0 {
            return self.uncorrectable(&transfer);
        }
        self.ask(Work::read(purpose, transfer, good))
    }

    /// The next sector was made uncorrectable.
    pub(super) fn uncorrectable(&mut self, at: &Transfer) -> Step {
        self.fail(&Failure::at(Error::UNC, at.lba, at.addressing))
    }

    /// Asks the guest for the next block of a PIO write.
    pub(super) fn take_block(&mut self, transfer: Transfer, interrupt: bool) {
        self.phase = Phase::DataOut {
            block: DataBlock::empty(transfer.block_bytes()),
            sink: Sink::Disk(transfer),
        };
        self.request_data(interrupt);
    }

    /// All data of a write is at the disk.
    pub(super) fn written(&mut self, durable: bool) -> Step {
        if durable {
            return self.ask(Work::Flush(Reason::Write));
        }
        self.complete()
    }

    /// Sectors were written or discarded: nothing is wrong with them any more.
    pub(super) fn mend(&mut self, lba: u64, sectors: u64) {
        self.changed |= self.kept.uncorrectable.mend(lba, sectors);
    }

    /// The host reads `data.len()` bytes (2 or 4) from the data register. Without DRQ it reads zeros.
    pub(in crate::ide) fn read_data(&mut self, data: &mut [u8]) -> Step {
        data.fill(0);
        let Phase::DataIn { block, rest } = &mut self.phase else {
            return None;
        };
        block.read(data);
        if !block.done() {
            return None;
        }
        match std::mem::replace(rest, Rest::Nothing) {
            Rest::Sectors(transfer) => self.read_block(transfer),
            Rest::Pages(bytes) => self.give(bytes),
            Rest::Nothing => self.complete_silently(),
        }
    }

    /// The host writes `data.len()` bytes (2 or 4) to the data register. Without DRQ they are lost.
    pub(in crate::ide) fn write_data(&mut self, data: &[u8]) -> Step {
        let Phase::DataOut { block, .. } = &mut self.phase else {
            return None;
        };
        block.write(data);
        if !block.done() {
            return None;
        }
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::DataOut { block, sink } => self.took_block(&block.into_bytes(), sink),
            _ => None,
        }
    }

    fn took_block(&mut self, bytes: &[u8], sink: Sink) -> Step {
        match sink {
            Sink::Disk(transfer) => self.ask(Work::Write {
                purpose: Purpose::Block,
                transfer,
                memory: Memory::own(Buffer::from_slice(bytes)),
            }),
            Sink::Drive(payload) => self
                .took_payload(payload, bytes)
                .unwrap_or_else(|failure| self.fail(&failure)),
        }
    }
}
