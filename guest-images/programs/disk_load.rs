//! Loads a disk with one request at a time, past the page cache, and says how fast that was. Part of the load guest's
//! initramfs; std only, so that rustc alone builds it.
//!
//! `disk_load DEVICE WAIT LIST`: LIST is NAME:KIND:BYTES:LIMIT,... with KIND read, write or durable (a write and a
//! flush), LIMIT seconds (`5s`) or a number of requests (`1000n`). Prints `@begin NAME`, then
//! `@end NAME REQUESTS NANOSECONDS`; after each it sleeps WAIT milliseconds, for somebody who samples counters.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread::sleep;
use std::time::{Duration, Instant};

const O_DIRECT: i32 = 0o40000;
const ALIGNMENT: usize = 4096;
/// The part of the disk that is used, in bytes.
const SPAN: u64 = 64 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, device, wait, list] = &arguments[..] else {
        panic!("usage: disk_load DEVICE WAIT LIST");
    };
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(device)
        .expect("the disk opens");
    let wait = Duration::from_millis(wait.parse().expect("milliseconds"));
    for item in list.split(',') {
        let fields: Vec<&str> = item.split(':').collect();
        let [name, kind, bytes, limit] = fields[..] else {
            panic!("{item} is not NAME:KIND:BYTES:LIMIT");
        };
        println!("@begin {name}");
        sleep(wait);
        let (requests, time) = load(&disk, kind, bytes.parse().expect("bytes"), limit);
        println!("@end {name} {requests} {}", time.as_nanos());
        sleep(wait);
    }
}

fn load(disk: &File, kind: &str, bytes: usize, limit: &str) -> (u64, Duration) {
    let (number, unit) = limit.split_at(limit.len() - 1);
    let number: u64 = number.parse().expect("a limit");
    let mut memory = vec![0x5a_u8; bytes + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let buffer = &mut memory[start..start + bytes];
    let begin = Instant::now();
    let mut requests = 0;
    loop {
        let done = match unit {
            "s" => begin.elapsed() >= Duration::from_secs(number),
            _ => requests >= number,
        };
        if done {
            return (requests, begin.elapsed());
        }
        // Every request somewhere else, and all of the span.
        let offset = requests * 1021 * bytes as u64 % SPAN;
        match kind {
            "read" => disk.read_exact_at(buffer, offset).expect("a read"),
            "write" => disk.write_all_at(buffer, offset).expect("a write"),
            _ => {
                disk.write_all_at(buffer, offset).expect("a write");
                disk.sync_data().expect("a flush");
            }
        }
        requests += 1;
    }
}
