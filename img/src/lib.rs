//! `spindle img`: qemu-img's sub-commands, by its names, flags, output and exit codes.
//!
//! # Architecture
//!
//! One file for each sub-command: what it takes ([`clap`] structures), what it does, what it prints. What they do to an image
//! is in the `disk` crate, in one of two ways:
//!
//! ```text
//!  info check map measure       ──> disk::ImageAtRest: blocking reads of an image that nobody changes
//!  compare convert dd           ──> the same, from several threads; new images by disk::NewImage
//!  snapshot resize bench        ──> disk::Engine: the engine that guests run on
//!  rebase commit convert -n     ──> read at rest, written through the engine
//! ```
//!
//! A new image is written to a file without a name and gets its name at the end ([`output`]), so that whatever ends the program leaves
//! nothing half-written.
//!
//! # Error model
//!
//! `anyhow` with context: one line that names the file. Options of qemu-img that are not supported are refused by their name, never ignored,
//! unless ignoring them is what they ask for.

mod bench;
mod check;
mod commit;
mod compare;
mod convert;
mod copy;
mod create;
mod creation_options;
mod dd;
mod human;
mod info;
mod map;
mod measure;
mod open;
mod options;
mod output;
mod progress;
mod rebase;
mod resize;
mod size;
mod snapshot;
mod target;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Create, inspect, check, convert and change disk images, as qemu-img does
#[derive(Debug, Parser)]
#[command(name = "spindle img", disable_version_flag = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a simple benchmark on an image
    Bench(bench::Arguments),
    /// Check an image, and repair it with -r
    Check(check::Arguments),
    /// Write an overlay's content into its backing file
    Commit(commit::Arguments),
    /// Check whether two images have the same content
    Compare(compare::Arguments),
    /// Copy one image, or several behind each other, to a new one
    Convert(convert::Arguments),
    /// Create a new image
    Create(create::Arguments),
    /// Copy a part of an image
    Dd(dd::Arguments),
    /// Show what an image is
    Info(info::Arguments),
    /// Show where the content of an image is
    Map(map::Arguments),
    /// Calculate how large a new image will be
    Measure(measure::Arguments),
    /// Change the backing file of an image
    Rebase(rebase::Arguments),
    /// Make an image larger or smaller
    Resize(resize::Arguments),
    /// List, create, apply or delete internal snapshots
    Snapshot(snapshot::Arguments),
}

/// The exit code of most failures, wrong usage included.
const FAILURE: u8 = 1;

/// Runs `spindle img` with these arguments, of which the first is the sub-command.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    let arguments = [OsString::from("spindle img")]
        .into_iter()
        .chain(resize::with_negative_size_last(arguments));
    let command = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.command,
        Err(error) => {
            let is_help = !error.use_stderr();
            // Nobody is left to be told if this fails.
            let _ = error.print();
            return if is_help {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(FAILURE)
            };
        }
    };
    let (result, failure) = match &command {
        Command::Bench(arguments) => (bench::run(arguments), FAILURE),
        Command::Check(arguments) => (check::run(arguments), FAILURE),
        Command::Commit(arguments) => (commit::run(arguments), FAILURE),
        Command::Compare(arguments) => (compare::run(arguments), compare::ERROR),
        Command::Convert(arguments) => (convert::run(arguments), FAILURE),
        Command::Create(arguments) => (create::run(arguments), FAILURE),
        Command::Dd(arguments) => (dd::run(arguments), FAILURE),
        Command::Info(arguments) => (info::run(arguments), FAILURE),
        Command::Map(arguments) => (map::run(arguments), FAILURE),
        Command::Measure(arguments) => (measure::run(arguments), FAILURE),
        Command::Rebase(arguments) => (rebase::run(arguments), FAILURE),
        Command::Resize(arguments) => (resize::run(arguments), FAILURE),
        Command::Snapshot(arguments) => (snapshot::run(arguments), FAILURE),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("spindle img: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::from(failure)
        }
    }
}
