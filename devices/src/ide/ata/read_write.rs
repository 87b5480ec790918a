//! Reading, writing and verifying sectors, and the data register (ATA/ATAPI-6, 9.5 and 9.6).

use disk::{Buffer, Command as DiskCommand};

use super::super::data_block::DataBlock;
use super::command::Protocol;
use super::power::PowerMode;
use super::transfer::Transfer;
use super::{Dma, Drive, Failure, Phase, SECTOR, Sink, Step, VERIFY_SECTORS};

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
        self.power = PowerMode::Active;
        Ok(match protocol {
            Protocol::Dma => self.wait_for_bus_master(Dma::Read(transfer)),
            Protocol::Pio | Protocol::Multiple => self.read_block(transfer),
        })
    }

    pub(super) fn start_write(&mut self, protocol: Protocol, extended: bool, fua: bool) -> Result<Step, Failure> {
        if self.disk.read_only() {
            return Err(Failure::ABORTED);
        }
        let mut transfer = self.transfer(protocol, extended)?;
        transfer.durable = fua || !self.features.write_cache;
        self.power = PowerMode::Active;
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
        self.power = PowerMode::Active;
        Ok(self.verify(transfer))
    }

    pub(super) fn verify(&mut self, transfer: Transfer) -> Step {
        let sectors = transfer.sectors.min(VERIFY_SECTORS);
        let command = DiskCommand::Read {
            offset: transfer.offset(),
            buffer: Buffer::zeroed(sectors as usize * SECTOR),
        };
        self.ask(Phase::Verify { transfer }, command)
    }

    /// Asks the disk for the next block of a PIO read.
    pub(super) fn read_block(&mut self, transfer: Transfer) -> Step {
        let buffer = Buffer::zeroed(transfer.block_bytes());
        let command = DiskCommand::Read {
            offset: transfer.offset(),
            buffer: buffer.clone(),
        };
        self.ask(Phase::ReadBlock { transfer, buffer }, command)
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
            return self.ask(Phase::Flush, DiskCommand::Flush);
        }
        self.complete()
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
        match *rest {
            Some(transfer) => self.read_block(transfer),
            None => self.complete_silently(),
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
        let Phase::DataOut { block, sink } = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return None;
        };
        self.took_block(&block.into_bytes(), &sink)
    }

    fn took_block(&mut self, bytes: &[u8], sink: &Sink) -> Step {
        match sink {
            Sink::Disk(transfer) => {
                let command = DiskCommand::Write {
                    offset: transfer.offset(),
                    buffer: Buffer::from_slice(bytes),
                };
                self.ask(Phase::WriteBlock { transfer: *transfer }, command)
            }
            Sink::WriteBuffer => {
                self.sector_buffer.copy_from_slice(bytes);
                self.complete()
            }
        }
    }
}
