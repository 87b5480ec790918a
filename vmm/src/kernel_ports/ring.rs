//! The kernel's ring of latched writes: a page of the vCPU's mapping that all vCPUs of a machine share (KVM API,
//! 4.116 KVM_(UN)REGISTER_COALESCED_MMIO).
#![expect(unsafe_code, reason = "a page that is shared with the kernel")]

use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use anyhow::Context;
use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::VcpuFd;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::hand_over::{Latched, Ring};
use super::sync::{AtomicU32, Ordering};

/// The mapped page.
pub struct KernelRing {
    page: NonNull<u8>,
    page_size: usize,
}

// SAFETY: the page is memory of its own, and every access to it is atomic or of a slot that the kernel has finished with.
unsafe impl Send for KernelRing {}
// SAFETY: as above.
unsafe impl Sync for KernelRing {}

impl KernelRing {
    /// Maps the ring by one of the machine's vCPUs.
    pub fn map(vcpu: &VcpuFd) -> anyhow::Result<Self> {
        // SAFETY: the vCPU keeps its descriptor open while it is borrowed here.
        let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        let page_size = rustix::param::page_size();
        let offset = u64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * page_size as u64;
        // SAFETY: a new mapping, of a page that KVM has for this, where the kernel finds room.
        let page = unsafe {
            mmap(
                std::ptr::null_mut(),
                page_size,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                offset,
            )
        }
        .context("Cannot map KVM's ring of coalesced writes")?;
        let page = NonNull::new(page.cast()).context("KVM's ring of coalesced writes was mapped at address 0")?;
        Ok(Self { page, page_size })
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: both indices are aligned 32-bit words within the page, which lives as long as `self`; the kernel and we
        // access them as such.
        unsafe { AtomicU32::from_ptr(self.page.as_ptr().add(offset).cast()) }
    }
}

impl Ring for KernelRing {
    fn slots(&self) -> u32 {
        // KVM_COALESCED_MMIO_MAX of the kernel's headers.
        let bytes = self.page_size - size_of::<kvm_coalesced_mmio_ring>();
        (bytes / size_of::<kvm_coalesced_mmio>()) as u32
    }

    fn last(&self) -> u32 {
        // The kernel writes the entry, then (smp_wmb) the index.
        self.index(offset_of!(kvm_coalesced_mmio_ring, last))
            .load(Ordering::SeqCst)
    }

    fn set_first(&self, slot: u32) {
        self.index(offset_of!(kvm_coalesced_mmio_ring, first))
            .store(slot, Ordering::SeqCst);
    }

    fn entry(&self, slot: u32) -> Latched {
        let offset = size_of::<kvm_coalesced_mmio_ring>() + slot as usize * size_of::<kvm_coalesced_mmio>();
        assert!(
            offset + size_of::<kvm_coalesced_mmio>() <= self.page_size,
            "slot {slot} is within the page"
        );
        // SAFETY: within the page, as just checked; slots are aligned for it. The kernel does not touch a slot between its
        // `last` and our `first`.
        let entry = unsafe {
            self.page
                .as_ptr()
                .add(offset)
                .cast::<kvm_coalesced_mmio>()
                .read_volatile()
        };
        let mut data = [0; 4];
        data.copy_from_slice(&entry.data[..4]);
        Latched {
            port: entry.phys_addr as u16,
            size: (entry.len as usize).min(data.len()),
            data,
        }
    }
}

impl Drop for KernelRing {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which nothing refers any more.
        if let Err(error) = unsafe { munmap(self.page.as_ptr().cast(), self.page_size) } {
            tracing::debug!(%error, "KVM's ring stays mapped");
        }
    }
}
