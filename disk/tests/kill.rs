//! A process that is killed while it writes: what it had reported as complete is there when the image is opened again.
//!
//! The test runs itself as the process to be killed. `SPINDLE_SEED=n` repeats a run's writes (not the moment of the kill).

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::{Arc, Mutex};

use disk::{Buffer, Command, Disk, DiskError, Engine, EngineOptions, Format, OpenOptions, Request};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

const SECTOR: u64 = 512;
const DISK_BYTES: u64 = 64 << 20;
const KILLS: u64 = 20;
const VICTIM: &str = "SPINDLE_KILL_TEST_IMAGE";

type Outcome = Arc<Mutex<Option<Result<(), DiskError>>>>;

fn start(disk: &dyn Disk, command: Command) -> Outcome {
    let outcome = Outcome::default();
    let slot = outcome.clone();
    let done = Box::new(move |result| *slot.lock().expect("not poisoned") = Some(result));
    disk.submit(Request { command, done });
    outcome
}

fn open(path: &Path) -> (Engine, Arc<dyn Disk>) {
    let engine = Engine::new(EngineOptions::default()).expect("an engine");
    let options = OpenOptions {
        path: path.to_owned(),
        format: Format::Qcow2,
        read_only: false,
        snapshot: None,
    };
    let disk = engine.open(&options).unwrap_or_else(|error| panic!("{error}"));
    (engine, disk)
}

fn sectors_of(id: u64, count: u64) -> Vec<u8> {
    id.to_le_bytes().repeat((count * SECTOR / 8) as usize)
}

/// Writes without end, 16 requests in flight, and reports each as "sector count id" when it begins ("?") and is complete ("!").
#[test]
fn victim() {
    let Ok(path) = std::env::var(VICTIM) else { return };
    let seed = std::env::var("SPINDLE_SEED")
        .expect("given by the parent")
        .parse()
        .expect("a number");
    let mut rng = SmallRng::seed_from_u64(seed);
    let (engine, disk) = open(Path::new(&path));
    let mut report = std::io::stdout();
    let mut in_flight: Vec<(u64, u64, u64, Outcome)> = Vec::new();
    for id in (seed << 32).. {
        let longest = if rng.random_range(0..8) == 0 { 512 } else { 16 };
        let count = rng.random_range(1..=longest);
        let sector = rng.random_range(0..DISK_BYTES / SECTOR - count);
        let overlaps =
            |(start, length, ..): &(u64, u64, u64, Outcome)| *start < sector + count && sector < start + length;
        if in_flight.len() < 16 && !in_flight.iter().any(overlaps) {
            report
                .write_all(format!("? {sector} {count} {id}\n").as_bytes())
                .expect("the parent reads");
            let buffer = Buffer::from_slice(&sectors_of(id, count));
            let outcome = start(
                &*disk,
                Command::Write {
                    offset: sector * SECTOR,
                    buffer,
                },
            );
            in_flight.push((sector, count, id, outcome));
        }
        if rng.random_range(0..50) == 0 {
            drop(start(&*disk, Command::Flush));
        }
        engine.poll();
        for (sector, count, id, outcome) in
            in_flight.extract_if(.., |request| request.3.lock().expect("ours").is_some())
        {
            let result = outcome.lock().expect("not poisoned").take();
            result.expect("is done").unwrap_or_else(|error| panic!("{error}"));
            report
                .write_all(format!("! {sector} {count} {id}\n").as_bytes())
                .expect("the parent reads");
        }
    }
}

fn spawn_victim(image: &Path, seed: u64) -> Child {
    Process::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
        .env(VICTIM, image)
        .env("SPINDLE_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts")
}

/// What a sector may hold: the last value that was reported complete, and those that were begun after it.
type Allowed = HashMap<u64, Vec<u64>>;

/// Takes account of the reports of one life, up to `reports` of them, then kills it and reads what it still reported.
fn watch_and_kill(mut victim: Child, reports: u64, allowed: &mut Allowed) {
    let mut lines = BufReader::new(victim.stdout.take().expect("piped")).lines();
    let mut seen = 0;
    while let Some(Ok(line)) = lines.next() {
        let fields: Vec<&str> = line.split(' ').collect();
        // The test harness prints lines of its own; a kill can cut the last line short.
        let [kind @ ("?" | "!"), sector, count, id] = fields[..] else {
            continue;
        };
        let (Ok(sector), Ok(count), Ok(id)) = (sector.parse::<u64>(), count.parse::<u64>(), id.parse()) else {
            continue;
        };
        for sector in sector..sector + count {
            let values = allowed.entry(sector).or_insert_with(|| vec![0]);
            match kind {
                "?" => values.push(id),
                _ => *values = vec![id],
            }
        }
        seen += 1;
        if seen == reports {
            victim.kill().expect("is alive");
        }
    }
    victim.wait().expect("is dead");
}

fn verify(image: &Path, allowed: &mut Allowed) {
    let (engine, disk) = open(image);
    let buffer = Buffer::zeroed(DISK_BYTES as usize);
    let outcome = start(
        &*disk,
        Command::Read {
            offset: 0,
            buffer: buffer.clone(),
        },
    );
    while outcome.lock().expect("not poisoned").is_none() {
        engine.poll();
    }
    let bytes = buffer.to_vec();
    for (sector, values) in allowed {
        let found = &bytes[(*sector * SECTOR) as usize..][..SECTOR as usize];
        let id = values.iter().find(|id| found == sectors_of(**id, 1));
        let id = *id.unwrap_or_else(|| {
            panic!(
                "sector {sector} begins with {:x?}; allowed are {values:x?}",
                &found[..8]
            )
        });
        *values = vec![id];
    }
    engine.close().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn what_was_complete_when_the_process_was_killed_is_there() {
    if std::env::var(VICTIM).is_ok() {
        return;
    }
    let seed = std::env::var("SPINDLE_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().expect("a directory");
    let image = directory.path().join("disk.qcow2");
    let qemu_img = |arguments: &[&str]| {
        let output = Process::new("qemu-img")
            .args(arguments)
            .current_dir(directory.path())
            .output()
            .expect("starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    };
    qemu_img(&["create", "-q", "-f", "qcow2", "disk.qcow2", &DISK_BYTES.to_string()]);
    let mut allowed = Allowed::new();
    for kill in 0..KILLS {
        let victim = spawn_victim(&image, (seed << 8) + kill);
        watch_and_kill(victim, rng.random_range(1..2000), &mut allowed);
        // Every second time the next victim recovers, in place of this test.
        if kill % 2 == 1 {
            verify(&image, &mut allowed);
            qemu_img(&["check", "-q", "-f", "qcow2", "disk.qcow2"]);
        }
    }
}
