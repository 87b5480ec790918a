//! Runs in the nested host: a Linux with KVM inside QEMU's TCG.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use command_fds::{CommandFdExt, FdMapping};
use guest_images::{NestedHost, find_program};
use rustix::process::Signal;

use crate::direct::pump;
use crate::run::{End, Event, Input, Session};

/// What the nested host is started with.
pub(crate) struct NestedOptions<'a> {
    pub(crate) images: &'a NestedHost,
    /// Mounted at `/work`, writable.
    pub(crate) scratch: &'a Path,
    /// Mounted at `/work/base`, read-only.
    pub(crate) base: Option<&'a Path>,
    /// A raw file that the nested host has as its third disk, to bring files back while it is up. Only with a base.
    pub(crate) exchange: Option<&'a Path>,
    /// A raw file that the nested host has as its fourth disk. Its flushes are flushes of the file. Only with an exchange.
    pub(crate) recorded: Option<&'a Path>,
    /// Memory in MiB.
    pub(crate) memory: u32,
    pub(crate) cpus: u32,
    /// Gets the nested host's kernel log.
    pub(crate) log: PathBuf,
}

/// A nested host has this long to start and to end. It takes two to six seconds, by what else the machine does.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the console has behind the last byte of a program whose end is marked: NUL is no text.
pub(crate) const END_OF_PROGRAM: u8 = 0;

/// The virtio ports, in the order of the sockets.
const PORTS: [&str; 3] = ["console", "control", "stderr"];

/// A running nested host.
pub(crate) struct Nested {
    qemu: Child,
    control: UnixStream,
    console: UnixStream,
    readers: Vec<JoinHandle<()>>,
    log: PathBuf,
}

impl Nested {
    /// Boots it; returns when it takes commands.
    pub(crate) fn start(options: &NestedOptions<'_>) -> Result<(Nested, Receiver<Event>)> {
        let mut theirs = Vec::new();
        let mut port = || -> Result<UnixStream> {
            let (here, there) = UnixStream::pair().context("Cannot make a socket pair")?;
            theirs.push(OwnedFd::from(there));
            Ok(here)
        };
        let (console, control, stderr) = (port()?, port()?, port()?);
        let mut qemu = spawn_qemu(options, theirs)?;
        let (sender, events) = channel();
        let mut readers = vec![
            pump(console.try_clone()?, sender.clone(), Event::Console),
            pump(stderr, sender.clone(), Event::Stderr),
            read_control(control.try_clone()?, sender.clone()),
        ];
        if let Some(complaints) = qemu.stderr.take() {
            readers.push(report_complaints(complaints, sender));
        }
        let log = options.log.clone();
        let mut nested = Nested {
            qemu,
            control,
            console,
            readers,
            log,
        };
        nested.command("echo @up")?;
        nested.wait_until_up(&events)?;
        keep_awake(nested.control.try_clone()?);
        Ok((nested, events))
    }

    fn wait_until_up(&self, events: &Receiver<Event>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let why = match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::HostUp) => return Ok(()),
                Ok(Event::HostLost(why)) => why,
                Ok(_) => continue,
                Err(RecvTimeoutError::Timeout) => format!("it is not up after {} s", PATIENCE.as_secs()),
                Err(RecvTimeoutError::Disconnected) => "QEMU ended".to_owned(),
            };
            bail!("The nested host does not start: {why}\n{}", self.log_tail());
        }
    }

    /// Starts `command` in `/work`, with the console as its standard input and output.
    pub(crate) fn run(mut self, command: &[String], input: Input) -> Result<Box<dyn Session>> {
        self.launch(command, input, "")?;
        Ok(Box::new(self))
    }

    /// The same, and the nested host stays for the next one: behind the program's last byte on the console comes
    /// [`END_OF_PROGRAM`].
    pub(crate) fn launch_marked(&mut self, command: &[String]) -> Result<()> {
        self.launch(command, Input::Null, "printf '\\000' >&4; ")
    }

    /// `then` is for the shell, after the program.
    fn launch(&mut self, command: &[String], input: Input, then: &str) -> Result<()> {
        let words = command.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
        let stdin = match input {
            Input::Null => "</dev/null",
            Input::Terminal => "<&4",
        };
        self.command(&format!(
            "echo @started; {{ {words} {stdin} >&4 2>&3 & echo $! >/run/program.pid; wait $!; code=$?; \
             {then}echo @exit $code; }} &"
        ))?;
        if input == Input::Terminal {
            let mut console = self.console.try_clone()?;
            // Ends with the process: a read from a terminal cannot be called off.
            thread::spawn(move || std::io::copy(&mut std::io::stdin().lock(), &mut console));
        }
        Ok(())
    }

    /// Runs a shell command in `/work`; what it prints comes as [`Event::Said`], with `|` for the ends of lines.
    pub(crate) fn shell(&mut self, command: &str) -> Result<()> {
        self.command(&format!(
            "said=$({{ {command}; }} 2>&1 </dev/null | tr '\\n' '|'); echo \"@said $said\""
        ))
    }

    fn command(&mut self, command: &str) -> Result<()> {
        self.control
            .write_all(format!("{command}\n").as_bytes())
            .context("The nested host takes no command")
    }

    fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(3000)..];
        format!(
            "The end of its kernel log ({}):\n{}",
            self.log.display(),
            String::from_utf8_lossy(tail)
        )
    }
}

impl Drop for Nested {
    /// A run that failed leaves no machine behind. After [`Session::finish`] there is nothing left to kill.
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Session for Nested {
    fn signal(&mut self, signal: Signal) -> Result<()> {
        self.command(&format!("kill -{} $(cat /run/program.pid)", signal.as_raw()))
    }

    /// Has it write everything back and power off; QEMU's end closes the ports behind the last byte in them.
    fn finish(mut self: Box<Self>) -> Result<()> {
        // The shell on the control port reads its end and the nested host's init goes on to power off.
        let _ = self.control.shutdown(std::net::Shutdown::Write);
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.qemu.try_wait().context("Cannot wait for QEMU")? {
                Some(status) => break status,
                None if Instant::now() > deadline => {
                    self.qemu.kill()?;
                    self.qemu.wait()?;
                    bail!("The nested host did not power off.\n{}", self.log_tail());
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        };
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if status.success() {
            Ok(())
        } else {
            Err(anyhow!("QEMU ended with an error ({status})\n{}", self.log_tail()))
        }
    }
}

fn spawn_qemu(options: &NestedOptions<'_>, ports: Vec<OwnedFd>) -> Result<Child> {
    let program = find_program("qemu-system-x86_64").context(
        "`qemu-system-x86_64` is not installed; `cargo xtask setup` installs it (Debian's package qemu-system-x86)",
    )?;
    let mut command = Command::new(program);
    // Nested paging is needed: without it the guest resets.
    command.args([
        "-accel",
        "tcg",
        "-cpu",
        "EPYC,+svm,+npt",
        "-machine",
        "pc",
        "-nodefaults",
        "-no-user-config",
    ]);
    command.args(["-display", "none", "-no-reboot"]);
    command
        .arg("-m")
        .arg(options.memory.to_string())
        .arg("-smp")
        .arg(options.cpus.to_string());
    command
        .arg("-kernel")
        .arg(&options.images.kernel)
        .arg("-initrd")
        .arg(&options.images.initramfs);
    // The kernel panics if it does not see the timer tick in its first moments. On a machine that is busy with other
    // things, an emulated timer may not tick in time.
    command.args([
        "-append",
        "console=ttyS0 reboot=t panic=-1 quiet nokaslr mitigations=off lsm= ipv6.disable=1 no_timer_check",
    ]);
    command
        .arg("-serial")
        .arg(format!("file:{}", option_value(&options.log)));
    // Nothing here outlives the machine: a host that loses power loses this run with it.
    command.arg("-drive").arg(format!(
        "file={},format=raw,if=virtio,cache=unsafe",
        option_value(options.scratch)
    ));
    if let Some(base) = options.base {
        command
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio,readonly=on", option_value(base)));
    }
    if let Some(exchange) = options.exchange {
        let file = option_value(exchange);
        command
            .arg("-drive")
            .arg(format!("file={file},format=raw,if=virtio,cache=unsafe"));
    }
    if let Some(recorded) = options.recorded {
        let file = option_value(recorded);
        command.arg("-drive").arg(format!(
            "file={file},format=raw,if=virtio,cache=writeback,discard=unmap"
        ));
    }
    command.args(["-device", "virtio-serial"]);
    let mut mappings = Vec::new();
    for (child_fd, (name, parent_fd)) in (3..).zip(PORTS.into_iter().zip(ports)) {
        command.arg("-chardev").arg(format!("socket,id={name},fd={child_fd}"));
        let device = if name == "console" {
            "virtconsole"
        } else {
            "virtserialport"
        };
        command
            .arg("-device")
            .arg(format!("{device},chardev={name},name={name}"));
        mappings.push(FdMapping { parent_fd, child_fd });
    }
    command.fd_mappings(mappings).context("Cannot pass sockets to QEMU")?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command.spawn().context("Cannot run qemu-system-x86_64")
}

/// A path as the value of a QEMU option, where a comma is written twice.
fn option_value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Gives the nested host an interrupt a second, by a command that does nothing, until its port closes.
///
/// Twice a guest has stood still for minutes, and the nested host with it as far as could be seen; the cause is not known. A timer
/// that TCG's nested SVM lost would explain it, and an interrupt from outside helps then.
fn keep_awake(mut control: UnixStream) {
    thread::spawn(move || {
        while control.write_all(b":\n").is_ok() {
            thread::sleep(Duration::from_secs(1));
        }
    });
}

/// Turns the lines of the control port into events.
fn read_control(control: UnixStream, events: Sender<Event>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(control).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            let event = match line.split_once(' ').unwrap_or((&line, "")) {
                ("@up", _) => Event::HostUp,
                ("@started", _) => Event::Started,
                ("@said", text) => Event::Said(text.to_owned()),
                ("@exit", code) => Event::Ended(end(code.parse().unwrap_or(-1))),
                _ => Event::Stderr(format!("nested host: {line}\n").into_bytes()),
            };
            let _ = events.send(event);
        }
        let _ = events.send(Event::HostLost("its control port closed".to_owned()));
    })
}

/// A shell gives 128 and the signal's number for a program that a signal ended.
fn end(code: i32) -> End {
    if code > 128 {
        End::Signalled(code - 128)
    } else {
        End::Exited(code)
    }
}

/// What QEMU says on its standard error, less its remarks on CPU features that TCG has not.
fn report_complaints(complaints: impl Read + Send + 'static, events: Sender<Event>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(complaints).lines().map_while(Result::ok) {
            if !line.contains("TCG doesn't support requested feature") {
                let _ = events.send(Event::HostLost(line));
            }
        }
    })
}

/// `word` as one word of a shell command.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }

    #[test]
    fn shell_status_above_128_is_a_signal() {
        assert_eq!(end(137), End::Signalled(9));
        assert_eq!(end(4), End::Exited(4));
    }
}
