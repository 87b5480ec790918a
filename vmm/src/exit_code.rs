//! How a virtual machine ends, and the exit code that says so.

use std::fmt;
use std::process::ExitCode;

/// What `spindle --help` says about exit codes.
pub const HELP: &str = "\
Exit codes of `spindle run`:
  0     the guest powered off
  1     spindle failed; standard error says why
  2     wrong usage
  3     the guest asked for a reset, and --no-reboot was given
  4     the guest crashed (triple fault)
  5     the user quit with Ctrl-A x
  128+N signal N told spindle to stop (SIGINT 130, SIGTERM 143); disks are closed first";

/// Why a virtual machine stopped. What happened first counts.
#[derive(Debug)]
pub enum Ending {
    /// The guest entered ACPI S5.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A CPU of the guest shut down: a triple fault.
    Crash {
        /// Which CPU.
        cpu: u8,
    },
    /// The user pressed Ctrl-A x.
    Quit,
    /// A signal that asks processes to end.
    Signal(i32),
    /// Something of ours, or of the host's, failed.
    Failure(anyhow::Error),
}

impl Ending {
    /// The exit code of the process. A reset counts as one that was not allowed to reboot.
    pub fn code(&self) -> u8 {
        match self {
            Ending::PowerOff => 0,
            Ending::Failure(_) => 1,
            Ending::Reset => 3,
            Ending::Crash { .. } => 4,
            Ending::Quit => 5,
            Ending::Signal(number) => 128 | (*number as u8 & 0x7f),
        }
    }
}

impl From<&Ending> for ExitCode {
    fn from(ending: &Ending) -> Self {
        ExitCode::from(ending.code())
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::PowerOff => f.write_str("The guest powered off"),
            Ending::Reset => f.write_str("The guest asked for a reset"),
            Ending::Crash { cpu } => write!(f, "The guest crashed: triple fault on CPU {cpu}"),
            Ending::Quit => f.write_str("The user quit"),
            Ending::Signal(number) => write!(f, "Stopped by signal {number}"),
            Ending::Failure(error) => write!(f, "{error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_has_a_code_of_its_own() {
        let endings = [
            Ending::PowerOff,
            Ending::Failure(anyhow::anyhow!("x")),
            Ending::Reset,
            Ending::Crash { cpu: 0 },
            Ending::Quit,
            Ending::Signal(libc::SIGTERM),
        ];
        let codes: Vec<u8> = endings.iter().map(Ending::code).collect();
        assert_eq!(codes, [0, 1, 3, 4, 5, 143]);
    }
}
