//! One run of one side.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::rows::{Count, Program, Side};

/// Where the programs are.
pub struct Programs {
    /// The `spindle` binary, optimised.
    pub spindle: PathBuf,
    /// QEMU's.
    pub qemu_img: PathBuf,
}

/// What a run took.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// By the tool's own clock where it has one.
    pub seconds: f64,
    /// The most memory that it had at a time, in MiB, where that was asked for.
    pub memory: Option<f64>,
}

/// The variable by which `spindle img bench` is told to keep its metadata cache to itself.
const PRIVATE_CACHE: &str = "SPINDLE_BENCH_PRIVATE_CACHE";

/// Runs a side on an image.
pub fn take(side: &Side, image: &Path, programs: &Programs) -> Result<Sample> {
    let mut command = match side.program {
        Program::Spindle | Program::SpindlePrivateCache => {
            let mut command = Command::new(&programs.spindle);
            command.arg("img");
            command
        }
        // With the usual limit, `qemu-img bench` of QEMU 10.0.2 overflows its stack.
        Program::QemuImg => {
            let mut command = Command::new("prlimit");
            command.arg("--stack=unlimited").arg(&programs.qemu_img);
            command
        }
    };
    command.env_remove(PRIVATE_CACHE);
    if side.program == Program::SpindlePrivateCache {
        command.env(PRIVATE_CACHE, "1");
    }
    command.args(&side.arguments).arg(image);
    let copy = side
        .copies_to
        .map(|format| image.with_extension(format!("copy.{format}")));
    if let Some(copy) = &copy {
        command.arg(copy);
    }
    if let Some(bytes) = page_cache_of(side) {
        warm_page_cache(image, bytes)?;
    }
    let start = Instant::now();
    let (output, memory) = run(&mut command, side.count == Count::TimeAndMemory)?;
    let wall = start.elapsed().as_secs_f64();
    if let Some(copy) = copy {
        fs::remove_file(&copy).with_context(|| format!("Cannot remove {}", copy.display()))?;
    }
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    let seconds = match side.count {
        Count::Requests(_) => said_seconds(&text).with_context(|| format!("{command:?} said: {text}"))?,
        Count::Time | Count::TimeAndMemory => wall,
    };
    Ok(Sample { seconds, memory })
}

/// How many bytes of the page cache a side fills anew, at most.
fn page_cache_of(side: &Side) -> Option<usize> {
    match side {
        Side { copies_to: Some(_), .. } => Some(5 << 29),
        Side { writes: true, .. } => Some(1 << 30),
        _ => None,
    }
}

/// Takes that much memory and gives it back.
///
/// Below a virtual machine, memory that was free for a while belongs to its host, and who uses it first waits for that: whoever
/// happens to be measured after a pause.
fn warm_page_cache(image: &Path, bytes: usize) -> Result<()> {
    const BLOCK: usize = 1 << 20;
    let path = image.with_extension("warm");
    let warm = || {
        let mut file = fs::File::create(&path)?;
        let block = vec![1; BLOCK];
        for _ in 0..bytes / BLOCK {
            file.write_all(&block)?;
        }
        fs::remove_file(&path)
    };
    warm().with_context(|| format!("Cannot write {}", path.display()))
}

/// The time in "Run completed in 1.234 seconds."
fn said_seconds(text: &str) -> Option<f64> {
    let rest = text.split_once("Run completed in ")?.1;
    rest.split_once(" seconds")?.0.parse().ok()
}

/// Runs a command to its end, and watches its memory if asked to.
fn run(command: &mut Command, watch: bool) -> Result<(Output, Option<f64>)> {
    let describe = |what: &str| format!("{command:?} {what}");
    let (start, end) = (describe("does not start"), describe("cannot be waited for"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context(start)?;
    // These tools print a few lines, which a pipe holds.
    let memory = if watch { Some(watch_memory(&mut child)?) } else { None };
    Ok((child.wait_with_output().context(end)?, memory))
}

/// The highest "VmHWM" of a process, which only grows; looked at until the process ends. In MiB.
fn watch_memory(child: &mut Child) -> Result<f64> {
    let status = format!("/proc/{}/status", child.id());
    let mut highest = 0.0;
    while child.try_wait().context("Cannot wait")?.is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
        highest = kib.map_or(highest, |kib| f64::max(highest, kib / 1024.0));
        thread::sleep(Duration::from_millis(1));
    }
    Ok(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_own_clock_is_read() {
        let text = "Sending 10 read requests\nRun completed in 0.123 seconds.\n";
        assert_eq!(said_seconds(text), Some(0.123));
        assert_eq!(said_seconds("no such line"), None);
    }
}
