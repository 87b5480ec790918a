//! `spindle img`: everything behind it is in the `img` crate.

use std::ffi::OsString;
use std::process::ExitCode;

/// A sub-command of qemu-img and its arguments, which are read there.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The sub-command and its arguments; `spindle img --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Runs it.
pub fn run(arguments: Arguments) -> ExitCode {
    img::run(arguments.arguments)
}
