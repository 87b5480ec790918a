//! What the guest does, and where it logs it: disk commands by LBA48 bus-master DMA, polled (ATA8-ACS; "Programming Interface
//! for Bus Master IDE Controller").
//!
//! ```text
//!  0x10_0000  the guest's code
//!  0x20_0000  the log: words that the guest or the test stores; from 0x20_1000 on the status of each command
//!  0x21_0000  the script: entries of four words, a verb and its operands
//!  0x30_0000  a PRD table for each command
//!  0x40_0000  what was read: the whole disk
//!  0xc0_0000  data to write
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};

use super::oracle::{SECTOR, SECTORS, stamp};

/// The guest's memory in bytes; `--memory` says the same.
pub(super) const MEMORY: u64 = 64 << 20;
pub(super) const MEMORY_ARGUMENT: &str = "64M";

const LOG: u32 = 0x20_0000;
const STATUS: u32 = LOG + 0x1000;
pub(super) const SCRIPT: u32 = 0x21_0000;
const SCRIPT_END: u32 = 0x30_0000;
const PRD_TABLES: u32 = SCRIPT_END;
const PRD_TABLE_SIZE: u32 = 32;
const READ_AREA: u32 = 0x40_0000;
const WRITE_AREA: u32 = 0xc0_0000;

/// The words of the log.
const STARTED: u32 = LOG;
const ISSUED: u32 = LOG + 4;
const COMPLETED: u32 = LOG + 8;
const READ_DONE: u32 = LOG + 12;
const GO: u32 = LOG + 16;
const SCRIPT_DONE: u32 = LOG + 20;

/// The most commands of a script: their PRD tables and states fit.
const MOST_COMMANDS: usize = 1024;
/// Sectors that one command reads.
const READ_CHUNK: u64 = 256;

/// What the guest can do.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Verb {
    /// Port, value.
    Out8 = 1,
    Out16,
    Out32,
    /// Port, value, mask: reads until the masked bits are the value.
    Poll8,
    /// Port, nothing, address: stores what was read.
    In8,
    /// Address, value.
    Store,
    /// Address, value: waits until it is there.
    Await,
    PowerOff,
}

impl Verb {
    pub(super) const ALL: [Verb; 8] = [
        Verb::Out8,
        Verb::Out16,
        Verb::Out32,
        Verb::Poll8,
        Verb::In8,
        Verb::Store,
        Verb::Await,
        Verb::PowerOff,
    ];
}

/// A command of the workload. Sectors of 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Writes stamps of this id.
    Write { first: u64, count: u64, id: u32 },
    /// FLUSH CACHE EXT.
    Flush,
    /// DATA SET MANAGEMENT, TRIM.
    Trim { first: u64, count: u64 },
}

/// How far a guest has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// It runs.
    pub(super) started: bool,
    /// It has read the whole disk.
    pub(super) read: bool,
    /// Commands of the workload that were given to the drive.
    pub(super) issued: usize,
    /// Commands of the workload that the drive reported as complete.
    pub(super) completed: usize,
    /// All of them are.
    pub(super) done: bool,
}

/// The guest's memory under construction, then shared with it.
pub(super) struct GuestMemory {
    file: File,
    script: Vec<u8>,
    commands: u32,
    write_at: u32,
    /// Commands that come before the workload.
    reads: u32,
}

const BUS_MASTER: u32 = 0xc000;
const DATA_COUNT: u32 = 0x1f2;
const FEATURES: u32 = 0x1f1;
const DEVICE: u32 = 0x1f6;
const COMMAND: u32 = 0x1f7;
const ALTERNATE_STATUS: u32 = 0x3f6;
const BUSY_OR_DATA_REQUEST: u32 = 0x88;
const FAULT_OR_ERROR: u32 = 0x21;
const TO_MEMORY: u32 = 1 << 3;
const READ_DMA_EXT: u32 = 0x25;
const WRITE_DMA_EXT: u32 = 0x35;
const FLUSH_CACHE_EXT: u32 = 0xea;
const DATA_SET_MANAGEMENT: u32 = 0x06;

impl GuestMemory {
    /// Memory with a script that reads the whole disk and then waits for [`GuestMemory::go`].
    pub(super) fn new() -> Result<Self> {
        let file = File::from(memfd_create("spindle-guest", MemfdFlags::CLOEXEC).context("Cannot make a memfd")?);
        file.set_len(MEMORY)?;
        let mut memory = Self {
            file,
            script: Vec::new(),
            commands: 0,
            write_at: WRITE_AREA,
            reads: 0,
        };
        memory.prepare_controller();
        memory.add(Verb::Store, STARTED, 1, 0);
        for first in (0..SECTORS).step_by(READ_CHUNK as usize) {
            let count = READ_CHUNK.min(SECTORS - first);
            let address = READ_AREA + (first * SECTOR) as u32;
            memory.transfer(READ_DMA_EXT, TO_MEMORY, first, count, address, (count * SECTOR) as u32)?;
        }
        memory.reads = memory.commands;
        memory.add(Verb::Store, READ_DONE, 1, 0);
        memory.add(Verb::Await, GO, 1, 0);
        Ok(memory)
    }

    /// Appends a command to the workload.
    pub(super) fn command(&mut self, action: &Action) -> Result<()> {
        ensure!((self.commands as usize) < MOST_COMMANDS, "the script is too long");
        match *action {
            Action::Write { first, count, id } => {
                let data: Vec<u8> = (first..first + count).flat_map(|sector| stamp(id, sector)).collect();
                let address = self.place(&data)?;
                self.transfer(WRITE_DMA_EXT, 0, first, count, address, data.len() as u32)
            }
            Action::Trim { first, count } => {
                let mut ranges = vec![0; SECTOR as usize];
                ranges[..8].copy_from_slice(&(first | count << 48).to_le_bytes());
                let address = self.place(&ranges)?;
                // The high byte goes first, as with every register of LBA48.
                self.out8(FEATURES, 0);
                self.out8(FEATURES, 1);
                self.transfer(DATA_SET_MANAGEMENT, 0, 0, 1, address, SECTOR as u32)
            }
            Action::Flush => {
                self.begin();
                self.out8(COMMAND, FLUSH_CACHE_EXT);
                self.end();
                Ok(())
            }
        }
    }

    /// Ends the script, by power-off or by standing still, and puts it into memory.
    pub(super) fn finish(&mut self, power_off: bool) -> Result<()> {
        self.add(Verb::Store, SCRIPT_DONE, 1, 0);
        if power_off {
            self.add(Verb::PowerOff, 0, 0, 0);
        } else {
            self.add(Verb::Await, LOG + 24, 1, 0);
        }
        ensure!(
            self.script.len() <= (SCRIPT_END - SCRIPT) as usize,
            "the script is too long"
        );
        self.file.write_all_at(&self.script, u64::from(SCRIPT))?;
        Ok(())
    }

    /// The name under which another process of this user opens it, as long as this one lives.
    pub(super) fn path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Lets the guest go on to its workload.
    pub(super) fn go(&self) -> Result<()> {
        Ok(self.file.write_all_at(&1u32.to_le_bytes(), u64::from(GO))?)
    }

    /// How far the guest has come, as its log says.
    pub(super) fn progress(&self) -> Result<Progress> {
        let mut log = [0; 24];
        self.file.read_exact_at(&mut log, u64::from(LOG))?;
        let word = |address: u32| {
            let at = (address - LOG) as usize;
            u32::from_le_bytes([log[at], log[at + 1], log[at + 2], log[at + 3]])
        };
        let workload = |count: u32| count.saturating_sub(self.reads) as usize;
        Ok(Progress {
            started: word(STARTED) != 0,
            read: word(READ_DONE) != 0,
            issued: workload(word(ISSUED)),
            completed: workload(word(COMPLETED)),
            done: word(SCRIPT_DONE) != 0,
        })
    }

    /// The first command that ended with an error, and its status.
    pub(super) fn failed_command(&self, progress: Progress) -> Result<Option<(usize, u32)>> {
        let count = self.reads as usize + progress.completed;
        let mut bytes = vec![0; count * 4];
        self.file.read_exact_at(&mut bytes, u64::from(STATUS))?;
        let mut status = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .enumerate();
        let started = progress.read;
        Ok(status.find(|(_, status)| started && status & FAULT_OR_ERROR != 0))
    }

    /// What the guest read: the whole disk.
    pub(super) fn disk(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; (SECTORS * SECTOR) as usize];
        self.file.read_exact_at(&mut bytes, u64::from(READ_AREA))?;
        Ok(bytes)
    }

    /// Lets the controller decode its bus-master ports and be a master, and turns the drive's interrupt off.
    fn prepare_controller(&mut self) {
        const IDE_FUNCTION: u32 = 0x8000_0000 | 1 << 11 | 1 << 8;
        const IO_AND_MASTER: u32 = 0b101;
        const NO_INTERRUPTS: u32 = 1 << 1;
        for (address, value) in [(0x20, BUS_MASTER | 1), (0x04, IO_AND_MASTER)] {
            self.add(Verb::Out32, 0xcf8, IDE_FUNCTION | address, 0);
            let verb = if address == 0x20 { Verb::Out32 } else { Verb::Out16 };
            self.add(verb, 0xcfc, value, 0);
        }
        self.out8(ALTERNATE_STATUS, NO_INTERRUPTS);
    }

    /// Copies data to where the drive takes it from. Begins at 64 KiB, since no PRD may cross such a boundary.
    fn place(&mut self, data: &[u8]) -> Result<u32> {
        let address = self.write_at.next_multiple_of(0x1_0000);
        let end = u64::from(address) + data.len() as u64;
        ensure!(
            end <= MEMORY,
            "the workload's data does not fit into the guest's memory"
        );
        self.file.write_all_at(data, u64::from(address))?;
        self.write_at = end as u32;
        Ok(address)
    }

    fn transfer(
        &mut self,
        command: u32,
        direction: u32,
        first: u64,
        count: u64,
        address: u32,
        bytes: u32,
    ) -> Result<()> {
        const START: u32 = 1;
        const CLEAR_ERROR_AND_INTERRUPT: u32 = 0b110;
        const LBA: u32 = 1 << 6;
        let table = self.prd_table(address, bytes)?;
        self.add(Verb::Out32, BUS_MASTER + 4, table, 0);
        self.out8(BUS_MASTER, direction);
        self.out8(BUS_MASTER + 2, CLEAR_ERROR_AND_INTERRUPT);
        self.out8(DEVICE, LBA);
        self.begin();
        let lba = first.to_le_bytes();
        self.out8(DATA_COUNT, count as u32 >> 8);
        self.out8(DATA_COUNT, count as u32 & 0xff);
        for (port, high, low) in [
            (0x1f3, lba[3], lba[0]),
            (0x1f4, lba[4], lba[1]),
            (0x1f5, lba[5], lba[2]),
        ] {
            self.out8(port, high.into());
            self.out8(port, low.into());
        }
        self.out8(COMMAND, command);
        self.out8(BUS_MASTER, direction | START);
        self.end();
        self.out8(BUS_MASTER, direction);
        Ok(())
    }

    fn prd_table(&self, mut address: u32, mut bytes: u32) -> Result<u32> {
        const END_OF_TABLE: u32 = 1 << 31;
        let table = PRD_TABLES + self.commands * PRD_TABLE_SIZE;
        let mut entries = Vec::new();
        while bytes > 0 {
            let length = bytes.min(0x1_0000 - (address & 0xffff));
            bytes -= length;
            let last = if bytes == 0 { END_OF_TABLE } else { 0 };
            entries.extend(address.to_le_bytes());
            entries.extend(((length & 0xffff) | last).to_le_bytes());
            address += length;
        }
        self.file.write_all_at(&entries, u64::from(table))?;
        Ok(table)
    }

    /// The log says that the command is on its way before it can be.
    fn begin(&mut self) {
        self.add(Verb::Poll8, ALTERNATE_STATUS, 0, BUSY_OR_DATA_REQUEST);
        self.commands += 1;
        self.add(Verb::Store, ISSUED, self.commands, 0);
    }

    /// And that it is complete when the drive has said so.
    fn end(&mut self) {
        self.add(Verb::Poll8, ALTERNATE_STATUS, 0, BUSY_OR_DATA_REQUEST);
        self.add(Verb::In8, COMMAND, 0, STATUS + (self.commands - 1) * 4);
        self.add(Verb::Store, COMPLETED, self.commands, 0);
    }

    fn out8(&mut self, port: u32, value: u32) {
        self.add(Verb::Out8, port, value, 0);
    }

    fn add(&mut self, verb: Verb, first: u32, second: u32, third: u32) {
        for word in [verb as u32, first, second, third] {
            self.script.extend(word.to_le_bytes());
        }
    }
}
