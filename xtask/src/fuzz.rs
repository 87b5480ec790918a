//! `cargo xtask fuzz`: the fuzz targets, each for a while.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use system_tests::{target_folder, workspace_folder};

/// Feed the parsers with bytes that a fuzzer makes up: cargo-fuzz, on a nightly compiler
///
/// What it keeps lies in target/fuzz; what breaks something, in fuzz/artifacts. A finding belongs into fuzz/corpus once it is mended:
/// tests replay that.
#[derive(clap::Args)]
pub struct Options {
    /// Just this target; all of them unless it is said
    target: Option<Target>,

    /// How long each runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
}

/// What is fed.
#[derive(Clone, Copy, ValueEnum)]
enum Target {
    /// A qcow2 header and its extensions
    Header,
    /// A whole image: checked, opened, read, written, closed
    Image,
    /// The metadata cache of a process that was killed
    #[value(name = "cache_file")]
    CacheFile,
    /// What an NBD client sends
    Nbd,
    /// What a guest does to the IDE controller, and what is saved of it
    Ide,
    /// What a guest does on an IDE disk whose image is damaged
    #[value(name = "guest_image")]
    GuestImage,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Target::Header => "header",
            Target::Image => "image",
            Target::CacheFile => "cache_file",
            Target::Nbd => "nbd",
            Target::Ide => "ide",
            Target::GuestImage => "guest_image",
        }
    }

    /// The longest input, in bytes.
    fn max_length(self) -> u32 {
        match self {
            Target::Header | Target::GuestImage => 1 << 10,
            Target::Image => 32 << 10,
            Target::CacheFile | Target::Nbd | Target::Ide => 8 << 10,
        }
    }
}

/// Runs them; the exit code is 0 if nothing was found.
pub fn fuzz(options: &Options) -> Result<ExitCode> {
    let path = path_with_cargo_fuzz()?;
    let targets = options
        .target
        .map_or_else(|| Target::value_variants().to_vec(), |target| vec![target]);
    let mut lines = Vec::new();
    let mut found = false;
    for target in targets {
        let (executions, clean) = run(target, options.seconds, &path)?;
        found |= !clean;
        let verdict = if clean { "ok" } else { "FAILED" };
        lines.push(format!(
            "  {verdict:6} {:12} {executions:>12} executions",
            target.name()
        ));
    }
    println!("\nWhat was fed for {} s each:\n{}", options.seconds, lines.join("\n"));
    Ok(if found { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs one target. Returns how often it was fed, and whether it held.
fn run(target: Target, seconds: u32, path: &OsString) -> Result<(u64, bool)> {
    let name = target.name();
    let kept = target_folder().join("fuzz").join(name);
    fs::create_dir_all(&kept).with_context(|| format!("Cannot create {}", kept.display()))?;
    let folder = workspace_folder().join("fuzz");
    let mut child = Command::new("cargo")
        .args(["+nightly", "fuzz", "run", name])
        .arg(&kept)
        .arg(folder.join("corpus").join(name))
        .arg("--")
        .args(["-print_final_stats=1", "-rss_limit_mb=1024", "-timeout=20"])
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", target.max_length()))
        .current_dir(&folder)
        .env("PATH", path)
        // The toolchain that runs this chore is not the one that is wanted.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .stderr(Stdio::piped())
        .spawn()
        .context("Cannot run cargo")?;
    let mut executions = 0;
    let lines = child.stderr.take().context("No pipe")?;
    for line in BufReader::new(lines).lines() {
        let line = line.context("Cannot read from the fuzzer")?;
        if let Some(number) = line.strip_prefix("stat::number_of_executed_units:") {
            executions = number.trim().parse().unwrap_or(0);
        }
        eprintln!("{line}");
    }
    let status = child.wait().context("Cannot wait for the fuzzer")?;
    Ok((executions, status.success()))
}

/// A PATH on which there is cargo-fuzz, installed if need be.
fn path_with_cargo_fuzz() -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let nightly = Command::new("cargo")
        .args(["+nightly", "--version"])
        .env_remove("RUSTUP_TOOLCHAIN")
        .output();
    if !nightly.is_ok_and(|output| output.status.success()) {
        bail!("Fuzzing needs a nightly compiler: rustup toolchain install nightly --profile minimal");
    }
    let root = target_folder().join("tools");
    let folders = env::split_paths(&path).chain([root.join("bin")]);
    let all: Vec<PathBuf> = folders.collect();
    if !all.iter().any(|folder| folder.join("cargo-fuzz").is_file()) {
        install(&root)?;
    }
    env::join_paths(all).context("A folder of PATH has a colon in its name")
}

fn install(root: &Path) -> Result<()> {
    eprintln!("Installing cargo-fuzz into {}", root.display());
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["install", "--locked", "--quiet", "cargo-fuzz", "--root"])
        .arg(root)
        .status()
        .context("Cannot run cargo")?;
    ensure!(status.success(), "cargo-fuzz cannot be installed");
    Ok(())
}
