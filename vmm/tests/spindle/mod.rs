//! Runs the `spindle` binary on a guest image.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::{NamedTempFile, TempPath};

/// A run to be started.
pub struct Spindle {
    command: Command,
    input: String,
    _kernel: TempPath,
}

/// A run that goes on.
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    seen: String,
    /// What it says on its standard error.
    errors: Arc<Mutex<String>>,
    error_reader: JoinHandle<()>,
    start: Instant,
    _kernel: TempPath,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    pub console: String,
    pub errors: String,
    pub code: Option<i32>,
    pub wall: Duration,
}

impl Spindle {
    /// `spindle run` with `image` as its kernel.
    pub fn new(image: &[u8]) -> Self {
        let mut kernel = NamedTempFile::new().expect("temporary file");
        kernel.write_all(image).expect("written");
        let kernel = kernel.into_temp_path();
        // A signal that the tests' own parent ignores (nohup does that) would be ignored here, too.
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP,INT,TERM,CONT,USR1", env!("CARGO_BIN_EXE_spindle")]);
        command.args(["run", "--memory", "32M", "--kernel"]).arg(&kernel);
        Self {
            command,
            input: String::new(),
            _kernel: kernel,
        }
    }

    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.command.args(arguments);
        self
    }

    pub fn disk(mut self, path: &Path) -> Self {
        self.command.arg("--disk").arg(path);
        self
    }

    pub fn input(mut self, input: &str) -> Self {
        input.clone_into(&mut self.input);
        self
    }

    /// Starts it; input comes from [`Running::type_text`].
    pub fn start(mut self) -> Running {
        let start = Instant::now();
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("spindle starts");
        let errors = Arc::new(Mutex::new(String::new()));
        let error_reader = {
            let (mut stderr, errors) = (child.stderr.take().expect("piped"), errors.clone());
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(count @ 1..) = stderr.read(&mut bytes) {
                    let text = String::from_utf8_lossy(&bytes[..count]);
                    errors.lock().expect("no panic").push_str(&text);
                }
            })
        };
        Running {
            stdin: child.stdin.take(),
            child,
            seen: String::new(),
            errors,
            error_reader,
            start,
            _kernel: self._kernel,
        }
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Outcome {
        let start = Instant::now();
        let mut child = self
            .command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("spindle starts");
        let stdin = child.stdin.take().expect("piped");
        let input = std::mem::take(&mut self.input);
        let feeder = thread::spawn(move || feed(stdin, &input));
        let output = child.wait_with_output().expect("spindle ends");
        let wall = start.elapsed();
        feeder.join().expect("no panic");
        outcome(&output, "", wall)
    }
}

/// Writes all input; a reader that is gone does not want it.
fn feed(mut stdin: ChildStdin, input: &str) {
    let _ = stdin.write_all(input.as_bytes());
}

fn outcome(output: &Output, seen: &str, wall: Duration) -> Outcome {
    Outcome {
        console: seen.to_owned() + &String::from_utf8_lossy(&output.stdout),
        errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        code: output.status.code(),
        wall,
    }
}

impl Running {
    /// Reads the console until `text` is there.
    pub fn wait_for(&mut self, text: &str) {
        let stdout = self.child.stdout.as_mut().expect("piped");
        let mut byte = [0];
        while !self.seen.ends_with(text) {
            let count = stdout.read(&mut byte).expect("the console");
            assert!(count > 0, "the console ended after {:?}", self.seen);
            self.seen.push(char::from(byte[0]));
        }
    }

    /// Input for the guest's console.
    pub fn type_text(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("piped");
        stdin
            .write_all(text.as_bytes())
            .and_then(|()| stdin.flush())
            .expect("spindle reads");
    }

    /// Waits until spindle has said `text` on its standard error.
    pub fn wait_for_error(&self, text: &str) {
        self.wait_for_errors(text, 1);
    }

    /// Waits until spindle has said `text` `count` times.
    pub fn wait_for_errors(&self, text: &str, count: usize) {
        wait_until(|| self.errors.lock().expect("no panic").matches(text).count() >= count);
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, number: i32) {
        let status = Command::new("kill")
            .arg(format!("-{number}"))
            .arg(self.child.id().to_string())
            .status()
            .expect("kill runs");
        assert!(status.success());
    }

    pub fn finish(mut self) -> Outcome {
        drop(self.stdin.take());
        let output = self.child.wait_with_output().expect("spindle ends");
        let wall = self.start.elapsed();
        self.error_reader.join().expect("no panic");
        Outcome {
            errors: self.errors.lock().expect("no panic").clone(),
            ..outcome(&output, &self.seen, wall)
        }
    }
}

/// An empty qcow2 image of `size` bytes, made by qemu-img.
pub fn qcow2(size: u64) -> TempImage {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = directory.path().join("disk.qcow2");
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&path)
        .arg(size.to_string())
        .status()
        .expect("qemu-img (Debian package qemu-utils) runs");
    assert!(status.success());
    TempImage {
        path,
        _directory: directory,
    }
}

/// An image file that goes away.
pub struct TempImage {
    path: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

impl TempImage {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What a qcow2 image holds at a guest offset, as qemu-img reads it.
pub fn contents(image: &Path, offset: usize, length: usize) -> Vec<u8> {
    let raw = image.with_extension("raw");
    let status = Command::new("qemu-img")
        .args(["convert", "-O", "raw"])
        .args([image, &raw])
        .status()
        .expect("qemu-img runs");
    assert!(status.success());
    let bytes = fs::read(raw).expect("the converted image");
    bytes[offset..offset + length].to_vec()
}

/// Whether this host's KVM can serve ports by itself as spindle asks it to. Where it cannot, there are more exits.
pub fn kernel_serves_ports() -> bool {
    let kvm = kvm_ioctls::Kvm::new().expect("/dev/kvm");
    [kvm_ioctls::Cap::CoalescedPio, kvm_ioctls::Cap::Ioeventfd]
        .into_iter()
        .all(|capability| kvm.check_extension(capability))
}

/// Waits for something that will happen soon; the limit only catches hangs.
pub fn wait_until(happened: impl Fn() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(300), "it did not happen");
        thread::sleep(Duration::from_millis(5));
    }
}
