//! The Linux boot protocol's zero page. Source: Linux, Documentation/arch/x86/boot.rst ("64-bit Boot Protocol") and
//! zero-page.rst.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::Loaded;
use crate::memory::{layout, memory_map};

/// `type_of_loader`: a loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;

/// What a kernel expects of a loader that knows no real-mode part, as with an ELF image.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");

/// Writes `boot_params`: the kernel's own setup header, filled in, with the memory map.
pub fn write_boot_params(
    memory: &GuestMemoryMmap,
    header: Option<setup_header>,
    loaded: &Loaded,
) -> Result<(), GuestMemoryError> {
    let mut params = boot_params {
        acpi_rsdp_addr: loaded.rsdp.0,
        hdr: header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            ..Default::default()
        }),
        ..Default::default()
    };
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    // Everything lies below 4 GiB, so the fields for the upper halves stay zero.
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE.0 as u32;
    if let Some((GuestAddress(address), length)) = loaded.initrd {
        params.hdr.ramdisk_image = address as u32;
        params.hdr.ramdisk_size = length as u32;
    }
    let map = memory_map(loaded.memory_size);
    params.e820_entries = map.len() as u8;
    let mut table = params.e820_table;
    for (line, entry) in table.iter_mut().zip(&map) {
        *line = boot_e820_entry {
            addr: entry.address.0,
            size: entry.length,
            r#type: entry.kind as u32,
        };
    }
    params.e820_table = table;
    memory.write_obj(params, layout::ZERO_PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MemorySize, allocate};

    #[test]
    fn the_zero_page_has_the_fields_at_their_offsets() {
        let size: MemorySize = "4G".parse().expect("a size");
        let memory = allocate(size, None).expect("memory");
        let loaded = Loaded {
            rsdp: layout::RSDP,
            memory_size: size,
            initrd: Some((GuestAddress(0x700_0000), 0x1234)),
        };
        write_boot_params(&memory, None, &loaded).expect("room");
        let mut page = [0u8; 4096];
        memory.read_slice(&mut page, layout::ZERO_PAGE).expect("in memory");
        let u32_at = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(u32_at(0x70), layout::RSDP.0 as u32);
        assert_eq!(page[0x1e8], 6);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(u32_at(0x218), 0x700_0000);
        assert_eq!(u32_at(0x21c), 0x1234);
        assert_eq!(u32_at(0x228), layout::COMMAND_LINE.0 as u32);
        // The last line of the map: 1 GiB of RAM above 4 GiB.
        assert_eq!(u32_at(0x2d0 + 5 * 20 + 4), 1);
        assert_eq!(u32_at(0x2d0 + 5 * 20 + 8), 1 << 30);
    }
}
