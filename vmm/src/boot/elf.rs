//! A look into ELF images: what they need and whose they are. linux-loader loads them; this decides before, because it
//! says which field is wrong, and because a Linux kernel and a bare-metal guest are told apart by their notes.
//! Source: System V ABI ("ELF Header", "Program Header", "Note Section") and its AMD64 supplement.

use std::fs::File;
use std::io;
use std::ops::Range;

use linux_loader::elf::{EM_X86_64, Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use vm_memory::{ByteValued, GuestAddress};

use super::read_at_most;
use crate::memory::layout;

/// What is known of an ELF image that can be booted.
#[derive(Debug)]
pub struct Facts {
    /// The ELF entry, physical as Linux has it.
    pub entry: GuestAddress,
    /// The PVH entry, where there is one.
    pub pvh_entry: Option<GuestAddress>,
    /// Whether the notes are those of a Linux kernel.
    pub linux: bool,
    /// The address after the last byte of the last segment.
    pub end: u64,
}

/// Why an ELF image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// The file cannot be read.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// A field of the ELF header holds something that cannot be.
    #[error("{field} at offset {offset:#x} is {found:#x}, expected {expected}")]
    Header {
        /// Name of the field.
        field: &'static str,
        /// Where it lies in the file.
        offset: usize,
        /// What it holds.
        found: u64,
        /// What is allowed.
        expected: &'static str,
    },
    /// A program header, or what it describes, ends beyond the file.
    #[error("{what} {index} ends beyond the file: {start:#x}..{end:#x} of {length:#x} bytes; is it truncated?")]
    Truncated {
        /// Program header, segment or note segment.
        what: &'static str,
        /// Which.
        index: usize,
        /// First byte in the file.
        start: u64,
        /// After the last byte.
        end: u64,
        /// Length of the file.
        length: u64,
    },
    /// A segment belongs where no kernel can lie.
    #[error("segment {index} belongs at {start:#x}..{end:#x}, expected an address between {low:#x} and {high:#x}", low = layout::HIGH_RAM.0, high = layout::PCI_HOLE.0)]
    SegmentAddress {
        /// Which program header.
        index: usize,
        /// First address.
        start: u64,
        /// After the last address.
        end: u64,
    },
    /// There is nothing to load.
    #[error("it has no segment to load")]
    NoSegment,
    /// An entry point outside the segments.
    #[error("its {which} entry {address:#x} lies in no loaded segment")]
    Entry {
        /// ELF or PVH.
        which: &'static str,
        /// The address.
        address: u64,
    },
}

/// The PVH entry's note (Xen, xen/include/public/elfnote.h, `XEN_ELFNOTE_PHYS32_ENTRY`).
const XEN_PHYS32_ENTRY: u32 = 18;

/// A note segment that is longer than this is not one of a kernel.
const NOTES_LIMIT: u64 = 1 << 20;

/// Reads the headers and notes of an ELF image of `length` bytes.
pub fn inspect(file: &File, length: u64) -> Result<Facts, ElfError> {
    let header = read_header(file)?;
    let mut facts = Facts {
        entry: GuestAddress(header.e_entry),
        pvh_entry: None,
        linux: false,
        end: 0,
    };
    let mut segments: Vec<Range<u64>> = Vec::new();
    for index in 0..usize::from(header.e_phnum) {
        let program = read_program_header(file, length, &header, index)?;
        match program.p_type {
            PT_LOAD if program.p_memsz > 0 => segments.push(check_segment(&program, index, length)?),
            PT_NOTE => {
                let range = file_range("note segment", &program, index, length)?;
                let notes = read_at_most(file, range.start, (range.end - range.start).min(NOTES_LIMIT) as usize)?;
                read_notes(&notes, &mut facts);
            }
            _ => {}
        }
    }
    facts.end = segments
        .iter()
        .map(|segment| segment.end)
        .max()
        .ok_or(ElfError::NoSegment)?;
    let (which, GuestAddress(address)) = match facts.pvh_entry {
        Some(address) => ("PVH", address),
        None => ("ELF", facts.entry),
    };
    if !segments.iter().any(|segment| segment.contains(&address)) {
        return Err(ElfError::Entry { which, address });
    }
    Ok(facts)
}

fn read_header(file: &File) -> Result<Elf64_Ehdr, ElfError> {
    let bytes = read_at_most(file, 0, size_of::<Elf64_Ehdr>())?;
    let mut header = Elf64_Ehdr::default();
    if bytes.len() < size_of::<Elf64_Ehdr>() {
        return Err(ElfError::Truncated {
            what: "ELF header",
            index: 0,
            start: 0,
            end: size_of::<Elf64_Ehdr>() as u64,
            length: bytes.len() as u64,
        });
    }
    header.as_mut_slice().copy_from_slice(&bytes);
    let checks = [
        ("EI_CLASS", 4, u64::from(header.e_ident[4]), 2, "2 (64-bit)"),
        ("EI_DATA", 5, u64::from(header.e_ident[5]), 1, "1 (little-endian)"),
        (
            "e_machine",
            0x12,
            u64::from(header.e_machine),
            u64::from(EM_X86_64),
            "0x3e (x86-64)",
        ),
        (
            "e_phentsize",
            0x36,
            u64::from(header.e_phentsize),
            size_of::<Elf64_Phdr>() as u64,
            "0x38",
        ),
    ];
    for (field, offset, found, right, expected) in checks {
        if found != right {
            return Err(ElfError::Header {
                field,
                offset,
                found,
                expected,
            });
        }
    }
    if header.e_phoff < size_of::<Elf64_Ehdr>() as u64 {
        return Err(ElfError::Header {
            field: "e_phoff",
            offset: 0x20,
            found: header.e_phoff,
            expected: "an offset behind the ELF header",
        });
    }
    Ok(header)
}

fn read_program_header(file: &File, length: u64, header: &Elf64_Ehdr, index: usize) -> Result<Elf64_Phdr, ElfError> {
    let size = size_of::<Elf64_Phdr>() as u64;
    let start = header.e_phoff.saturating_add(index as u64 * size);
    let end = start.saturating_add(size);
    let mut program = Elf64_Phdr::default();
    let bytes = if end <= length {
        read_at_most(file, start, size as usize)?
    } else {
        Vec::new()
    };
    if bytes.len() < program.as_slice().len() {
        return Err(ElfError::Truncated {
            what: "program header",
            index,
            start,
            end,
            length,
        });
    }
    program.as_mut_slice().copy_from_slice(&bytes);
    Ok(program)
}

/// Where a program header's content lies in the file.
fn file_range(what: &'static str, program: &Elf64_Phdr, index: usize, length: u64) -> Result<Range<u64>, ElfError> {
    let start = program.p_offset;
    let end = start.saturating_add(program.p_filesz);
    if end > length {
        return Err(ElfError::Truncated {
            what,
            index,
            start,
            end,
            length,
        });
    }
    Ok(start..end)
}

/// Where a segment belongs in guest memory, once both ends are checked.
fn check_segment(program: &Elf64_Phdr, index: usize, length: u64) -> Result<Range<u64>, ElfError> {
    file_range("segment", program, index, length)?;
    let start = program.p_paddr;
    let end = start.saturating_add(program.p_memsz.max(program.p_filesz));
    if start < layout::HIGH_RAM.0 || end > layout::PCI_HOLE.0 {
        return Err(ElfError::SegmentAddress { index, start, end });
    }
    Ok(start..end)
}

/// Collects what the notes of one segment say. A note that does not fit ends the list: notes are advice.
fn read_notes(mut notes: &[u8], facts: &mut Facts) {
    while let Some((note, rest)) = split_note(notes) {
        match (note.name, note.kind) {
            (b"Xen\0", XEN_PHYS32_ENTRY) => {
                if let Some((address, _)) = note.description.split_first_chunk::<4>() {
                    facts.pvh_entry = Some(GuestAddress(u64::from(u32::from_le_bytes(*address))));
                }
            }
            // Build salt, build id and LTO notes carry the owner "Linux"; so does no other kernel's.
            (b"Linux\0", _) => facts.linux = true,
            (b"Xen\0", _) if note.description.starts_with(b"linux\0") => facts.linux = true,
            _ => {}
        }
        notes = rest;
    }
}

struct Note<'a> {
    name: &'a [u8],
    kind: u32,
    description: &'a [u8],
}

/// The first note and what follows it. Names and descriptions are padded to 4 bytes.
fn split_note(bytes: &[u8]) -> Option<(Note<'_>, &[u8])> {
    let (name_length, rest) = bytes.split_first_chunk::<4>()?;
    let (description_length, rest) = rest.split_first_chunk::<4>()?;
    let (kind, rest) = rest.split_first_chunk::<4>()?;
    let name_length = u32::from_le_bytes(*name_length) as usize;
    let description_length = u32::from_le_bytes(*description_length) as usize;
    let (name, rest) = split_padded(rest, name_length)?;
    let (description, rest) = split_padded(rest, description_length)?;
    let note = Note {
        name,
        kind: u32::from_le_bytes(*kind),
        description,
    };
    Some((note, rest))
}

fn split_padded(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let field = bytes.get(..length)?;
    // The padding after the last field may be missing.
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((field, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend((description.len() as u32).to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        for field in [name, description] {
            bytes.extend(field);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    fn facts_of(notes: &[u8]) -> Facts {
        let mut facts = Facts {
            entry: GuestAddress(0),
            pvh_entry: None,
            linux: false,
            end: 0,
        };
        read_notes(notes, &mut facts);
        facts
    }

    #[test]
    fn notes_tell_the_pvh_entry_and_the_owner() {
        let pvh = note(b"Xen\0", 18, &0x100_0000u32.to_le_bytes());
        let salt = note(b"Linux\0", 0x100, b"6.1.0-37\0");
        let bare = facts_of(&pvh);
        assert_eq!(bare.pvh_entry, Some(GuestAddress(0x100_0000)));
        assert!(!bare.linux);
        assert!(facts_of(&[note(b"GNU\0", 3, &[7; 20]), salt, pvh].concat()).linux);
        assert!(facts_of(&note(b"Xen\0", 6, b"linux\0")).linux);
    }

    #[test]
    fn broken_notes_end_the_list() {
        let mut endless = note(b"GNU\0", 3, &[]);
        endless[0..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(facts_of(&endless).pvh_entry, None);
        assert_eq!(facts_of(&[1, 2, 3]).pvh_entry, None);
        assert_eq!(facts_of(&note(b"Xen\0", 18, &[1, 2])).pvh_entry, None);
    }
}
