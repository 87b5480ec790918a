//! What a user can get wrong ends in one clear line, before anything runs.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

fn run(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spindle"))
        .current_dir(directory)
        .env_remove("SPINDLE_LOG")
        .arg("run")
        .args(arguments)
        .output()
        .expect("spindle starts")
}

/// Files with names that say what they are.
fn files() -> TempDir {
    let directory = tempfile::tempdir().expect("temporary directory");
    let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).expect("written");
    write("text", b"just some words\n");
    write("empty", b"");
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    write("elf-of-no-machine", &elf);
    write("elf-cut-off", &elf[..20]);
    write("bare", &bare_metal());
    write("raw", &[0; 1 << 20]);
    write("odd", &[0; 2560]);
    directory
}

fn bare_metal() -> Vec<u8> {
    use guest_images::bare_metal::{BareMetalGuest, Mode, PowerOff};
    let mut guest = BareMetalGuest::new(Mode::Pvh, PowerOff::acpi(0x604, 0)).expect("an assembler");
    guest.power_off().expect("a step");
    guest.build().expect("a guest")
}

#[test]
fn a_wrong_file_is_one_line_and_exit_code_1() {
    let directory = files();
    let cases: [(&[&str], &str); 15] = [
        (
            &["--kernel", "absent"],
            "Cannot read the kernel \"absent\": No such file",
        ),
        (&["--kernel", "."], "Cannot read the kernel \".\": is a directory"),
        (
            &["--kernel", "text"],
            "\"text\" is not a kernel: expected a Linux bzImage",
        ),
        (&["--kernel", "empty"], "found an empty file"),
        (&["--kernel", "elf-of-no-machine"], "e_machine at offset 0x12 is 0x0"),
        (&["--kernel", "elf-cut-off"], "is it truncated?"),
        (
            &["--kernel", "bare", "--initrd", "absent"],
            "Cannot read the initrd \"absent\"",
        ),
        (
            &["--kernel", "bare", "--initrd", "empty"],
            "The initrd \"empty\" is empty",
        ),
        (&["--kernel", "bare", "--disk", "absent"], "absent"),
        (&["--kernel", "bare", "--disk", "raw"], "raw"),
        (&["--kernel", "bare", "--cdrom", "absent.iso"], "absent.iso"),
        (
            &["--kernel", "bare", "--cdrom", "."],
            ".: Neither a regular file nor a block device",
        ),
        (
            &["--kernel", "bare", "--cdrom", "odd"],
            "odd is no image of a disc: 2560 bytes are not one or more whole blocks of 2048 bytes",
        ),
        (
            &["--kernel", "bare", "--cdrom", "empty"],
            "empty is no image of a disc: 0 bytes are not one or more",
        ),
        (
            &["--kernel", "bare", "--console", "file:absent/log"],
            "Cannot create the console file \"absent/log\"",
        ),
    ];
    for (arguments, expected) in cases {
        let output = run(directory.path(), arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        assert!(errors.starts_with("spindle: error: "), "{arguments:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_wrong_argument_is_exit_code_2() {
    let directory = files();
    let cases: [(&[&str], &str); 12] = [
        (&[], "--kernel"),
        (&["--kernel", "bare", "--memory", "512"], "say for example 512M or 2G"),
        (&["--kernel", "bare", "--memory", "1M"], "16M to 1024G"),
        (&["--kernel", "bare", "--cpus", "0"], "0 is not in 1..=255"),
        (
            &["--kernel", "bare", "--console", "tty"],
            "say stdio, file:PATH or null",
        ),
        (&["--kernel", "bare", "--disk", "raw,format=vdi"], "say qcow2 or raw"),
        (
            &["--kernel", "bare", "--disk", "raw,slot=hda", "--disk", "raw,slot=hda"],
            "two disks are for slot hda",
        ),
        (
            &["--kernel", "bare", "--disk", "raw,root", "--disk", "raw,root"],
            "two disks are marked",
        ),
        (
            &["--kernel", "bare", "--disk", "raw,slot=hdc", "--cdrom", "odd"],
            "slot hdc is the CD-ROM drive's",
        ),
        (
            &["--kernel", "bare", "--cdrom", "odd,readonly"],
            "unknown option \"readonly\"",
        ),
        (
            &["--kernel", "bare", "--cdrom", "odd,slot=hde"],
            "there is no slot \"hde\"",
        ),
        (&["--kernel", "bare", "--frobnicate"], "--frobnicate"),
    ];
    for (arguments, expected) in cases {
        let output = run(directory.path(), arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
    }
}

#[test]
fn a_command_line_that_is_too_long_is_counted() {
    let directory = files();
    let words = "x".repeat(2040);

    let output = run(directory.path(), &["--kernel", "bare", "--append", &words]);

    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    // "console=ttyS0 " comes before the words.
    assert!(errors.contains("has 2054 bytes; this kernel takes 2047"), "{errors}");
}

#[test]
fn help_names_every_exit_code() {
    let output = run(Path::new("."), &["--help"]);

    let help = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0));
    for line in vmm::exit_code::HELP.lines() {
        assert!(help.contains(line.trim()), "{line}");
    }
}
