//! What becomes of requests that the host fails: report, ignore, stop and go on.

use std::sync::{Arc, Mutex};

use devices::ide::error_policy::{ErrorPolicy, ReadErrorPolicy, Stop, WriteErrorPolicy};
use disk::DiskError;

use crate::driver::{ABRT, BSY, Command, DATA, Machine, READY, UNC, pattern};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn host_error(errno: i32) -> DiskError {
    DiskError::Io {
        operation: "write",
        offset: 0x1234,
        error: std::io::Error::from_raw_os_error(errno),
    }
}

/// A machine with this policy, and what it was asked to stop for.
fn machine(write: WriteErrorPolicy, read: ReadErrorPolicy) -> (Machine, Arc<Mutex<Vec<Stop>>>) {
    let machine = Machine::with_drives(&[0, 2], |_, config| config.error_policy = ErrorPolicy { write, read });
    let stops: Arc<Mutex<Vec<Stop>>> = Arc::default();
    let seen = stops.clone();
    machine.chipset.observe_stops(Box::new(move |stop| {
        seen.lock().expect("no panic").push(stop.clone());
    }));
    (machine, stops)
}

#[test]
fn a_full_host_stops_the_machine_and_the_write_is_made_again() {
    let (machine, stops) = machine(WriteErrorPolicy::default(), ReadErrorPolicy::default());
    let drive = machine.drive(2);
    let data = pattern(3, 0, 4);
    machine.put(DATA, &data);
    machine.put_table(&[(DATA, 4 * 512)]);
    let command = Command::extended(0x35, 50, 4);
    drive.issue_dma(&command, false);
    drive.disk().fail_next(host_error(ENOSPC));
    machine.settle();
    let stop = stops.lock().expect("no panic").pop().expect("asked to stop");
    assert_eq!((stop.slot, stop.no_space), ("hdc", true));
    assert!(stop.error.contains("0x1234"), "{}", stop.error);
    // To the guest it is a disk that takes its time.
    assert_eq!(drive.status() & BSY, BSY);
    assert!(!drive.line.is_high());
    assert_eq!(drive.disk().waiting(), 0);
    // Still no room.
    assert_eq!(machine.chipset.resume(), 1);
    drive.disk().fail_next(host_error(ENOSPC));
    machine.settle();
    assert_eq!(stops.lock().expect("no panic").len(), 1);
    // Now there is.
    assert_eq!(machine.chipset.resume(), 1);
    machine.settle();
    assert_eq!(drive.finish_dma(&command), Ok(()));
    assert_eq!(drive.disk().contents()[50 * 512..54 * 512], data);
    assert_eq!(machine.chipset.resume(), 0);
}

#[test]
fn other_write_errors_are_reported_by_default() {
    let (machine, stops) = machine(WriteErrorPolicy::default(), ReadErrorPolicy::default());
    let drive = machine.drive(0);
    drive.disk().fail_next(host_error(EIO));
    let failed = drive
        .dma_write(&Command::at(0xca, 9, 1), &[1; 512])
        .expect_err("the host failed");
    assert_eq!((failed.error, failed.lba), (ABRT, 9));
    drive.disk().fail_next(host_error(EIO));
    assert_eq!(drive.refused(&Command::new(0xe7)), ABRT);
    assert!(stops.lock().expect("no panic").is_empty());
}

#[test]
fn every_kind_of_request_can_stop_and_go_on() {
    let (machine, stops) = machine(WriteErrorPolicy::Stop, ReadErrorPolicy::Stop);
    let drive = machine.drive(0);
    let retried = |what: &str| {
        machine.settle();
        assert_eq!(stops.lock().expect("no panic").drain(..).count(), 1, "{what} stops");
        assert_eq!(drive.alternate_status() & BSY, BSY);
        assert_eq!(machine.chipset.resume(), 1, "{what} goes on");
        machine.settle();
    };
    // A read by DMA, and by PIO.
    machine.put_table(&[(DATA, 8 * 512)]);
    let command = Command::at(0xc8, 20, 8);
    drive.disk().fail_next(host_error(EIO));
    drive.issue_dma(&command, true);
    retried("READ DMA");
    assert_eq!(drive.finish_dma(&command), Ok(()));
    assert_eq!(machine.get(DATA, 8 * 512), pattern(0, 20, 8));
    let command = Command::at(0x20, 21, 1);
    drive.disk().fail_next(host_error(EIO));
    drive.issue(&command);
    retried("READ SECTORS");
    let mut bytes = vec![0; 512];
    machine.bus.read(drive.command, 2, &mut bytes);
    assert_eq!(bytes, pattern(0, 21, 1));
    assert_eq!(drive.status(), READY);
    // A write by PIO.
    let command = Command::at(0x30, 22, 1);
    drive.issue(&command);
    drive.disk().fail_next(host_error(EIO));
    machine.bus.write(drive.command, 2, &[0x77; 512]);
    retried("WRITE SECTORS");
    assert_eq!(drive.outcome(&command), Ok(()));
    assert_eq!(drive.disk().contents()[22 * 512..23 * 512], [0x77; 512]);
    // A flush.
    let command = Command::new(0xe7);
    drive.disk().fail_next(host_error(EIO));
    drive.issue(&command);
    retried("FLUSH CACHE");
    assert_eq!(drive.outcome(&command), Ok(()));
    // TRIM.
    let mut ranges = vec![0; 512];
    ranges[..8].copy_from_slice(&(30u64 | 2 << 48).to_le_bytes());
    machine.put(DATA, &ranges);
    machine.put_table(&[(DATA, 512)]);
    let command = Command::extended(0x06, 0, 1).features(1);
    drive.disk().fail_next(host_error(EIO));
    drive.issue_dma(&command, false);
    retried("TRIM");
    assert_eq!(drive.finish_dma(&command), Ok(()));
    assert_eq!(drive.disk().contents()[30 * 512..32 * 512], [0; 1024]);
}

#[test]
fn ignored_errors_look_like_success() {
    let (machine, stops) = machine(WriteErrorPolicy::Ignore, ReadErrorPolicy::Ignore);
    let drive = machine.drive(0);
    for errno in [EIO, ENOSPC] {
        drive.disk().fail_next(host_error(errno));
        assert_eq!(drive.dma_write(&Command::at(0xca, 9, 1), &[1; 512]), Ok(()));
        drive.disk().fail_next(host_error(errno));
        assert!(drive.dma_read(&Command::at(0xc8, 9, 1), 1).is_ok());
        drive.disk().fail_next(host_error(errno));
        assert_eq!(drive.run(&Command::new(0xe7)), Ok(()));
    }
    assert!(stops.lock().expect("no panic").is_empty());
}

#[test]
fn a_reset_drops_the_request_that_waits() {
    let (machine, stops) = machine(WriteErrorPolicy::Stop, ReadErrorPolicy::Stop);
    let drive = machine.drive(0);
    let before = drive.disk().contents();
    machine.put_table(&[(DATA, 512)]);
    drive.disk().fail_next(host_error(EIO));
    drive.issue_dma(&Command::at(0xca, 9, 1), false);
    machine.settle();
    assert_eq!(stops.lock().expect("no panic").len(), 1);
    drive.software_reset();
    machine.outb(drive.bus_master, 0);
    assert_eq!(drive.status(), READY, "there is nothing to wait for");
    assert_eq!(machine.chipset.resume(), 0);
    assert_eq!(drive.disk().contents(), before);
    // So does a stop of the bus master.
    drive.disk().fail_next(host_error(EIO));
    let command = Command::at(0xca, 9, 1);
    drive.issue_dma(&command, false);
    machine.settle();
    machine.outb(drive.bus_master, 0);
    assert_eq!(drive.finish_dma(&command).map_err(|failed| failed.error), Err(ABRT));
    assert_eq!(machine.chipset.resume(), 0);
}

#[test]
fn without_anybody_to_stop_the_machine_errors_are_reported() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.disk().fail_next(host_error(ENOSPC));
    assert_eq!(
        drive
            .dma_write(&Command::at(0xca, 9, 1), &[1; 512])
            .map_err(|failed| failed.error),
        Err(ABRT)
    );
}

#[test]
fn an_error_that_stays_is_reported_once_the_policy_says_so() {
    let (machine, stops) = machine(WriteErrorPolicy::Report, ReadErrorPolicy::Report);
    let drive = machine.drive(0);
    drive.disk().spoil(70, EIO);
    let failed = drive.dma_read(&Command::at(0xc8, 64, 16), 16).expect_err("bad");
    assert_eq!((failed.error, failed.lba), (UNC, 70));
    assert!(stops.lock().expect("no panic").is_empty());
}
