//! An engine that is dropped, or closed, takes everything with it: requests, memory and files.

use std::path::Path;
use std::sync::Arc;

use disk::{Aio, Buffer, Command, CreateOptions, Engine, EngineOptions, Format, OpenOptions, Request};

/// How many descriptors of this process name a file in `directory`.
fn open_files(directory: &Path) -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("procfs");
    descriptors
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.starts_with(directory))
        .count()
}

fn engine_with_requests(directory: &Path, aio: Aio, format: Format) -> (Engine, Vec<Arc<()>>, Vec<Buffer>) {
    let path = directory.join("disk.qcow2");
    match format {
        Format::Qcow2 => std::fs::write(&path, CreateOptions::new(64 << 20).metadata().expect("valid")),
        Format::Raw => std::fs::File::create(&path).and_then(|file| file.set_len(64 << 20)),
    }
    .expect("written");
    let engine = Engine::new(EngineOptions { aio }).expect("an engine");
    let disk = engine
        .open(&OpenOptions::new(&path, format))
        .unwrap_or_else(|error| panic!("{error}"));
    let (mut tokens, mut buffers) = (Vec::new(), Vec::new());
    for request in 0..64 {
        let (token, buffer) = (Arc::new(()), Buffer::zeroed(4096));
        let (kept, memory) = (token.clone(), buffer.clone());
        let offset = request % 40 * (1 << 20);
        let command = if request % 3 == 2 {
            Command::Read { offset, buffer }
        } else {
            Command::Write { offset, buffer }
        };
        let done = Box::new(move |_| drop(kept));
        disk.submit(Request { command, done });
        tokens.push(token);
        buffers.push(memory);
        // Some of them are on their way, some have not been looked at.
        if request == 30 {
            engine.poll();
        }
    }
    (engine, tokens, buffers)
}

#[test]
fn a_dropped_engine_leaves_nothing_behind() {
    for (aio, format) in [
        (Aio::IoUring, Format::Qcow2),
        (Aio::Threads, Format::Qcow2),
        (Aio::IoUring, Format::Raw),
        (Aio::Threads, Format::Raw),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let (engine, tokens, _) = engine_with_requests(directory.path(), aio, format);
        assert!(open_files(directory.path()) > 0);
        drop(engine);
        assert_eq!(open_files(directory.path()), 0, "{aio}, {format:?}");
        let alive = tokens.iter().filter(|token| Arc::strong_count(token) > 1).count();
        assert_eq!(alive, 0, "requests live on ({aio}, {format:?})");
        // The next one recovers what the dropped one left, as after a kill.
        let options = OpenOptions::new(directory.path().join("disk.qcow2"), format);
        let next = Engine::new(EngineOptions::default()).expect("an engine");
        next.open(&options).unwrap_or_else(|error| panic!("{error}"));
        next.close().unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn a_closed_engine_leaves_nothing_behind() {
    for aio in [Aio::IoUring, Aio::Threads] {
        let directory = tempfile::tempdir().expect("a directory");
        let (engine, tokens, _) = engine_with_requests(directory.path(), aio, Format::Qcow2);
        engine.close().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(open_files(directory.path()), 0, "{aio}");
        assert!(tokens.iter().all(|token| Arc::strong_count(token) == 1), "{aio}");
    }
}
