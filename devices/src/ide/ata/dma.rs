//! The drive's side of DMA (ATA/ATAPI-6, 9.7).

use disk::{Buffer, Command as DiskCommand};

use super::{Dma, DmaRequest, Drive, Failure, Phase, SECTOR, Step};

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
        Some(match dma {
            Dma::Read(transfer) => DmaRequest {
                to_memory: true,
                bytes: transfer.bytes(),
                granule: SECTOR,
            },
            Dma::Write(transfer) => DmaRequest {
                to_memory: false,
                bytes: transfer.bytes(),
                granule: SECTOR,
            },
            Dma::Trim { bytes } => DmaRequest {
                to_memory: false,
                bytes: *bytes,
                granule: SECTOR,
            },
        })
    }

    /// The bus master offers this memory: a whole number of sectors, and no more than was asked for.
    pub(in crate::ide) fn run_dma(&mut self, buffer: Buffer) -> Step {
        let Phase::DmaWait(dma) = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return None;
        };
        let command = match &dma {
            Dma::Read(transfer) => DiskCommand::Read {
                offset: transfer.offset(),
                buffer: buffer.clone(),
            },
            Dma::Write(transfer) => DiskCommand::Write {
                offset: transfer.offset(),
                buffer: buffer.clone(),
            },
            // Ranges count only when all of them are here.
            Dma::Trim { bytes } if buffer.len() < *bytes => return self.wait_for_bus_master(dma),
            Dma::Trim { .. } => return self.took_trim_ranges(&buffer.to_vec()),
        };
        self.ask(Phase::DmaRun { dma, buffer }, command)
    }

    /// Whether disk and guest memory exchange data.
    pub(in crate::ide) fn runs_dma(&self) -> bool {
        matches!(self.phase, Phase::DmaRun { .. })
    }

    /// The bus master cannot transfer: its table or a region is not in memory.
    pub(in crate::ide) fn refuse_dma(&mut self) {
        if matches!(self.phase, Phase::DmaWait(_)) {
            self.fail(&Failure::ABORTED);
        }
    }

    /// The bus master was stopped. A transfer that runs cannot be recalled: when it is done, the command is aborted.
    pub(in crate::ide) fn stop_dma(&mut self) {
        if matches!(self.phase, Phase::DmaRun { .. }) {
            self.phase = Phase::DmaStopped;
        }
    }

    /// A part of a DMA transfer is done.
    pub(super) fn ran_dma(&mut self, dma: Dma, moved: usize) -> Step {
        let (Dma::Read(transfer) | Dma::Write(transfer)) = dma else {
            return self.complete();
        };
        let transfer = transfer.advanced((moved / SECTOR) as u32);
        match dma {
            _ if transfer.sectors > 0 => self.wait_for_bus_master(match dma {
                Dma::Read(_) => Dma::Read(transfer),
                _ => Dma::Write(transfer),
            }),
            Dma::Read(_) => self.complete(),
            _ => self.written(transfer.durable),
        }
    }
}
