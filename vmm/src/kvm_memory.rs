//! Giving guest memory to KVM.
#![expect(unsafe_code, reason = "KVM is handed addresses of this process")]

use anyhow::Context;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Makes every region of `memory` a slot of `vm`. The caller keeps the memory mapped for as long as the VM lives.
pub fn register(vm: &VmFd, memory: &GuestMemoryMmap) -> anyhow::Result<()> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let slot = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the range is a mapping of this process that is used for nothing else, and `Vm` drops it after the VM.
        unsafe { vm.set_user_memory_region(slot) }
            .with_context(|| format!("KVM refuses guest memory at {:#x}", region.start_addr().0))?;
    }
    Ok(())
}
