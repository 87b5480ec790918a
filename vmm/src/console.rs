//! The guest's console: where its output goes and where its input comes from.

mod input;
mod keys;
mod output;
mod terminal;

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;

pub use input::Input;
pub use keys::Command;
pub use output::{Output, OutputWriter};
pub use terminal::{RawTerminal, restore as restore_terminal};

/// What the guest's serial port is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleTarget {
    /// Standard input and output.
    Stdio,
    /// Output to a file, which is created or emptied; no input.
    File(PathBuf),
    /// Output thrown away; no input.
    Null,
}

/// The text is not a console.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a console; say stdio, file:PATH or null")]
pub struct ConsoleTargetError(String);

impl FromStr for ConsoleTarget {
    type Err = ConsoleTargetError;

    fn from_str(text: &str) -> Result<Self, ConsoleTargetError> {
        match text.split_once(':') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "null" => Ok(Self::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(ConsoleTargetError(text.to_owned())),
        }
    }
}

/// An open console.
pub struct Console {
    /// Shared with the machine's serial port.
    pub output: std::sync::Arc<Output>,
    /// For the event loop.
    pub input: Input,
    /// The terminal in raw mode, until this is dropped.
    _terminal: Option<RawTerminal>,
}

impl Console {
    /// Opens `target`. From here on, a terminal is in raw mode.
    pub fn open(target: &ConsoleTarget) -> anyhow::Result<Self> {
        let console = match target {
            ConsoleTarget::Null => Self {
                output: Output::start(Box::new(io::sink()))?,
                input: Input::none()?,
                _terminal: None,
            },
            ConsoleTarget::File(path) => {
                let file = File::create(path).with_context(|| format!("Cannot create the console file {path:?}"))?;
                Self {
                    output: Output::start(Box::new(file))?,
                    input: Input::none()?,
                    _terminal: None,
                }
            }
            ConsoleTarget::Stdio => {
                // A descriptor of its own: Rust's standard output holds lines back.
                let stdout = io::stdout()
                    .as_fd()
                    .try_clone_to_owned()
                    .context("Cannot use standard output")?;
                let is_keyboard = io::stdin().is_terminal();
                let terminal = if is_keyboard { Some(RawTerminal::enter()?) } else { None };
                Self {
                    output: Output::start(Box::new(File::from(stdout)))?,
                    input: Input::stdin(is_keyboard)?,
                    _terminal: terminal,
                }
            }
        };
        Ok(console)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        assert_eq!("stdio".parse(), Ok(ConsoleTarget::Stdio));
        assert_eq!("null".parse(), Ok(ConsoleTarget::Null));
        assert_eq!("file:a:b".parse(), Ok(ConsoleTarget::File("a:b".into())));
        for text in ["", "file", "file:", "null:", "tcp:1"] {
            assert_eq!(text.parse::<ConsoleTarget>(), Err(ConsoleTargetError(text.to_owned())));
        }
    }
}
