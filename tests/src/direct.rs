//! Runs on this machine itself.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::run::{End, Event, Input, Session};

/// Starts `command` in `folder`.
pub(crate) fn start(command: &[String], folder: &Path, input: Input) -> Result<(Box<dyn Session>, Receiver<Event>)> {
    let (program, arguments) = command.split_first().context("No program to run")?;
    let mut process = Command::new(program);
    process.args(arguments).current_dir(folder);
    if input == Input::Null {
        process
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }
    let (sender, events) = channel();
    let _ = sender.send(Event::Started);
    let mut child = process
        .spawn()
        .with_context(|| format!("Cannot run {program} in {}", folder.display()))?;
    let pid = Pid::from_child(&child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("Cannot open a pidfd")?;
    let mut readers = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        readers.push(pump(stdout, sender.clone(), Event::Console));
    }
    if let Some(stderr) = child.stderr.take() {
        readers.push(pump(stderr, sender.clone(), Event::Stderr));
    }
    readers.push(thread::spawn(move || wait(child, &sender)));
    Ok((Box::new(Direct { pidfd, readers }), events))
}

struct Direct {
    pidfd: OwnedFd,
    readers: Vec<JoinHandle<()>>,
}

impl Session for Direct {
    fn signal(&mut self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.pidfd, signal) {
            // It ended just before.
            Err(rustix::io::Errno::SRCH) => Ok(()),
            other => other.context("Cannot send the program a signal"),
        }
    }

    fn finish(self: Box<Self>) -> Result<()> {
        for reader in self.readers {
            let _ = reader.join();
        }
        Ok(())
    }
}

fn wait(mut child: Child, events: &Sender<Event>) {
    let event = match child.wait() {
        Ok(status) => Event::Ended(end(status)),
        Err(error) => Event::HostLost(format!("waiting for the program failed: {error}")),
    };
    let _ = events.send(event);
}

fn end(status: ExitStatus) -> End {
    status
        .signal()
        .map_or_else(|| End::Exited(status.code().unwrap_or_default()), End::Signalled)
}

/// Sends what comes from `stream` as events until it ends.
pub(crate) fn pump(
    mut stream: impl Read + Send + 'static,
    events: Sender<Event>,
    event: impl Fn(Vec<u8>) -> Event + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 16384];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            let _ = events.send(event(buffer[..count].to_vec()));
        }
    })
}
