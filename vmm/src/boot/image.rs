//! What a kernel file is, and where its parts belong.
//!
//! Everything is decided from the file alone, before there is a virtual machine, so that a wrong file is one clear error.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header};
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::Elf;
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use super::elf::{self, ElfError};
use super::{BootError, open_kernel, read_at_most};
use crate::memory::layout;

/// Whom a kernel file was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// A Linux kernel: it needs a host that can run one.
    Linux,
    /// Any other program that runs without an operating system.
    BareMetal,
}

/// The first instruction, and the protocol that leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryPoint {
    /// PVH: 32-bit protected mode.
    Pvh(GuestAddress),
    /// Linux's 64-bit boot protocol, which bare-metal 64-bit guests share.
    Linux64(GuestAddress),
}

/// A kernel file that can be booted.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    format: Format,
}

#[derive(Debug)]
enum Format {
    BzImage(Box<BzImageFacts>),
    Elf(elf::Facts),
}

#[derive(Debug)]
struct BzImageFacts {
    header: setup_header,
    load: GuestAddress,
}

/// Why a file is not a kernel that can be booted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be read.
    #[error("Cannot read the kernel {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is neither of the formats that are known.
    #[error(
        "{path:?} is not a kernel: expected a Linux bzImage (\"HdrS\" at offset 0x202) or an ELF image (0x7f \"ELF\" at offset 0), found {found}"
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: String,
    },
    /// A bzImage that cannot be booted.
    #[error("The bzImage {path:?} cannot be booted: {problem}")]
    BzImage {
        /// The file.
        path: PathBuf,
        /// Field, offset, found, allowed.
        problem: String,
    },
    /// An ELF image that cannot be booted.
    #[error("The ELF image {path:?} cannot be booted: {source}")]
    Elf {
        /// The file.
        path: PathBuf,
        /// Field, offset, found, allowed.
        #[source]
        source: ElfError,
    },
}

/// Boot protocol offsets (Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").
const SETUP_HEADER: u64 = 0x1f1;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// `startup_64` within the protected-mode kernel ("64-bit Boot Protocol").
const STARTUP_64: u64 = 0x200;
/// The first version with `xloadflags`.
const VERSION_WITH_64_BIT_ENTRY: u16 = 0x020c;
/// The first version with `kernel_info_offset`.
const VERSION_WITH_KERNEL_INFO: u16 = 0x020f;

/// The longest command line of a Linux kernel on x86 without the NUL (`COMMAND_LINE_SIZE`), where no header says it.
const ELF_COMMAND_LINE_LIMIT: usize = 2047;

/// First bytes of files that are mistaken for kernels.
const LOOKALIKES: [(&[u8], &str); 9] = [
    (b"\x1f\x8b", "gzip data; decompress it first"),
    (b"\xfd7zXZ\0", "xz data; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data; decompress it first"),
    (b"\x04\x22\x4d\x18", "LZ4 data; decompress it first"),
    (b"\x02\x21\x4c\x18", "LZ4 data; decompress it first"),
    (b"BZh", "bzip2 data; decompress it first"),
    (b"070701", "a cpio archive; is it the initrd?"),
    (b"QFI\xfb", "a qcow2 image; is it a disk?"),
    (b"#!", "a script"),
];

impl Kernel {
    /// Looks at the file at `path`.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let read = |source| ImageError::Read {
            path: path.to_owned(),
            source,
        };
        let (file, length) = open_kernel(path).map_err(read)?;
        let start = read_at_most(&file, 0, 0x1000).map_err(read)?;
        let format = if start.starts_with(b"\x7fELF") {
            let facts = elf::inspect(&file, length).map_err(|source| ImageError::Elf {
                path: path.to_owned(),
                source,
            })?;
            Format::Elf(facts)
        } else if let Some(header) = find_setup_header(&start) {
            let facts = inspect_bzimage(header, length).map_err(|problem| ImageError::BzImage {
                path: path.to_owned(),
                problem,
            })?;
            Format::BzImage(Box::new(facts))
        } else {
            return Err(ImageError::Unknown {
                path: path.to_owned(),
                found: describe(&start),
            });
        };
        Ok(Self {
            path: path.to_owned(),
            format,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whom it was made for.
    pub fn guest(&self) -> Guest {
        match &self.format {
            Format::Elf(facts) if !facts.linux => Guest::BareMetal,
            Format::Elf(_) | Format::BzImage(_) => Guest::Linux,
        }
    }

    /// The address after the last byte that the kernel needs to begin with.
    pub(super) fn end(&self) -> u64 {
        match &self.format {
            Format::BzImage(facts) => facts.load.0 + u64::from(facts.header.init_size),
            Format::Elf(facts) => facts.end,
        }
    }

    /// The address after the last byte that an initrd may take.
    pub(super) fn initrd_limit(&self) -> u64 {
        match &self.format {
            Format::BzImage(facts) => u64::from(facts.header.initrd_addr_max) + 1,
            Format::Elf(_) => layout::PCI_HOLE.0,
        }
    }

    /// The longest command line, in bytes without the NUL.
    pub(super) fn command_line_limit(&self) -> usize {
        // More would reach into what a BIOS calls its own.
        let room = (layout::EBDA.0 - layout::COMMAND_LINE.0 - 1) as usize;
        match &self.format {
            Format::BzImage(facts) => room.min({ facts.header.cmdline_size } as usize),
            Format::Elf(_) => ELF_COMMAND_LINE_LIMIT,
        }
    }

    pub(super) fn entry(&self) -> EntryPoint {
        match &self.format {
            Format::BzImage(facts) => EntryPoint::Linux64(GuestAddress(facts.load.0 + STARTUP_64)),
            Format::Elf(facts) => facts
                .pvh_entry
                .map_or(EntryPoint::Linux64(facts.entry), EntryPoint::Pvh),
        }
    }

    /// The setup header of a bzImage, for the zero page.
    pub(super) fn setup_header(&self) -> Option<setup_header> {
        match &self.format {
            Format::BzImage(facts) => Some(facts.header),
            Format::Elf(_) => None,
        }
    }

    /// Copies the kernel into guest memory, which is large enough for [`Kernel::end`].
    pub(super) fn load(&self, memory: &GuestMemoryMmap) -> Result<(), BootError> {
        let mut file = File::open(&self.path).map_err(|source| ImageError::Read {
            path: self.path.clone(),
            source,
        })?;
        let loaded = match &self.format {
            Format::BzImage(facts) => BzImage::load(memory, Some(facts.load), &mut file, None),
            Format::Elf(_) => Elf::load(memory, None, &mut file, None),
        };
        loaded.map(drop).map_err(|source| BootError::Load {
            path: self.path.clone(),
            source,
        })
    }
}

/// The setup header in the first bytes of a bzImage.
fn find_setup_header(start: &[u8]) -> Option<setup_header> {
    let mut header = setup_header::default();
    let bytes = start.get(SETUP_HEADER as usize..)?.get(..size_of::<setup_header>())?;
    header.as_mut_slice().copy_from_slice(bytes);
    ({ header.header } == HEADER_MAGIC).then_some(header)
}

/// Checks a bzImage's header against the file's length, and picks the load address.
fn inspect_bzimage(mut header: setup_header, length: u64) -> Result<BzImageFacts, String> {
    let version = header.version;
    if version < VERSION_WITH_64_BIT_ENTRY {
        return Err(format!(
            "its boot protocol version at offset 0x206 is {version:#06x}; {VERSION_WITH_64_BIT_ENTRY:#06x} (Linux 3.8) or later is needed"
        ));
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err("it is a zImage, not a bzImage (bit 0 of loadflags at offset 0x211 is clear)".to_owned());
    }
    let xloadflags = header.xloadflags;
    if xloadflags & XLF_KERNEL_64 == 0 {
        return Err(
            "it is a 32-bit kernel (bit 0 of xloadflags at offset 0x236 is clear); 64-bit kernels are supported"
                .to_owned(),
        );
    }
    // The header counts the protected-mode part in units of 16 bytes.
    let setup_sectors = match header.setup_sects {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let expected = (setup_sectors + 1) * 512 + u64::from(header.syssize) * 16;
    if length < expected {
        return Err(format!(
            "it is truncated: syssize at offset 0x1f4 promises {expected} bytes, and the file has {length}"
        ));
    }
    let load = if header.relocatable_kernel == 0 {
        u64::from(header.code32_start)
    } else {
        header.pref_address
    };
    if !(layout::HIGH_RAM.0..layout::PCI_HOLE.0).contains(&load) {
        return Err(format!(
            "its load address {load:#x} is not between {:#x} and {:#x}",
            layout::HIGH_RAM.0,
            layout::PCI_HOLE.0
        ));
    }
    if version < VERSION_WITH_KERNEL_INFO {
        // What was read there is code, not a field.
        header.kernel_info_offset = 0;
    }
    // The file itself must fit, whatever init_size says.
    header.init_size = { header.init_size }.max(u32::try_from(length).unwrap_or(u32::MAX));
    Ok(BzImageFacts {
        header,
        load: GuestAddress(load),
    })
}

/// What the first bytes of a file look like, for a message.
fn describe(start: &[u8]) -> String {
    if start.is_empty() {
        return "an empty file".to_owned();
    }
    if let Some((_, name)) = LOOKALIKES.iter().find(|(magic, _)| start.starts_with(magic)) {
        return (*name).to_owned();
    }
    let shown = &start[..start.len().min(8)];
    let is_text = start
        .iter()
        .all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace());
    if is_text {
        format!("text (\"{}\")", shown.escape_ascii())
    } else {
        format!("bytes {shown:02x?}")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn open(bytes: &[u8]) -> Result<Kernel, ImageError> {
        let mut file = tempfile::NamedTempFile::new().expect("temporary file");
        file.write_all(bytes).expect("written");
        Kernel::open(file.path())
    }

    /// A bzImage without code: one setup sector and 64 bytes of protected-mode kernel.
    fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0; 1024 + 64];
        bytes[0x1f1] = 1;
        bytes[0x1f4] = 4;
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        bytes[0x211] = 1;
        bytes[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        bytes[0x234] = 1;
        bytes[0x236] = 1;
        bytes[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
        bytes[0x258..0x260].copy_from_slice(&0x100_0000u64.to_le_bytes());
        bytes[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
        bytes
    }

    #[test]
    fn a_bzimage_is_a_linux_kernel_entered_at_startup_64() {
        let kernel = open(&bzimage()).expect("a bzImage");
        assert_eq!(kernel.guest(), Guest::Linux);
        assert_eq!(kernel.entry(), EntryPoint::Linux64(GuestAddress(0x100_0200)));
        assert_eq!(kernel.end(), 0x110_0000);
        assert_eq!(kernel.command_line_limit(), 2047);
        assert_eq!(kernel.initrd_limit(), 0x8000_0000);
    }

    #[test]
    fn a_bzimage_with_a_bad_field_is_refused_by_name() {
        let cases: [(usize, u8, &str); 5] = [
            (0x1f4, 5, "syssize at offset 0x1f4 promises 1104 bytes"),
            (0x206, 0x0b, "version at offset 0x206 is 0x020b"),
            (0x211, 0, "not a bzImage"),
            (0x236, 0, "32-bit kernel"),
            (0x25f, 0xff, "load address 0xff00000001000000"),
        ];
        for (offset, value, expected) in cases {
            let mut bytes = bzimage();
            bytes[offset] = value;
            let message = open(&bytes).expect_err("refused").to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        let cases: [(&[u8], &str); 6] = [
            (b"", "an empty file"),
            (b"hello world\n", "text (\"hello wo\")"),
            (b"#!/bin/sh\n", "a script"),
            (b"\x1f\x8b\x08\0", "gzip data"),
            (b"QFI\xfb\0\0\0\x03", "a qcow2 image"),
            (b"\x01\x02\0", "bytes [01, 02, 00]"),
        ];
        for (bytes, expected) in cases {
            let message = open(bytes).expect_err("refused").to_string();
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_directory_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        assert!(matches!(Kernel::open(directory.path()), Err(ImageError::Read { .. })));
    }
}
