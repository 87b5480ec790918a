//! From a kernel file to a guest that is ready for its first instruction.

mod command_line;
mod elf;
mod image;
mod linux;
mod pvh;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::memory::{MemorySize, layout};

pub use command_line::CommandLine;
pub use image::{Guest, ImageError, Kernel};

/// What a guest is started from.
pub struct Payload {
    /// The kernel, looked at but not loaded.
    pub kernel: Kernel,
    /// The initial RAM file system, if there is one.
    pub initrd: Option<Initrd>,
    /// The kernel command line.
    pub command_line: CommandLine,
}

/// An initial RAM file system, in memory so that a reboot finds it as it was.
pub struct Initrd {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// Why a guest cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel file is not one, or is damaged.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The initrd cannot be read.
    #[error("Cannot read the initrd {path:?}")]
    Initrd {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The initrd file holds nothing.
    #[error("The initrd {path:?} is empty")]
    EmptyInitrd {
        /// The file.
        path: PathBuf,
    },
    /// The kernel takes more memory than there is.
    #[error(
        "The kernel {path:?} needs memory up to {end:#x}, and the guest's low memory ends at {limit:#x}; give it more --memory"
    )]
    KernelTooLarge {
        /// The file.
        path: PathBuf,
        /// Address after the last byte that the kernel needs.
        end: u64,
        /// Where the memory ends.
        limit: u64,
    },
    /// There is no room for the initrd between the kernel and the end of memory.
    #[error(
        "The initrd {path:?} ({length} bytes) does not fit between the kernel's end at {start:#x} and {end:#x}; give the guest more --memory"
    )]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
        /// Where the kernel ends.
        start: u64,
        /// Where an initrd must end.
        end: u64,
    },
    /// The kernel takes a shorter command line.
    #[error("The kernel command line has {length} bytes; this kernel takes {limit}")]
    CommandLineTooLong {
        /// Bytes given.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// linux-loader refused the kernel.
    #[error("Cannot load the kernel {path:?}")]
    Load {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: linux_loader::loader::Error,
    },
    /// Guest memory refused a boot structure.
    #[error("Cannot write the boot structures to guest memory")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// The state that the boot CPU begins in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode, the first 4 GiB mapped one to one, RSI = `boot_params` (Linux boot protocol, "64-bit Boot Protocol").
    Long {
        /// First instruction.
        rip: GuestAddress,
        /// The zero page.
        boot_params: GuestAddress,
    },
    /// 32-bit protected mode without paging, EBX = `hvm_start_info` (Xen, "x86/HVM direct boot ABI").
    Protected {
        /// First instruction.
        eip: GuestAddress,
        /// The start info.
        start_info: GuestAddress,
    },
}

/// Where things came to lie; what the boot structures tell the guest.
struct Loaded {
    rsdp: GuestAddress,
    memory_size: MemorySize,
    /// Address and length of the initrd, in bytes.
    initrd: Option<(GuestAddress, u64)>,
}

impl Initrd {
    /// Reads the file at `path`.
    pub fn read(path: &Path) -> Result<Self, BootError> {
        let bytes = std::fs::read(path).map_err(|source| BootError::Initrd {
            path: path.to_owned(),
            source,
        })?;
        if bytes.is_empty() {
            return Err(BootError::EmptyInitrd { path: path.to_owned() });
        }
        Ok(Self {
            path: path.to_owned(),
            bytes,
        })
    }

    /// Copies it to the end of the memory below `limit`, page-aligned, and above `kernel_end`.
    fn load(&self, memory: &GuestMemoryMmap, kernel_end: u64, limit: u64) -> Result<(GuestAddress, u64), BootError> {
        const PAGE: u64 = 0x1000;
        let length = self.bytes.len() as u64;
        let start = limit.checked_sub(length).map(|start| start / PAGE * PAGE);
        let Some(start) = start.filter(|start| *start >= kernel_end) else {
            return Err(BootError::InitrdTooLarge {
                path: self.path.clone(),
                length,
                start: kernel_end,
                end: limit,
            });
        };
        memory.write_slice(&self.bytes, GuestAddress(start))?;
        Ok((GuestAddress(start), length))
    }
}

impl Payload {
    /// Checks whatever can be checked before there is a virtual machine.
    pub fn check(&self, memory_size: MemorySize) -> Result<(), BootError> {
        let limit = memory_size.below_4g();
        let end = self.kernel.end();
        if end > limit {
            return Err(BootError::KernelTooLarge {
                path: self.kernel.path().to_owned(),
                end,
                limit,
            });
        }
        if let Some(initrd) = &self.initrd {
            let limit = self.initrd_limit(memory_size);
            let length = initrd.bytes.len() as u64;
            if end
                .checked_add(length)
                .is_none_or(|end| end.next_multiple_of(0x1000) > limit)
            {
                return Err(BootError::InitrdTooLarge {
                    path: initrd.path.clone(),
                    length,
                    start: end,
                    end: limit,
                });
            }
        }
        self.command_line.check(self.kernel.command_line_limit())
    }

    /// Loads everything into guest memory and says how to enter it. `rsdp` is where the ACPI tables begin.
    pub fn load(
        &self,
        memory: &GuestMemoryMmap,
        memory_size: MemorySize,
        rsdp: GuestAddress,
    ) -> Result<Entry, BootError> {
        self.check(memory_size)?;
        self.kernel.load(memory)?;
        memory.write_slice(&self.command_line.to_c_bytes(), layout::COMMAND_LINE)?;
        let initrd = match &self.initrd {
            Some(initrd) => Some(initrd.load(memory, self.kernel.end(), self.initrd_limit(memory_size))?),
            None => None,
        };
        let loaded = Loaded {
            rsdp,
            memory_size,
            initrd,
        };
        match self.kernel.entry() {
            image::EntryPoint::Pvh(eip) => {
                pvh::write_start_info(memory, &loaded)?;
                Ok(Entry::Protected {
                    eip,
                    start_info: layout::PVH_START_INFO,
                })
            }
            image::EntryPoint::Linux64(rip) => {
                linux::write_boot_params(memory, self.kernel.setup_header(), &loaded)?;
                Ok(Entry::Long {
                    rip,
                    boot_params: layout::ZERO_PAGE,
                })
            }
        }
    }

    /// The address after the last byte that an initrd may take.
    fn initrd_limit(&self, memory_size: MemorySize) -> u64 {
        memory_size.below_4g().min(self.kernel.initrd_limit())
    }
}

/// Opens a kernel file and reads its first bytes, for a look at what it is.
fn open_kernel(path: &Path) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    Ok((file, metadata.len()))
}

/// Reads `length` bytes at `offset`, or fewer where the file ends.
fn read_at_most(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
