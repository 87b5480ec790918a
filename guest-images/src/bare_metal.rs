//! A guest without an operating system, assembled on the spot: it drives ports, prints on COM1 and powers off.
//!
//! It starts by PVH (32-bit protected mode) or by the 64-bit Linux boot protocol, has no stack, takes no interrupts and
//! uses plain integer instructions only, so that it runs even where KVM emulates the guest instruction by instruction.
//! Registers are scratch between steps.

pub mod libata;

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, ax, byte_ptr, dword_ptr, dx, eax, ecx, edi, edx, esi};

/// How the guest is entered, and so which code it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 32-bit code behind a PVH entry note.
    Pvh,
    /// 64-bit code at the ELF entry.
    Long,
}

/// How the guest powers off: a 16-bit write to the ACPI PM1a control register.
#[derive(Clone, Copy, Debug)]
pub struct PowerOff {
    /// The register's port.
    pub port: u16,
    /// SLP_TYP for S5, with SLP_EN.
    pub value: u16,
}

impl PowerOff {
    /// Enters sleep state `sleep_type` by the PM1a control register at `port` (ACPI 6.5, 4.8.3.2.1).
    pub fn acpi(port: u16, sleep_type: u8) -> Self {
        const SLP_TYP_SHIFT: u16 = 10;
        const SLP_EN: u16 = 1 << 13;
        Self {
            port,
            value: u16::from(sleep_type) << SLP_TYP_SHIFT | SLP_EN,
        }
    }
}

/// Where the image is loaded, and where its code may put nothing else: 1 MiB.
pub const LOAD_ADDRESS: u32 = 0x10_0000;

/// Where its code begins: the first step.
pub const ENTRY_ADDRESS: u32 = LOAD_ADDRESS + CODE_OFFSET;

/// COM1: transmit holding register, line status register and its "holding register empty" bit (16550 datasheet).
const COM1_DATA: u16 = 0x3f8;
const COM1_LINE_STATUS: u16 = 0x3fd;
const HOLDING_REGISTER_EMPTY: u8 = 1 << 5;

/// A bare-metal guest under construction. Each method appends a step.
pub struct BareMetalGuest {
    assembler: CodeAssembler,
    mode: Mode,
    power_off: PowerOff,
}

impl BareMetalGuest {
    /// An empty guest.
    pub fn new(mode: Mode, power_off: PowerOff) -> Result<Self, IcedError> {
        let bits = match mode {
            Mode::Pvh => 32,
            Mode::Long => 64,
        };
        Ok(Self {
            assembler: CodeAssembler::new(bits)?,
            mode,
            power_off,
        })
    }

    /// For steps that are not here.
    pub fn assembler(&mut self) -> &mut CodeAssembler {
        &mut self.assembler
    }

    /// Writes one byte to a port.
    pub fn out8(&mut self, port: u16, value: u8) -> Result<(), IcedError> {
        self.assembler.mov(edx, u32::from(port))?;
        self.assembler.mov(eax, u32::from(value))?;
        self.assembler.out(dx, al)
    }

    /// Writes two bytes to a port.
    pub fn out16(&mut self, port: u16, value: u16) -> Result<(), IcedError> {
        self.assembler.mov(edx, u32::from(port))?;
        self.assembler.mov(eax, u32::from(value))?;
        self.assembler.out(dx, ax)
    }

    /// Writes four bytes to a port.
    pub fn out32(&mut self, port: u16, value: u32) -> Result<(), IcedError> {
        self.assembler.mov(edx, u32::from(port))?;
        self.assembler.mov(eax, value)?;
        self.assembler.out(dx, eax)
    }

    /// Reads a port until the bits of `mask` are those of `value`.
    pub fn poll8(&mut self, port: u16, mask: u8, value: u8) -> Result<(), IcedError> {
        let mut again = self.assembler.create_label();
        self.assembler.mov(edx, u32::from(port))?;
        self.assembler.set_label(&mut again)?;
        self.assembler.in_(al, dx)?;
        self.assembler.and(al, i32::from(mask))?;
        self.assembler.cmp(al, i32::from(value))?;
        self.assembler.jne(again)
    }

    /// Reads a port once; if the bits of `mask` are not those of `value`, prints `FAILED: ` and `what`, and powers off.
    pub fn expect8(&mut self, port: u16, mask: u8, value: u8, what: &str) -> Result<(), IcedError> {
        let mut right = self.assembler.create_label();
        self.assembler.mov(edx, u32::from(port))?;
        self.assembler.in_(al, dx)?;
        self.assembler.and(al, i32::from(mask))?;
        self.assembler.cmp(al, i32::from(value))?;
        self.assembler.je(right)?;
        self.fail(what)?;
        self.assembler.set_label(&mut right)
    }

    /// Prints on COM1, each byte once the port is ready for it.
    pub fn print(&mut self, text: &str) -> Result<(), IcedError> {
        for byte in text.bytes() {
            self.poll8(COM1_LINE_STATUS, HOLDING_REGISTER_EMPTY, HOLDING_REGISTER_EMPTY)?;
            self.out8(COM1_DATA, byte)?;
        }
        Ok(())
    }

    /// Reads `count` bytes from COM1 and prints each as it arrives.
    pub fn echo(&mut self, count: u32) -> Result<(), IcedError> {
        const DATA_READY: i32 = 1;
        let mut next = self.assembler.create_label();
        let mut wait = self.assembler.create_label();
        self.assembler.mov(ecx, count)?;
        self.assembler.set_label(&mut next)?;
        self.assembler.mov(edx, u32::from(COM1_LINE_STATUS))?;
        self.assembler.set_label(&mut wait)?;
        self.assembler.in_(al, dx)?;
        self.assembler.test(al, DATA_READY)?;
        self.assembler.je(wait)?;
        self.assembler.mov(edx, u32::from(COM1_DATA))?;
        self.assembler.in_(al, dx)?;
        self.assembler.out(dx, al)?;
        self.assembler.dec(ecx)?;
        self.assembler.jne(next)
    }

    /// Stores four bytes in memory.
    pub fn store32(&mut self, address: u32, value: u32) -> Result<(), IcedError> {
        self.assembler.mov(edi, address)?;
        self.assembler.mov(eax, value)?;
        self.assembler.mov(dword_ptr(edi), eax)
    }

    /// Stores one byte in memory.
    pub fn store8(&mut self, address: u32, value: u8) -> Result<(), IcedError> {
        self.assembler.mov(edi, address)?;
        self.assembler.mov(eax, u32::from(value))?;
        self.assembler.mov(byte_ptr(edi), al)
    }

    /// Fills `count` times four bytes of memory with `first`, `first + step`, ...
    pub fn fill32(&mut self, address: u32, count: u32, first: u32, step: i32) -> Result<(), IcedError> {
        let mut again = self.assembler.create_label();
        self.assembler.mov(edi, address)?;
        self.assembler.mov(ecx, count)?;
        self.assembler.mov(eax, first)?;
        self.assembler.set_label(&mut again)?;
        self.assembler.mov(dword_ptr(edi), eax)?;
        self.assembler.add(eax, step)?;
        self.assembler.add(edi, 4)?;
        self.assembler.dec(ecx)?;
        self.assembler.jne(again)
    }

    /// Compares `count` times four bytes of memory; if they differ, prints `FAILED: ` and `what`, and powers off.
    pub fn expect_equal32(&mut self, left: u32, right: u32, count: u32, what: &str) -> Result<(), IcedError> {
        let mut again = self.assembler.create_label();
        let mut differ = self.assembler.create_label();
        let mut equal = self.assembler.create_label();
        self.assembler.mov(esi, left)?;
        self.assembler.mov(edi, right)?;
        self.assembler.mov(ecx, count)?;
        self.assembler.set_label(&mut again)?;
        self.assembler.mov(eax, dword_ptr(esi))?;
        self.assembler.cmp(eax, dword_ptr(edi))?;
        self.assembler.jne(differ)?;
        self.assembler.add(esi, 4)?;
        self.assembler.add(edi, 4)?;
        self.assembler.dec(ecx)?;
        self.assembler.jne(again)?;
        self.assembler.jmp(equal)?;
        self.assembler.set_label(&mut differ)?;
        self.fail(what)?;
        self.assembler.set_label(&mut equal)
    }

    /// Powers off.
    pub fn power_off(&mut self) -> Result<(), IcedError> {
        let PowerOff { port, value } = self.power_off;
        self.out16(port, value)?;
        self.stop()
    }

    /// Loads an empty interrupt descriptor table and raises an exception: a triple fault. A PVH guest has one already.
    pub fn triple_fault(&mut self) -> Result<(), IcedError> {
        self.assembler.ud2()
    }

    /// Spins for good.
    pub fn stop(&mut self) -> Result<(), IcedError> {
        let mut forever = self.assembler.create_label();
        self.assembler.set_label(&mut forever)?;
        self.assembler.jmp(forever)
    }

    fn fail(&mut self, what: &str) -> Result<(), IcedError> {
        self.print(&format!("FAILED: {what}\n"))?;
        self.power_off()
    }

    /// The finished guest, an ELF image for x86-64.
    pub fn build(mut self) -> Result<Vec<u8>, IcedError> {
        let pvh = self.mode == Mode::Pvh;
        let entry = LOAD_ADDRESS + CODE_OFFSET;
        let code = self.assembler.assemble(u64::from(entry))?;
        let length = u64::from(CODE_OFFSET) + code.len() as u64;
        let mut image = Vec::with_capacity(length as usize);
        image.extend(elf_header(u64::from(entry), if pvh { 2 } else { 1 }));
        image.extend(program_header(PT_LOAD, 0, length));
        image.extend(program_header(PT_NOTE, u64::from(NOTE_OFFSET), NOTE_LENGTH));
        image.extend(pvh_entry_note(entry));
        image.resize(CODE_OFFSET as usize, 0);
        image.extend(code);
        Ok(image)
    }
}

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// Behind the ELF header and two program headers; the code follows the note.
const NOTE_OFFSET: u32 = 64 + 2 * 56;
const NOTE_LENGTH: u64 = 20;
const CODE_OFFSET: u32 = 0x100;

/// System V ABI, "ELF Header", for an x86-64 executable.
fn elf_header(entry: u64, program_headers: u16) -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    header.extend(2u16.to_le_bytes()); // e_type: ET_EXEC
    header.extend(0x3eu16.to_le_bytes()); // e_machine: EM_X86_64
    header.extend(1u32.to_le_bytes()); // e_version
    header.extend(entry.to_le_bytes());
    header.extend(64u64.to_le_bytes()); // e_phoff
    header.extend(0u64.to_le_bytes()); // e_shoff
    header.extend(0u32.to_le_bytes()); // e_flags
    header.extend(64u16.to_le_bytes()); // e_ehsize
    header.extend(56u16.to_le_bytes()); // e_phentsize
    header.extend(program_headers.to_le_bytes());
    header.extend([0; 6]); // no sections
    header
}

/// System V ABI, "Program Header": `length` bytes at file offset `offset`, loaded at the same distance from [`LOAD_ADDRESS`].
fn program_header(kind: u32, offset: u64, length: u64) -> Vec<u8> {
    const READ_WRITE_EXECUTE: u32 = 7;
    let address = u64::from(LOAD_ADDRESS) + offset;
    let mut header = Vec::new();
    header.extend(kind.to_le_bytes());
    header.extend(READ_WRITE_EXECUTE.to_le_bytes());
    for field in [offset, address, address, length, length, 4] {
        header.extend(field.to_le_bytes());
    }
    header
}

/// XEN_ELFNOTE_PHYS32_ENTRY (Xen, xen/include/public/elfnote.h).
fn pvh_entry_note(entry: u32) -> Vec<u8> {
    let mut note = Vec::new();
    note.extend(4u32.to_le_bytes());
    note.extend(4u32.to_le_bytes());
    note.extend(18u32.to_le_bytes());
    note.extend(b"Xen\0");
    note.extend(entry.to_le_bytes());
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    const POWER_OFF: PowerOff = PowerOff {
        port: 0x604,
        value: 0x2000,
    };

    #[test]
    fn the_image_has_its_note_and_its_code_where_the_headers_say() {
        for (mode, program_headers) in [(Mode::Pvh, 2), (Mode::Long, 1)] {
            let mut guest = BareMetalGuest::new(mode, POWER_OFF).expect("a guest");
            guest.assembler().nop().expect("a nop");
            let image = guest.build().expect("code");
            assert_eq!(&image[..4], b"\x7fELF");
            assert_eq!(image[0x38], program_headers);
            assert_eq!(&image[NOTE_OFFSET as usize + 12..][..4], b"Xen\0");
            assert_eq!(image[CODE_OFFSET as usize..], [0x90]);
        }
    }

    #[test]
    fn every_step_assembles_in_both_modes() {
        for mode in [Mode::Pvh, Mode::Long] {
            let mut guest = BareMetalGuest::new(mode, PowerOff::acpi(0x604, 5)).expect("a guest");
            let steps = [
                guest.print("x"),
                guest.echo(3),
                guest.out32(0xcf8, 0x8000_0000),
                guest.expect8(0x1f7, 0x80, 0, "busy"),
                guest.store32(0x20_0000, 1),
                guest.store8(0x20_0000, 1),
                guest.fill32(0x20_0000, 4, 1, 3),
                guest.expect_equal32(0x20_0000, 0x20_1000, 4, "bytes"),
                guest.triple_fault(),
                guest.power_off(),
            ];
            for step in steps {
                step.expect("a step");
            }
            assert!(guest.build().expect("code").len() > CODE_OFFSET as usize);
        }
    }
}
