//! `cargo xtask bench`: how fast, next to QEMU on the same machine.

mod disk;
mod ide;

use std::process::ExitCode;

use anyhow::Result;

/// Measure spindle and QEMU, in alternation on the same machine
#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Disk(disk::Options),
    Ide(ide::Options),
}

/// Measures.
pub fn bench(options: &Options) -> Result<ExitCode> {
    match &options.what {
        What::Disk(options) => disk::bench(options),
        What::Ide(options) => ide::bench(options),
    }
}
