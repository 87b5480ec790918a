//! An engine with one image, driven request by request, and QEMU's tools beside it.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::{Arc, Mutex};

use disk::{Buffer, Command, Discard, Disk, DiskError, Engine, EngineOptions, Format, OpenOptions, Request};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

pub type Outcome = Arc<Mutex<Option<Result<(), DiskError>>>>;

pub struct Session {
    pub engine: Engine,
    pub disk: Arc<dyn Disk>,
}

fn options(path: &Path, read_only: bool, snapshot: Option<&str>) -> OpenOptions {
    OpenOptions {
        read_only,
        discard: Discard::Unmap,
        snapshot: snapshot.map(str::to_owned),
        ..OpenOptions::new(path, Format::Qcow2)
    }
}

/// Why an image is not opened.
pub fn open_error(path: &Path, read_only: bool, snapshot: Option<&str>) -> String {
    let engine = Engine::new(EngineOptions::default()).expect("an engine");
    let opened = engine.open(&options(path, read_only, snapshot));
    opened.err().expect("it is refused").to_string()
}

impl Session {
    fn open(options: &OpenOptions) -> Self {
        let engine = Engine::new(EngineOptions::default()).expect("an engine");
        let disk = engine.open(options).unwrap_or_else(|error| panic!("{error}"));
        Self { engine, disk }
    }

    fn start(&self, command: Command) -> Outcome {
        let outcome = Outcome::default();
        let slot = outcome.clone();
        let done = Box::new(move |result| *slot.lock().expect("not poisoned") = Some(result));
        self.disk.submit(Request { command, done });
        outcome
    }

    pub fn wait(&self, outcome: &Outcome) -> Result<(), DiskError> {
        loop {
            self.engine.poll();
            if let Some(result) = outcome.lock().expect("not poisoned").take() {
                return result;
            }
            std::thread::yield_now();
        }
    }

    pub fn start_write(&self, offset: u64, bytes: &[u8]) -> Outcome {
        let buffer = Buffer::from_slice(bytes);
        self.start(Command::Write { offset, buffer })
    }

    pub fn try_write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.wait(&self.start_write(offset, bytes))
    }

    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.try_write(offset, bytes).unwrap_or_else(|error| panic!("{error}"));
    }

    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let buffer = Buffer::zeroed(length);
        let outcome = self.start(Command::Read {
            offset,
            buffer: buffer.clone(),
        });
        self.wait(&outcome).unwrap_or_else(|error| panic!("{error}"));
        buffer.to_vec()
    }

    /// Random writes, zero writes and discards, one after the other, into the model, too.
    pub fn random_writes(&self, model: &mut [u8], seed: u64, count: usize) {
        println!("seed {seed}");
        let mut rng = SmallRng::seed_from_u64(seed);
        let sectors = model.len() as u64 / 512;
        for _ in 0..count {
            let start = rng.random_range(0..sectors);
            let length = rng.random_range(1..=256.min(sectors - start)) * 512;
            let offset = start * 512;
            let range = offset as usize..(offset + length) as usize;
            let outcome = if rng.random_range(0..6) == 0 {
                model[range].fill(0);
                self.start(Command::WriteZeroes { offset, length })
            } else {
                model[range.clone()].fill(rng.random());
                self.start_write(offset, &model[range])
            };
            self.wait(&outcome).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    pub fn close(self) {
        self.engine.close().unwrap_or_else(|error| panic!("{error}"));
    }
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
        Session::open(&options(&self.file("disk.qcow2"), false, None))
    }

    pub fn open_snapshot(&self, id_or_name: &str) -> Session {
        Session::open(&options(&self.file("disk.qcow2"), true, Some(id_or_name)))
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
