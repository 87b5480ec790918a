//! A directory with an image in it, `spindle nbd` on that image, and the clients.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use tempfile::TempDir;

/// What each program is part of.
const PACKAGES: [(&str, &str); 6] = [
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("fio", "fio"),
    ("bash", "bash"),
];

/// A directory, and programs that run in it.
pub struct Workshop(TempDir);

impl Workshop {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    /// With an empty qcow2 image of `size`, called `disk.qcow2`.
    pub fn with_image(size: &str) -> Self {
        let workshop = Self::new();
        workshop.run("qemu-img", &["create", "-q", "-f", "qcow2", "disk.qcow2", size]);
        workshop
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.file(name), bytes).expect("written");
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).expect("read")
    }

    /// Starts a program in it, its output piped.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.path()).env("LC_ALL", "C");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| {
                let package = PACKAGES.iter().find(|(known, _)| *known == program);
                panic!("{program} (Debian package {package:?}) does not start: {error}")
            })
    }

    /// Runs a program in it, whatever comes of that.
    pub fn try_run(&self, program: &str, arguments: &[&str]) -> Output {
        let child = self.spawn(program, arguments);
        child.wait_with_output().expect("a child that can be waited for")
    }

    /// Runs a program in it, which must succeed. Returns what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.try_run(program, arguments);
        let text = text(&output);
        assert!(output.status.success(), "{program} {arguments:?}: {text}");
        text
    }

    /// QEMU finds neither an error nor a leak in the image.
    pub fn check(&self) {
        self.run("qemu-img", &["check", "-q", "-f", "qcow2", "disk.qcow2"]);
    }

    /// Serves `disk.qcow2` on a Unix socket.
    pub fn serve(&self, arguments: &[&str]) -> Served {
        self.serve_image("disk.qcow2,discard=unmap", arguments)
    }

    /// Serves an image on a Unix socket.
    pub fn serve_image(&self, image: &str, arguments: &[&str]) -> Served {
        let all = [&["--socket", "nbd.sock"], arguments, &[image]].concat();
        self.serve_with(&all)
    }

    /// Serves as the arguments say, which name the socket and the image.
    pub fn serve_with(&self, arguments: &[&str]) -> Served {
        // A signal that the tests' own parent ignores (nohup does that) would be ignored here, too.
        let mut all = vec![
            "--default-signal=HUP,INT,TERM",
            env!("CARGO_BIN_EXE_spindle"),
            "nbd",
            "--ready",
        ];
        all.extend(arguments);
        let mut child = self.spawn("env", &all);
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut line = || lines.next().map(|line| line.expect("text"));
        let (ready, uri) = (line(), line());
        if ready.as_deref() != Some("ready") {
            let output = child.wait_with_output().expect("an end");
            panic!("spindle nbd {arguments:?}: {}", text(&output));
        }
        Served {
            child: Some(child),
            uri: uri.expect("a URI"),
            socket: self.file("nbd.sock"),
        }
    }
}

/// All that a program printed.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// A server that runs. One that is not waited for is killed.
pub struct Served {
    child: Option<Child>,
    pub uri: String,
    socket: PathBuf,
}

impl Served {
    /// A connection of our own.
    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).expect("somebody listens")
    }

    pub fn signal(&self, number: &str) {
        let id = self.child.as_ref().expect("it runs").id().to_string();
        let status = Command::new("kill").args([number, &id]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        let child = self.child.take().expect("it runs");
        let output = child.wait_with_output().expect("an end");
        let errors = text(&output);
        assert!(!errors.contains("panic"), "{errors}");
        output.status
    }

    /// Tells it to end, which it must do well.
    pub fn end(self) {
        self.signal("-TERM");
        let socket = self.socket.clone();
        assert_eq!(self.wait().code(), Some(0));
        assert!(!socket.exists(), "the socket is gone");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
