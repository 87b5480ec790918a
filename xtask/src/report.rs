//! What campaigns found, as JSON, one file each.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use system_tests::workspace_folder;

/// Writes `NAME.json` into `folder`: where and of what it was made, and `results`.
pub fn write(folder: &Path, name: &str, results: &impl serde::Serialize) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let path = folder.join(format!("{name}.json"));
    let value = json!({ "run": circumstances(), "results": results });
    fs::write(&path, serde_json::to_vec_pretty(&value)?).with_context(|| format!("Cannot write {}", path.display()))?;
    eprintln!("wrote {}", path.display());
    Ok(())
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
