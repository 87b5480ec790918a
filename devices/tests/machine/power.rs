//! Power modes and the standby timer.

use std::time::Duration;

use crate::driver::{Ata, Command, Machine, READY};

const ACTIVE: u8 = 0xff;
const IDLE: u8 = 0x80;
const STANDBY: u8 = 0x00;

fn mode(drive: &Ata<'_>) -> u8 {
    drive.run(&Command::new(0xe5)).expect("CHECK POWER MODE");
    drive.register(2)
}

#[test]
fn the_standby_timer_runs_out_and_a_transfer_starts_it_again() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    for (opcode, value, seconds) in [
        (0xe3, 12, 60),
        (0x97, 241, 1800),
        (0xe3, 252, 21 * 60),
        (0xe3, 255, 21 * 60 + 15),
    ] {
        drive.run(&Command::at(opcode, 0, value)).expect("IDLE");
        assert_eq!(mode(&drive), IDLE);
        machine.clock.advance(Duration::from_secs(seconds - 1));
        assert_eq!(mode(&drive), IDLE, "timer {value}");
        machine.clock.advance(Duration::from_secs(1));
        assert_eq!(mode(&drive), STANDBY, "timer {value}");
        drive.pio_read(&Command::at(0x20, 0, 1), 1, 1).expect("a read wakes");
        assert_eq!(mode(&drive), ACTIVE);
        machine.clock.advance(Duration::from_secs(seconds));
        assert_eq!(mode(&drive), STANDBY, "and it runs again");
    }
    // 0 switches it off.
    drive.run(&Command::at(0xe2, 0, 0)).expect("STANDBY");
    assert_eq!(mode(&drive), STANDBY);
    drive.pio_read(&Command::at(0x20, 0, 1), 1, 1).expect("a read wakes");
    machine.clock.advance(Duration::from_secs(1_000_000));
    assert_eq!(mode(&drive), ACTIVE);
}

#[test]
fn idle_immediate_unloads_the_heads_when_asked_to() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let unload = Command::at(0xe1, 0x55_4e4c, 0).features(0x44);
    drive.run(&unload).expect("IDLE IMMEDIATE with unload");
    assert_eq!((drive.register(3), mode(&drive)), (0xc4, IDLE));
    drive
        .run(&Command::at(0xe1, 0x55_4e4d, 0).features(0x44))
        .expect("not quite");
    assert_eq!(drive.register(3), 0x4d);
}

#[test]
fn going_to_standby_flushes() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    for (flushes, opcode) in (1..).zip([0xe0, 0xe2, 0x94, 0x96]) {
        drive.run(&Command::new(opcode)).expect("STANDBY");
        assert_eq!(drive.disk().flushes(), flushes);
    }
}

#[test]
fn sleep_ends_with_a_reset_only() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    for wake in [Ata::software_reset, |drive: &Ata<'_>| drive.machine.chipset.reset_ide()] {
        drive.run(&Command::new(0xe6)).expect("SLEEP");
        drive.issue(&Command::new(0xec));
        assert!(!drive.line.is_high());
        assert_eq!(drive.alternate_status(), READY);
        wake(&drive);
        assert_eq!(mode(&drive), ACTIVE);
    }
}
