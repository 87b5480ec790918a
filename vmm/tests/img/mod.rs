//! Runs `spindle img` and `qemu-img` with the same arguments on the same images, and compares what comes of it.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod images;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// What must be equal.
#[derive(Clone, Copy, Debug)]
pub enum Judge {
    /// Exit code and standard output.
    Text,
    /// Exit code, and each field of the JSON on standard output that both have.
    Json,
    /// Exit code.
    Code,
    /// Exit code, standard output up to the time that it took, and that nothing was read wrong.
    Bench,
    /// Exit code, standard output, and these files as QEMU's tools see them. Works on copies.
    Writes(&'static [&'static str]),
    /// The same without standard output.
    WritesSilently(&'static [&'static str]),
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub arguments: &'static str,
    pub judge: Judge,
}

/// The arguments in a row; `''` is an empty one.
fn words(arguments: &str) -> Vec<&str> {
    arguments
        .split_whitespace()
        .map(|word| if word == "''" { "" } else { word })
        .collect()
}

pub fn spindle(directory: &Path, arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spindle"))
        .arg("img")
        .args(words(arguments))
        .current_dir(directory)
        .output()
        .expect("spindle runs")
}

pub fn qemu_img(directory: &Path, arguments: &str) -> Output {
    Command::new("qemu-img")
        .args(words(arguments))
        .current_dir(directory)
        .output()
        .expect("qemu-img runs")
}

/// Runs the row with both programs. Returns what differs.
pub fn judge(row: &Row, images: &Path) -> Result<(), String> {
    let (ours, theirs) = match row.judge {
        Judge::Writes(_) | Judge::WritesSilently(_) | Judge::Bench | Judge::Code => {
            let copy = || {
                let directory = tempfile::tempdir().expect("directory");
                images::copy_all(images, directory.path());
                directory
            };
            (Some(copy()), Some(copy()))
        }
        _ => (None, None),
    };
    let our_directory = ours.as_ref().map_or(images, tempfile::TempDir::path);
    let their_directory = theirs.as_ref().map_or(images, tempfile::TempDir::path);
    let our = spindle(our_directory, row.arguments);
    let their = qemu_img(their_directory, row.arguments);
    let shown = || {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        format!(
            "\n--- spindle img\n{}{}--- qemu-img\n{}{}",
            text(&our.stdout),
            text(&our.stderr),
            text(&their.stdout),
            text(&their.stderr)
        )
    };
    if our.status.code() != their.status.code() {
        return Err(format!("exit codes {:?} and {:?}{}", our.status, their.status, shown()));
    }
    match row.judge {
        Judge::Code => Ok(()),
        Judge::Text => equal(&our.stdout, &their.stdout).map_err(|error| error + &shown()),
        Judge::Json => json_equal(&our.stdout, &their.stdout).map_err(|error| error + &shown()),
        Judge::Bench => {
            equal(&without_time(&our.stdout), &without_time(&their.stdout)).map_err(|error| error + &shown())
        }
        Judge::Writes(files) => {
            if row.arguments.contains("--output=json") {
                json_equal(&our.stdout, &their.stdout).map_err(|error| error + &shown())?;
            } else {
                equal(&our.stdout, &their.stdout).map_err(|error| error + &shown())?;
            }
            files_equal(our_directory, their_directory, files)
        }
        Judge::WritesSilently(files) => files_equal(our_directory, their_directory, files),
    }
}

fn equal(ours: &[u8], theirs: &[u8]) -> Result<(), String> {
    if ours == theirs {
        Ok(())
    } else {
        Err("standard output differs".into())
    }
}

fn without_time(output: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(output);
    let lines = text.lines().map(|line| match line.strip_prefix("Run completed in ") {
        Some(_) => "Run completed",
        None => line,
    });
    lines.collect::<Vec<_>>().join("\n").into_bytes()
}

fn json_equal(ours: &[u8], theirs: &[u8]) -> Result<(), String> {
    if ours.is_empty() && theirs.is_empty() {
        return Ok(());
    }
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).map_err(|error| format!("no JSON: {error}"));
    values_equal(&parse(ours)?, &parse(theirs)?, "", &[])
}

/// Compares all that both have, but for the fields named in `except`.
fn values_equal(ours: &Value, theirs: &Value, place: &str, except: &[&str]) -> Result<(), String> {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (name, our) in ours.iter().filter(|(name, _)| !except.contains(&name.as_str())) {
                if let Some(their) = theirs.get(name) {
                    values_equal(our, their, &format!("{place}/{name}"), except)?;
                }
            }
            Ok(())
        }
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            for (index, (our, their)) in ours.iter().zip(theirs).enumerate() {
                values_equal(our, their, &format!("{place}/{index}"), except)?;
            }
            Ok(())
        }
        _ if ours == theirs => Ok(()),
        _ => Err(format!("{place} is {ours} and {theirs}")),
    }
}

/// The files are there or not, and mean the same to QEMU's tools.
fn files_equal(ours: &Path, theirs: &Path, files: &[&str]) -> Result<(), String> {
    for name in files {
        let (our, their) = (ours.join(name), theirs.join(name));
        if our.exists() != their.exists() {
            return Err(format!("{name} is there: {} and {}", our.exists(), their.exists()));
        }
        if !our.exists() {
            continue;
        }
        let info = |directory: &Path| {
            let output = qemu_img(directory, &format!("info --output=json {name}"));
            serde_json::from_slice::<Value>(&output.stdout).unwrap_or(Value::Null)
        };
        let except = ["actual-size", "children", "date-sec", "date-nsec", "icount"];
        values_equal(&info(ours), &info(theirs), name, &except)?;
        let is_qcow2 = fs::read(&our).is_ok_and(|bytes| bytes.starts_with(b"QFI\xfb"));
        if is_qcow2 {
            let code = |directory: &Path| qemu_img(directory, &format!("check {name}")).status.code();
            let codes = (code(ours), code(theirs));
            if codes.0 != codes.1 {
                return Err(format!("qemu-img check {name} says {codes:?}"));
            }
        }
        let compared = Command::new("qemu-img")
            .arg("compare")
            .args([&our, &their])
            .output()
            .expect("runs");
        if !compared.status.success() {
            let text =
                String::from_utf8_lossy(&compared.stdout).into_owned() + &String::from_utf8_lossy(&compared.stderr);
            return Err(format!("{name}: {text}"));
        }
        let leftovers = fs::read_dir(ours).expect("readable").flatten();
        if let Some(file) = leftovers
            .into_iter()
            .find(|file| file.file_name().to_string_lossy().starts_with('.'))
        {
            return Err(format!("{:?} is left over", file.file_name()));
        }
    }
    Ok(())
}

/// The version whose words and options the rows have; others print other lines here and there.
const VERSION: &str = "qemu-img version 10.0.";

/// The rows as this machine's qemu-img can judge them: another version by exit codes, JSON and results only.
fn rows_for_this_qemu(rows: &[Row]) -> Vec<Row> {
    let version = Command::new("qemu-img")
        .arg("--version")
        .output()
        .expect("qemu-img runs");
    if String::from_utf8_lossy(&version.stdout).starts_with(VERSION) {
        return rows.to_vec();
    }
    // Short options that are new in version 10.
    let is_new = |row: &Row| ["info -b", "map -s"].iter().any(|new| row.arguments.starts_with(new));
    let lenient = |row: &Row| Row {
        judge: match row.judge {
            Judge::Text | Judge::Bench => Judge::Code,
            Judge::Writes(files) => Judge::WritesSilently(files),
            other => other,
        },
        ..*row
    };
    rows.iter().filter(|row| !is_new(row)).map(lenient).collect()
}

/// Judges all rows, several at a time. Panics with all that differs.
pub fn judge_all(rows: &[Row]) {
    let rows = &rows_for_this_qemu(rows)[..];
    let images = images::make();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let failures = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(row) = rows.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    if let Err(difference) = judge(row, images.path()) {
                        let failure = format!("=== {}\n{difference}", row.arguments);
                        failures.lock().expect("no panic").push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no panic");
    assert!(
        failures.is_empty(),
        "{} of {} rows differ\n{}",
        failures.len(),
        rows.len(),
        failures.join("\n")
    );
}
