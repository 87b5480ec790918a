//! SECURITY: passwords, locks, erasing.

use std::sync::{Arc, Mutex};

use devices::ide::ata::NonVolatile;

use crate::driver::{ABRT, Ata, Command, DATA, Failed, Machine, SECTORS, pattern};

const SET_PASSWORD: u8 = 0xf1;
const UNLOCK: u8 = 0xf2;
const ERASE_PREPARE: u8 = 0xf3;
const ERASE_UNIT: u8 = 0xf4;
const FREEZE_LOCK: u8 = 0xf5;
const DISABLE_PASSWORD: u8 = 0xf6;

const USER: u16 = 0;
const MASTER: u16 = 1;
const MAXIMUM: u16 = 0x100;

fn sector(control: u16, password: &[u8], revision: u16) -> Vec<u8> {
    let mut sector = vec![0; 512];
    sector[..2].copy_from_slice(&control.to_le_bytes());
    sector[2..2 + password.len()].copy_from_slice(password);
    sector[34..36].copy_from_slice(&revision.to_le_bytes());
    sector
}

fn give(drive: &Ata<'_>, opcode: u8, control: u16, password: &[u8]) -> Result<(), Failed> {
    drive.give(&Command::new(opcode), &sector(control, password, 0))
}

fn aborted(outcome: Result<(), Failed>) -> bool {
    outcome.map_err(|failed| failed.error) == Err(ABRT)
}

/// A drive whose user password is "user", after power-on.
fn locked(level: u16) -> Machine {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    give(&drive, SET_PASSWORD, USER | level, b"user").expect("SECURITY SET PASSWORD");
    assert_eq!(drive.identify()[128] & 7, 3, "enabled, but not locked before power-on");
    assert_eq!(drive.identify()[85] & 2, 2);
    machine.chipset.reset_ide();
    assert_eq!(drive.identify()[128] & 7, 7);
    machine
}

#[test]
fn a_locked_drive_gives_away_nothing() {
    let machine = locked(0);
    let drive = machine.drive(0);
    let before = drive.disk().contents();
    machine.put_table(&[(DATA, 512)]);
    for command in [
        Command::at(0x20, 0, 1),
        Command::at(0xc4, 0, 1),
        Command::at(0xc8, 0, 1),
        Command::extended(0x24, 0, 1),
        Command::extended(0x25, 0, 1),
        Command::at(0x30, 0, 1),
        Command::at(0xca, 0, 1),
        Command::extended(0x35, 0, 1),
        Command::extended(0x3d, 0, 1),
        Command::extended(0x45, 0, 1).features(0x55),
        Command::at(0x40, 0, 1),
        Command::extended(0x06, 0, 1).features(1),
        Command::extended(0x3f, 0x80, 1),
        Command::new(0xe7),
        Command::new(SET_PASSWORD),
        Command::new(FREEZE_LOCK),
        Command::new(DISABLE_PASSWORD),
        Command::new(0xb1).features(0xc2),
        Command::new(0xf9).features(1),
    ] {
        assert_eq!(drive.refused(&command), ABRT, "opcode {:#x}", command.opcode);
    }
    assert_eq!(drive.disk().contents(), before);
    // What tells of the drive, and what does not touch its data, works.
    for command in [
        Command::new(0xe5),
        Command::new(0xf8),
        Command::at(0xc6, 0, 4),
        Command::new(0x90),
        Command::at(0xef, 0, 0x42).features(3),
        Command::at(0xb0, 0xc2_4f00, 0).features(0xda),
    ] {
        assert_eq!(drive.run(&command), Ok(()), "opcode {:#x}", command.opcode);
    }
    assert!(give(&drive, UNLOCK, USER, b"wrong").is_err());
    assert_eq!(give(&drive, UNLOCK, USER, b"user"), Ok(()));
    assert_eq!(drive.identify()[128] & 7, 3);
    assert_eq!(drive.pio_read(&Command::at(0x20, 3, 1), 1, 1), Ok(pattern(0, 3, 1)));
}

#[test]
fn five_wrong_passwords_are_the_last_until_power_on() {
    let machine = locked(0);
    let drive = machine.drive(0);
    for attempt in 0..5 {
        assert_eq!(drive.identify()[128] & 0x10, 0, "attempt {attempt}");
        assert!(aborted(give(&drive, UNLOCK, USER, b"guess")));
    }
    assert_eq!(drive.identify()[128] & 0x10, 0x10);
    assert!(aborted(give(&drive, UNLOCK, USER, b"user")), "even the right one");
    // A software reset changes nothing.
    drive.software_reset();
    assert!(aborted(give(&drive, UNLOCK, USER, b"user")));
    machine.chipset.reset_ide();
    assert_eq!(give(&drive, UNLOCK, USER, b"user"), Ok(()));
}

#[test]
fn the_master_password_unlocks_at_level_high_only() {
    for (level, unlocks) in [(0, true), (MAXIMUM, false)] {
        let machine = Machine::new(&[0]);
        let drive = machine.drive(0);
        drive
            .give(&Command::new(SET_PASSWORD), &sector(MASTER, b"master", 0x1234))
            .expect("master password");
        assert_eq!(drive.identify()[92], 0x1234);
        assert_eq!(drive.identify()[128] & 2, 0, "a master password alone enables nothing");
        give(&drive, SET_PASSWORD, USER | level, b"user").expect("user password");
        assert_eq!(drive.identify()[128] & 0x100, level);
        machine.chipset.reset_ide();
        assert_eq!(give(&drive, UNLOCK, MASTER, b"master").is_ok(), unlocks);
        if !unlocks {
            assert_eq!(give(&drive, UNLOCK, USER, b"user"), Ok(()));
            assert!(aborted(give(&drive, DISABLE_PASSWORD, MASTER, b"master")));
        }
        assert!(aborted(give(&drive, DISABLE_PASSWORD, USER, b"wrong")));
        assert_eq!(give(&drive, DISABLE_PASSWORD, USER, b"user"), Ok(()));
        assert_eq!(drive.identify()[128] & 7, 1);
        machine.chipset.reset_ide();
        assert_eq!(drive.identify()[128] & 7, 1, "nothing locks at power-on");
        assert_eq!(drive.identify()[92], 0x1234, "the master password stays");
    }
}

#[test]
fn erase_unit_needs_its_prepare_and_overwrites_everything() {
    let machine = locked(MAXIMUM);
    let drive = machine.drive(0);
    // Without its prepare, and with a command between them.
    assert_eq!(drive.refused(&Command::new(ERASE_UNIT)), ABRT);
    drive.run(&Command::new(ERASE_PREPARE)).expect("ERASE PREPARE");
    drive.run(&Command::new(0xe5)).expect("CHECK POWER MODE");
    assert_eq!(drive.refused(&Command::new(ERASE_UNIT)), ABRT);
    drive.run(&Command::new(ERASE_PREPARE)).expect("ERASE PREPARE");
    assert!(aborted(give(&drive, ERASE_UNIT, USER, b"wrong")));
    assert_eq!(drive.disk().contents(), pattern(0, 0, SECTORS));
    // The master password, which is zeros at first, erases at level maximum, too.
    drive.run(&Command::new(ERASE_PREPARE)).expect("ERASE PREPARE");
    assert_eq!(give(&drive, ERASE_UNIT, MASTER, &[0; 32]), Ok(()));
    assert_eq!(drive.disk().contents(), vec![0; SECTORS * 512]);
    assert_eq!(drive.identify()[128] & 7, 1, "erased, and open");
}

#[test]
fn a_frozen_drive_keeps_its_security_as_it_is() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.run(&Command::new(FREEZE_LOCK)).expect("FREEZE LOCK");
    assert_eq!(drive.identify()[128] & 8, 8);
    for opcode in [SET_PASSWORD, UNLOCK, ERASE_PREPARE, ERASE_UNIT, DISABLE_PASSWORD] {
        assert_eq!(drive.refused(&Command::new(opcode)), ABRT, "opcode {opcode:#x}");
    }
    drive.run(&Command::new(FREEZE_LOCK)).expect("once more");
    drive.software_reset();
    assert_eq!(drive.identify()[128] & 8, 8, "a software reset does not thaw");
    assert_eq!(drive.pio_read(&Command::at(0x20, 3, 1), 1, 1), Ok(pattern(0, 3, 1)));
    machine.chipset.reset_ide();
    assert_eq!(drive.identify()[128] & 8, 0);
}

#[test]
fn a_machine_that_is_built_again_finds_the_drive_locked() {
    let kept: Arc<Mutex<NonVolatile>> = Arc::default();
    let build = || {
        Machine::with_drives(&[0], |_, config| {
            config.non_volatile = kept.clone();
        })
    };
    let machine = build();
    give(&machine.drive(0), SET_PASSWORD, USER, b"user").expect("SECURITY SET PASSWORD");
    drop(machine);
    let machine = build();
    let drive = machine.drive(0);
    assert_eq!(drive.identify()[128] & 7, 7);
    assert_eq!(give(&drive, UNLOCK, USER, b"user"), Ok(()));
}
