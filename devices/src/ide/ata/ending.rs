//! How commands end, and how they wait. Every change of status, error and interrupt is here and in `reset`.

use super::payload::Payload;
use super::phase::{Phase, Rest, Sink};
use super::transfer::Addressing;
use super::work::Work;
use super::{Drive, SECTOR, Step};
use crate::ide::data_block::DataBlock;
use crate::ide::registers::{Error, Status};

/// A command's end other than success: bits for the error register, and the address to report with them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub error: Error,
    pub address: Option<(u64, Addressing)>,
}

impl Failure {
    /// The drive does not do this.
    pub(super) const ABORTED: Self = Self {
        error: Error::ABRT,
        address: None,
    };

    /// At this address.
    pub(super) fn at(error: Error, lba: u64, addressing: Addressing) -> Self {
        Self {
            error,
            address: Some((lba, addressing)),
        }
    }
}

impl Drive {
    /// The drive works on the command itself.
    pub(super) fn busy(&mut self) {
        self.status = Status::BSY;
    }

    /// The drive waits for the host to move a block of data.
    pub(super) fn request_data(&mut self, interrupt: bool) {
        self.status = Status::DRDY | Status::DSC | Status::DRQ;
        self.interrupt |= interrupt;
    }

    /// The command is done.
    pub(super) fn complete(&mut self) -> Step {
        self.phase = Phase::Idle;
        self.status = Status::DRDY | Status::DSC;
        self.error = 0;
        self.interrupt = true;
        self.store();
        None
    }

    /// The last block of a PIO read was fetched: the command is done, and its interrupt was the block's.
    pub(super) fn complete_silently(&mut self) -> Step {
        let interrupt = self.interrupt;
        let step = self.complete();
        self.interrupt = interrupt;
        step
    }

    /// The command failed.
    pub(super) fn fail(&mut self, failure: &Failure) -> Step {
        self.phase = Phase::Idle;
        self.preceding = None;
        self.status = Status::DRDY | Status::DSC | Status::ERR;
        self.error = failure.error.bits();
        self.interrupt = true;
        match failure.address {
            Some((lba, Addressing::Lba48)) => self.registers.set_lba48(lba),
            Some((lba, Addressing::Lba28)) => self.registers.set_lba28(lba),
            Some((lba, Addressing::Chs)) => self.geometry.show(&mut self.registers, lba),
            None => {}
        }
        self.statistics.errors += 1;
        self.log_error(failure);
        self.store();
        None
    }

    /// The drive has its disk do something.
    pub(super) fn ask(&mut self, work: Work) -> Step {
        debug_assert!(self.work.is_none(), "one request at a time");
        self.busy();
        self.phase = Phase::Working;
        let command = work.command();
        self.work = Some(work);
        Some(command)
    }

    /// The drive gives the guest pages that it has at hand, a sector at a time, as the whole data of a command.
    pub(super) fn give(&mut self, mut bytes: Vec<u8>) -> Step {
        let rest = bytes.split_off(bytes.len().min(SECTOR));
        self.phase = Phase::DataIn {
            block: DataBlock::full(bytes),
            rest: if rest.is_empty() {
                Rest::Nothing
            } else {
                Rest::Pages(rest)
            },
        };
        self.request_data(true);
        None
    }

    /// The drive takes one sector from the guest. The first block of a command comes without an interrupt.
    pub(super) fn take_sector(&mut self, payload: Payload, interrupt: bool) -> Step {
        self.phase = Phase::DataOut {
            block: DataBlock::empty(SECTOR),
            sink: Sink::Drive(payload),
        };
        self.request_data(interrupt);
        None
    }
}
