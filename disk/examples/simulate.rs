//! What `cargo xtask simulate` runs: long campaigns of the simulation, and the hunt for planted bugs.

#[path = "../tests/judge/mod.rs"]
mod judge;
#[path = "../tests/model/mod.rs"]
mod model;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use serde_json::{Value, json};

use model::campaign::{Result as Campaign, campaign, fail_each_call};
use model::crash::PHASE_NAMES;
use model::generate::Kind;

/// The disk engine on a simulated disk.
#[derive(Parser)]
struct Options {
    /// So many lives of a disk without crashes
    #[arg(long, value_name = "N", default_value_t = 0)]
    seeds: u64,

    /// Just this seed, of lives and of crashes
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,

    /// Crashes until so many states were looked at
    #[arg(long, value_name = "N", default_value_t = 0)]
    states: u64,

    /// The first seed of crashes
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    first_seed: u64,

    /// Each storage call of so many scripts fails, in each way
    #[arg(long, value_name = "N", default_value_t = 0)]
    faults: u64,

    /// Plant bugs, and catch each within so many scripts
    #[arg(long, value_name = "N")]
    planted_bugs: Option<u64>,

    /// Of the planted bugs just the one with this name
    #[arg(long, value_name = "NAME", requires = "planted_bugs")]
    bug: Option<String>,

    /// Where to write simulate.json
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let mut report = json!({ "run": run() });
    let mut passed = true;
    if let Some(seed) = options.seed {
        passed &= lives(&mut report, seed, seed + 1);
        passed &= crashes(&mut report, seed, seed + 1, u64::MAX);
    }
    if options.seeds > 0 {
        passed &= lives(&mut report, 0, options.seeds);
    }
    if options.states > 0 {
        passed &= crashes(&mut report, options.first_seed, u64::MAX, options.states);
    }
    if options.faults > 0 {
        passed &= faults(&mut report, options.faults);
    }
    if let Some(most) = options.planted_bugs {
        passed &= planted_bugs(&mut report, most, options.bug.as_deref());
    }
    report["passed"] = json!(passed);
    if let Some(folder) = &options.report
        && let Err(error) = write_report(folder, &report)
    {
        eprintln!("error: {}: {error}", folder.display());
        passed = false;
    }
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What was run, when and where.
fn run() -> Value {
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map_or(Value::Null, |output| {
            json!(String::from_utf8_lossy(&output.stdout).trim())
        })
    };
    let asked = std::env::var("SPINDLE_COMMAND_LINE");
    let own = || std::env::args().collect::<Vec<_>>().join(" ");
    json!({
        "command_line": asked.unwrap_or_else(|_| own()),
        "date": output("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
        "host": output("uname", &["-n"]),
        "kernel": output("uname", &["-r"]),
        "git_revision": output("git", &["rev-parse", "HEAD"]),
        "threads": std::thread::available_parallelism().map_or(1, usize::from),
    })
}

fn lives(report: &mut Value, first: u64, end: u64) -> bool {
    let result = campaign(first..end, Kind::Life, |_| false);
    println!(
        "{} lives, {} requests, {} reads compared, {} snapshots and resizes, {} storage operations: {:.0} s",
        result.seeds,
        result.tally.requests,
        result.tally.reads_checked,
        result.tally.changes,
        result.tally.operations,
        result.seconds
    );
    report["lives"] = summary(&result, Kind::Life);
    said(&result, Kind::Life)
}

fn crashes(report: &mut Value, first: u64, end: u64, states: u64) -> bool {
    let step = (states / 20).max(1);
    let shown = std::sync::atomic::AtomicU64::new(0);
    let enough = |tally: &model::machine::Tally| {
        let now = tally.states();
        if states < u64::MAX && shown.fetch_max(now / step, std::sync::atomic::Ordering::Relaxed) < now / step {
            println!("{now} states");
        }
        now >= states
    };
    let result = campaign(first..end, Kind::Crashes, enough);
    println!(
        "{} crash states, of {} seeds: {:.0} s",
        result.tally.states(),
        result.seeds,
        result.seconds
    );
    for (phase, name) in PHASE_NAMES.iter().enumerate() {
        let (killed, power_lost) = (result.tally.killed[phase], result.tally.power_lost[phase]);
        println!("  {name:20} {killed:9} after a kill, {power_lost:9} after a power loss");
    }
    let mut entry = summary(&result, Kind::Crashes);
    entry["states"] = json!(result.tally.states());
    entry["kill"] = by_phase(&result.tally.killed);
    entry["power_loss"] = by_phase(&result.tally.power_lost);
    report["crashes"] = entry;
    said(&result, Kind::Crashes)
}

fn faults(report: &mut Value, scripts: u64) -> bool {
    let result = fail_each_call(0..scripts);
    println!(
        "{} storage calls failed, {} requests with them, {} crash states: {:.0} s",
        result.runs,
        result.tally.failed_requests,
        result.tally.states(),
        result.seconds
    );
    let failure = result.broken.as_ref().map(|broken| {
        let (seed, fault, message) = (broken.seed, broken.fault, &broken.message);
        format!("seed {seed}, {fault:?}: {message}")
    });
    if let Some(failure) = &failure {
        println!("{failure}");
    }
    let passed = failure.is_none();
    report["faults"] = json!({
        "scripts": scripts,
        "calls_failed": result.runs,
        "requests_failed": result.tally.failed_requests,
        "states": result.tally.states(),
        "seconds": result.seconds,
        "failure": failure,
    });
    passed
}

fn by_phase(states: &[u64]) -> Value {
    let phases = PHASE_NAMES.iter().zip(states);
    phases
        .map(|(name, states)| ((*name).to_owned(), json!(states)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn summary(result: &Campaign, kind: Kind) -> Value {
    json!({
        "seeds": result.seeds,
        "seconds": result.seconds,
        "requests": result.tally.requests,
        "reads_compared": result.tally.reads_checked,
        "snapshots_and_resizes": result.tally.changes,
        "storage_operations": result.tally.operations,
        "failure": result.failure.as_ref().map(|failed| json!({
            "seed": failed.seed,
            "message": failed.failure.message,
            "test": failed.text(kind),
        })),
    })
}

/// Prints what failed. Returns whether nothing did.
fn said(result: &Campaign, kind: Kind) -> bool {
    if let Some(failed) = &result.failure {
        println!("{}", failed.text(kind));
    }
    result.failure.is_none()
}

#[cfg(feature = "planted-bugs")]
fn planted_bugs(report: &mut Value, most: u64, only: Option<&str>) -> bool {
    use disk::planted_bug::Bug;
    let mut rows = Vec::new();
    let mut passed = true;
    println!("| where | bug | caught by script | as |\n|---|---|---|---|");
    let is_wanted = |bug: &&Bug| only.is_none_or(|name| format!("{bug:?}") == name);
    for &bug in Bug::ALL.iter().filter(is_wanted) {
        let caught = model::planted::hunt(bug, most);
        passed &= caught.failure.is_some();
        let line = caught
            .failure
            .as_deref()
            .unwrap_or("NOT CAUGHT")
            .lines()
            .next()
            .unwrap_or_default();
        let line: String = line.chars().take(110).collect();
        println!(
            "| {} | {} | {} | {} |",
            bug.place(),
            bug.what(),
            caught.scripts,
            line.replace('|', "/")
        );
        rows.push(json!({
            "bug": format!("{bug:?}"),
            "place": bug.place(),
            "what": bug.what(),
            "caught": caught.failure.is_some(),
            "scripts": caught.scripts,
            "seconds": caught.seconds,
            "as": caught.failure,
        }));
    }
    report["planted_bugs"] = json!({ "most_scripts": most, "bugs": rows });
    passed
}

#[cfg(not(feature = "planted-bugs"))]
fn planted_bugs(_: &mut Value, _: u64, _: Option<&str>) -> bool {
    eprintln!("error: this was built without the feature planted-bugs");
    false
}

fn write_report(folder: &Path, report: &Value) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join("simulate.json");
    std::fs::write(&path, format!("{report:#}\n"))?;
    println!("{}", path.display());
    Ok(())
}
