//! What follows from a request's outcome.

use disk::DiskError;

use super::phase::{Phase, Rest};
use super::search::{Next, Search};
use super::transfer::Transfer;
use super::work::{ERASE_SECTORS, Purpose, Work};
use super::{Drive, Failure, SECTOR, Step};
use crate::ide::data_block::DataBlock;
use crate::ide::error_policy::Reaction;
use crate::ide::registers::Error;

impl Drive {
    /// The request that the drive made of its disk is done.
    pub(in crate::ide) fn completed(&mut self, outcome: Result<(), DiskError>) -> Step {
        let work = self.work.take()?;
        if let Err(error) = &outcome {
            tracing::debug!(%error, "a drive's disk request failed");
        }
        match &self.phase {
            Phase::Reset { held } => {
                if !held {
                    self.finish_reset();
                }
                None
            }
            Phase::DmaStopped => {
                let failure = self.broken_off();
                self.fail(&failure)
            }
            _ => match outcome {
                Ok(()) => self.succeeded(work),
                Err(error) => self.failed(work, error),
            },
        }
    }

    /// The machine goes on: the request that failed is made again.
    pub(in crate::ide) fn resume(&mut self) -> Step {
        self.stopped.take()?;
        self.work.as_ref().map(Work::command)
    }

    /// Why the drive's request waits for the machine to go on.
    pub(in crate::ide) fn stopped(&self) -> Option<&DiskError> {
        self.stopped.as_ref()
    }

    /// Nobody can stop the machine: the guest gets the error.
    pub(in crate::ide) fn report_stopped(&mut self) -> Step {
        let error = self.stopped.take()?;
        let work = self.work.take()?;
        self.report(work, &error)
    }

    fn failed(&mut self, work: Work, error: DiskError) -> Step {
        match self.setup.error_policy.reaction(work.reads(), &error) {
            // While a search runs the error was decided on already.
            _ if matches!(work, Work::Read { search: Some(_), .. }) => self.report(work, &error),
            Reaction::Report => self.report(work, &error),
            Reaction::Ignore => self.succeeded(work),
            Reaction::Stop => {
                self.work = Some(work);
                self.stopped = Some(error);
                None
            }
        }
    }

    /// The guest gets to know of an error. Writes and flushes fail with ABRT, since the standard has no bit of its own
    /// for a medium that cannot be written (ATA/ATAPI-6, 8.51 to 8.60).
    fn report(&mut self, work: Work, error: &DiskError) -> Step {
        let out_of_range = matches!(error, DiskError::OutOfRange { .. });
        match work {
            Work::Read { transfer, .. } | Work::Write { transfer, .. } if out_of_range => {
                self.fail(&Failure::at(Error::IDNF, transfer.lba, transfer.addressing))
            }
            Work::Read {
                purpose,
                transfer,
                memory,
                search,
            } => {
                let sectors = memory.len() / SECTOR;
                let (next, search) = match search {
                    Some(mut search) => (search.probed(false), search),
                    None if sectors == 1 => (Next::Bad(0), Search::new(1)),
                    None => (Next::Probe, Search::new(sectors)),
                };
                self.searched(next, purpose, transfer, memory, search)
            }
            Work::Write { transfer, .. } => self.fail(&Failure::at(Error::ABRT, transfer.lba, transfer.addressing)),
            _ => self.fail(&Failure::ABORTED),
        }
    }

    fn searched(
        &mut self,
        next: Next,
        purpose: Purpose,
        transfer: Transfer,
        memory: crate::ide::memory::Memory,
        search: Search,
    ) -> Step {
        match next {
            Next::Probe => self.ask(Work::Read {
                purpose,
                transfer,
                memory,
                search: Some(search),
            }),
            Next::Bad(sector) => self.unreadable(&transfer.advanced(sector as u32)),
            Next::Readable => self.succeeded(Work::Read {
                purpose,
                transfer,
                memory,
                search: None,
            }),
        }
    }

    /// The host cannot read the next sector of this transfer.
    fn unreadable(&mut self, at: &Transfer) -> Step {
        self.kept.uncorrectable.note_pending(at.lba);
        self.changed = true;
        self.fail(&Failure::at(Error::UNC, at.lba, at.addressing))
    }

    fn succeeded(&mut self, work: Work) -> Step {
        match work {
            Work::Read {
                purpose,
                transfer,
                memory,
                search: Some(mut search),
            } => {
                let next = search.probed(true);
                self.searched(next, purpose, transfer, memory, search)
            }
            Work::Read {
                purpose,
                transfer,
                memory,
                search: None,
            } => {
                let sectors = (memory.len() / SECTOR) as u32;
                self.statistics.read(sectors);
                let rest = transfer.advanced(sectors);
                match purpose {
                    Purpose::Block => {
                        self.phase = Phase::DataIn {
                            block: DataBlock::full(memory.buffer().to_vec()),
                            rest: if rest.sectors > 0 {
                                Rest::Sectors(rest)
                            } else {
                                Rest::Nothing
                            },
                        };
                        self.request_data(true);
                        None
                    }
                    Purpose::Dma => self.dma_read(rest),
                    Purpose::Verify if rest.sectors > 0 => self.verify(rest),
                    Purpose::Verify => self.complete(),
                }
            }
            Work::Write {
                purpose,
                transfer,
                memory,
            } => {
                let sectors = (memory.len() / SECTOR) as u32;
                self.statistics.wrote(sectors);
                self.mend(transfer.lba, u64::from(sectors));
                let rest = transfer.advanced(sectors);
                match purpose {
                    _ if rest.sectors == 0 => self.written(rest.durable),
                    Purpose::Dma => self.dma_write(rest),
                    Purpose::Block | Purpose::Verify => {
                        self.take_block(rest, true);
                        None
                    }
                }
            }
            Work::Trim { mut ranges } => {
                if let Some((offset, length)) = ranges.pop_front() {
                    self.mend(offset / SECTOR as u64, length / SECTOR as u64);
                }
                self.discard_next(ranges)
            }
            Work::Erase { at, end, purpose } => {
                let next = end.min(at + ERASE_SECTORS);
                self.mend(at, next - at);
                if next < end {
                    return self.ask(Work::Erase { at: next, end, purpose });
                }
                self.erased(purpose)
            }
            Work::Flush(_) => self.complete(),
        }
    }
}
