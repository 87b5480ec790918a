//! Images that go back and forth between QEMU's tools and this engine; `qemu-img` is the judge.

use std::path::{Path, PathBuf};
use std::process::Command as Process;
use std::sync::{Arc, Mutex};

use disk::{Aio, Buffer, Command, Disk, DiskError, Engine, EngineOptions, Format, OpenOptions, Request};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// An engine with one image, driven request by request.
struct Session {
    engine: Engine,
    disk: Arc<dyn Disk>,
}

type Outcome = Arc<Mutex<Option<Result<(), DiskError>>>>;

impl Session {
    fn open(path: &Path, format: Format, aio: Aio) -> Self {
        let engine = Engine::new(EngineOptions { aio }).expect("an engine");
        let options = OpenOptions {
            path: path.to_owned(),
            format,
            read_only: false,
            snapshot: None,
        };
        let disk = engine.open(&options).unwrap_or_else(|error| panic!("{error}"));
        Self { engine, disk }
    }

    fn start(&self, command: Command) -> Outcome {
        let outcome = Outcome::default();
        let slot = outcome.clone();
        let done = Box::new(move |result| *slot.lock().expect("not poisoned") = Some(result));
        self.disk.submit(Request { command, done });
        outcome
    }

    fn wait(&self, outcome: &Outcome) -> Result<(), DiskError> {
        loop {
            self.engine.poll();
            if let Some(result) = outcome.lock().expect("not poisoned").take() {
                return result;
            }
            std::thread::yield_now();
        }
    }

    fn run(&self, command: Command) {
        let outcome = self.start(command);
        self.wait(&outcome).unwrap_or_else(|error| panic!("{error}"));
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.run(Command::Write {
            offset,
            buffer: Buffer::from_slice(bytes),
        });
    }

    fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let buffer = Buffer::zeroed(length);
        self.run(Command::Read {
            offset,
            buffer: buffer.clone(),
        });
        buffer.to_vec()
    }

    fn close(self) {
        self.engine.close().unwrap_or_else(|error| panic!("{error}"));
    }
}

fn qemu(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Process::new(program).args(arguments).current_dir(directory).output();
    let output = output.unwrap_or_else(|error| panic!("{program} (Debian package qemu-utils) does not start: {error}"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// Neither an error nor a leak.
fn check(directory: &Path, image: &str) {
    qemu("qemu-img", &["check", "-f", "qcow2", image], directory);
}

struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn img(&self, arguments: &[&str]) -> String {
        qemu("qemu-img", arguments, self.path())
    }
}

/// Random requests, up to `depth` in flight, none of which overlap; returns what the disk must hold then.
fn random_workload(session: &Session, model: &mut [u8], seed: u64, count: usize, depth: usize) {
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let sectors = model.len() as u64 / 512;
    let mut in_flight: Vec<(u64, u64, Outcome)> = Vec::new();
    for _ in 0..count {
        let start = rng.random_range(0..sectors);
        let length = rng.random_range(1..=256.min(sectors - start));
        let overlaps = |(other, count, _): &(u64, u64, Outcome)| *other < start + length && start < other + count;
        while in_flight.len() >= depth || in_flight.iter().any(overlaps) {
            let (_, _, outcome) = in_flight.remove(0);
            session.wait(&outcome).unwrap_or_else(|error| panic!("{error}"));
        }
        let (offset, bytes) = (start * 512, (length * 512) as usize);
        let range = offset as usize..offset as usize + bytes;
        let outcome = match rng.random_range(0..10) {
            0 => {
                model[range].fill(0);
                session.start(Command::WriteZeroes {
                    offset,
                    length: bytes as u64,
                })
            }
            1 => session.start(Command::Flush),
            2 => {
                assert!(session.read(offset, bytes) == model[range], "read at {offset:#x}");
                continue;
            }
            _ => {
                let fill = vec![rng.random::<u8>(); bytes];
                model[range].copy_from_slice(&fill);
                session.start(Command::Write {
                    offset,
                    buffer: Buffer::from_slice(&fill),
                })
            }
        };
        in_flight.push((start, length, outcome));
    }
    for (_, _, outcome) in in_flight {
        session.wait(&outcome).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn qemu_reads_what_we_wrote_and_checks_it_clean() {
    for aio in [Aio::IoUring, Aio::Threads] {
        for options in [
            "compat=1.1",
            "compat=0.10",
            "cluster_size=512",
            "cluster_size=2M",
            "refcount_bits=1",
            "refcount_bits=2",
            "refcount_bits=8,cluster_size=4096",
            "refcount_bits=64,cluster_size=512",
        ] {
            let fixture = Fixture::new();
            fixture.img(&["create", "-q", "-f", "qcow2", "-o", options, "disk.qcow2", "24M"]);
            let mut model = vec![0; 24 << 20];
            let session = Session::open(&fixture.file("disk.qcow2"), Format::Qcow2, aio);
            random_workload(&session, &mut model, 7, 400, 16);
            session.close();
            check(fixture.path(), "disk.qcow2");
            std::fs::write(fixture.file("expected.raw"), &model).expect("written");
            fixture.img(&["compare", "-f", "raw", "-F", "qcow2", "expected.raw", "disk.qcow2"]);
            let again = Session::open(&fixture.file("disk.qcow2"), Format::Qcow2, aio);
            assert!(
                again.read(0, model.len()) == model,
                "{options}: what we read back after reopening"
            );
            again.close();
        }
    }
}

#[test]
fn an_overlay_copies_from_its_backing_chain_and_leaves_it_alone() {
    for (format, create) in [("raw", "raw"), ("qcow2", "qcow2"), ("qcow2", "compressed")] {
        let fixture = Fixture::new();
        let mut rng = SmallRng::seed_from_u64(11);
        // Shorter than the overlay, and not a whole number of clusters.
        let mut model: Vec<u8> = (0..(3 << 20) + 512)
            .map(|index| (index / 512 % 251) as u8 ^ rng.random::<u8>() & 1)
            .collect();
        std::fs::write(fixture.file("base.raw"), &model).expect("written");
        match create {
            "raw" => fixture.img(&["convert", "-f", "raw", "-O", "raw", "base.raw", "base.img"]),
            "qcow2" => fixture.img(&["convert", "-f", "raw", "-O", "qcow2", "base.raw", "base.img"]),
            _ => fixture.img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "base.raw", "base.img"]),
        };
        let before = std::fs::read(fixture.file("base.img")).expect("readable");
        fixture.img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "base.img",
            "-F",
            format,
            "disk.qcow2",
            "8M",
        ]);
        model.resize(8 << 20, 0);
        let session = Session::open(&fixture.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
        assert!(
            session.read(0, model.len()) == model,
            "{create}: what the backing file holds"
        );
        random_workload(&session, &mut model, 13, 200, 16);
        session.close();
        check(fixture.path(), "disk.qcow2");
        std::fs::write(fixture.file("expected.raw"), &model).expect("written");
        fixture.img(&["compare", "-f", "raw", "-F", "qcow2", "expected.raw", "disk.qcow2"]);
        assert!(
            std::fs::read(fixture.file("base.img")).expect("readable") == before,
            "the backing file changed"
        );
    }
}

#[test]
fn write_to_shared_cluster_keeps_snapshot_content() {
    let fixture = Fixture::new();
    fixture.img(&["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"]);
    let mut model = vec![0; 8 << 20];
    let session = Session::open(&fixture.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    random_workload(&session, &mut model, 17, 100, 16);
    session.close();
    let at_snapshot = model.clone();
    fixture.img(&["snapshot", "-c", "before", "disk.qcow2"]);

    let session = Session::open(&fixture.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    random_workload(&session, &mut model, 19, 200, 16);
    session.close();

    check(fixture.path(), "disk.qcow2");
    std::fs::write(fixture.file("expected.raw"), &model).expect("written");
    fixture.img(&["compare", "-f", "raw", "-F", "qcow2", "expected.raw", "disk.qcow2"]);
    fixture.img(&["snapshot", "-a", "before", "disk.qcow2"]);
    check(fixture.path(), "disk.qcow2");
    std::fs::write(fixture.file("expected.raw"), &at_snapshot).expect("written");
    fixture.img(&["compare", "-f", "raw", "-F", "qcow2", "expected.raw", "disk.qcow2"]);
}

#[test]
fn compressed_clusters_are_read_and_overwritten() {
    for kind in ["zlib", "zstd"] {
        let fixture = Fixture::new();
        let mut model: Vec<u8> = (0..4 << 20).map(|index: u32| (index / 700 % 253) as u8).collect();
        std::fs::write(fixture.file("source.raw"), &model).expect("written");
        let option = format!("compression_type={kind}");
        fixture.img(&[
            "convert",
            "-c",
            "-f",
            "raw",
            "-O",
            "qcow2",
            "-o",
            &option,
            "source.raw",
            "disk.qcow2",
        ]);
        let session = Session::open(&fixture.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
        assert!(session.read(0, model.len()) == model, "{kind}");
        random_workload(&session, &mut model, 23, 100, 8);
        session.close();
        check(fixture.path(), "disk.qcow2");
        std::fs::write(fixture.file("expected.raw"), &model).expect("written");
        fixture.img(&["compare", "-f", "raw", "-F", "qcow2", "expected.raw", "disk.qcow2"]);
    }
}

#[test]
fn a_raw_image_is_the_bytes_of_the_disk() {
    let fixture = Fixture::new();
    let mut model = vec![0; 4 << 20];
    std::fs::write(fixture.file("disk.raw"), &model).expect("written");
    let session = Session::open(&fixture.file("disk.raw"), Format::Raw, Aio::IoUring);
    random_workload(&session, &mut model, 29, 200, 16);
    session.close();
    assert!(std::fs::read(fixture.file("disk.raw")).expect("readable") == model);
}

#[test]
fn an_image_in_use_is_refused_on_both_sides() {
    let fixture = Fixture::new();
    fixture.img(&["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"]);
    let session = Session::open(&fixture.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    session.write(0, &[1; 512]);

    let refused = Process::new("qemu-img")
        .args(["check", "disk.qcow2"])
        .current_dir(fixture.path())
        .output();
    let refused = refused.expect("qemu-img starts");
    assert!(!refused.status.success(), "qemu-img opened an image that we write to");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("lock"), "{refused:?}");

    let second = Engine::new(EngineOptions::default()).expect("an engine");
    let options = OpenOptions {
        path: fixture.file("disk.qcow2"),
        format: Format::Qcow2,
        read_only: false,
        snapshot: None,
    };
    let error = second.open(&options).err().expect("a second writer is refused");
    assert!(error.to_string().contains("in use"), "{error}");
    session.close();
    check(fixture.path(), "disk.qcow2");

    let mut holder = Process::new("qemu-io")
        .args(["-f", "qcow2", "disk.qcow2"])
        .current_dir(fixture.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("qemu-io starts");
    // The prompt comes when the image is open, and locked.
    std::io::Read::read_exact(holder.stdout.as_mut().expect("piped"), &mut [0; 1]).expect("a prompt");
    let error = second
        .open(&options)
        .err()
        .expect("an image that QEMU writes to is refused");
    assert!(error.to_string().contains("in use"), "{error}");
    drop(holder.stdin.take());
    holder.wait().expect("qemu-io ends");
}
