//! Guest-physical memory: its size, where it lies, and what the guest is told about it.
//!
//! ```text
//!  0x0000_0000  RAM; the first page, the boot structures and the command line lie here (module `layout`)
//!  0x0009_fc00  reserved: where a BIOS keeps its extended data area, video memory and ROMs
//!  0x000e_0000  the ACPI tables, in the area that an OS without firmware help searches for the RSDP
//!  0x0010_0000  RAM
//!  0xc000_0000  PCI hole: no RAM; I/O APIC, local APIC and KVM's own pages at its end
//!  0x1_0000_0000  the rest of the RAM
//! ```

use std::fmt;
use std::fs::File;
use std::str::FromStr;
use std::sync::Arc;

use vm_memory::mmap::FromRangesError;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

/// Fixed guest-physical addresses.
pub mod layout {
    use vm_memory::GuestAddress;

    /// The boot-time global descriptor table.
    pub const GDT: GuestAddress = GuestAddress(0x500);
    /// PVH: `hvm_start_info`, followed by the module list and the memory map, up to the zero page.
    pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
    /// Linux boot protocol: `boot_params`, "the zero page".
    pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
    /// The boot-time page tables: one PML4, one PDPT and four page directories, which map 4 GiB one to one.
    pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
    /// The kernel command line.
    pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
    /// Where RAM that an OS may use ends for now: the extended BIOS data area on a PC.
    pub const EBDA: GuestAddress = GuestAddress(0x9_fc00);
    /// The root pointer of ACPI, and behind it the tables.
    pub const RSDP: GuestAddress = GuestAddress(0xe_0000);
    /// First byte after the BIOS area; kernels load here or above.
    pub const HIGH_RAM: GuestAddress = GuestAddress(0x10_0000);
    /// Where RAM below 4 GiB ends at the latest.
    pub const PCI_HOLE: GuestAddress = GuestAddress(0xc000_0000);
    /// The I/O APIC; memory windows of PCI devices end here.
    pub const IO_APIC: GuestAddress = GuestAddress(0xfec0_0000);
    /// The local APIC of each CPU.
    pub const LOCAL_APIC: GuestAddress = GuestAddress(0xfee0_0000);
    /// One page that KVM takes to run real mode on early Intel CPUs (KVM API, 4.52 KVM_SET_IDENTITY_MAP_ADDR).
    pub const KVM_IDENTITY_MAP: GuestAddress = GuestAddress(0xfffb_c000);
    /// Three pages that KVM takes for the same reason (KVM API, 4.35 KVM_SET_TSS_ADDR).
    pub const KVM_TSS: GuestAddress = GuestAddress(0xfffb_d000);
    /// Where RAM goes on above the PCI hole.
    pub const ABOVE_4G: GuestAddress = GuestAddress(0x1_0000_0000);
}

/// How much RAM the guest has, in bytes. Written as `512M` or `2G`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(u64);

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl MemorySize {
    /// The least that a guest can be given.
    pub const MINIMUM: Self = Self(16 * MIB);
    /// The most that a guest can be given.
    pub const MAXIMUM: Self = Self(1024 * GIB);

    /// In bytes; a multiple of 1 MiB.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// The RAM below the PCI hole, in bytes.
    pub fn below_4g(self) -> u64 {
        self.0.min(layout::PCI_HOLE.0)
    }

    /// The RAM above 4 GiB, in bytes.
    pub fn above_4g(self) -> u64 {
        self.0 - self.below_4g()
    }

    /// The address after the last byte of RAM.
    pub fn end(self) -> GuestAddress {
        match self.above_4g() {
            0 => GuestAddress(self.below_4g()),
            above => GuestAddress(layout::ABOVE_4G.0 + above),
        }
    }

    /// The ranges that are RAM: address and length in bytes.
    pub fn ranges(self) -> impl Iterator<Item = (GuestAddress, u64)> {
        [(GuestAddress(0), self.below_4g()), (layout::ABOVE_4G, self.above_4g())]
            .into_iter()
            .filter(|(_, length)| *length > 0)
    }
}

/// A memory size that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemorySizeError {
    /// It does not read as a size.
    #[error("\"{0}\" is not a memory size; say for example 512M or 2G")]
    Syntax(String),
    /// It is too small or too large.
    #[error("{0} of memory is not possible; allowed is {min} to {max}", min = MemorySize::MINIMUM, max = MemorySize::MAXIMUM)]
    Range(String),
}

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    fn from_str(text: &str) -> Result<Self, MemorySizeError> {
        let syntax = || MemorySizeError::Syntax(text.to_owned());
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "M" | "MB" | "MIB" => MIB,
            "G" | "GB" | "GIB" => GIB,
            _ => return Err(syntax()),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(syntax());
        }
        let range = || MemorySizeError::Range(text.to_owned());
        let number: u64 = digits.parse().map_err(|_| range())?;
        let bytes = number.checked_mul(unit).ok_or_else(range)?;
        if (Self::MINIMUM.0..=Self::MAXIMUM.0).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(range())
        }
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(GIB) {
            write!(f, "{}G", self.0 / GIB)
        } else {
            write!(f, "{}M", self.0 / MIB)
        }
    }
}

/// What a range of guest-physical addresses is. The numbers are those of e820 and of PVH's memory map alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM that an OS may use.
    Ram = 1,
    /// Not for the OS.
    Reserved = 2,
}

/// One line of the memory map that the guest is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// First address.
    pub address: GuestAddress,
    /// Length in bytes.
    pub length: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// The memory map, sorted by address and without overlaps (ACPI 6.5, 15.1 "INT 15H, E820H").
pub fn memory_map(size: MemorySize) -> Vec<MemoryMapEntry> {
    let entry = |start: GuestAddress, end: GuestAddress, kind| MemoryMapEntry {
        address: start,
        length: end.0 - start.0,
        kind,
    };
    let mut map = vec![
        entry(GuestAddress(0), layout::EBDA, MemoryKind::Ram),
        entry(layout::EBDA, GuestAddress(0xa_0000), MemoryKind::Reserved),
        entry(layout::RSDP, layout::HIGH_RAM, MemoryKind::Reserved),
        entry(layout::HIGH_RAM, GuestAddress(size.below_4g()), MemoryKind::Ram),
        // KVM's own pages, so that no OS puts a device there.
        entry(
            layout::KVM_IDENTITY_MAP,
            GuestAddress(layout::KVM_TSS.0 + 0x3000),
            MemoryKind::Reserved,
        ),
    ];
    if size.above_4g() > 0 {
        map.push(entry(layout::ABOVE_4G, size.end(), MemoryKind::Ram));
    }
    map
}

/// Maps the guest's RAM: anonymous, zero, and taken from the host page by page as the guest touches it. With a file it is that
/// file, as it is and shared with whoever else has it: the RAM below the PCI hole first, then the rest. The file is as long as the RAM.
pub fn allocate(size: MemorySize, file: Option<&Arc<File>>) -> Result<GuestMemoryMmap, FromRangesError> {
    let mut at = 0;
    let ranges = size.ranges().map(|(address, length)| {
        let part = file.map(|file| FileOffset::from_arc(file.clone(), at));
        at += length;
        (address, length as usize, part)
    });
    GuestMemoryMmap::from_ranges_with_files(ranges.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> MemorySize {
        text.parse().expect("a size")
    }

    #[test]
    fn sizes_are_read_with_their_unit_and_within_limits() {
        assert_eq!(size("512M").bytes(), 512 << 20);
        assert_eq!(size("2G").bytes(), 2 << 30);
        assert_eq!(size("3gib").to_string(), "3G");
        for text in ["", "M", "512", "1.5G", "-1G", "2T", "2 G", "0x10M", "é"] {
            assert!(
                matches!(text.parse::<MemorySize>(), Err(MemorySizeError::Syntax(_))),
                "{text}"
            );
        }
        for text in ["0M", "15M", "1025G", "99999999999999999999G", "18446744073709551615G"] {
            assert!(
                matches!(text.parse::<MemorySize>(), Err(MemorySizeError::Range(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn memory_beyond_three_gib_goes_above_the_pci_hole() {
        let five = size("5G");
        assert_eq!(five.below_4g(), 3 << 30);
        assert_eq!(five.end(), GuestAddress(6 << 30));
        assert_eq!(five.ranges().count(), 2);
        assert_eq!(size("3G").ranges().count(), 1);
        assert_eq!(size("3G").end(), layout::PCI_HOLE);
    }

    #[test]
    fn the_memory_map_is_sorted_has_no_overlap_and_offers_no_bios_area() {
        for text in ["16M", "3G", "5G"] {
            let map = memory_map(size(text));
            for pair in map.windows(2) {
                assert!(
                    pair[0].address.0 + pair[0].length <= pair[1].address.0,
                    "{text}: {pair:x?}"
                );
            }
            let ram: u64 = map
                .iter()
                .filter(|entry| entry.kind == MemoryKind::Ram)
                .map(|entry| entry.length)
                .sum();
            let bios_area = layout::HIGH_RAM.0 - layout::EBDA.0;
            assert_eq!(ram, size(text).bytes() - bios_area, "{text}");
        }
    }
}
