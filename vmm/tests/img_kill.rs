//! A process that was killed while it wrote: `spindle img` sees its image as the process saw it, and brings it in order offline.

mod img;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use disk::{Engine, EngineOptions, Format, OpenOptions};
use img::{qemu_img, spindle};

/// Only to catch what would never end.
const PATIENCE: Duration = Duration::from_secs(300);

/// Starts writing to `image.qcow2`, and waits until a good deal of it was written.
fn start_writing(directory: &Path) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_spindle"))
        .args([
            "img",
            "bench",
            "-w",
            "-c",
            "2000000000",
            "-d",
            "8",
            "-s",
            "4k",
            "-S",
            "36k",
            "--pattern",
            "90",
            "-f",
            "qcow2",
            "image.qcow2",
        ])
        .current_dir(directory)
        .stdout(Stdio::null())
        .spawn()
        .expect("spindle starts");
    let start = Instant::now();
    while fs::metadata(directory.join("image.qcow2")).expect("there").len() < 24 << 20 {
        assert!(start.elapsed() < PATIENCE, "nothing is written");
        std::thread::yield_now();
    }
    child
}

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn an_image_of_a_killed_process_is_read_checked_and_repaired_as_that_process_left_it() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path();
    let run = |arguments: &str| {
        let output = spindle(path, arguments);
        assert!(output.status.success(), "{arguments}: {}", text(&output));
        text(&output)
    };
    run("create -q -f qcow2 image.qcow2 256M");
    let mut child = start_writing(path);
    child.kill().expect("killed");
    child.wait().expect("ended");

    // What it wrote can be read although the image knows nothing of it yet: its tables were in memory.
    let by_qemu = qemu_img(path, "map --output=json -U image.qcow2");
    assert!(
        !String::from_utf8_lossy(&by_qemu.stdout).contains("\"data\": true"),
        "{by_qemu:?}"
    );
    let before = fs::read(path.join("image.qcow2")).expect("read");
    let map = run("map --output=json image.qcow2");
    assert!(map.contains("\"data\": true"), "{map}");
    run("convert -O raw image.qcow2 before.raw");
    let checked = spindle(path, "check image.qcow2");
    assert!(matches!(checked.status.code(), Some(0 | 3)), "{}", text(&checked));
    assert!(
        text(&checked).contains("slices of metadata that a killed process left in memory"),
        "{}",
        text(&checked)
    );
    assert!(
        fs::read(path.join("image.qcow2")).expect("read") == before,
        "reading must not write"
    );

    let repaired = run("check -r all image.qcow2");
    assert!(repaired.contains("was written into the image"), "{repaired}");
    let judged = qemu_img(path, "check image.qcow2");
    assert!(judged.status.success(), "{judged:?}");
    let same = qemu_img(path, "compare image.qcow2 before.raw");
    assert!(same.status.success(), "{same:?}");
    assert!(!run("check image.qcow2").contains("was not closed"));
}

#[test]
fn an_image_in_use_is_left_alone() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path();
    assert!(spindle(path, "create -q -f qcow2 image.qcow2 256M").status.success());
    let engine = Engine::new(EngineOptions::default()).expect("an engine");
    let options = OpenOptions::new(path.join("image.qcow2"), Format::Qcow2);
    engine.open(&options).expect("opens");
    for arguments in [
        "check -r all image.qcow2",
        "info image.qcow2",
        "create -f qcow2 image.qcow2 1M",
        "convert -O qcow2 image.qcow2 copy.qcow2",
        "resize image.qcow2 1G",
        "snapshot -c name image.qcow2",
        "rebase -u -b '' image.qcow2",
    ] {
        let output = spindle(path, arguments);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments}: {said}");
        assert!(said.contains("in use"), "{arguments}: {said}");
    }
    assert!(spindle(path, "info -U image.qcow2").status.success());
    engine.close().expect("closes");
    assert!(spindle(path, "check image.qcow2").status.success());
}

#[test]
fn a_copy_that_is_interrupted_leaves_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path();
    assert!(
        spindle(path, "create -q -f qcow2 -o preallocation=full image.qcow2 64M")
            .status
            .success()
    );
    fs::write(path.join("copy.qcow2"), b"what was there").expect("written");
    let input = fs::read(path.join("image.qcow2")).expect("read");
    for _ in 0..5 {
        // Compressing it all takes a while; it is stopped at the first chance.
        let mut child = Command::new("env")
            .args(["--default-signal=INT", env!("CARGO_BIN_EXE_spindle")])
            .args([
                "img",
                "convert",
                "-c",
                "-S",
                "0",
                "-O",
                "qcow2",
                "image.qcow2",
                "copy.qcow2",
            ])
            .current_dir(path)
            .spawn()
            .expect("spindle starts");
        let interrupted = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(interrupted.success());
        if child.wait().expect("ended").success() {
            // It was faster than the signal.
            fs::write(path.join("copy.qcow2"), b"what was there").expect("written");
            continue;
        }
        let names: Vec<_> = fs::read_dir(path)
            .expect("read")
            .flatten()
            .map(|file| file.file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(fs::read(path.join("copy.qcow2")).expect("read"), b"what was there");
        assert!(fs::read(path.join("image.qcow2")).expect("read") == input);
    }
}
