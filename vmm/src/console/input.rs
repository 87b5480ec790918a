//! Console input: from standard input to the serial port, without loss and without waiting.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::Context;
use devices::serial::Serial;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::keys::{self, Command, Keys};
use super::output::Output;

/// How much is read at once, and so how much may wait for the guest.
const CHUNK: usize = 4096;

/// Where input comes from, and what of it the guest has not taken yet.
///
/// Input is read only when nothing waits, so a paste or a pipe is held back by the guest's FIFO and loses nothing.
pub struct Input {
    /// Kept open to the end: an event loop may still know the descriptor.
    source: Option<OwnedFd>,
    ended: bool,
    /// There are keys for us only where somebody types; a pipe's bytes are the guest's, all of them.
    keys: Option<Keys>,
    waiting: Vec<u8>,
    room: Arc<EventFd>,
}

impl Input {
    /// No input.
    pub fn none() -> anyhow::Result<Self> {
        Self::new(None, None)
    }

    /// Standard input. `is_keyboard` says whether somebody types there.
    pub fn stdin(is_keyboard: bool) -> anyhow::Result<Self> {
        let source = io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .context("Cannot use standard input")?;
        Self::new(Some(source), is_keyboard.then(Keys::default))
    }

    fn new(source: Option<OwnedFd>, keys: Option<Keys>) -> anyhow::Result<Self> {
        Ok(Self {
            ended: source.is_none(),
            source,
            keys,
            waiting: Vec::new(),
            room: Arc::new(EventFd::new(EFD_NONBLOCK).context("Cannot make an eventfd")?),
        })
    }

    /// Written to by the serial port when it has room again.
    pub fn room(&self) -> &Arc<EventFd> {
        &self.room
    }

    /// The descriptor to wait on while [`Input::wants_more`].
    pub fn source(&self) -> Option<&OwnedFd> {
        self.source.as_ref()
    }

    /// Whether to read on: the source has not ended, and the guest has taken what was read before.
    pub fn wants_more(&self) -> bool {
        !self.ended && self.waiting.is_empty()
    }

    /// Reads once from a source that is readable. Returns the commands that were typed.
    ///
    /// At its end, and when it fails, the source is given up.
    pub fn read(&mut self, output: &Output) -> Vec<Command> {
        let Some(source) = &self.source else {
            return Vec::new();
        };
        let mut chunk = [0; CHUNK];
        let count = match rustix::io::read(source, &mut chunk) {
            Ok(0) => {
                tracing::debug!("console input ended");
                self.ended = true;
                return Vec::new();
            }
            Ok(count) => count,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return Vec::new(),
            Err(error) => {
                tracing::warn!("Console input ended: {error}");
                self.ended = true;
                return Vec::new();
            }
        };
        let Some(keys) = &mut self.keys else {
            self.waiting.extend_from_slice(&chunk[..count]);
            return Vec::new();
        };
        let commands = keys.read(&chunk[..count], &mut self.waiting);
        if commands.contains(&Command::Help) {
            output.push(keys::HELP.as_bytes());
        }
        commands
    }

    /// Gives `serial` what it takes of what waits.
    pub fn feed(&mut self, serial: &Serial) {
        while !self.waiting.is_empty() {
            match serial.enqueue(&self.waiting) {
                0 => return,
                taken => drop(self.waiting.drain(..taken)),
            }
        }
    }
}
