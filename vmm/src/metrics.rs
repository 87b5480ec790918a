//! What a machine did, in numbers: `--metrics FILE` writes them at the end, SIGUSR1 at any time.
//!
//! ```json
//! {"version": 1,
//!  "exits": {"total": 31, "ports": [{"port": "0x1f7", "direction": "in", "count": 4}, ...], "other": {"hlt": 0, ...}},
//!  "kernel": {"latched_writes": 12, "starts": 1},
//!  "disks": {"hda": {"reads": 1, "read_bytes": 4096, "writes": 0, ..., "errors": 0}}}
//! ```
//!
//! `exits` counts each time that a vCPU left the kernel for us. What the kernel served by itself is under `kernel`. Numbers
//! only grow; they go on when a guest reboots.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use serde_json::{Map, Value, json};

/// The version of what is written.
const VERSION: u32 = 1;

/// Which way a port access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The guest reads.
    In,
    /// The guest writes.
    Out,
}

/// Why else a vCPU left the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherExit {
    /// A memory access where no RAM is.
    Mmio,
    /// A signal: the vCPU is to stop or to pause.
    Interrupted,
    /// Whatever else.
    Rest,
}

const OTHER_NAMES: [&str; 3] = ["mmio", "interrupted", "rest"];

/// The counters of one disk.
#[derive(Debug, Default)]
pub struct DiskMetrics {
    /// Reads that succeeded.
    pub reads: AtomicU64,
    /// Their bytes.
    pub read_bytes: AtomicU64,
    /// Writes that succeeded.
    pub writes: AtomicU64,
    /// Their bytes.
    pub written_bytes: AtomicU64,
    /// Flushes that succeeded.
    pub flushes: AtomicU64,
    /// Discards and zero writes that succeeded.
    pub discards: AtomicU64,
    /// Requests that failed.
    pub errors: AtomicU64,
}

impl DiskMetrics {
    fn report(&self) -> Value {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "reads": value(&self.reads),
            "read_bytes": value(&self.read_bytes),
            "writes": value(&self.writes),
            "written_bytes": value(&self.written_bytes),
            "flushes": value(&self.flushes),
            "discards": value(&self.discards),
            "errors": value(&self.errors),
        })
    }
}

/// All counters. Counting takes no lock.
pub struct Metrics {
    /// Exits by port and direction. Allocated as zeros, so that only pages of ports in use exist.
    ports: Box<[[AtomicU64; 2]]>,
    other: [AtomicU64; OTHER_NAMES.len()],
    latched: AtomicU64,
    starts: AtomicU64,
    disks: Mutex<Vec<(String, Arc<DiskMetrics>)>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            ports: (0..=u16::MAX).map(|_| Default::default()).collect(),
            other: Default::default(),
            latched: AtomicU64::new(0),
            starts: AtomicU64::new(0),
            disks: Mutex::default(),
        }
    }
}

impl Metrics {
    /// A vCPU left the kernel for an access to `port`.
    pub fn port_exit(&self, port: u16, direction: Direction) {
        self.ports[usize::from(port)][direction as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A vCPU left the kernel for another reason.
    pub fn other_exit(&self, exit: OtherExit) {
        self.other[exit as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// `count` writes were taken from the kernel's ring.
    pub fn latched(&self, count: u64) {
        if count > 0 {
            self.latched.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// A start of the bus master came as an event.
    pub fn started(&self) {
        self.starts.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters of the disk `name`, which is new.
    pub fn disk(&self, name: &str) -> Arc<DiskMetrics> {
        let counters = Arc::new(DiskMetrics::default());
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks.push((name.to_owned(), counters.clone()));
        counters
    }

    /// What is counted so far.
    pub fn report(&self) -> Value {
        let mut total = 0;
        let mut ports = Vec::new();
        for (port, counters) in self.ports.iter().enumerate() {
            for (counter, direction) in counters.iter().zip(["in", "out"]) {
                let count = counter.load(Ordering::Relaxed);
                if count > 0 {
                    total += count;
                    ports.push(json!({"port": format!("{port:#05x}"), "direction": direction, "count": count}));
                }
            }
        }
        let mut other = Map::new();
        for (counter, name) in self.other.iter().zip(OTHER_NAMES) {
            let count = counter.load(Ordering::Relaxed);
            total += count;
            other.insert(name.to_owned(), count.into());
        }
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        let disks: Map<String, Value> = disks
            .iter()
            .map(|(name, counters)| (name.clone(), counters.report()))
            .collect();
        json!({
            "version": VERSION,
            "exits": {"total": total, "ports": ports, "other": other},
            "kernel": {
                "latched_writes": self.latched.load(Ordering::Relaxed),
                "starts": self.starts.load(Ordering::Relaxed),
            },
            "disks": disks,
        })
    }

    /// Writes [`Metrics::report`] to `path`, which then holds the old report or this one, whole.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = path
            .file_name()
            .with_context(|| format!("--metrics {} names no file", path.display()))?;
        let mut unfinished = name.to_owned();
        unfinished.push(format!(".{}", std::process::id()));
        let unfinished = folder.join(unfinished);
        let written = fs::File::create(&unfinished)
            .and_then(|mut file| writeln!(file, "{:#}", self.report()))
            .and_then(|()| fs::rename(&unfinished, path));
        written
            .inspect_err(|_| {
                let _ = fs::remove_file(&unfinished);
            })
            .with_context(|| format!("Cannot write the metrics to {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_was_counted_and_replaces_the_one_before() {
        let metrics = Metrics::default();
        metrics.port_exit(0x1f7, Direction::In);
        metrics.port_exit(0x1f7, Direction::In);
        metrics.port_exit(0xffff, Direction::Out);
        metrics.other_exit(OtherExit::Mmio);
        metrics.latched(7);
        metrics.disk("hda").reads.fetch_add(3, Ordering::Relaxed);

        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("metrics.json");
        fs::write(&path, "before").expect("written");
        metrics.write(&path).expect("written");

        let report: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
        assert_eq!(report["exits"]["total"], 4);
        assert_eq!(
            report["exits"]["ports"],
            json!([{"port": "0x1f7", "direction": "in", "count": 2}, {"port": "0xffff", "direction": "out", "count": 1}])
        );
        assert_eq!(report["exits"]["other"]["mmio"], 1);
        assert_eq!(report["kernel"]["latched_writes"], 7);
        assert_eq!(report["disks"]["hda"]["reads"], 3);
        assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 1);
    }

    #[test]
    fn a_report_that_cannot_be_written_names_its_file() {
        let error = Metrics::default()
            .write(Path::new("/nowhere/metrics.json"))
            .expect_err("no such folder");
        assert!(
            format!("{error:#}").starts_with("Cannot write the metrics to /nowhere/metrics.json"),
            "{error:#}"
        );
    }
}
