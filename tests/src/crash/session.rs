//! One spindle process from its start to its end.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, MemfdFlags, fcntl_lock, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::script::{GuestMemory, MEMORY_ARGUMENT, Progress};

/// Without any progress for so long, a session hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often a slow part of a session is looked at.
const GLANCE: Duration = Duration::from_micros(200);

/// Words of the failpoints' trace; more than there are points.
const TRACE_WORDS: usize = 256;

/// Who runs the guest.
pub(super) enum Hypervisor {
    /// This program.
    Spindle(PathBuf),
    /// QEMU, with its own driver for qcow2, for comparison.
    Qemu(PathBuf),
}

/// What a session is started with.
pub(super) struct Start<'a> {
    pub(super) hypervisor: &'a Hypervisor,
    pub(super) kernel: &'a Path,
    pub(super) disk: &'a Path,
    /// More options of the disk, as `,NAME=VALUE`; both hypervisors know the same.
    pub(super) options: &'a str,
    /// `NAME:N`: the point, and the number of the passing, at which it kills itself.
    pub(super) failpoint: Option<String>,
}

/// A running process with its guest's memory.
pub(super) struct Session {
    child: Child,
    pub(super) memory: Arc<GuestMemory>,
    trace: File,
    started_at: Instant,
    /// From the process's start until its guest ran.
    pub(super) opened_after: Option<Duration>,
    reaped: Option<std::process::ExitStatus>,
}

/// How a session ended.
pub(super) struct End {
    /// The signal that ended it, or the exit code.
    pub(super) signal: Option<i32>,
    pub(super) code: Option<i32>,
    pub(super) progress: Progress,
    pub(super) errors: String,
    /// The last failpoint that was passed: its number; `None` where there was none, or the binary has none.
    pub(super) last_point: Option<usize>,
    /// How often each was passed.
    pub(super) hits: Vec<u64>,
}

impl Hypervisor {
    fn command(&self, memory: &GuestMemory, start: &Start<'_>) -> Result<Command> {
        let disk = start
            .disk
            .to_str()
            .context("The folder's name is not UTF-8")?
            .replace(',', ",,");
        let disk = format!("{disk}{}", start.options);
        Ok(match self {
            Hypervisor::Spindle(program) => {
                let mut command = Command::new(program);
                command.args(["--log", "info", "run", "--console", "null", "--memory", MEMORY_ARGUMENT]);
                command
                    .arg("--memory-file")
                    .arg(memory.path())
                    .arg("--kernel")
                    .arg(start.kernel);
                command.args(["--disk", &disk]);
                command
            }
            Hypervisor::Qemu(program) => {
                let mut command = Command::new(program);
                let (path, size) = (memory.path(), MEMORY_ARGUMENT);
                command.args([
                    "-accel",
                    "tcg",
                    "-nodefaults",
                    "-no-user-config",
                    "-display",
                    "none",
                    "-no-reboot",
                ]);
                command.args(["-machine", "pc,memory-backend=ram", "-m", size, "-object"]);
                command.arg(format!(
                    "memory-backend-file,id=ram,size={size},mem-path={path},share=on"
                ));
                command.arg("-kernel").arg(start.kernel);
                command.args(["-drive", &format!("if=ide,index=0,format=qcow2,file={disk}")]);
                command
            }
        })
    }
}

/// Waits until the kernel has let go of the image of a process that was killed: the last writes and syncs in flight go on without it. On a
/// busy disk that takes longer than the two seconds for which an open waits.
fn wait_until_unlocked(image: &Path) -> Result<()> {
    let begin = Instant::now();
    let file = File::options()
        .read(true)
        .write(true)
        .open(image)
        .with_context(|| format!("Cannot open {}", image.display()))?;
    // A lock of this process, which meets those of others; closing the file ends it.
    while let Err(error) = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        ensure!(
            error == Errno::AGAIN || error == Errno::ACCESS,
            "cannot lock {}: {error}",
            image.display()
        );
        ensure!(
            begin.elapsed() < PATIENCE,
            "{} is still locked {} s after its process was killed",
            image.display(),
            PATIENCE.as_secs()
        );
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

impl Session {
    pub(super) fn start(memory: Arc<GuestMemory>, start: &Start<'_>) -> Result<Self> {
        wait_until_unlocked(start.disk)?;
        let trace = File::from(memfd_create("spindle-trace", MemfdFlags::CLOEXEC).context("Cannot make a memfd")?);
        trace.set_len((TRACE_WORDS * 8) as u64)?;
        let mut command = start.hypervisor.command(&memory, start)?;
        let trace_path = format!("/proc/{}/fd/{}", std::process::id(), trace.as_raw_fd());
        command.env("SPINDLE_FAILPOINT_TRACE", trace_path).env("NO_COLOR", "1");
        command.env_remove("SPINDLE_FAILPOINT").env_remove("SPINDLE_LOG");
        if let Some(failpoint) = &start.failpoint {
            command.env("SPINDLE_FAILPOINT", failpoint);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let started_at = Instant::now();
        let program = command.get_program().to_owned();
        let child = command
            .spawn()
            .with_context(|| format!("Cannot run {}", program.display()))?;
        Ok(Self {
            child,
            memory,
            trace,
            started_at,
            opened_after: None,
            reaped: None,
        })
    }

    /// Waits until `reached`, or until the process has ended. Returns whether it was reached.
    ///
    /// # Errors
    /// If nothing happens any more.
    pub(super) fn wait_for(&mut self, reached: impl Fn(Progress) -> bool) -> Result<bool> {
        let mut last = (Progress::default(), Instant::now());
        loop {
            let progress = self.memory.progress()?;
            if progress.started && self.opened_after.is_none() {
                self.opened_after = Some(self.started_at.elapsed());
            }
            if reached(progress) {
                return Ok(true);
            }
            if self.has_ended()? {
                return Ok(reached(self.memory.progress()?));
            }
            if progress != last.0 {
                last = (progress, Instant::now());
            }
            if last.1.elapsed() > PATIENCE {
                self.kill()?;
                let end = self.end()?;
                bail!(
                    "No progress for {} s after {:?}\n{}",
                    PATIENCE.as_secs(),
                    end.progress,
                    end.errors
                );
            }
            thread::sleep(GLANCE);
        }
    }

    /// Waits until the guest has been told of `count` completions, and a moment of `spin` turns longer, or the process has ended.
    pub(super) fn wait_for_completions(&mut self, count: usize, spin: u32) -> Result<()> {
        // The last part without sleeping, so that the kill can come at any instant of what follows.
        self.wait_for(|progress| progress.done || progress.completed + 1 >= count)?;
        let begin = Instant::now();
        loop {
            let progress = self.memory.progress()?;
            if progress.done || progress.completed >= count || self.has_ended()? || begin.elapsed() > PATIENCE {
                break;
            }
        }
        for _ in 0..spin {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn has_ended(&mut self) -> Result<bool> {
        if self.reaped.is_none() {
            self.reaped = self.child.try_wait()?;
        }
        Ok(self.reaped.is_some())
    }

    /// Stops the process until [`Session::go_on`], if a failpoint has not ended it already.
    pub(super) fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    pub(super) fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        if self.reaped.is_none() {
            kill_process(Pid::from_child(&self.child), signal).context("Cannot signal spindle")?;
        }
        Ok(())
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        if self.reaped.is_none() {
            self.child.kill().context("Cannot kill spindle")?;
        }
        Ok(())
    }

    /// Waits for the process's end. It was killed, or ends by itself.
    pub(super) fn end(&mut self) -> Result<End> {
        let begin = Instant::now();
        while !self.has_ended()? {
            if begin.elapsed() > PATIENCE {
                self.kill()?;
                bail!("spindle did not end within {} s", PATIENCE.as_secs());
            }
            thread::sleep(GLANCE);
        }
        let mut errors = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes)?;
            errors = String::from_utf8_lossy(&bytes).into_owned();
        }
        let mut trace = vec![0; TRACE_WORDS * 8];
        self.trace.read_exact_at(&mut trace, 0)?;
        let words: Vec<u64> = trace
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_ne_bytes(*word))
            .collect();
        let status = self.reaped.context("it has ended")?;
        let progress = self.memory.progress()?;
        if let Some((command, status)) = self.memory.failed_command(progress)? {
            bail!("command {command} failed in the guest with status {status:#x}\n{errors}");
        }
        Ok(End {
            signal: status.signal(),
            code: status.code(),
            progress,
            errors,
            last_point: (words[0] as usize).checked_sub(1),
            hits: words[1..].to_vec(),
        })
    }
}

impl Drop for Session {
    /// A test that failed leaves no process behind.
    fn drop(&mut self) {
        if self.reaped.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl End {
    /// # Errors
    /// If it was not a SIGKILL that ended the process.
    pub(super) fn expect_killed(&self) -> Result<()> {
        ensure!(
            self.signal == Some(9),
            "spindle ended by itself (code {:?}, signal {:?})\n{}",
            self.code,
            self.signal,
            self.errors
        );
        Ok(())
    }

    /// A number that spindle's log gives as `name=`, summed over its lines.
    pub(super) fn logged(&self, name: &str) -> u64 {
        let values = self
            .errors
            .split_whitespace()
            .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        values.filter_map(|value| value.parse::<u64>().ok()).sum()
    }
}
