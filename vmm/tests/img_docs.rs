//! The examples in docs/img.md do what stands there.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Commands, and what they print; `...` in it stands for anything.
fn examples(text: &str) -> Vec<(String, Vec<String>)> {
    let mut examples: Vec<(String, Vec<String>)> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match (inside, line) {
            (false, "```console") => inside = true,
            (true, "```") => inside = false,
            (true, line) => match (line.strip_prefix("$ "), examples.last_mut()) {
                (Some(command), _) => examples.push((command.to_owned(), Vec::new())),
                (None, Some((_, output))) => output.push(line.to_owned()),
                (None, None) => panic!("output without a command: {line}"),
            },
            (false, _) => {}
        }
    }
    examples
}

fn fits(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split("...");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else {
        return false;
    };
    for part in parts {
        match rest.find(part) {
            _ if part.is_empty() => rest = "",
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

#[test]
fn examples_in_the_documentation_work() {
    let documentation = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/img.md");
    let text = fs::read_to_string(documentation).expect("the page is there");
    let directory = tempfile::tempdir().expect("directory");
    let binary = Path::new(env!("CARGO_BIN_EXE_spindle")).parent().expect("a folder");
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
    let examples = examples(&text);
    assert!(examples.len() > 15, "{} examples", examples.len());
    for (command, expected) in examples {
        let output = Command::new("sh")
            .args(["-c", &command])
            .current_dir(directory.path())
            .env("PATH", &path)
            .output()
            .expect("sh runs");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
        let lines: Vec<&str> = printed.lines().collect();
        let alike =
            lines.len() == expected.len() && expected.iter().zip(&lines).all(|(pattern, line)| fits(pattern, line));
        assert!(
            alike,
            "{command} prints\n{printed}{errors}\nand not\n{}",
            expected.join("\n")
        );
    }
}
