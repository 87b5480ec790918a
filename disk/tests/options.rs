//! The options with QEMU's names: what each changes, and that none changes what is read.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command as Process;
use std::sync::{Arc, Mutex};

use disk::{
    Aio, Buffer, CacheMode, Command, DetectZeroes, Discard, Disk, Engine, EngineOptions, Format, OpenOptions, Request,
};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const SIZE: u64 = 16 << 20;

fn qemu_img(directory: &Path, arguments: &[&str]) -> String {
    let output = Process::new("qemu-img")
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("qemu-img starts");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
    text
}

fn run(engine: &Engine, disk: &dyn Disk, command: Command) {
    let outcome = Arc::new(Mutex::new(None));
    let slot = outcome.clone();
    let done = Box::new(move |result| *slot.lock().expect("not poisoned") = Some(result));
    disk.submit(Request { command, done });
    while outcome.lock().expect("not poisoned").is_none() {
        engine.poll();
    }
    let result = outcome.lock().expect("not poisoned").take();
    result.expect("is done").unwrap_or_else(|error| panic!("{error}"));
}

/// A directory on a file system with O_DIRECT, which a tmpfs may not be.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

#[test]
fn every_cache_mode_stores_what_is_written() {
    for cache in ["writeback", "none", "writethrough", "directsync", "unsafe"] {
        for (aio, format) in [(Aio::IoUring, "qcow2"), (Aio::Threads, "qcow2"), (Aio::IoUring, "raw")] {
            let directory = directory();
            qemu_img(
                directory.path(),
                &["create", "-q", "-f", format, "disk", &SIZE.to_string()],
            );
            let mut model = vec![0u8; SIZE as usize];
            let engine = Engine::new(EngineOptions { aio }).expect("an engine");
            let known = if format == "raw" { Format::Raw } else { Format::Qcow2 };
            let options = OpenOptions {
                cache: cache.parse().expect("known"),
                ..OpenOptions::new(directory.path().join("disk"), known)
            };
            let disk = engine.open(&options).unwrap_or_else(|error| panic!("{error}"));
            let mut rng = SmallRng::seed_from_u64(5);
            for _ in 0..60 {
                // Sectors, not blocks: with cache=none most of these are not what the host takes.
                let sector = rng.random_range(0..SIZE / 512 - 64);
                let bytes = vec![rng.random::<u8>(); 512 * rng.random_range(1..=64)];
                let start = (sector * 512) as usize;
                model[start..start + bytes.len()].copy_from_slice(&bytes);
                run(
                    &engine,
                    &*disk,
                    Command::Write {
                        offset: sector * 512,
                        buffer: Buffer::from_slice(&bytes),
                    },
                );
                if rng.random_range(0..10) == 0 {
                    run(&engine, &*disk, Command::Flush);
                }
            }
            let buffer = Buffer::zeroed(SIZE as usize);
            run(
                &engine,
                &*disk,
                Command::Read {
                    offset: 0,
                    buffer: buffer.clone(),
                },
            );
            assert!(buffer.to_vec() == model, "cache={cache}, {format}");
            engine.close().unwrap_or_else(|error| panic!("{error}"));
            std::fs::write(directory.path().join("expected"), &model).expect("written");
            if format == "qcow2" {
                qemu_img(directory.path(), &["check", "-q", "-f", "qcow2", "disk"]);
            }
            qemu_img(
                directory.path(),
                &["compare", "-q", "-f", "raw", "-F", format, "expected", "disk"],
            );
        }
    }
}

/// Writes 8 MiB of ones, then `command` on the first 4 MiB. Returns the space that the file takes then, in bytes, and
/// what the first 4 MiB read as.
fn space_after(options: &dyn Fn(OpenOptions) -> OpenOptions, command: Command) -> (u64, Vec<u8>) {
    let directory = directory();
    qemu_img(
        directory.path(),
        &["create", "-q", "-f", "qcow2", "disk", &SIZE.to_string()],
    );
    let path = directory.path().join("disk");
    let engine = Engine::new(EngineOptions::default()).expect("an engine");
    let disk = engine
        .open(&options(OpenOptions::new(&path, Format::Qcow2)))
        .unwrap_or_else(|error| panic!("{error}"));
    run(
        &engine,
        &*disk,
        Command::Write {
            offset: 0,
            buffer: Buffer::from_slice(&vec![1; 8 << 20]),
        },
    );
    run(&engine, &*disk, command);
    let buffer = Buffer::zeroed(4 << 20);
    run(
        &engine,
        &*disk,
        Command::Read {
            offset: 0,
            buffer: buffer.clone(),
        },
    );
    engine.close().unwrap_or_else(|error| panic!("{error}"));
    qemu_img(directory.path(), &["check", "-q", "-f", "qcow2", "disk"]);
    (path.metadata().expect("is there").blocks() * 512, buffer.to_vec())
}

#[test]
fn discard_gives_space_back_only_when_it_is_asked_to() {
    let discard = || Command::Discard {
        offset: 0,
        length: 4 << 20,
    };
    let (ignored, content) = space_after(&|options| options, discard());
    assert!(content.iter().all(|byte| *byte == 1), "discard=ignore is the default");
    let unmap = |options| OpenOptions {
        discard: Discard::Unmap,
        ..options
    };
    let (unmapped, content) = space_after(&unmap, discard());
    assert!(
        content.iter().all(|byte| *byte == 0),
        "what is discarded reads as zeros"
    );
    assert!(
        unmapped + (3 << 20) < ignored,
        "{unmapped} bytes are not 4 MiB less than {ignored}"
    );
}

#[test]
fn zeroes_are_detected_only_when_it_is_asked_to() {
    let zeroes = || Command::Write {
        offset: 0,
        buffer: Buffer::zeroed(4 << 20),
    };
    let with = |detect_zeroes| {
        move |options| OpenOptions {
            detect_zeroes,
            discard: Discard::Unmap,
            cache: CacheMode::Writeback,
            ..options
        }
    };
    let (stored, _) = space_after(&with(DetectZeroes::Off), zeroes());
    let (detected, content) = space_after(&with(DetectZeroes::Unmap), zeroes());
    assert!(content.iter().all(|byte| *byte == 0));
    assert!(
        detected + (3 << 20) < stored,
        "{detected} bytes are not 4 MiB less than {stored}"
    );
}
