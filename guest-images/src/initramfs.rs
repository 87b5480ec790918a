//! An initramfs: a cpio archive in the `newc` format (Linux, `driver-api/early-userspace/buffer-format`), uncompressed,
//! since the guest's kernel would take longer to unpack it than we take to load it.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use cpio::newc;

use crate::busybox::Busybox;
use crate::kernel::module_name;
use crate::tool::run_tool;
use crate::{Error, Kernel};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const SYMLINK: u32 = 0o120_777;

/// The content of an initramfs, in the order in which the kernel will make it.
pub(crate) struct Initramfs {
    entries: Vec<Entry>,
}

struct Entry {
    name: String,
    mode: u32,
    content: Vec<u8>,
}

impl Initramfs {
    /// busybox with all its applets, `init` as the first program, and empty mount points.
    pub(crate) fn new(busybox: &Busybox, init: &str, mount_points: &[&str]) -> Result<Initramfs, Error> {
        let mut initramfs = Initramfs { entries: Vec::new() };
        for folder in ["bin", "dev", "proc", "sys"].iter().chain(mount_points) {
            initramfs.add(folder, DIRECTORY, Vec::new());
        }
        let program = fs::read(&busybox.program).map_err(Error::io("read", &busybox.program))?;
        initramfs.add("bin/busybox", PROGRAM, program);
        for applet in busybox.applets.iter().filter(|applet| *applet != "busybox") {
            initramfs.add(&format!("bin/{applet}"), SYMLINK, b"busybox".to_vec());
        }
        initramfs.add("init", PROGRAM, init.into());
        Ok(initramfs)
    }

    /// Adds `modules` and all they need under `/modules`, and `/modules/LIST`, which names them in load order. A module
    /// that an earlier list has is loaded by then, and not named again.
    pub(crate) fn add_modules(&mut self, kernel: &Kernel, list: &str, modules: &[&str]) -> Result<(), Error> {
        if !self.has("modules") {
            self.add("modules", DIRECTORY, Vec::new());
        }
        let mut order = String::new();
        for path in kernel.modules_in_load_order(modules)? {
            let name = format!("{}.ko", module_name(&path.to_string_lossy()));
            let entry = format!("modules/{name}");
            if !self.has(&entry) {
                self.add(&entry, FILE, read_module(&path)?);
                order.push_str(&name);
                order.push('\n');
            }
        }
        self.add(&format!("modules/{list}"), FILE, order.into_bytes());
        Ok(())
    }

    /// Adds the program `from` as `name`.
    pub(crate) fn add_program(&mut self, name: &str, from: &Path) -> Result<(), Error> {
        let content = fs::read(from).map_err(Error::io("read", from))?;
        self.add(name, PROGRAM, content);
        Ok(())
    }

    /// Writes the archive to `path`.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Error> {
        let file = fs::File::create(path).map_err(Error::io("create", path))?;
        self.write_to(BufWriter::new(file)).map_err(Error::io("write", path))
    }

    fn write_to(&self, mut output: impl Write) -> io::Result<()> {
        for (inode, entry) in (1..).zip(&self.entries) {
            let size = u32::try_from(entry.content.len()).map_err(io::Error::other)?;
            let header = newc::Builder::new(&entry.name).ino(inode).mode(entry.mode).nlink(1);
            let mut writer = header.write(output, size);
            writer.write_all(&entry.content)?;
            output = writer.finish()?;
        }
        newc::trailer(output)?.flush()
    }

    fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.name == name)
    }

    fn add(&mut self, name: &str, mode: u32, content: Vec<u8>) {
        let name = name.to_owned();
        self.entries.push(Entry { name, mode, content });
    }
}

/// A module as `insmod` of busybox takes it: not compressed.
fn read_module(path: &Path) -> Result<Vec<u8>, Error> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).map_err(Error::io("read", path)),
    };
    run_tool(program, ["-d".as_ref(), "-c".as_ref(), path.as_os_str()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_reads_back() {
        let mut initramfs = Initramfs { entries: Vec::new() };
        initramfs.add("bin", DIRECTORY, Vec::new());
        initramfs.add("bin/sh", SYMLINK, b"busybox".to_vec());
        initramfs.add("init", PROGRAM, b"#!/bin/sh\n".to_vec());
        let mut archive = Vec::new();

        initramfs.write_to(&mut archive).unwrap();

        let mut input = io::Cursor::new(archive);
        let mut found = Vec::new();
        loop {
            let mut reader = newc::Reader::new(&mut input).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = Vec::new();
            io::Read::read_to_end(&mut reader, &mut content).unwrap();
            found.push((reader.entry().name().to_owned(), reader.entry().mode(), content));
            reader.finish().unwrap();
        }
        assert_eq!(found.len(), 3);
        assert_eq!(found[1], ("bin/sh".to_owned(), SYMLINK, b"busybox".to_vec()));
        assert_eq!(found[2], ("init".to_owned(), PROGRAM, b"#!/bin/sh\n".to_vec()));
    }
}
