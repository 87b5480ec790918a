//! What campaigns found: JSON, one file each, and one page that joins them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use system_tests::workspace_folder;

mod chart;
mod page;

/// The files that the page is made of, in its order.
const PARTS: [&str; 3] = ["simulate", "crash", "power"];

/// Join the simulate.json, crash.json and power.json of a folder into one HTML page, report.html
///
/// `cargo xtask simulate`, `crash` and `power` write them with --report. The page needs no network to be viewed.
#[derive(clap::Args)]
pub struct Options {
    /// The folder
    folder: PathBuf,
}

/// Makes the page.
pub fn report(options: &Options) -> Result<ExitCode> {
    join(&options.folder)?;
    Ok(ExitCode::SUCCESS)
}

/// Makes `report.html` of what is in `folder`.
fn join(folder: &Path) -> Result<()> {
    let mut parts = Vec::new();
    for name in PARTS {
        let path = folder.join(format!("{name}.json"));
        match fs::read(&path) {
            Ok(bytes) => {
                let value: Value =
                    serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?;
                parts.push((name, value));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("Cannot read {}", path.display())),
        }
    }
    ensure!(
        !parts.is_empty(),
        "{} has none of {PARTS:?} with .json",
        folder.display()
    );
    let path = folder.join("report.html");
    fs::write(&path, page::render(&parts)).with_context(|| format!("Cannot write {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
}

/// Writes `NAME.json` into `folder`, where and of what it was made and `results`, and makes the page anew.
pub fn write(folder: &Path, name: &str, results: &impl serde::Serialize) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let path = folder.join(format!("{name}.json"));
    let value = json!({ "run": circumstances(), "results": results });
    fs::write(&path, serde_json::to_vec_pretty(&value)?).with_context(|| format!("Cannot write {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    join(folder)
}

/// Command, date, revision and machine.
fn circumstances() -> Value {
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(workspace_folder())
            .output();
        let output = output.ok().filter(|output| output.status.success());
        output.map_or_else(String::new, |output| {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        })
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    json!({
        "command": std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        "date": output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        "revision": output("git", &["describe", "--always", "--dirty"]),
        "kernel": output("uname", &["-sr"]),
        "cpu": cpu.map_or("", |(_, model)| model),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
    })
}
