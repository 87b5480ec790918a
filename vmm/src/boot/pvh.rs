//! The PVH boot protocol's structures. Source: Xen, docs/misc/pvh.pandoc ("x86/HVM direct boot ABI"), and
//! xen/include/public/arch-x86/hvm/start_info.h.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::Loaded;
use crate::memory::{layout, memory_map};

/// Writes the start info, and behind it the module list (the initrd) and the memory map.
pub fn write_start_info(memory: &GuestMemoryMmap, loaded: &Loaded) -> Result<(), GuestMemoryError> {
    let module_list = layout::PVH_START_INFO.unchecked_add(size_of::<hvm_start_info>() as u64);
    let map_start = module_list.unchecked_add(size_of::<hvm_modlist_entry>() as u64);
    let map = memory_map(loaded.memory_size);
    let mut start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: layout::COMMAND_LINE.0,
        rsdp_paddr: loaded.rsdp.0,
        memmap_paddr: map_start.0,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some((GuestAddress(paddr), size)) = loaded.initrd {
        let module = hvm_modlist_entry {
            paddr,
            size,
            ..Default::default()
        };
        memory.write_obj(module, module_list)?;
        start_info.nr_modules = 1;
        start_info.modlist_paddr = module_list.0;
    }
    memory.write_obj(start_info, layout::PVH_START_INFO)?;
    let mut at = map_start;
    for entry in map {
        let line = hvm_memmap_table_entry {
            addr: entry.address.0,
            size: entry.length,
            type_: entry.kind as u32,
            reserved: 0,
        };
        memory.write_obj(line, at)?;
        at = at.unchecked_add(size_of::<hvm_memmap_table_entry>() as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{MemorySize, allocate};

    #[test]
    fn the_start_info_points_to_the_initrd_the_memory_map_and_acpi() {
        let size: MemorySize = "64M".parse().expect("a size");
        let memory = allocate(size, None).expect("memory");
        let loaded = Loaded {
            rsdp: layout::RSDP,
            memory_size: size,
            initrd: Some((GuestAddress(0x300_0000), 77)),
        };
        write_start_info(&memory, &loaded).expect("room");
        let info: hvm_start_info = memory.read_obj(layout::PVH_START_INFO).expect("in memory");
        assert_eq!(info.magic, 0x336e_c578);
        assert_eq!(info.rsdp_paddr, layout::RSDP.0);
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).expect("in memory");
        assert_eq!((module.paddr, module.size), (0x300_0000, 77));
        let first: hvm_memmap_table_entry = memory.read_obj(GuestAddress(info.memmap_paddr)).expect("in memory");
        assert_eq!((first.addr, first.size, first.type_), (0, layout::EBDA.0, 1));
        let end = info.memmap_paddr + u64::from(info.memmap_entries) * 24;
        assert!(end <= layout::ZERO_PAGE.0);
    }
}
