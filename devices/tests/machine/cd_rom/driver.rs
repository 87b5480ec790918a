//! A driver of packet devices that uses the ports in the order in which Linux's libata does (`atapi_send_cdb`,
//! `atapi_pio_bytes`, `ata_sff_hsm_move`), and checks what the drive shows at each step.

use std::sync::Arc;

use devices::chipset::{CdRomConfig, DriveConfig, Plugged};
use devices::ide::cd_rom_handle::{CdRomHandle, Medium, TrayLocked};
use disk::{Disk, MemoryDisk};

use crate::driver::{Ata, BM_ACTIVE, BM_INTERRUPT, BSY, DATA, DRQ, ERR, Machine, READY, SECTORS, pattern};

/// Interrupt reasons.
pub const COMMAND: u8 = 0x01;
pub const TO_HOST: u8 = 0x02;
pub const DONE: u8 = COMMAND | TO_HOST;

/// Blocks of every medium.
pub const BLOCKS: u32 = 600;

/// Where the CD-ROM drive is plugged in.
pub const SLOT: usize = 2;

/// How a packet command failed: the error register, and what REQUEST SENSE said: key, code, qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    pub error: u8,
    pub sense: (u8, u8, u8),
}

impl Check {
    pub fn of(key: u8, code: u8, qualifier: u8) -> Self {
        // An illegal request and an aborted command are aborted at the ATA level, too.
        let aborted = if matches!(key, 0x05 | 0x0b) { 0x04 } else { 0 };
        Self {
            error: key << 4 | aborted,
            sense: (key, code, qualifier),
        }
    }
}

pub const POWER_ON: (u8, u8, u8) = (6, 0x29, 0);
pub const CHANGED: (u8, u8, u8) = (6, 0x28, 0);
pub const NO_MEDIUM: (u8, u8, u8) = (2, 0x3a, 1);
pub const TRAY_OPEN: (u8, u8, u8) = (2, 0x3a, 2);

/// What the blocks of medium `number` hold.
pub fn content(number: usize, first: u32, blocks: u32) -> Vec<u8> {
    pattern(number, u64::from(first) * 4, blocks as usize * 4)
}

pub fn medium(number: usize) -> Arc<MemoryDisk> {
    Arc::new(MemoryDisk::new(content(number, 0, BLOCKS), true))
}

/// Puts a medium in.
pub fn insert(machine: &Machine, disk: Arc<dyn Disk>) -> Result<(), TrayLocked> {
    handle(machine).insert(Medium::new(disk).expect("whole blocks"))
}

/// A machine with a disk as hda, and a CD-ROM drive as hdc.
pub fn machine(medium: Option<Arc<MemoryDisk>>) -> Machine {
    let disk = Arc::new(MemoryDisk::new(pattern(0, 0, SECTORS), false));
    let in_tray = medium.clone().map(|disk| Medium::new(disk).expect("whole blocks"));
    let plugged = [
        Some(Plugged::Disk(DriveConfig::new(disk.clone(), 0))),
        None,
        Some(Plugged::CdRom(CdRomConfig::new(in_tray, SLOT))),
        None,
    ];
    Machine::with_plugged(plugged, [Some(disk), None, medium, None])
}

/// A machine with a medium in its drive, and a drive that has told of its power-on.
pub fn ready() -> Machine {
    let machine = machine(Some(medium(1)));
    assert_eq!(drive(&machine).test_unit_ready(), Err(check(POWER_ON)));
    machine
}

pub fn check((key, code, qualifier): (u8, u8, u8)) -> Check {
    Check::of(key, code, qualifier)
}

pub fn drive(machine: &Machine) -> CdRom<'_> {
    CdRom {
        machine,
        ata: machine.drive(SLOT),
    }
}

pub fn handle(machine: &Machine) -> CdRomHandle {
    machine.chipset.cd_rom(SLOT).expect("there is a CD-ROM drive")
}

/// The packet that begins with these bytes.
pub fn packet(bytes: &[u8]) -> [u8; 12] {
    let mut packet = [0; 12];
    packet[..bytes.len()].copy_from_slice(bytes);
    packet
}

pub fn read_10(first: u32, blocks: u16) -> [u8; 12] {
    let [a, b, c, d] = first.to_be_bytes();
    let [high, low] = blocks.to_be_bytes();
    packet(&[0x28, 0, a, b, c, d, 0, high, low])
}

/// A CD-ROM drive.
#[derive(Clone, Copy)]
pub struct CdRom<'a> {
    pub machine: &'a Machine,
    pub ata: Ata<'a>,
}

impl CdRom<'_> {
    pub fn byte_count(&self) -> usize {
        usize::from(self.ata.register(4)) | usize::from(self.ata.register(5)) << 8
    }

    /// Writes PACKET and the packet: `features` is 1 for DMA, `limit` the byte count limit.
    pub fn send(&self, features: u8, limit: u16, packet: [u8; 12]) {
        let ata = &self.ata;
        ata.select();
        assert_eq!(ata.alternate_status() & (BSY | DRQ), 0, "the drive is at rest");
        let [low, high] = limit.to_le_bytes();
        for (offset, value) in [(1, features), (4, low), (5, high)] {
            ata.set_register(offset, value);
        }
        ata.set_register(7, 0xa0);
        assert!(!ata.line.is_high(), "no interrupt asks for the packet");
        assert_eq!(ata.alternate_status(), READY | DRQ);
        assert_eq!(ata.register(2), COMMAND);
        self.machine.bus.write(ata.command, 2, &packet);
    }

    /// Reads status, which acknowledges the interrupt, and tells how the command ended.
    pub fn outcome(&self) -> Result<(), Check> {
        let ata = &self.ata;
        assert!(ata.line.is_high(), "an interrupt tells of the end");
        let status = ata.status();
        assert!(!ata.line.is_high(), "reading status acknowledges");
        assert_eq!(ata.register(2), DONE);
        assert_eq!(status & !ERR, READY, "the command ended");
        if status & ERR == 0 {
            assert_eq!(ata.register(1), 0);
            return Ok(());
        }
        let error = ata.register(1);
        Err(Check {
            error,
            sense: if error & 0xf0 == 0 { (0, 0, 0) } else { self.sense() },
        })
    }

    /// Data from the drive through the data register, in blocks of at most `limit` bytes.
    pub fn read_with_limit(&self, packet: [u8; 12], limit: u16) -> Result<Vec<u8>, Check> {
        self.send(0, limit, packet);
        self.blocks_to_end(limit)
    }

    /// Reads blocks until the command ends.
    pub fn blocks_to_end(&self, limit: u16) -> Result<Vec<u8>, Check> {
        let ata = &self.ata;
        let mut data = Vec::new();
        loop {
            self.machine.settle();
            assert!(ata.line.is_high(), "an interrupt tells of a block or the end");
            if ata.alternate_status() & DRQ == 0 {
                return self.outcome().map(|()| data);
            }
            assert_eq!(ata.status(), READY | DRQ);
            assert_eq!(ata.register(2), TO_HOST);
            let count = self.byte_count();
            assert!(count > 0 && count <= usize::from(limit), "{count} of at most {limit}");
            let mut bytes = vec![0; count.next_multiple_of(2)];
            self.machine.bus.read(ata.command, 2, &mut bytes);
            data.extend_from_slice(&bytes[..count]);
        }
    }

    /// A command with data from the drive, or none.
    pub fn run(&self, packet: [u8; 12]) -> Result<Vec<u8>, Check> {
        self.read_with_limit(packet, 0xfffe)
    }

    /// A command with data from the drive by DMA, to memory for `length` bytes.
    pub fn run_dma(&self, packet: [u8; 12], length: usize) -> Result<Vec<u8>, Check> {
        self.machine.put(DATA, &vec![0xee; length + 16]);
        self.put_table(length);
        self.start_dma(packet, true);
        self.machine.settle();
        let outcome = self.finish_dma();
        let data = self.machine.get(DATA, length + 16);
        assert!(
            data[length..].iter().all(|byte| *byte == 0xee),
            "nothing behind the table"
        );
        outcome.map(|()| data[..length].to_vec())
    }

    /// A PRD table for `length` bytes from `DATA` on.
    pub fn put_table(&self, length: usize) {
        let table: Vec<(u32, u16)> = (0..length)
            .step_by(0x8000)
            .map(|at| (DATA + at as u32, (length - at).min(0x8000) as u16))
            .collect();
        self.machine.put_table(&table);
    }

    /// Sends the packet of a DMA command and starts the bus master.
    pub fn start_dma(&self, packet: [u8; 12], to_memory: bool) {
        // The interrupts of commands without DMA show there, too.
        self.machine.outb(self.ata.bus_master + 2, BM_INTERRUPT);
        self.ata.set_up_dma(to_memory);
        self.send(1, 0, packet);
        self.ata.start_dma();
    }

    /// Stops the bus master and tells how the command ended.
    pub fn finish_dma(&self) -> Result<(), Check> {
        let ata = &self.ata;
        let status = ata.bus_master_status();
        assert_ne!(status & BM_INTERRUPT, 0, "the bus master saw the interrupt");
        let start = self.machine.inb(ata.bus_master);
        self.machine.outb(ata.bus_master, start & !1);
        self.machine.outb(ata.bus_master + 2, ata.bus_master_status());
        assert_eq!(ata.bus_master_status() & (BM_INTERRUPT | BM_ACTIVE), 0);
        self.outcome()
    }

    /// A command with a parameter list.
    pub fn write(&self, packet: [u8; 12], list: &[u8], limit: u16) -> Result<(), Check> {
        let ata = &self.ata;
        self.send(0, limit, packet);
        let mut sent = 0;
        while sent < list.len() && ata.alternate_status() & DRQ != 0 {
            assert!(ata.line.is_high(), "an interrupt asks for the block");
            assert_eq!(ata.status(), READY | DRQ);
            assert_eq!(ata.register(2), 0);
            let count = self.byte_count();
            assert!(count > 0 && count <= usize::from(limit), "{count} of at most {limit}");
            let mut block = list[sent..sent + count].to_vec();
            block.resize(count.next_multiple_of(2), 0);
            self.machine.bus.write(ata.command, 2, &block);
            sent += count;
        }
        self.outcome()
    }

    pub fn test_unit_ready(&self) -> Result<(), Check> {
        self.run(packet(&[0x00])).map(|data| assert!(data.is_empty()))
    }

    /// The data of REQUEST SENSE.
    pub fn request_sense(&self) -> Vec<u8> {
        let data = self
            .run(packet(&[0x03, 0, 0, 0, 18]))
            .expect("REQUEST SENSE never fails");
        assert_eq!((data.len(), data[0] & 0x7f, data[7]), (18, 0x70, 10));
        data
    }

    /// Key, code and qualifier.
    pub fn sense(&self) -> (u8, u8, u8) {
        let data = self.request_sense();
        (data[2], data[12], data[13])
    }

    /// The event and the status of GET EVENT STATUS NOTIFICATION's media class.
    pub fn media_event(&self) -> (u8, u8) {
        let data = self
            .run(packet(&[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8]))
            .expect("events can be polled for");
        assert_eq!(data[..4], [0, 6, 4, 0x10]);
        (data[4], data[5])
    }

    pub fn eject(&self) -> Result<Vec<u8>, Check> {
        self.run(packet(&[0x1b, 0, 0, 0, 0x02]))
    }

    pub fn load(&self) -> Result<Vec<u8>, Check> {
        self.run(packet(&[0x1b, 0, 0, 0, 0x03]))
    }

    pub fn lock(&self, locked: bool) {
        self.run(packet(&[0x1e, 0, 0, 0, locked.into()]))
            .expect("the lock moves");
    }
}
