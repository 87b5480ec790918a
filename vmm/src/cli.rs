//! The command line.

pub mod cd_rom_argument;
pub mod disk_argument;
mod drive_options;
pub mod ide_argument;
pub mod img;
pub mod nbd;
pub mod run;

use clap::{Parser, Subcommand, ValueEnum};
use tracing::level_filters::LevelFilter;

use crate::exit_code;

/// A small KVM hypervisor with an IDE disk that cannot lose data
#[derive(Debug, Parser)]
#[command(name = "spindle", version, after_help = exit_code::HELP, max_term_width = 100)]
pub struct Cli {
    /// What is logged on standard error
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        env = "SPINDLE_LOG",
        default_value = "warn",
        hide_default_value = true,
        help = "Log level on standard error: error, warn (the default), info, debug or trace"
    )]
    pub log: LogLevel,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What spindle is asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a kernel in a virtual machine
    Run(run::Arguments),
    /// Create, inspect, check, convert and change disk images, as qemu-img does
    #[command(disable_help_flag = true)]
    Img(img::Arguments),
    /// Offer a disk image to NBD clients
    Nbd(nbd::Arguments),
}

/// How much is logged.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Trace => LevelFilter::TRACE,
        }
    }
}
