//! A host that fails a request pauses the machine, and the guest goes on as if the disk had been slow.

mod spindle;

use std::fs;
use std::process::Command;

use devices::piix4::power_management::{PM1A_CONTROL_PORT, SLEEP_TYPE_S5};
use guest_images::bare_metal::libata::{self, Channel, Direction};
use guest_images::bare_metal::{BareMetalGuest, Mode, PowerOff};
use iced_x86::IcedError;

use spindle::{Running, Spindle};

const CHANNEL: Channel = Channel::PRIMARY;
const PATTERN: u32 = 0x40_0000;
const BUFFER: u32 = 0x41_0000;
const SECTORS: u16 = 128;
const DWORDS: u32 = SECTORS as u32 * 512 / 4;
/// How many blocks the guest writes: 4 MiB.
const BLOCKS: u32 = 64;
/// Enough for the image's tables, and less than all blocks, in bytes.
const ROOM: u64 = 1 << 20;

fn guest(steps: impl FnOnce(&mut BareMetalGuest) -> Result<(), IcedError>) -> Vec<u8> {
    let power_off = PowerOff::acpi(PM1A_CONTROL_PORT, SLEEP_TYPE_S5);
    let mut guest = BareMetalGuest::new(Mode::Pvh, power_off).expect("an assembler");
    steps(&mut guest).expect("steps that assemble");
    guest.build().expect("a guest that assembles")
}

/// Waits for a byte of input, writes all blocks, flushes, and reads the last one back.
fn writer() -> Vec<u8> {
    guest(|guest| {
        guest.fill32(PATTERN, DWORDS, 0x0403_0201, 0x0101_0107)?;
        guest.store32(CHANNEL.lba(), 0)?;
        guest.print("ready\n")?;
        guest.echo(1)?;
        libata::repeat(guest, CHANNEL, BLOCKS, |guest| {
            libata::advance(guest, CHANNEL, SECTORS, 1 << 15)?;
            libata::transfer(guest, CHANNEL, Direction::Write, SECTORS, PATTERN)
        })?;
        libata::flush(guest, CHANNEL)?;
        libata::transfer(guest, CHANNEL, Direction::Read, SECTORS, BUFFER)?;
        guest.expect_equal32(PATTERN, BUFFER, DWORDS, "what was read back")?;
        guest.print("OK\n")?;
        guest.power_off()
    })
}

/// Sets how large files may grow that the process writes; only the soft limit, so that it can be raised again.
fn limit_file_size(running: &Running, bytes: &str) {
    let status = Command::new("prlimit")
        .arg(format!("--pid={}", running.id()))
        .arg(format!("--fsize={bytes}:"))
        .status()
        .expect("prlimit (Debian package util-linux) runs");
    assert!(status.success());
}

#[test]
fn a_guest_goes_on_after_space_was_made() {
    let image = writer();
    for aio in ["io_uring", "threads"] {
        let disk = spindle::qcow2(64 << 20);
        let mut running = Spindle::new(&image)
            .disk(disk.path())
            .arguments(&["--aio", aio])
            .start();
        running.wait_for("ready\n");
        limit_file_size(&running, &ROOM.to_string());
        running.type_text("x");

        running.wait_for_error("spindle: paused: disk hda: ");
        // Nobody has made space: it pauses again.
        running.signal(libc::SIGCONT);
        running.wait_for_error("spindle: going on");
        running.wait_for_errors("spindle: paused: disk hda: ", 2);
        limit_file_size(&running, "unlimited");
        running.signal(libc::SIGCONT);
        let outcome = running.finish();

        assert_eq!(
            (outcome.console.as_str(), outcome.code),
            ("ready\nxOK\n", Some(0)),
            "{aio}: {outcome:?}"
        );
        assert!(outcome.errors.contains("no space left"), "{aio}: {outcome:?}");
        assert!(fs::metadata(disk.path()).expect("the image").len() > ROOM);
        let check = Command::new("qemu-img").arg("check").arg(disk.path()).output();
        let check = check.expect("qemu-img runs");
        assert!(check.status.success(), "{aio}: {check:?}");
        let first = spindle::contents(disk.path(), usize::from(SECTORS) * 512, 4);
        assert_eq!(first, [1, 2, 3, 4], "{aio}");
    }
}

#[test]
fn a_paused_machine_ends_on_a_signal() {
    let disk = spindle::qcow2(64 << 20);
    let mut running = Spindle::new(&writer())
        .disk(disk.path())
        .arguments(&["--cpus", "2"])
        .start();
    running.wait_for("ready\n");
    limit_file_size(&running, &ROOM.to_string());
    running.type_text("x");
    running.wait_for_error("spindle: paused: disk hda: ");
    limit_file_size(&running, "unlimited");

    running.signal(libc::SIGTERM);
    let outcome = running.finish();

    assert_eq!(outcome.code, Some(128 + libc::SIGTERM), "{outcome:?}");
    assert_eq!(outcome.console, "ready\nx", "{outcome:?}");
}

#[test]
fn a_failed_read_is_made_again_where_the_policy_says_so() {
    let image = guest(|guest| {
        guest.store32(CHANNEL.lba(), 8)?;
        libata::transfer(guest, CHANNEL, Direction::Read, SECTORS, BUFFER)?;
        guest.print("OK\n")?;
        guest.power_off()
    });
    let disk = spindle::qcow2(1 << 20);
    let with = |times: &str, policy: &str| format!("{},inject=read:eio{times},rerror={policy}", disk.path().display());

    let stopped = Spindle::new(&image)
        .arguments(&["--disk", &with(":times=1", "stop")])
        .start();
    stopped.wait_for_error("spindle: paused: disk hda: ");
    stopped.signal(libc::SIGCONT);
    let outcome = stopped.finish();
    assert_eq!(
        (outcome.console.as_str(), outcome.code),
        ("OK\n", Some(0)),
        "{outcome:?}"
    );

    let reported = Spindle::new(&image).arguments(&["--disk", &with("", "report")]).run();
    assert_eq!(
        reported.console, "FAILED: the status after the command\n",
        "{reported:?}"
    );
}

#[test]
fn a_write_that_finds_no_space_is_reported_where_the_policy_says_so() {
    let disk = spindle::qcow2(64 << 20);
    let argument = format!("{},werror=report", disk.path().display());
    let mut running = Spindle::new(&writer()).arguments(&["--disk", &argument]).start();
    running.wait_for("ready\n");
    limit_file_size(&running, &ROOM.to_string());
    running.type_text("x");
    running.wait_for("FAILED: the status after the command\n");
    limit_file_size(&running, "unlimited");
    let outcome = running.finish();

    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(!outcome.errors.contains("paused"), "{outcome:?}");
}
