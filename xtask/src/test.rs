//! `cargo xtask test`: every test there is.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use guest_images::{Guest, Image, NestedHost};
use system_tests::{HostKind, workspace_folder};

use crate::progress::{spindle_with_progress, store_with_progress};
use crate::setup::install_for_tests;

mod report;

use report::Report;

/// Run every test: unit tests, bare-metal guests on KVM, and stock kernels booting; say at the end what ran where.
#[derive(clap::Args)]
pub struct Options {
    /// Leave out the tests that boot a stock kernel
    #[arg(long)]
    no_boot: bool,
}

/// The packages whose `#[ignore]`d tests boot guests.
const BOOTING: [&str; 2] = ["system-tests", "xtask"];

/// Runs them; the exit code is 0 if all passed.
pub fn test(options: &Options) -> Result<ExitCode> {
    let begin = Instant::now();
    let kind = HostKind::detect();
    install_for_tests(kind)?;
    eprintln!("Guests run on: {}", kind.describe());

    let mut report = Report::new();
    let here = if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        "this machine and its /dev/kvm"
    } else {
        "this machine, which has no /dev/kvm that we may open: bare-metal guests did not run"
    };
    cargo_test(&mut report, here, &["--workspace"], &[])?;
    // A build of its own: no other has bugs that are planted on purpose.
    let planted = [
        "--package",
        "disk",
        "--features",
        "planted-bugs",
        "--test",
        "planted_bugs",
    ];
    cargo_test(&mut report, here, &planted, &[])?;
    if !options.no_boot {
        build_artefacts(kind)?;
        let packages = BOOTING.iter().flat_map(|package| ["--package", package]);
        let arguments: Vec<&str> = packages.collect();
        // One at a time: each has two machines inside each other to feed.
        cargo_test(
            &mut report,
            kind.describe(),
            &arguments,
            &["--ignored", "--test-threads=1", "--nocapture"],
        )?;
    }
    report.print(begin.elapsed());
    Ok(if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What the booting tests share, built with its progress shown instead of inside the first of them.
fn build_artefacts(kind: HostKind) -> Result<()> {
    let (store, progress) = store_with_progress()?;
    Guest::get(&store, Image::Tiny)?;
    Guest::get(&store, Image::Debian)?;
    if kind == HostKind::Nested {
        NestedHost::get(&store)?;
    }
    spindle_with_progress(&progress)?;
    progress.finish_and_clear();
    Ok(())
}

/// Runs `cargo test`, passes on what it prints, and enters each suite in the report.
fn cargo_test(report: &mut Report, host: &str, arguments: &[&str], harness: &[&str]) -> Result<()> {
    let (output, input) = std::io::pipe().context("Cannot make a pipe")?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace_folder())
        .args(["test", "--no-fail-fast"])
        .args(arguments);
    command.arg("--").args(harness).stdin(Stdio::null());
    // One pipe for both, so that the names of the suites, which cargo writes to its standard error, stay with their results.
    command.stdout(input.try_clone()?).stderr(input);
    let mut child = command.spawn().context("Cannot run cargo")?;
    // Its copies of the pipe's end must go, or the pipe would never end.
    drop(command);
    let mut suite = Instant::now();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("Cannot read from cargo")?;
        let line = String::from_utf8_lossy(&line);
        let mut stdout = std::io::stdout();
        writeln!(stdout, "{line}")
            .and_then(|()| stdout.flush())
            .context("Cannot write to the standard output")?;
        let time = suite.elapsed();
        if report.take(&line, host, time) {
            suite = Instant::now();
        }
    }
    let status = child.wait().context("Cannot wait for cargo")?;
    report.finish(status.success(), &format!("cargo test {}", arguments.join(" ")));
    Ok(())
}
