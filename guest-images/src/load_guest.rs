//! The load guest: a stock kernel whose initramfs does nothing but load an IDE disk and say how fast it was.

use std::fs;
use std::path::PathBuf;

use crate::busybox::Busybox;
use crate::initramfs::Initramfs;
use crate::tool::run_tool;
use crate::{Error, Kernel, Store};

const INIT: &str = include_str!("../scripts/load-init");
const PROGRAM: &str = include_str!("../programs/disk_load.rs");
const MODULES: &[&str] = &["ata_piix", "sd_mod"];

/// Kernel and initramfs. What to do comes by the kernel's command line: `spindle.load=NAME:KIND:BYTES:LIMIT,...` and `spindle.wait=`
/// (see `programs/disk_load.rs`); the disk is hda, and at least 64 MiB.
#[derive(Clone, Debug)]
pub struct LoadGuest {
    /// An ELF kernel with a PVH entry point.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
}

impl LoadGuest {
    /// The load guest, built if it is not there yet.
    ///
    /// # Errors
    /// If a part of it cannot be built.
    pub fn get(store: &Store) -> Result<LoadGuest, Error> {
        let kernel = Kernel::stock(store)?;
        let recipe = [kernel.release(), INIT, PROGRAM, &MODULES.join(",")];
        let folder = store.artefact("load-guest", &recipe, |folder| {
            store.progress("making the load guest's initramfs");
            let source = folder.join("disk_load.rs");
            let program = folder.join("disk_load");
            fs::write(&source, PROGRAM).map_err(Error::io("write", &source))?;
            run_tool(
                "rustc",
                [
                    "--edition=2024".as_ref(),
                    "-O".as_ref(),
                    "-Ctarget-feature=+crt-static".as_ref(),
                    "-o".as_ref(),
                    program.as_os_str(),
                    source.as_os_str(),
                ],
            )?;
            let mut initramfs = Initramfs::new(&Busybox::get(store)?, INIT, &[])?;
            initramfs.add_modules(&kernel, "order", MODULES)?;
            initramfs.add_program("bin/disk_load", &program)?;
            initramfs.write(&folder.join("initrd.img"))
        })?;
        Ok(LoadGuest {
            kernel: kernel.vmlinux(),
            initramfs: folder.join("initrd.img"),
        })
    }
}
