//! A machine of ports, and a driver that uses its IDE disks in the order in which Linux's libata does
//! (`ata_bmdma_qc_issue`, `ata_bmdma_port_intr`, `ata_sff_hsm_move`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use devices::bus::PortBus;
use devices::chipset::{Chipset, ChipsetConfig, DriveConfig, Plugged};
use devices::clock::ManualClock;
use devices::ide::controller::IdeOptions;
use devices::interrupt::CountingLine;
use devices::power::PowerControl;
use devices::serial::Serial;
use disk::MemoryDisk;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub const BSY: u8 = 0x80;
pub const DRQ: u8 = 0x08;
pub const ERR: u8 = 0x01;
/// DRDY and DSC: a drive at rest.
pub const READY: u8 = 0x50;

pub const ICRC: u8 = 0x80;
pub const UNC: u8 = 0x40;
pub const IDNF: u8 = 0x10;
pub const ABRT: u8 = 0x04;

pub const BM_ACTIVE: u8 = 0x01;
pub const BM_ERROR: u8 = 0x02;
pub const BM_INTERRUPT: u8 = 0x04;

/// Guest memory: 1 MiB at 0. PRD tables go to `TABLE`, data to `DATA`.
pub const MEMORY: u64 = 1 << 20;
pub const TABLE: u32 = 0x1000;
pub const DATA: u32 = 0x10000;

/// Sectors of every disk.
pub const SECTORS: usize = 4096;

#[derive(Default)]
pub struct RecordedPower {
    pub power_offs: AtomicUsize,
    pub resets: AtomicUsize,
}

impl PowerControl for RecordedPower {
    fn power_off(&self) {
        self.power_offs.fetch_add(1, Ordering::SeqCst);
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

/// A machine with disks of 2 MiB in some of its four slots.
pub struct Machine {
    pub bus: Arc<PortBus>,
    pub memory: GuestMemoryMmap,
    pub lines: [Arc<CountingLine>; 2],
    pub disks: [Option<Arc<MemoryDisk>>; 4],
    pub power: Arc<RecordedPower>,
    /// The drives' clock.
    pub clock: Arc<ManualClock>,
    /// The interrupt of the IDE function in native mode.
    pub pci_line: Arc<CountingLine>,
    pub chipset: Chipset,
}

/// What a disk holds at first: every sector another content, and every disk too.
pub fn pattern(slot: usize, lba: u64, sectors: usize) -> Vec<u8> {
    (lba..lba + sectors as u64)
        .flat_map(|lba| (0..128u32).map(move |word| (lba as u32) << 9 | word << 2 | slot as u32))
        .flat_map(u32::to_le_bytes)
        .collect()
}

impl Machine {
    /// Disks in these slots.
    pub fn new(slots: &[usize]) -> Self {
        Self::with_disks(std::array::from_fn(|slot| {
            slots
                .contains(&slot)
                .then(|| Arc::new(MemoryDisk::new(pattern(slot, 0, SECTORS), false)))
        }))
    }

    pub fn with_disks(disks: [Option<Arc<MemoryDisk>>; 4]) -> Self {
        Self::configured(disks, &IdeOptions::default(), |_, _| {})
    }

    /// Disks like [`Machine::new`]'s in these slots, and drives that `change` makes others of.
    pub fn with_drives(slots: &[usize], change: impl Fn(usize, &mut DriveConfig)) -> Self {
        Self::configured(Self::new(slots).disks, &IdeOptions::default(), change)
    }

    pub fn configured(
        disks: [Option<Arc<MemoryDisk>>; 4],
        ide: &IdeOptions,
        change: impl Fn(usize, &mut DriveConfig),
    ) -> Self {
        let clock = Arc::new(ManualClock::default());
        let plugged = std::array::from_fn(|slot| {
            let mut config = DriveConfig::new(disks[slot].clone()?, slot);
            config.clock = clock.clone();
            change(slot, &mut config);
            Some(Plugged::Disk(config))
        });
        Self::build(plugged, disks, ide, clock)
    }

    /// Any drives, over these disks.
    pub fn with_plugged(plugged: [Option<Plugged>; 4], disks: [Option<Arc<MemoryDisk>>; 4]) -> Self {
        Self::build(plugged, disks, &IdeOptions::default(), Arc::default())
    }

    /// Whatever is wanted. The drives' clock is `clock`.
    pub fn build(
        plugged: [Option<Plugged>; 4],
        disks: [Option<Arc<MemoryDisk>>; 4],
        ide: &IdeOptions,
        clock: Arc<ManualClock>,
    ) -> Self {
        let pci_line = Arc::new(CountingLine::default());
        let ide = IdeOptions {
            pci_line: Some(pci_line.clone()),
            ..ide.clone()
        };
        let bus = Arc::new(PortBus::default());
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("anonymous memory");
        let lines = [Arc::new(CountingLine::default()), Arc::new(CountingLine::default())];
        let power = Arc::new(RecordedPower::default());
        let serial = Serial::new(
            Arc::new(CountingLine::default()),
            Box::new(std::io::sink()),
            Box::new(|| {}),
        );
        let chipset = Chipset::new(ChipsetConfig {
            memory: memory.clone(),
            bus: bus.clone(),
            ide_lines: [lines[0].clone(), lines[1].clone()],
            ide,
            drives: plugged,
            serial,
            power: power.clone(),
        })
        .expect("a valid configuration");
        Self {
            bus,
            memory,
            lines,
            disks,
            power,
            clock,
            pci_line,
            chipset,
        }
    }

    pub fn inb(&self, port: u16) -> u8 {
        let mut data = [0];
        self.bus.read(port, 1, &mut data);
        data[0]
    }

    pub fn inw(&self, port: u16) -> u16 {
        let mut data = [0; 2];
        self.bus.read(port, 2, &mut data);
        u16::from_le_bytes(data)
    }

    pub fn inl(&self, port: u16) -> u32 {
        let mut data = [0; 4];
        self.bus.read(port, 4, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn outb(&self, port: u16, value: u8) {
        self.bus.write(port, 1, &[value]);
    }

    pub fn outw(&self, port: u16, value: u16) {
        self.bus.write(port, 2, &value.to_le_bytes());
    }

    pub fn outl(&self, port: u16, value: u32) {
        self.bus.write(port, 4, &value.to_le_bytes());
    }

    /// Reads a 32-bit register of the configuration space of 00:`device`.`function`.
    pub fn pci_read(&self, device: u32, function: u32, offset: u32) -> u32 {
        self.outl(0xcf8, 1 << 31 | device << 11 | function << 8 | offset & 0xfc);
        self.inl(0xcfc)
    }

    pub fn pci_write(&self, device: u32, function: u32, offset: u32, value: u32) {
        self.outl(0xcf8, 1 << 31 | device << 11 | function << 8 | offset & 0xfc);
        self.outl(0xcfc, value);
    }

    pub fn drive(&self, slot: usize) -> Ata<'_> {
        let channel = slot / 2;
        Ata {
            machine: self,
            disk: self.disks[slot].as_deref(),
            line: &self.lines[channel],
            command: [0x1f0, 0x170][channel],
            control: [0x3f6, 0x376][channel],
            bus_master: 0xc000 + 8 * channel as u16,
            device: 0x10 * (slot % 2) as u8,
        }
    }

    /// Completes what all disks were asked for.
    pub fn settle(&self) {
        while self.disks.iter().flatten().map(|disk| disk.run()).sum::<usize>() > 0 {}
    }

    /// Puts a PRD table at `TABLE`: address, bytes (0 is 64 KiB); the last entry ends it.
    pub fn put_table(&self, entries: &[(u32, u16)]) {
        for (index, (address, count)) in entries.iter().enumerate() {
            let at = GuestAddress(u64::from(TABLE) + 8 * index as u64);
            let end = u64::from(index + 1 == entries.len()) << 63;
            let entry = u64::from(*address) | u64::from(*count) << 32 | end;
            self.memory.write_obj(entry.to_le(), at).expect("in memory");
        }
    }

    pub fn put(&self, address: u32, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(u64::from(address)))
            .expect("in memory");
    }

    pub fn get(&self, address: u32, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(u64::from(address)))
            .expect("in memory");
        bytes
    }
}

/// How a failed command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    pub status: u8,
    pub error: u8,
    /// The address in the registers, 48 bits for extended commands and 28 for others.
    pub lba: u64,
}

/// A command's registers.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    pub opcode: u8,
    pub features: u16,
    pub count: u16,
    pub lba: u64,
    pub extended: bool,
    pub lba_mode: bool,
}

impl Command {
    pub fn new(opcode: u8) -> Self {
        Self {
            opcode,
            features: 0,
            count: 0,
            lba: 0,
            extended: false,
            lba_mode: true,
        }
    }

    /// With a 28-bit address.
    pub fn at(opcode: u8, lba: u64, count: u16) -> Self {
        Self {
            lba,
            count,
            ..Self::new(opcode)
        }
    }

    /// With a 48-bit address.
    pub fn extended(opcode: u8, lba: u64, count: u16) -> Self {
        Self {
            extended: true,
            ..Self::at(opcode, lba, count)
        }
    }

    pub fn features(mut self, features: u16) -> Self {
        self.features = features;
        self
    }
}

/// One drive, as its driver sees it.
#[derive(Clone, Copy)]
pub struct Ata<'a> {
    pub machine: &'a Machine,
    pub disk: Option<&'a MemoryDisk>,
    pub line: &'a CountingLine,
    pub command: u16,
    pub control: u16,
    pub bus_master: u16,
    pub device: u8,
}

impl Ata<'_> {
    pub fn disk(&self) -> &MemoryDisk {
        self.disk.expect("the slot has a disk")
    }

    pub fn status(&self) -> u8 {
        self.machine.inb(self.command + 7)
    }

    pub fn alternate_status(&self) -> u8 {
        self.machine.inb(self.control)
    }

    pub fn register(&self, offset: u16) -> u8 {
        self.machine.inb(self.command + offset)
    }

    pub fn set_register(&self, offset: u16, value: u8) {
        self.machine.outb(self.command + offset, value);
    }

    pub fn set_control(&self, value: u8) {
        self.machine.outb(self.control, value);
    }

    pub fn bus_master_status(&self) -> u8 {
        self.machine.inb(self.bus_master + 2)
    }

    pub fn select(&self) {
        self.set_register(6, 0xa0 | self.device);
    }

    /// `ata_sff_tf_load` and, for an address of 28 bits or none, the device register.
    pub fn load(&self, command: &Command) {
        self.select();
        assert_eq!(self.alternate_status() & (BSY | DRQ), 0, "the drive is at rest");
        let byte = |value: u64, index: u32| (value >> (8 * index)) as u8;
        let (features, count, lba) = (u64::from(command.features), u64::from(command.count), command.lba);
        if command.extended {
            for (offset, value) in [(1, byte(features, 1)), (2, byte(count, 1)), (3, byte(lba, 3))] {
                self.set_register(offset, value);
            }
            self.set_register(4, byte(lba, 4));
            self.set_register(5, byte(lba, 5));
        }
        let low = [
            byte(features, 0),
            byte(count, 0),
            byte(lba, 0),
            byte(lba, 1),
            byte(lba, 2),
        ];
        for (offset, value) in (1..).zip(low) {
            self.set_register(offset, value);
        }
        let high = if command.extended { 0 } else { byte(lba, 3) & 0x0f };
        let mode = if command.lba_mode { 0x40 } else { 0 };
        self.set_register(6, 0xa0 | mode | self.device | high);
    }

    /// Loads and starts a command.
    pub fn issue(&self, command: &Command) {
        self.load(command);
        self.set_register(7, command.opcode);
    }

    /// Completes one disk request, of which there must be one.
    pub fn step(&self) {
        assert!(self.disk().run_one(), "a request waits at the disk");
    }

    /// Completes one disk request if there is one.
    pub fn step_if_waiting(&self) {
        self.disk().run_one();
    }

    /// The address in the registers.
    pub fn lba(&self, extended: bool) -> u64 {
        let low = |offset: u16| u64::from(self.register(offset));
        let address = low(3) | low(4) << 8 | low(5) << 16;
        if !extended {
            return address | (low(6) & 0x0f) << 24;
        }
        self.set_control(0x80);
        let high = low(3) | low(4) << 8 | low(5) << 16;
        self.set_control(0);
        address | high << 24
    }

    /// Reads status, which acknowledges the interrupt, and tells how the command ended.
    pub fn outcome(&self, command: &Command) -> Result<(), Failed> {
        assert!(self.line.is_high(), "an interrupt tells of the end");
        let status = self.status();
        assert!(!self.line.is_high(), "reading status acknowledges");
        assert_eq!(status & (BSY | DRQ), 0, "{command:x?} ended");
        if status & ERR == 0 {
            assert_eq!(status, READY);
            return Ok(());
        }
        Err(Failed {
            status,
            error: self.register(1),
            lba: self.lba(command.extended),
        })
    }

    /// A command without data.
    pub fn run(&self, command: &Command) -> Result<(), Failed> {
        self.issue(command);
        self.machine.settle();
        self.outcome(command)
    }

    /// A PIO data-in command of `sectors` sectors, in blocks of `block`: each announced by an interrupt.
    pub fn pio_read(&self, command: &Command, sectors: usize, block: usize) -> Result<Vec<u8>, Failed> {
        self.issue(command);
        let mut data = Vec::new();
        while data.len() < sectors * 512 {
            self.machine.settle();
            assert!(self.line.is_high(), "an interrupt announces the block");
            let status = self.alternate_status();
            if status & ERR != 0 {
                return Err(self.outcome(command).expect_err("ERR is set"));
            }
            assert_eq!(self.status(), READY | DRQ);
            assert!(!self.line.is_high());
            let mut bytes = vec![0; block.min(sectors - data.len() / 512) * 512];
            self.machine.bus.read(self.command, 4, &mut bytes);
            data.extend(bytes);
        }
        assert_eq!(self.status(), READY, "no data is left");
        assert!(!self.line.is_high(), "no interrupt after the last block");
        Ok(data)
    }

    /// A PIO data-out command, in blocks of `block` sectors: the first without an interrupt.
    pub fn pio_write(&self, command: &Command, data: &[u8], block: usize) -> Result<(), Failed> {
        self.issue(command);
        for (index, bytes) in data.chunks(block * 512).enumerate() {
            if index > 0 {
                assert!(self.line.is_high(), "an interrupt asks for the next block");
            }
            let status = self.alternate_status();
            if status & ERR != 0 {
                break;
            }
            assert_eq!(self.status(), READY | DRQ);
            assert!(!self.line.is_high());
            self.machine.bus.write(self.command, 2, bytes);
            assert_eq!(
                self.alternate_status() & (BSY | DRQ),
                BSY,
                "the block is on its way to the disk"
            );
            self.machine.settle();
        }
        self.outcome(command)
    }

    /// `ata_bmdma_setup`: the table and the direction.
    pub fn set_up_dma(&self, to_memory: bool) {
        self.machine.outl(self.bus_master + 4, TABLE);
        let command = self.machine.inb(self.bus_master) & !0x09;
        self.machine
            .outb(self.bus_master, command | if to_memory { 0x08 } else { 0 });
    }

    /// `ata_bmdma_start`.
    pub fn start_dma(&self) {
        let command = self.machine.inb(self.bus_master);
        self.machine.outb(self.bus_master, command | 1);
    }

    /// `ata_bmdma_port_intr`: stops the bus master and tells how the command ended.
    pub fn finish_dma(&self, command: &Command) -> Result<(), Failed> {
        let status = self.bus_master_status();
        assert_ne!(status & BM_INTERRUPT, 0, "the bus master saw the interrupt");
        let start = self.machine.inb(self.bus_master);
        self.machine.outb(self.bus_master, start & !1);
        assert_eq!(self.alternate_status() & BSY, 0);
        let outcome = self.outcome(command);
        let status = self.bus_master_status();
        self.machine.outb(self.bus_master + 2, status);
        assert_eq!(self.bus_master_status() & (BM_INTERRUPT | BM_ERROR | BM_ACTIVE), 0);
        outcome
    }

    /// Issues a DMA command whose PRD table is in place, up to the start of the bus master.
    pub fn issue_dma(&self, command: &Command, to_memory: bool) {
        self.load(command);
        self.set_up_dma(to_memory);
        self.set_register(7, command.opcode);
        self.start_dma();
    }

    /// A DMA command from start to end, with the data at `DATA`.
    pub fn dma(&self, command: &Command, to_memory: bool, length: usize) -> Result<(), Failed> {
        let mut entries = Vec::new();
        let mut at = 0;
        while at < length {
            let part = (length - at).min(0x10000);
            entries.push((DATA + at as u32, part as u16));
            at += part;
        }
        self.machine.put_table(&entries);
        self.issue_dma(command, to_memory);
        self.machine.settle();
        self.finish_dma(command)
    }

    pub fn dma_read(&self, command: &Command, sectors: usize) -> Result<Vec<u8>, Failed> {
        self.dma(command, true, sectors * 512)?;
        Ok(self.machine.get(DATA, sectors * 512))
    }

    pub fn dma_write(&self, command: &Command, data: &[u8]) -> Result<(), Failed> {
        self.machine.put(DATA, data);
        self.dma(command, false, data.len())
    }

    /// How a command of one sector for the drive itself ends.
    pub fn give(&self, command: &Command, sector: &[u8]) -> Result<(), Failed> {
        self.issue(command);
        for sector in sector.chunks(512) {
            if self.alternate_status() & ERR != 0 {
                break;
            }
            assert_eq!(self.status(), READY | DRQ);
            self.machine.bus.write(self.command, 2, sector);
            self.machine.settle();
        }
        self.outcome(command)
    }

    /// The error register of a command without data that has to fail.
    pub fn refused(&self, command: &Command) -> u8 {
        let failed = self.run(command).expect_err("a command that is refused");
        failed.error
    }

    /// IDENTIFY DEVICE, as words.
    pub fn identify(&self) -> Vec<u16> {
        let data = self.pio_read(&Command::new(0xec), 1, 1).expect("IDENTIFY DEVICE");
        data.as_chunks()
            .0
            .iter()
            .map(|word| u16::from_le_bytes(*word))
            .collect()
    }

    pub fn set_features(&self, subcommand: u16, value: u16) -> Result<(), Failed> {
        self.run(&Command::at(0xef, 0, value).features(subcommand))
    }

    /// `ata_bus_softreset`.
    pub fn software_reset(&self) {
        self.set_control(0);
        self.set_control(4);
        self.set_control(0);
    }

    /// `ata_devchk`: whether something keeps what is written to its registers.
    pub fn answers(&self) -> bool {
        self.select();
        for (count, low) in [(0x55, 0xaa), (0xaa, 0x55), (0x55, 0xaa)] {
            self.set_register(2, count);
            self.set_register(3, low);
        }
        (self.register(2), self.register(3)) == (0x55, 0xaa)
    }

    /// `ata_sff_dev_classify`: whether a disk shows its signature.
    pub fn is_disk(&self) -> bool {
        self.select();
        (self.register(4), self.register(5)) == (0, 0) && self.status() != 0
    }
}
