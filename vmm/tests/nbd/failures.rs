//! Clients and servers that are killed in the middle of it.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use crate::served::{Workshop, text};

/// Only catches what hangs.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits until so many bytes have reached the image.
fn wait_for_growth(workshop: &Workshop, bytes: u64) {
    let start = Instant::now();
    while fs::metadata(workshop.file("disk.qcow2")).expect("there").len() < bytes {
        assert!(start.elapsed() < PATIENCE, "the image does not grow");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A copy of 256 MiB, which is far from done when the first of them have arrived.
fn start_copy(workshop: &Workshop, uri: &str) -> std::process::Child {
    let file = fs::File::create(workshop.file("source.raw")).expect("created");
    let block = [7; 1 << 20];
    for _ in 0..256 {
        std::io::Write::write_all(&mut &file, &block).expect("written");
    }
    workshop.spawn("nbdcopy", &["--connections=4", "source.raw", uri])
}

#[test]
fn a_client_that_is_killed_in_mid_flight_costs_nothing() {
    let workshop = Workshop::with_image("256M");
    let served = workshop.serve(&["--persistent"]);
    let mut copy = start_copy(&workshop, &served.uri);
    wait_for_growth(&workshop, 4 << 20);
    copy.kill().expect("killed");
    copy.wait().expect("an end");
    let io = [
        "-f",
        "raw",
        "-c",
        "write -P 3 0 1M",
        "-c",
        "read -P 3 0 1M",
        &served.uri,
    ];
    let after = workshop.run("qemu-io", &io);
    assert!(!after.contains("failed"), "{after}");
    served.end();
    workshop.check();
}

#[test]
fn a_server_that_is_told_to_end_finishes_what_is_in_flight() {
    let workshop = Workshop::with_image("256M");
    let served = workshop.serve(&["--persistent"]);
    let copy = start_copy(&workshop, &served.uri);
    wait_for_growth(&workshop, 4 << 20);
    served.end();
    // Whatever came of the copy, which hardly was done yet.
    copy.wait_with_output().expect("an end");
    workshop.check();
}

#[test]
fn a_write_that_completed_outlives_a_server_that_is_killed() {
    const WRITES: u64 = 3000;
    let workshop = Workshop::with_image("1G");
    let served = workshop.serve(&["--persistent"]);
    // Scattered, so that nearly each one allocates, and none flushed.
    let offset = |write: u64| write * 7919 % 16384 * 65536;
    let mut arguments = vec![
        "-f".to_owned(),
        "raw".to_owned(),
        "-t".to_owned(),
        "writeback".to_owned(),
    ];
    for write in 0..WRITES {
        let pattern = write % 255 + 1;
        arguments.extend(["-c".to_owned(), format!("write -P {pattern} {} 4k", offset(write))]);
    }
    arguments.push(served.uri.clone());
    let client = workshop.spawn("qemu-io", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    wait_for_growth(&workshop, 20 << 20);
    served.signal("-KILL");
    assert_eq!(served.wait().code(), None, "killed");
    // It says of each write whether it completed.
    let output = text(&client.wait_with_output().expect("an end"));
    let completed: HashSet<u64> = output
        .lines()
        .filter_map(|line| line.strip_prefix("wrote 4096/4096 bytes at offset "))
        .map(|offset| offset.parse().expect("a number"))
        .collect();
    assert!(completed.len() > 100, "some had completed: {output}");

    let served = workshop.serve(&["--persistent"]);
    let mut arguments = vec!["-f".to_owned(), "raw".to_owned()];
    for write in (0..WRITES).filter(|write| completed.contains(&offset(*write))) {
        arguments.extend([
            "-c".to_owned(),
            format!("read -P {} {} 4k", write % 255 + 1, offset(write)),
        ]);
    }
    arguments.push(served.uri.clone());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = workshop.run("qemu-io", &arguments);
    assert!(!output.contains("failed"), "{output}");
    served.end();
    workshop.check();
}
