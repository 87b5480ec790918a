//! Debian's stock kernel, unpacked and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::tool::{failed, run_tool, tool};
use crate::{Error, Store, apt};

const ARTEFACT: &str = "kernel";

/// A stock kernel with its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    folder: PathBuf,
    release: String,
}

impl Kernel {
    /// The package that leads to the newest kernel that apt offers.
    pub const META_PACKAGE: &str = "linux-image-cloud-amd64";

    /// The kernel that apt would install for `linux-image-cloud-amd64`. Once built it stays until [`Kernel::forget`]:
    /// a security update alone does not make every later artefact stale.
    ///
    /// # Errors
    /// If apt cannot bring the package or it cannot be unpacked.
    pub fn stock(store: &Store) -> Result<Kernel, Error> {
        let folder = store.artefact(
            ARTEFACT,
            &[Self::META_PACKAGE, "vmlinuz, vmlinux, modules.dep: 1"],
            |folder| {
                store.progress("asking apt for the stock kernel");
                let package = apt::dependency_of(Self::META_PACKAGE, "linux-image-")?;
                store.progress(&format!("downloading {package}"));
                apt::unpack_package(&package, folder)?;
                arrange(folder)
            },
        )?;
        let release_file = folder.join("release");
        let release = fs::read_to_string(&release_file).map_err(Error::io("read", &release_file))?;
        Ok(Kernel { folder, release })
    }

    /// Forgets the kernel, so that the next [`Kernel::stock`] takes the newest that apt offers.
    ///
    /// # Errors
    /// If its folder cannot be removed.
    pub fn forget(store: &Store) -> Result<(), Error> {
        store.forget(ARTEFACT)
    }

    /// The release, as `uname -r` prints it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The bzImage, as the package ships it.
    pub fn bzimage(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The same kernel as an uncompressed ELF file, which starts faster and has the PVH entry point.
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }

    /// The module files that loading `wanted` takes, dependencies first. Modules built into the kernel are left out.
    ///
    /// # Errors
    /// [`Error::NoModule`] if the kernel has no such module.
    pub(crate) fn modules_in_load_order(&self, wanted: &[&str]) -> Result<Vec<PathBuf>, Error> {
        let root = self.folder.join("lib/modules").join(&self.release);
        let read = |name: &str| {
            let path = root.join(name);
            fs::read_to_string(&path).map_err(Error::io("read", &path))
        };
        let (dependencies, builtin) = (read("modules.dep")?, read("modules.builtin")?);
        let order = load_order(&dependencies, &builtin, wanted).map_err(|module| Error::NoModule {
            release: self.release.clone(),
            module,
        })?;
        Ok(order.into_iter().map(|file| root.join(file)).collect())
    }
}

/// Gives the unpacked package the layout that [`Kernel`] expects.
fn arrange(folder: &Path) -> Result<(), Error> {
    let boot = folder.join("boot");
    let mut names = fs::read_dir(&boot)
        .map_err(Error::io("list", &boot))?
        .filter_map(Result::ok);
    let release = names.find_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()));
    let release = release.ok_or_else(|| Error::Kernel {
        path: boot.clone(),
        why: "the package has no boot/vmlinuz-*".to_owned(),
    })?;
    let bzimage = folder.join("vmlinuz");
    let packaged = boot.join(format!("vmlinuz-{release}"));
    fs::rename(&packaged, &bzimage).map_err(Error::io("rename", &packaged))?;
    unpack_vmlinux(&bzimage, &folder.join("vmlinux"))?;
    run_tool("depmod", ["-b".as_ref(), folder.as_os_str(), release.as_ref()])?;
    let release_file = folder.join("release");
    fs::write(&release_file, release).map_err(Error::io("write", &release_file))
}

/// Writes the ELF kernel that `bzimage` carries to `vmlinux`.
fn unpack_vmlinux(bzimage: &Path, vmlinux: &Path) -> Result<(), Error> {
    let unusable = |why: String| Error::Kernel {
        path: bzimage.to_path_buf(),
        why,
    };
    let image = fs::read(bzimage).map_err(Error::io("read", bzimage))?;
    let payload =
        payload(&image).ok_or_else(|| unusable("it has no setup header of protocol 2.08 or later".to_owned()))?;
    let program = decompressor(payload).ok_or_else(|| {
        unusable(format!(
            "unknown compression, the payload begins with {:02x?}",
            &payload[..4]
        ))
    })?;

    let packed =
        tempfile::NamedTempFile::new().map_err(Error::io("create a temporary file in", &std::env::temp_dir()))?;
    fs::write(packed.path(), payload).map_err(Error::io("write", packed.path()))?;
    let output = fs::File::create(vmlinux).map_err(Error::io("create", vmlinux))?;
    let mut command = tool(program)?;
    command
        .args(["-q", "-d", "-c"])
        .arg(packed.path())
        .stdout(output)
        .stderr(Stdio::piped());
    // Judged by what came out: `lz4` and `zstd` may complain of what follows the stream.
    let outcome = command.output().map_err(Error::io("run a decompressor on", bzimage))?;
    let mut magic = [0; 4];
    let unpacked = fs::File::open(vmlinux).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    if unpacked.is_err() || magic != *b"\x7fELF" {
        return Err(failed(&command, &outcome));
    }
    Ok(())
}

/// The compressed kernel inside a bzImage (Linux/x86 boot protocol 2.08, `payload_offset` and `payload_length`),
/// without the four bytes of uncompressed size that the kernel's build appends.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let protocol = u16::from_le_bytes(image.get(0x206..0x208)?.try_into().ok()?);
    if image.get(0x202..0x206)? != b"HdrS" || protocol < 0x208 {
        return None;
    }
    // A count of zero means four sectors, for the sake of old boot loaders.
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = ((setup_sectors + 1) * 512).checked_add(word(0x248)?)?;
    let payload = image.get(start..start.checked_add(word(0x24c)?)?)?;
    (payload.len() > 8).then(|| &payload[..payload.len() - 4])
}

fn decompressor(payload: &[u8]) -> Option<&'static str> {
    match payload {
        [0x1f, 0x8b, ..] => Some("gzip"),
        [0x02, 0x21, 0x4c, 0x18, ..] => Some("lz4"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Some("xz"),
        _ => None,
    }
}

/// Module files relative to the modules' folder, dependencies first; the name of a module that there is not on error.
fn load_order(dependencies: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>, String> {
    let mut order: Vec<String> = Vec::new();
    for &module in wanted {
        if builtin.lines().any(|file| module_name(file) == module) {
            continue;
        }
        let line = dependencies
            .lines()
            .find_map(|line| line.split_once(':').filter(|(file, _)| module_name(file) == module));
        let (file, needed) = line.ok_or_else(|| module.to_owned())?;
        // modules.dep lists what a module needs so that the last must be loaded first.
        let needed = needed.split_whitespace().rev();
        for file in needed.chain([file]) {
            if !order.iter().any(|loaded| loaded == file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

/// The name of the module in `file`, with the underscores that the kernel uses.
pub(crate) fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split('.').next().unwrap_or(base).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "kernel/ata/ata_piix.ko: kernel/ata/libata.ko kernel/scsi/scsi_mod.ko kernel/scsi/scsi_common.ko\n\
        kernel/scsi/sd_mod.ko.xz: kernel/scsi/scsi_mod.ko kernel/scsi/scsi_common.ko\n";

    #[test]
    fn modules_come_after_what_they_need() {
        let order = load_order(DEPENDENCIES, "", &["ata_piix", "sd_mod"]).unwrap();

        assert_eq!(
            order,
            [
                "kernel/scsi/scsi_common.ko",
                "kernel/scsi/scsi_mod.ko",
                "kernel/ata/libata.ko",
                "kernel/ata/ata_piix.ko",
                "kernel/scsi/sd_mod.ko.xz"
            ]
        );
    }

    #[test]
    fn builtin_module_is_not_loaded_and_unknown_module_is_named() {
        let builtin = "kernel/drivers/virtio/virtio-pci.ko\n";

        assert_eq!(load_order("", builtin, &["virtio_pci"]), Ok(vec![]));
        assert_eq!(load_order("", builtin, &["virtio_blk"]), Err("virtio_blk".to_owned()));
    }

    #[test]
    fn payload_of_something_else_is_none() {
        assert_eq!(payload(b"#!/bin/sh"), None);
        assert_eq!(payload(&[0; 4096]), None);
    }

    #[test]
    fn payload_is_found_by_the_setup_header() {
        let mut image = vec![0; 2048];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&12_u32.to_le_bytes());
        image[1040..1052].copy_from_slice(b"compressSIZE");

        assert_eq!(payload(&image), Some(&b"compress"[..]));

        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&image), None);
    }
}
