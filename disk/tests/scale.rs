//! Memory does not grow with the image: the cache, and a little, whatever is read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command as Process;
use std::sync::{Arc, Mutex};

use disk::{Aio, Buffer, CacheSize, Command, CreateOptions, Disk, Engine, EngineOptions, Format, OpenOptions, Request};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const DISK_BYTES: u64 = 1 << 40;
const CLUSTER: u64 = 1 << 16;
const CACHE_BYTES: u64 = 8 << 20;
const CHILD: &str = "SPINDLE_SCALE_TEST_IMAGE";

/// What the promise leaves for everything but the cache.
const MARGIN: u64 = 16 << 20;

/// A disk of 1 TiB on which every cluster is mapped, in a file that takes 128 MiB: its L2 tables. What they lead to is a hole.
fn write_image(path: &Path) {
    let metadata = CreateOptions::new(DISK_BYTES).metadata().expect("valid");
    let l1_at = u64::from_be_bytes(metadata[40..48].try_into().expect("eight bytes"));
    let file = File::create(path).expect("made");
    file.write_all_at(&metadata, 0).expect("written");
    let entries_per_table = CLUSTER / 8;
    let tables = DISK_BYTES / CLUSTER / entries_per_table;
    let tables_at = (metadata.len() as u64).next_multiple_of(CLUSTER);
    let data_at = tables_at + tables * CLUSTER;
    for table in 0..tables {
        let at = tables_at + table * CLUSTER;
        file.write_all_at(&(at | (1 << 63)).to_be_bytes(), l1_at + table * 8)
            .expect("written");
        let first = data_at + table * entries_per_table * CLUSTER;
        let entries = (0..entries_per_table).flat_map(|index| ((first + index * CLUSTER) | (1 << 63)).to_be_bytes());
        file.write_all_at(&entries.collect::<Vec<u8>>(), at).expect("written");
    }
    file.set_len(data_at + DISK_BYTES).expect("a sparse file");
}

/// A line of /proc/self/status, in bytes.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = text.lines().find(|line| line.starts_with(name)).expect(name);
    let kib = line.split_whitespace().nth(1).expect("a number");
    kib.parse::<u64>().expect("a number") << 10
}

fn read_at_random(engine: &Engine, disk: &dyn Disk, reads: usize) {
    let mut rng = SmallRng::seed_from_u64(3);
    let answered = Arc::new(Mutex::new(0));
    let mut asked = 0;
    while *answered.lock().expect("not poisoned") < reads {
        while asked < reads && asked < *answered.lock().expect("not poisoned") + 32 {
            let answered = answered.clone();
            let done = Box::new(move |result: Result<(), _>| {
                result.unwrap_or_else(|error| panic!("{error}"));
                *answered.lock().expect("not poisoned") += 1;
            });
            let (offset, buffer) = (rng.random_range(0..DISK_BYTES / 4096) * 4096, Buffer::zeroed(4096));
            disk.submit(Request {
                command: Command::Read { offset, buffer },
                done,
            });
            asked += 1;
        }
        engine.poll();
    }
}

/// Runs in a process of its own, whose memory is nothing but this.
#[test]
fn child() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let options = OpenOptions {
        read_only: true,
        cache_size: Some(CacheSize::new(CACHE_BYTES).expect("within limits")),
        ..OpenOptions::new(path, Format::Qcow2)
    };
    let before = status("VmRSS");
    let engine = Engine::new(EngineOptions { aio: Aio::IoUring }).expect("an engine");
    let disk = engine.open(&options).unwrap_or_else(|error| panic!("{error}"));
    // Each slice that is read is another one, nearly always: ten times as many as there are slots.
    read_at_random(&engine, &*disk, 20_000);
    let grown = status("VmHWM") - before;
    assert!(grown > CACHE_BYTES / 2, "the cache was not used: {grown} bytes");
    assert!(
        grown < CACHE_BYTES + MARGIN,
        "{grown} bytes for a cache of {CACHE_BYTES}"
    );
    println!("{grown} bytes for a cache of {CACHE_BYTES}");
    engine.close().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn random_reads_over_a_tebibyte_take_no_more_memory_than_the_cache_and_a_little() {
    if std::env::var(CHILD).is_ok() {
        return;
    }
    // Not on a tmpfs, whose files are memory.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = directory.path().join("disk.qcow2");
    write_image(&path);
    let output = Process::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CHILD, &path)
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    println!("{text}");
}
