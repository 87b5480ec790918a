//! This terminal in raw mode.

use std::io::IsTerminal;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Raw mode, for as long as this lives.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Puts this terminal into raw mode; `None` if the standard input is no terminal.
    pub fn enter() -> Result<Option<RawMode>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(std::io::stdin()).context("Cannot read the terminal's modes")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).context("Cannot set the terminal's modes")?;
        Ok(Some(RawMode { before }))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// This terminal's size and type, as words for the guest's kernel command line.
pub fn description() -> String {
    let mut words = String::new();
    if let Ok(size) = tcgetwinsize(std::io::stdin()) {
        words = format!("spindle.rows={} spindle.columns={}", size.ws_row, size.ws_col);
    }
    if let Ok(name) = std::env::var("TERM") {
        // Only what is safe as one word of a command line.
        if name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'+'))
        {
            words.push_str(" spindle.term=");
            words.push_str(&name);
        }
    }
    words
}
