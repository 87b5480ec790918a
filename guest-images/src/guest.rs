//! A guest ready to boot: kernel, initramfs and root disk together.

use std::fs;
use std::path::{Path, PathBuf};

use crate::busybox::Busybox;
use crate::initramfs::Initramfs;
use crate::{Error, Kernel, Store, ext4_from_directory, root_disk};

const INITRAMFS_INIT: &str = include_str!("../scripts/initramfs-init");

/// What an IDE root disk takes on Debian's kernels; ext4 is a module on some of them.
const MODULES: &[&str] = &["ata_piix", "sd_mod", "ext4"];

/// What a CD-ROM takes, and SCSI commands from user space; loaded for `spindle.modules=cdrom` on the kernel command line.
const CDROM_MODULES: &[&str] = &["sr_mod", "sg", "isofs"];

/// Which root disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// A Debian minbase with fio, sqlite3, e2fsprogs, hdparm, smartmontools, sg3-utils and eject.
    Debian,
    /// busybox and nothing else, for tests where seconds count.
    Tiny,
}

impl Image {
    /// The name on the command line and of the artefact.
    pub fn name(self) -> &'static str {
        match self {
            Image::Debian => "debian",
            Image::Tiny => "tiny",
        }
    }
}

/// A folder that holds all that a guest is booted from, and the same as a disk for the nested host.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Which root disk it has.
    pub image: Image,
    /// The kernel's release.
    pub release: String,
    folder: PathBuf,
}

impl Guest {
    /// The names in [`Guest::folder`].
    pub const KERNEL: &str = "vmlinux";
    /// The kernel as its package ships it, a bzImage.
    pub const BZIMAGE: &str = "vmlinuz";
    /// The initramfs.
    pub const INITRAMFS: &str = "initrd.img";
    /// The root disk, read-only: guests write to overlays of it.
    pub const DISK: &str = "disk.qcow2";

    /// The guest with `image` as its root disk.
    ///
    /// # Errors
    /// If a part of it cannot be built.
    pub fn get(store: &Store, image: Image) -> Result<Guest, Error> {
        let kernel = Kernel::stock(store)?;
        let disk = match image {
            Image::Debian => root_disk::debian(store)?,
            Image::Tiny => root_disk::tiny(store)?,
        };
        let recipe = [
            kernel.release(),
            &disk.to_string_lossy(),
            INITRAMFS_INIT,
            &MODULES.join(","),
            &CDROM_MODULES.join(","),
        ];
        let name = format!("guest-{}", image.name());
        let folder = store.artefact(&name, &recipe, |folder| {
            store.progress(&format!("putting the {} guest together", image.name()));
            let files = folder.join("files");
            fs::create_dir(&files).map_err(Error::io("create", &files))?;
            link(&kernel.vmlinux(), &files.join(Guest::KERNEL))?;
            link(&kernel.bzimage(), &files.join(Guest::BZIMAGE))?;
            link(&disk, &files.join(Guest::DISK))?;
            let mut initramfs = Initramfs::new(&Busybox::get(store)?, INITRAMFS_INIT, &["root"])?;
            initramfs.add_modules(&kernel, "order", MODULES)?;
            initramfs.add_modules(&kernel, "cdrom", CDROM_MODULES)?;
            initramfs.write(&files.join(Guest::INITRAMFS))?;
            let size = folder_size(&files)? + SPARE;
            ext4_from_directory(&files, &folder.join("files.ext4"), size)
        })?;
        Ok(Guest {
            image,
            release: kernel.release().to_owned(),
            folder,
        })
    }

    /// The folder with the files named by the constants here.
    pub fn folder(&self) -> PathBuf {
        self.folder.join("files")
    }

    /// An ext4 filesystem with the same files, raw, to be attached read-only.
    pub fn ext4(&self) -> PathBuf {
        self.folder.join("files.ext4")
    }
}

/// What ext4's own tables take beside the files, with room to spare, in bytes.
const SPARE: u64 = 64 << 20;

fn folder_size(folder: &Path) -> Result<u64, Error> {
    let mut size = 0;
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let metadata = entry.and_then(|entry| entry.metadata());
        size += metadata.map_err(Error::io("examine", folder))?.len();
    }
    Ok(size)
}

/// The same file under a second name: the store is one filesystem, and its files do not change.
fn link(from: &Path, to: &Path) -> Result<(), Error> {
    fs::hard_link(from, to).map_err(Error::io("link", from))
}
