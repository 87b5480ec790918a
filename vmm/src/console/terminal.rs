//! The terminal in raw mode, and back on every way out.

use std::io;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use rustix::termios::{OptionalActions, OutputModes, Termios, tcgetattr, tcsetattr};

/// How the terminal was before raw mode; here and not in [`RawTerminal`], so that a panic hook finds it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input is a terminal in raw mode, until this is dropped.
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts the terminal of standard input into raw mode: every key goes to the guest, Ctrl-C too.
    pub fn enter() -> anyhow::Result<Self> {
        let before = tcgetattr(io::stdin()).context("Cannot read the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        // Messages of ours end in a bare newline.
        raw.output_modes |= OutputModes::OPOST;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        let terminal = Self(());
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("Cannot set the terminal to raw mode")?;
        Ok(terminal)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its settings back, if raw mode has changed them. May be called at any time.
pub fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // If the terminal is gone, so are its settings.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}
