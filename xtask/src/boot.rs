//! `cargo xtask boot`: a guest in this terminal.

use std::cell::RefCell;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use guest_images::{Guest, Image};
use system_tests::{Boot, End, ExecOutput, Host, HostKind, Input, Outcome, Run, target_folder};

use crate::progress::{spindle_with_progress, store_with_progress};
use crate::setup::install_missing;
use crate::terminal::{self, RawMode};

/// Boot a stock Linux kernel from a qcow2 disk on emulated IDE, to a shell in this terminal.
///
/// Ctrl-A x quits at once; leaving the shell powers the guest off.
#[derive(clap::Args)]
pub struct Options {
    /// The root disk
    #[arg(long, default_value = "debian")]
    image: ImageName,
    /// Run this shell command instead of a shell, print its output and exit with its exit code
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// Write to a disk that later boots with --keep find again (default: a fresh overlay)
    #[arg(long)]
    keep: bool,
    /// Where the disks of --keep are (default: target/kept-disks)
    #[arg(long, value_name = "FOLDER", requires = "keep")]
    kept_disks: Option<PathBuf>,
    /// CPUs of the guest
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// Memory of the guest in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    memory: u32,
    /// More for the kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "")]
    append: String,
    /// Show the whole console with the kernel's messages, and what spindle says
    #[arg(short, long)]
    verbose: bool,
}

/// A root disk by its name.
#[derive(Clone, Copy, ValueEnum)]
pub enum ImageName {
    /// A Debian minbase with fio, sqlite3, e2fsprogs, hdparm and smartmontools
    Debian,
    /// busybox alone; boots fastest
    Tiny,
}

impl From<ImageName> for Image {
    fn from(name: ImageName) -> Image {
        match name {
            ImageName::Debian => Image::Debian,
            ImageName::Tiny => Image::Tiny,
        }
    }
}

const DISK: &str = Host::ROOT_DISK;

/// Boots the guest; the exit code is that of `--exec`, or else 0 for a guest that powered off.
pub fn boot(options: &Options) -> Result<ExitCode> {
    let begin = Instant::now();
    if options.exec.is_none() && !std::io::stdin().is_terminal() {
        bail!("The standard input is no terminal for a shell; --exec CMD runs one command");
    }
    let kind = HostKind::detect();
    install_missing(kind)?;
    eprintln!("Host: {}", kind.describe());
    let (store, progress) = store_with_progress()?;
    let guest = Guest::get(&store, options.image.into())?;
    let mut host = Host::new(&store, &spindle_with_progress(&progress)?, Some(&guest))?;
    progress.finish_and_clear();
    host.guest_memory = options.memory;

    let kept = options.keep.then(|| kept_disk(options, &guest)).transpose()?;
    match &kept {
        Some(disk) => host.add_file(DISK, disk)?,
        None => host.add_overlay()?,
    }
    let set_up = begin.elapsed();
    let (outcome, exit_code) = run(options, &host)?;
    if let Some(disk) = &kept {
        replace(&host.fetch(DISK)?, disk)?;
        eprintln!("Kept: {}", disk.display());
    }
    print_times(set_up, &outcome);
    match (outcome.end, exit_code) {
        (End::Exited(0), Some(code)) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        (End::Exited(0), None) if options.exec.is_none() => Ok(ExitCode::SUCCESS),
        (end, _) => {
            let stderr = if options.verbose { "" } else { outcome.stderr.trim_end() };
            let console = if options.verbose || options.exec.is_none() {
                String::new()
            } else {
                outcome.text()
            };
            bail!(
                "The command did not come to its end; spindle {}\n{stderr}\n{console}",
                describe(end)
            )
        }
    }
}

/// Runs the guest and passes its console on. The exit code is the command's.
fn run(options: &Options, host: &Host) -> Result<(Outcome, Option<i32>)> {
    let mut boot = Boot::new(DISK);
    boot.cpus = options.cpus;
    boot.memory = options.memory;
    boot.exec.clone_from(&options.exec);
    boot.append.clone_from(&options.append);
    boot.quiet = !options.verbose;
    let interactive = options.exec.is_none();
    if interactive {
        boot.append.push(' ');
        boot.append.push_str(&terminal::description());
    }
    let parser = RefCell::new(ExecOutput::new());
    let mut run = Run::new(boot.command()?);
    run.timeout = Duration::from_secs(if interactive { 30 * 24 * 3600 } else { 3600 });
    run.on_console = Box::new(|bytes| {
        let output = parser.borrow_mut().feed(bytes);
        let mut stdout = std::io::stdout();
        let shown = if options.verbose || interactive { bytes } else { &output };
        // A reader that went away is no reason to leave the guest's disk in mid-write.
        let _ = stdout.write_all(shown).and_then(|()| stdout.flush());
    });
    let mut raw = None;
    if interactive {
        run.input = Input::Terminal;
        eprintln!("Ctrl-A x quits. `exit` powers the guest off.");
        if host.kind() == HostKind::Nested {
            raw = RawMode::enter()?;
        }
    }
    let outcome = host.run(run)?;
    drop(raw);
    if options.verbose {
        eprint!("{}", outcome.stderr);
    }
    let exit_code = parser.borrow().exit_code();
    Ok((outcome, exit_code))
}

/// The disk that `--keep` writes to: a copy of the guest's own, made at its first use and never remade by itself.
fn kept_disk(options: &Options, guest: &Guest) -> Result<PathBuf> {
    let folder = options
        .kept_disks
        .clone()
        .unwrap_or_else(|| target_folder().join("kept-disks"));
    fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let disk = folder.join(format!("{}.qcow2", guest.image.name()));
    if !disk.exists() {
        replace(&guest.folder().join(Guest::DISK), &disk)?;
    }
    Ok(disk)
}

/// Puts a copy of `from` in the place of `to`, whole or not at all.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let unfinished = to.with_extension("unfinished");
    fs::copy(from, &unfinished)
        .and_then(|_| fs::File::open(&unfinished)?.sync_all())
        .and_then(|()| fs::rename(&unfinished, to))
        .with_context(|| format!("Cannot write {}", to.display()))
}

fn print_times(set_up: Duration, outcome: &Outcome) {
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let optional = |time: Option<Duration>| time.map_or("-".to_owned(), seconds);
    let times = &outcome.times;
    eprintln!(
        "Times: set-up {}, nested host {}, VMM start to first console byte {}, to the shell {}, to the end {}",
        seconds(set_up),
        seconds(times.nested_host),
        optional(times.first_byte),
        optional(times.shell),
        seconds(times.program)
    );
}

fn describe(end: End) -> String {
    match end {
        End::Exited(code) => format!("exited with {code}"),
        End::Signalled(signal) => format!("was ended by signal {signal}"),
    }
}
