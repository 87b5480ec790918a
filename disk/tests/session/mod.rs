//! The engine on real files, driven request by request, and QEMU's tools beside it.
#![allow(dead_code, reason = "each test that shares this uses a part of it")]

pub mod fixture;

use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use disk::{
    Aio, Buffer, Command, Discard, Disk, DiskError, Engine, EngineOptions, Format, OpenError, OpenOptions, Request,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Held while a process is started: until it runs its program, it has our open files, and with them the images' locks.
static STARTING: Mutex<()> = Mutex::new(());

fn starting() -> MutexGuard<'static, ()> {
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a program, which gets none of our files.
pub fn spawn(program: &mut Process) -> Child {
    let _starting = starting();
    program
        .spawn()
        .unwrap_or_else(|error| panic!("{program:?} (Debian package qemu-utils) does not start: {error}"))
}

/// What became of a request, once it is done.
pub type Outcome = Arc<Mutex<Option<Result<(), DiskError>>>>;

/// An engine with one image.
pub struct Session {
    pub engine: Engine,
    pub disk: Arc<dyn Disk>,
}

impl Session {
    /// Opens an image as the options say.
    pub fn with(options: &OpenOptions, aio: Aio) -> Result<Self, OpenError> {
        let engine = Engine::new(EngineOptions { aio }).expect("an engine");
        let disk = engine.open(options)?;
        Ok(Self { engine, disk })
    }

    /// Opens an image for writing; discards give clusters up.
    pub fn try_open(path: &Path, format: Format, aio: Aio) -> Result<Self, OpenError> {
        let options = OpenOptions {
            discard: Discard::Unmap,
            ..OpenOptions::new(path, format)
        };
        Self::with(&options, aio)
    }

    /// Opens an image for writing.
    pub fn open(path: &Path, format: Format, aio: Aio) -> Self {
        Self::try_open(path, format, aio).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The size of the disk in bytes.
    pub fn capacity(&self) -> u64 {
        self.disk.capacity()
    }

    /// Starts a request.
    pub fn start(&self, command: Command) -> Outcome {
        let outcome = Outcome::default();
        let slot = outcome.clone();
        let done = Box::new(move |result| *slot.lock().expect("not poisoned") = Some(result));
        self.disk.submit(Request { command, done });
        outcome
    }

    /// Runs the engine until a request is done.
    pub fn wait(&self, outcome: &Outcome) -> Result<(), DiskError> {
        loop {
            self.engine.poll();
            if let Some(result) = outcome.lock().expect("not poisoned").take() {
                return result;
            }
            std::thread::yield_now();
        }
    }

    /// Runs one request to its end.
    pub fn run(&self, command: Command) {
        let outcome = self.start(command);
        self.wait(&outcome).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Starts writing `bytes` at byte `offset`.
    pub fn start_write(&self, offset: u64, bytes: &[u8]) -> Outcome {
        let buffer = Buffer::from_slice(bytes);
        self.start(Command::Write { offset, buffer })
    }

    /// Writes `bytes` at byte `offset`, if that is possible.
    pub fn try_write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.wait(&self.start_write(offset, bytes))
    }

    /// Writes `bytes` at byte `offset`.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.try_write(offset, bytes).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Reads `length` bytes at byte `offset`.
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let buffer = Buffer::zeroed(length);
        self.run(Command::Read {
            offset,
            buffer: buffer.clone(),
        });
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

    /// Closes the image properly.
    pub fn close(self) {
        self.engine.close().unwrap_or_else(|error| panic!("{error}"));
        // A program that another test is starting may have the file open for a moment more.
        drop(starting());
    }
}

/// A directory for images, and QEMU's tools in it.
pub struct Workshop {
    directory: tempfile::TempDir,
}

impl Workshop {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What a file in it holds.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Makes a file in it.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.file(name), bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Runs one of QEMU's tools in it, whatever comes of that.
    pub fn try_qemu(&self, program: &str, arguments: &[&str]) -> Output {
        let mut process = Process::new(program);
        process.args(arguments).current_dir(self.directory.path());
        let child = spawn(
            process
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        );
        child.wait_with_output().expect("a child that can be waited for")
    }

    fn qemu(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.try_qemu(program, arguments);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{program} {arguments:?}: {text}");
        text
    }

    /// Runs qemu-img.
    pub fn img(&self, arguments: &[&str]) -> String {
        self.qemu("qemu-img", arguments)
    }

    /// Runs qemu-io's commands on a qcow2 image.
    pub fn io(&self, image: &str, commands: &[String]) {
        let mut arguments = vec!["-f", "qcow2", "-d", "unmap"];
        for command in commands {
            arguments.extend(["-c", command.as_str()]);
        }
        arguments.push(image);
        let text = self.qemu("qemu-io", &arguments);
        assert!(!text.contains("failed"), "qemu-io {commands:?}: {text}");
    }

    /// QEMU finds neither an error nor a leak in the image.
    pub fn check(&self, image: &str) {
        self.img(&["check", "-q", "-f", "qcow2", image]);
    }

    /// QEMU reads exactly `model` from the image.
    pub fn compare(&self, image: &str, model: &[u8]) {
        self.put("expected.raw", model);
        self.img(&["compare", "-q", "-f", "raw", "-F", "qcow2", "expected.raw", image]);
    }
}
