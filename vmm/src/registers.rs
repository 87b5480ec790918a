//! The registers that a vCPU begins with. Sources: Intel SDM volume 3; the boot protocols that [`Entry`] names.

use anyhow::{Context, bail};
use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, Bytes, GuestMemoryError, GuestMemoryMmap};

use crate::boot::Entry;
use crate::memory::layout;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// RFLAGS: only the bit that is always set; interrupts are off.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Page table entry: present and writable.
const PAGE_PRESENT_WRITABLE: u64 = 0b11;
/// Page directory entry: a page of 2 MiB.
const PAGE_LARGE: u64 = 1 << 7;
const PAGE_TABLE_SIZE: u64 = 0x1000;

/// MSR numbers and initial values (Intel SDM volume 4).
const IA32_MISC_ENABLE: (u32, u64) = (0x1a0, 1 /* fast strings */);
const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
/// MTRRs on, and everything write-back: no firmware does this for us, and off means uncached.
const IA32_MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// The selectors that the Linux boot protocol names __BOOT_CS and __BOOT_DS; a TSS follows.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;

/// A segment descriptor's type and flags, as the SDM draws them (volume 3, figure 3-8).
#[derive(Clone, Copy)]
struct Segment {
    selector: u16,
    kind: u8,
    /// Bits of the descriptor: system (0) or code and data (1).
    code_or_data: u8,
    long: u8,
    default_32: u8,
    limit: u32,
}

const CODE_64: Segment = Segment {
    selector: CODE_SELECTOR,
    kind: 0b1011,
    code_or_data: 1,
    long: 1,
    default_32: 0,
    limit: 0xffff_ffff,
};
const CODE_32: Segment = Segment {
    long: 0,
    default_32: 1,
    ..CODE_64
};
const DATA: Segment = Segment {
    selector: DATA_SELECTOR,
    kind: 0b0011,
    ..CODE_32
};
const TSS: Segment = Segment {
    selector: TSS_SELECTOR,
    kind: 0b1011,
    code_or_data: 0,
    long: 0,
    default_32: 0,
    limit: 0x67,
};

impl Segment {
    fn granularity(self) -> u8 {
        u8::from(self.limit > 0xf_ffff)
    }

    /// As it lies in the descriptor table; the base is zero.
    fn descriptor(self) -> u64 {
        let limit = if self.granularity() == 1 {
            self.limit >> 12
        } else {
            self.limit
        };
        let limit = u64::from(limit);
        let access = u64::from(self.kind) | u64::from(self.code_or_data) << 4 | 1 << 7;
        let flags = u64::from(self.long) << 1 | u64::from(self.default_32) << 2 | u64::from(self.granularity()) << 3;
        limit & 0xffff | access << 40 | (limit >> 16 & 0xf) << 48 | flags << 52
    }

    /// As KVM wants it.
    fn loaded(self) -> kvm_segment {
        kvm_segment {
            base: 0,
            limit: self.limit,
            selector: self.selector,
            type_: self.kind,
            present: 1,
            dpl: 0,
            db: self.default_32,
            s: self.code_or_data,
            l: self.long,
            g: self.granularity(),
            ..Default::default()
        }
    }
}

/// Writes the descriptor table, and for a 64-bit entry the page tables, into guest memory.
pub fn write_boot_tables(memory: &GuestMemoryMmap, entry: Entry) -> Result<(), GuestMemoryError> {
    let code = match entry {
        Entry::Long { .. } => CODE_64,
        Entry::Protected { .. } => CODE_32,
    };
    let table = [0, 0, code.descriptor(), DATA.descriptor(), TSS.descriptor(), 0];
    for (index, descriptor) in (0..).zip(table) {
        memory.write_obj(descriptor, layout::GDT.unchecked_add(index * 8))?;
    }
    match entry {
        Entry::Long { .. } => write_page_tables(memory),
        Entry::Protected { .. } => Ok(()),
    }
}

/// Maps the first 4 GiB one to one with pages of 2 MiB.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let pml4 = layout::PAGE_TABLES;
    let pdpt = pml4.unchecked_add(PAGE_TABLE_SIZE);
    let directories = pdpt.unchecked_add(PAGE_TABLE_SIZE);
    memory.write_obj(pdpt.0 | PAGE_PRESENT_WRITABLE, pml4)?;
    for gib in 0..4 {
        let directory = directories.0 + gib * PAGE_TABLE_SIZE;
        memory.write_obj(directory | PAGE_PRESENT_WRITABLE, pdpt.unchecked_add(gib * 8))?;
    }
    for page in 0..4 * 512u64 {
        let entry = page << 21 | PAGE_LARGE | PAGE_PRESENT_WRITABLE;
        memory.write_obj(entry, directories.unchecked_add(page * 8))?;
    }
    Ok(())
}

/// Puts the boot CPU at its entry.
pub fn set_entry(vcpu: &VcpuFd, entry: Entry) -> anyhow::Result<()> {
    let mut sregs = vcpu.get_sregs().context("KVM_GET_SREGS failed")?;
    set_system_registers(&mut sregs, entry);
    vcpu.set_sregs(&sregs).context("KVM_SET_SREGS failed")?;
    let mut regs = kvm_regs {
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    match entry {
        Entry::Long { rip, boot_params } => (regs.rip, regs.rsi) = (rip.0, boot_params.0),
        Entry::Protected { eip, start_info } => (regs.rip, regs.rbx) = (eip.0, start_info.0),
    }
    vcpu.set_regs(&regs).context("KVM_SET_REGS failed")
}

fn set_system_registers(sregs: &mut kvm_sregs, entry: Entry) {
    sregs.gdt.base = layout::GDT.0;
    sregs.gdt.limit = 6 * 8 - 1;
    // Whoever is interrupted before loading a table of its own has lost anyway.
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    let data = DATA.loaded();
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.tr = TSS.loaded();
    match entry {
        Entry::Long { .. } => {
            sregs.cs = CODE_64.loaded();
            sregs.cr3 = layout::PAGE_TABLES.0;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        Entry::Protected { .. } => {
            sregs.cs = CODE_32.loaded();
            sregs.cr4 = 0;
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.efer = 0;
        }
    }
}

/// Sets what every CPU needs that firmware would have set: the FPU's power-on state and a few MSRs.
pub fn set_defaults(vcpu: &VcpuFd) -> anyhow::Result<()> {
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu).context("KVM_SET_FPU failed")?;
    let entries = [IA32_MISC_ENABLE, IA32_MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).context("Too many MSRs")?;
    let count = vcpu.set_msrs(&msrs).context("KVM_SET_MSRS failed")?;
    if let Some(refused) = entries.get(count) {
        bail!("KVM refuses MSR {:#x} = {:#x}", refused.index, refused.data);
    }
    Ok(())
}

/// Wires the local APIC's pins: NMI to LINT1 everywhere, the 8259s' output to LINT0 of the boot CPU.
pub fn set_local_interrupts(vcpu: &VcpuFd, boot_cpu: bool) -> anyhow::Result<()> {
    /// Offsets of the local vector table entries, delivery modes and the mask bit (Intel SDM volume 3, 11.5.1).
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const NMI: u32 = 0b100 << 8;
    const EXT_INT: u32 = 0b111 << 8;
    const MASKED: u32 = 1 << 16;

    let mut lapic = vcpu.get_lapic().context("KVM_GET_LAPIC failed")?;
    let lint0 = if boot_cpu { EXT_INT } else { MASKED };
    for (offset, value) in [(LVT_LINT0, lint0), (LVT_LINT1, NMI)] {
        for (register, byte) in lapic.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
            *register = byte as libc::c_char;
        }
    }
    vcpu.set_lapic(&lapic).context("KVM_SET_LAPIC failed")
}

/// The registers in a few lines, for the log of a guest that went wrong.
pub fn describe(vcpu: &VcpuFd) -> String {
    let (Ok(regs), Ok(sregs)) = (vcpu.get_regs(), vcpu.get_sregs()) else {
        return "registers cannot be read".to_owned();
    };
    format!(
        "rip={:#x} rsp={:#x} rflags={:#x}\nrax={:#x} rbx={:#x} rcx={:#x} rdx={:#x} rsi={:#x} rdi={:#x} rbp={:#x}\n\
         r8={:#x} r9={:#x} r10={:#x} r11={:#x} r12={:#x} r13={:#x} r14={:#x} r15={:#x}\n\
         cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x} cs={:#x} ss={:#x}",
        regs.rip,
        regs.rsp,
        regs.rflags,
        regs.rax,
        regs.rbx,
        regs.rcx,
        regs.rdx,
        regs.rsi,
        regs.rdi,
        regs.rbp,
        regs.r8,
        regs.r9,
        regs.r10,
        regs.r11,
        regs.r12,
        regs.r13,
        regs.r14,
        regs.r15,
        sregs.cr0,
        sregs.cr2,
        sregs.cr3,
        sregs.cr4,
        sregs.efer,
        sregs.cs.selector,
        sregs.ss.selector,
    )
}

/// The time-stamp counter as the guest sees it, if KVM tells.
pub fn time_stamp_counter(vcpu: &VcpuFd) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry {
        index: IA32_TIME_STAMP_COUNTER,
        ..Default::default()
    }])
    .ok()?;
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().first().map(|entry| entry.data),
        _ => None,
    }
}

/// Sets it. KVM keeps vCPUs that are set within a second of each other in step.
pub fn set_time_stamp_counter(vcpu: &VcpuFd, value: u64) {
    let set = Msrs::from_entries(&[kvm_msr_entry {
        index: IA32_TIME_STAMP_COUNTER,
        data: value,
        ..Default::default()
    }])
    .ok()
    .and_then(|msrs| vcpu.set_msrs(&msrs).ok());
    if set != Some(1) {
        tracing::debug!("the guest's time-stamp counter ran on");
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn descriptors_are_those_of_the_textbook() {
        assert_eq!(CODE_64.descriptor(), 0x00af_9b00_0000_ffff);
        assert_eq!(CODE_32.descriptor(), 0x00cf_9b00_0000_ffff);
        assert_eq!(DATA.descriptor(), 0x00cf_9300_0000_ffff);
        assert_eq!(TSS.descriptor(), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn page_tables_map_four_gib_and_end_before_the_command_line() {
        let memory = crate::memory::allocate(crate::memory::MemorySize::MINIMUM, None).expect("memory");
        write_page_tables(&memory).expect("room");
        let entry = |address| memory.read_obj::<u64>(GuestAddress(address)).expect("in memory");
        assert_eq!(entry(0x9000), 0xa003);
        assert_eq!(entry(0xa000), 0xb003);
        assert_eq!(entry(0xa018), 0xe003);
        assert_eq!(entry(0xb000), 0x83);
        assert_eq!(entry(0xeff8), 0xffe0_0083);
        const { assert!(layout::PAGE_TABLES.0 + 6 * PAGE_TABLE_SIZE <= layout::COMMAND_LINE.0) };
    }
}
