//! `cargo xtask boot`, as a person calls it.

use std::process::{Command, Output};

fn boot(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["boot", "--image", "tiny"]).args(arguments);
    command.output().unwrap()
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn exec_prints_the_output_alone_and_exits_as_the_command_does() {
    let output = boot(&["--exec", "echo out; exit 42"]);

    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(42), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    assert!(stderr.contains("Times: set-up"), "{stderr}");
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn kept_disk_remembers_and_fresh_overlay_forgets() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().to_str().unwrap();
    let look = "cat /root/note 2>/dev/null || echo nothing";

    let fresh = boot(&["--exec", "echo hello >/root/note"]);
    let first = boot(&[
        "--keep",
        "--kept-disks",
        kept,
        "--exec",
        &format!("{look}; echo hello >/root/note"),
    ]);
    let second = boot(&["--keep", "--kept-disks", kept, "--exec", look]);

    assert_eq!(
        fresh.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&fresh.stderr)
    );
    assert_eq!(
        String::from_utf8_lossy(&first.stdout),
        "nothing\n",
        "{}",
        String::from_utf8_lossy(&first.stderr)
    );
    assert_eq!(
        String::from_utf8_lossy(&second.stdout),
        "hello\n",
        "{}",
        String::from_utf8_lossy(&second.stderr)
    );
    system_tests::check_image(&folder.path().join("tiny.qcow2")).unwrap();
}

#[test]
fn shell_without_a_terminal_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("boot")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();

    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--exec"));
}
