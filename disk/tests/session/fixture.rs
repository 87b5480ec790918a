//! One image, `disk.qcow2`, that QEMU made and judges.

use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use disk::{Aio, Discard, Format, OpenOptions};

use super::Session;

fn options(path: &Path, read_only: bool, snapshot: Option<&str>) -> OpenOptions {
    OpenOptions {
        read_only,
        discard: Discard::Unmap,
        snapshot: snapshot.map(str::to_owned),
        ..OpenOptions::new(path, Format::Qcow2)
    }
}

fn open(options: &OpenOptions) -> Session {
    Session::with(options, Aio::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// Why an image is not opened.
pub fn open_error(path: &Path, read_only: bool, snapshot: Option<&str>) -> String {
    let opened = Session::with(&options(path, read_only, snapshot), Aio::default());
    opened.err().expect("it is refused").to_string()
}

/// A directory with `disk.qcow2`.
pub struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    /// A disk of `size` bytes, created by QEMU with `options`.
    pub fn new(options: &str, size: usize) -> Self {
        println!("{options}");
        let directory = tempfile::tempdir().expect("a directory");
        let fixture = Self { directory };
        let size = size.to_string();
        fixture.img(&["create", "-q", "-f", "qcow2", "-o", options, "disk.qcow2", &size]);
        fixture
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn open(&self) -> Session {
        open(&options(&self.file("disk.qcow2"), false, None))
    }

    pub fn open_snapshot(&self, id_or_name: &str) -> Session {
        open(&options(&self.file("disk.qcow2"), true, Some(id_or_name)))
    }

    pub fn img(&self, arguments: &[&str]) -> String {
        let (mut output, mut text);
        loop {
            let result = self.process("qemu-img").args(arguments).output();
            output = result.unwrap_or_else(|error| panic!("qemu-img (Debian package qemu-utils): {error}"));
            text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
            // The kernel takes a ring that was closed apart a little later, and only then drops the image's lock.
            if output.status.success() || !text.contains("\" lock") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
        text
    }

    /// Lets qemu-io run commands on the disk, and kills it.
    pub fn crash_qemu(&self, commands: &[&str]) {
        let mut process = self.process("qemu-io");
        process.args(["-f", "qcow2", "disk.qcow2"]).stdout(Stdio::null());
        for command in commands.iter().chain(&["sigraise 9"]) {
            process.args(["-c", command]);
        }
        let status = process.status().expect("qemu-io (Debian package qemu-utils) starts");
        assert!(!status.success(), "it was to be killed");
    }

    /// Neither an error nor a leak.
    pub fn check(&self) {
        self.img(&["check", "-f", "qcow2", "disk.qcow2"]);
    }

    /// QEMU reads what the model says.
    pub fn compare(&self, model: &[u8]) {
        std::fs::write(self.file("expected.raw"), model).expect("written");
        self.img(&["compare", "-f", "raw", "-F", "qcow2", "expected.raw", "disk.qcow2"]);
        // The comparison does not mind zeros at the end.
        let info = self.img(&["info", "-f", "qcow2", "--output=json", "disk.qcow2"]);
        let size = format!("\"virtual-size\": {},", model.len());
        assert!(info.contains(&size), "{info}");
    }

    /// QEMU reads from a snapshot what the model says.
    pub fn compare_snapshot(&self, name: &str, model: &[u8]) {
        std::fs::write(self.file("expected.raw"), model).expect("written");
        let _ = std::fs::remove_file(self.file("snapshot.raw"));
        self.img(&["convert", "-l", name, "-O", "raw", "disk.qcow2", "snapshot.raw"]);
        self.img(&["compare", "-f", "raw", "-F", "raw", "expected.raw", "snapshot.raw"]);
    }

    fn process(&self, program: &str) -> Process {
        let mut process = Process::new(program);
        process.current_dir(self.directory.path());
        process
    }
}
