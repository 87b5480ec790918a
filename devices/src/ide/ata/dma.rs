//! The drive's side of DMA (ATA/ATAPI-6, 9.7).

use super::features::TransferMode;
use super::phase::{Dma, Phase};
use super::transfer::Transfer;
use super::work::{Purpose, Work};
use super::{DmaRequest, Drive, Failure, SECTOR, Step};
use crate::ide::memory::Memory;
use crate::ide::registers::Error;

impl Drive {
    /// Begins a DMA command, or what is left of it.
    pub(super) fn wait_for_bus_master(&mut self, dma: Dma) -> Step {
        self.busy();
        self.phase = Phase::DmaWait(dma);
        None
    }

    /// What the drive wants from the bus master now.
    pub(in crate::ide) fn dma_request(&self) -> Option<DmaRequest> {
        let Phase::DmaWait(dma) = &self.phase else { return None };
        let (to_memory, bytes) = match dma {
            Dma::Read(transfer) => (true, transfer.bytes()),
            Dma::Write(transfer) => (false, transfer.bytes()),
            Dma::Trim { bytes } => (false, *bytes),
            Dma::Pages(bytes) => (true, bytes.len()),
        };
        Some(DmaRequest {
            to_memory,
            bytes,
            granule: SECTOR,
        })
    }

    /// The bus master offers this memory: a whole number of sectors, one at least, and no more than was asked for.
    pub(in crate::ide) fn run_dma(&mut self, memory: Memory) -> Step {
        let Phase::DmaWait(dma) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return None;
        };
        match dma {
            Dma::Read(transfer) => {
                // Sectors before an uncorrectable one arrive.
                let sectors = (memory.len() / SECTOR) as u32;
                let good = self.kept.uncorrectable.good_sectors(transfer.lba, sectors);
                if good == 0 {
                    return self.uncorrectable(&transfer);
                }
                self.ask(Work::Read {
                    purpose: Purpose::Dma,
                    transfer,
                    memory: memory.first(good as usize * SECTOR),
                    search: None,
                })
            }
            Dma::Write(transfer) => self.ask(Work::Write {
                purpose: Purpose::Dma,
                transfer,
                memory,
            }),
            // Ranges count only when all of them are here.
            Dma::Trim { bytes } if memory.len() < bytes => self.wait_for_bus_master(dma),
            Dma::Trim { .. } => self.took_trim_ranges(&memory.buffer().to_vec()),
            Dma::Pages(mut bytes) => {
                let rest = bytes.split_off(memory.len().min(bytes.len()));
                memory.buffer().copy_from_slice(0, &bytes);
                if rest.is_empty() {
                    self.complete()
                } else {
                    self.wait_for_bus_master(Dma::Pages(rest))
                }
            }
        }
    }

    /// Whether disk and guest memory exchange data.
    pub(in crate::ide) fn runs_dma(&self) -> bool {
        matches!(self.phase, Phase::Working) && self.work.as_ref().is_some_and(Work::is_dma)
    }

    /// The bus master cannot transfer: its table or a region is not in memory.
    pub(in crate::ide) fn refuse_dma(&mut self) {
        if matches!(self.phase, Phase::DmaWait(_)) {
            let failure = self.broken_off();
            self.fail(&failure);
        }
    }

    /// The bus master was stopped. A transfer that runs cannot be recalled: when it is done, the command is aborted.
    pub(in crate::ide) fn stop_dma(&mut self) {
        if !self.runs_dma() {
            return;
        }
        if self.stopped.take().is_some() {
            self.work = None;
            let failure = self.broken_off();
            self.fail(&failure);
        } else {
            self.phase = Phase::DmaStopped;
        }
    }

    /// How a transfer ends that the bus master broke off. In an Ultra DMA mode drive and host compare the CRC of what each has
    /// seen of a burst, and theirs differ (ATA/ATAPI-6, 9.14 and 7.9: ICRC).
    pub(super) fn broken_off(&self) -> Failure {
        let error = match self.features.transfer_mode {
            TransferMode::Ultra(_) => Error::ICRC | Error::ABRT,
            _ => Error::ABRT,
        };
        Failure { error, address: None }
    }

    /// A part of a READ DMA is in memory.
    pub(super) fn dma_read(&mut self, rest: Transfer) -> Step {
        if rest.sectors == 0 {
            return self.complete();
        }
        if self.kept.uncorrectable.good_sectors(rest.lba, 1) == 0 {
            return self.uncorrectable(&rest);
        }
        self.wait_for_bus_master(Dma::Read(rest))
    }

    /// A part of a WRITE DMA is on the disk.
    pub(super) fn dma_write(&mut self, rest: Transfer) -> Step {
        self.wait_for_bus_master(Dma::Write(rest))
    }
}
