//! The nested host: a stock kernel with KVM for the AMD CPU that QEMU emulates, for machines whose own KVM cannot run Linux.

use std::path::PathBuf;

use crate::busybox::Busybox;
use crate::initramfs::Initramfs;
use crate::{Error, Kernel, Store};

const INIT: &str = include_str!("../scripts/nested-host-init");

/// KVM itself, and virtio for disks and for the ports to the harness.
const MODULES: &[&str] = &["kvm_amd", "virtio_pci", "virtio_blk", "virtio_console"];

/// Kernel and initramfs of the nested host.
#[derive(Clone, Debug)]
pub struct NestedHost {
    /// An ELF kernel with a PVH entry point, for `qemu-system-x86_64 -kernel`.
    pub kernel: PathBuf,
    /// For `-initrd`. Its init runs shell commands from the virtio port `control`.
    pub initramfs: PathBuf,
}

impl NestedHost {
    /// The nested host, built if it is not there yet.
    ///
    /// # Errors
    /// If a part of it cannot be built.
    pub fn get(store: &Store) -> Result<NestedHost, Error> {
        let kernel = Kernel::stock(store)?;
        let folder = store.artefact("nested-host", &[kernel.release(), INIT, &MODULES.join(",")], |folder| {
            store.progress("making the nested host's initramfs");
            let mut initramfs = Initramfs::new(&Busybox::get(store)?, INIT, &["run", "tmp", "work"])?;
            initramfs.add_modules(&kernel, "order", MODULES)?;
            initramfs.write(&folder.join("initrd.img"))
        })?;
        Ok(NestedHost {
            kernel: kernel.vmlinux(),
            initramfs: folder.join("initrd.img"),
        })
    }
}
