//! Disk commands for bare-metal guests, access by access as Linux's libata makes them on a bus-master IDE controller
//! (drivers/ata/libata-sff.c: `ata_bmdma_qc_issue` to `ata_bmdma_port_intr`).
//!
//! A DMA command takes 13 reads and 13 writes with a 28-bit address, five writes more with a 48-bit one; a flush takes eight
//! reads and four writes. Where Linux waits for the interrupt, these guests read the bus master's status until
//! it shows one: reads of that port beyond two for a DMA command and one for a flush are this waiting.

use iced_x86::IcedError;
use iced_x86::code_asm::{al, dword_ptr, dx, eax, edi, edx};

use super::BareMetalGuest;

/// An IDE channel, and four KiB of guest memory for its driver.
#[derive(Clone, Copy, Debug)]
pub struct Channel {
    /// The command block's first port.
    pub block: u16,
    /// The control block's port.
    pub control: u16,
    /// The channel's first bus-master port.
    pub bus_master: u16,
    /// The PRD table and variables.
    pub memory: u32,
}

impl Channel {
    /// The primary channel, with the bus master where spindle has it from the start.
    pub const PRIMARY: Self = Self {
        block: 0x1f0,
        control: 0x3f6,
        bus_master: 0xc000,
        memory: 0x20_0000,
    };

    /// The secondary channel.
    pub const SECONDARY: Self = Self {
        block: 0x170,
        control: 0x376,
        bus_master: 0xc008,
        memory: 0x21_0000,
    };

    /// Where in memory the sector number of the next command is, 32 bits.
    pub fn lba(self) -> u32 {
        self.memory + 0xf00
    }

    fn counter(self) -> u32 {
        self.memory + 0xf04
    }
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the disk to memory.
    Read,
    /// From memory to the disk.
    Write,
}

const TO_MEMORY: u8 = 1 << 3;
const START: u8 = 1 << 0;
const INTERRUPT: u8 = 1 << 2;
const BUSY_OR_DATA_REQUEST: u8 = 0x88;
/// DRDY and DSC, and nothing else.
const DONE: u8 = 0x50;
const MASTER: u8 = 0xa0;
const MASTER_LBA: u8 = 0xe0;
const END_OF_TABLE: u32 = 1 << 31;
/// The most sectors that a command with a 28-bit address transfers; 0 in the register.
const LBA28_SECTORS: u16 = 256;
/// The most that one entry of the table transfers, in bytes; 0 in the entry.
const REGION: u32 = 64 << 10;

fn read_port(guest: &mut BareMetalGuest, port: u16) -> Result<(), IcedError> {
    guest.assembler().mov(edx, u32::from(port))?;
    guest.assembler().in_(al, dx)
}

/// Writes a byte of the sector number: the byte `shift` bits up.
fn write_lba(guest: &mut BareMetalGuest, channel: Channel, port: u16, shift: u32) -> Result<(), IcedError> {
    let assembler = guest.assembler();
    assembler.mov(edi, channel.lba())?;
    assembler.mov(eax, dword_ptr(edi))?;
    assembler.shr(eax, shift)?;
    assembler.mov(edx, u32::from(port))?;
    assembler.out(dx, al)
}

/// Makes the table for `sectors` at `buffer`, which starts at a multiple of 64 KiB.
fn write_table(guest: &mut BareMetalGuest, channel: Channel, sectors: u16, buffer: u32) -> Result<(), IcedError> {
    let mut left = u32::from(sectors) * 512;
    let mut entry = channel.memory;
    let mut region = buffer;
    while left > 0 {
        let length = left.min(REGION);
        left -= length;
        let end = if left == 0 { END_OF_TABLE } else { 0 };
        guest.store32(entry, region)?;
        guest.store32(entry + 4, length & 0xffff | end)?;
        region += length;
        entry += 8;
    }
    Ok(())
}

/// The accesses before a command's parameters.
fn select(guest: &mut BareMetalGuest, channel: Channel) -> Result<(), IcedError> {
    read_port(guest, channel.block + 7)?;
    guest.out8(channel.block + 6, MASTER)?;
    read_port(guest, channel.control)?;
    read_port(guest, channel.block + 7)
}

/// A DMA command for `sectors` sectors at the sector number in [`Channel::lba`]. Checks all that the driver reads after the interrupt.
pub fn transfer(
    guest: &mut BareMetalGuest,
    channel: Channel,
    direction: Direction,
    sectors: u16,
    buffer: u32,
) -> Result<(), IcedError> {
    let Channel {
        block,
        control,
        bus_master,
        memory,
        ..
    } = channel;
    let long = sectors > LBA28_SECTORS;
    let (command, direction) = match (direction, long) {
        (Direction::Read, false) => (0xc8, TO_MEMORY),
        (Direction::Read, true) => (0x25, TO_MEMORY),
        (Direction::Write, false) => (0xca, 0),
        (Direction::Write, true) => (0x35, 0),
    };
    write_table(guest, channel, sectors, buffer)?;
    select(guest, channel)?;
    if long {
        guest.out8(block + 1, 0)?;
        guest.out8(block + 2, (sectors >> 8) as u8)?;
        write_lba(guest, channel, block + 3, 24)?;
        guest.out8(block + 4, 0)?;
        guest.out8(block + 5, 0)?;
    }
    guest.out8(block + 1, 0)?;
    guest.out8(block + 2, sectors as u8)?;
    for (port, shift) in [(block + 3, 0), (block + 4, 8), (block + 5, 16)] {
        write_lba(guest, channel, port, shift)?;
    }
    guest.out8(block + 6, MASTER_LBA)?;
    read_port(guest, block + 7)?;
    guest.out32(bus_master + 4, memory)?;
    read_port(guest, bus_master)?;
    guest.out8(bus_master, direction)?;
    guest.out8(block + 7, command)?;
    read_port(guest, control)?;
    read_port(guest, bus_master)?;
    guest.out8(bus_master, direction | START)?;
    // The interrupt.
    guest.poll8(bus_master + 2, INTERRUPT, INTERRUPT)?;
    guest.expect8(bus_master, START, START, "the start bit during the interrupt")?;
    guest.out8(bus_master, direction)?;
    read_port(guest, control)?;
    guest.expect8(control, BUSY_OR_DATA_REQUEST, 0, "busy after the interrupt")?;
    guest.expect8(block + 7, 0xff, DONE, "the status after the command")?;
    guest.expect8(
        bus_master + 2,
        0x07,
        INTERRUPT,
        "the bus master's status after the command",
    )?;
    guest.out8(bus_master + 2, INTERRUPT)
}

/// FLUSH CACHE.
pub fn flush(guest: &mut BareMetalGuest, channel: Channel) -> Result<(), IcedError> {
    select(guest, channel)?;
    guest.out8(channel.block + 6, MASTER)?;
    read_port(guest, channel.block + 7)?;
    guest.out8(channel.block + 7, 0xe7)?;
    read_port(guest, channel.control)?;
    guest.poll8(channel.bus_master + 2, INTERRUPT, INTERRUPT)?;
    read_port(guest, channel.control)?;
    guest.expect8(channel.block + 7, 0xff, DONE, "the status after a flush")?;
    guest.out8(channel.bus_master + 2, INTERRUPT)
}

/// Runs `body` `count` times, with a counter in the channel's memory.
pub fn repeat(
    guest: &mut BareMetalGuest,
    channel: Channel,
    count: u32,
    body: impl FnOnce(&mut BareMetalGuest) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    guest.store32(channel.counter(), count)?;
    let mut again = guest.assembler().create_label();
    guest.assembler().set_label(&mut again)?;
    // What comes next may want a label of its own, and an instruction takes one.
    guest.assembler().nop()?;
    body(guest)?;
    let assembler = guest.assembler();
    assembler.mov(edi, channel.counter())?;
    assembler.dec(dword_ptr(edi))?;
    assembler.jne(again)
}

/// Adds `sectors` to the sector number of the next command, and begins again from 0 at `end`, a power of two.
pub fn advance(guest: &mut BareMetalGuest, channel: Channel, sectors: u16, end: u32) -> Result<(), IcedError> {
    let assembler = guest.assembler();
    assembler.mov(edi, channel.lba())?;
    assembler.mov(eax, dword_ptr(edi))?;
    assembler.add(eax, i32::from(sectors))?;
    assembler.and(eax, (end - 1) as i32)?;
    assembler.mov(dword_ptr(edi), eax)
}

/// Puts the bus master's ports at `base`, and lets the controller answer and be a master, as firmware does.
pub fn enable(guest: &mut BareMetalGuest, base: u16) -> Result<(), IcedError> {
    const CONFIG_ADDRESS: u16 = 0xcf8;
    const CONFIG_DATA: u16 = 0xcfc;
    /// 00:01.1
    const IDE_FUNCTION: u32 = 1 << 31 | 1 << 11 | 1 << 8;
    const IO_AND_MASTER: u16 = 0b101;
    guest.out32(CONFIG_ADDRESS, IDE_FUNCTION | 0x20)?;
    guest.out32(CONFIG_DATA, u32::from(base) | 1)?;
    guest.out32(CONFIG_ADDRESS, IDE_FUNCTION | 0x04)?;
    guest.out16(CONFIG_DATA, IO_AND_MASTER)?;
    // IDETIM: both channels answer.
    guest.out32(CONFIG_ADDRESS, IDE_FUNCTION | 0x40)?;
    guest.out32(CONFIG_DATA, 0x8000_8000)
}
