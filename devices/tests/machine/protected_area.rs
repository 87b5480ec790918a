//! The host protected area.

use crate::driver::{ABRT, Ata, Command, Failed, IDNF, Machine, SECTORS, pattern};

const LIMIT: u64 = 1000;

fn native(drive: &Ata<'_>, extended: bool) -> u64 {
    let command = if extended {
        Command::extended(0x27, 0, 0)
    } else {
        Command::new(0xf8)
    };
    drive.run(&command).expect("READ NATIVE MAX ADDRESS");
    drive.lba(extended)
}

/// READ NATIVE MAX ADDRESS and SET MAX ADDRESS, in one of their forms. `keep`: over power-on.
fn set_max(drive: &Ata<'_>, last: u64, extended: bool, keep: bool) -> Result<(), Failed> {
    native(drive, extended);
    let count = u16::from(keep);
    drive.run(&if extended {
        Command::extended(0x37, last, count)
    } else {
        Command::at(0xf9, last, count)
    })
}

fn sectors(drive: &Ata<'_>) -> u64 {
    let words = drive.identify();
    let low = u64::from(words[60]) | u64::from(words[61]) << 16;
    assert_eq!(u64::from(words[100]) | u64::from(words[101]) << 16, low);
    low
}

#[test]
fn sectors_behind_the_limit_do_not_exist_until_power_on() {
    for extended in [false, true] {
        let machine = Machine::new(&[0]);
        let drive = machine.drive(0);
        assert_eq!(native(&drive, extended), SECTORS as u64 - 1);
        assert_eq!(set_max(&drive, LIMIT - 1, extended, false), Ok(()));
        assert_eq!(sectors(&drive), LIMIT);
        assert_eq!(native(&drive, extended), SECTORS as u64 - 1, "the native size stays");
        assert!(drive.pio_read(&Command::at(0x20, LIMIT - 1, 1), 1, 1).is_ok());
        let failed = drive
            .pio_read(&Command::at(0x20, LIMIT, 1), 1, 1)
            .expect_err("protected");
        assert_eq!((failed.error, failed.lba), (IDNF, LIMIT));
        drive.software_reset();
        assert_eq!(sectors(&drive), LIMIT, "a software reset opens nothing");
        machine.chipset.reset_ide();
        assert_eq!(sectors(&drive), SECTORS as u64);
        assert_eq!(
            drive.pio_read(&Command::at(0x20, LIMIT, 1), 1, 1),
            Ok(pattern(0, LIMIT, 1))
        );
    }
}

#[test]
fn a_limit_that_is_kept_comes_back_at_power_on_and_can_be_set_once() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    assert_eq!(set_max(&drive, LIMIT - 1, true, true), Ok(()));
    let failed = set_max(&drive, 2000, true, true).expect_err("a second value that is kept");
    assert_eq!(failed.error, IDNF);
    assert_eq!(
        set_max(&drive, 1999, true, false),
        Ok(()),
        "one that is not kept may follow"
    );
    assert_eq!(sectors(&drive), 2000);
    machine.chipset.reset_ide();
    assert_eq!(sectors(&drive), LIMIT);
    assert_eq!(
        set_max(&drive, SECTORS as u64 - 1, true, true),
        Ok(()),
        "and away again"
    );
    machine.chipset.reset_ide();
    assert_eq!(sectors(&drive), SECTORS as u64);
}

#[test]
fn set_max_address_wants_read_native_max_address_just_before_it() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    assert_eq!(drive.refused(&Command::at(0xf9, LIMIT, 0)), ABRT);
    assert_eq!(drive.refused(&Command::extended(0x37, LIMIT, 0)), ABRT);
    native(&drive, false);
    drive.run(&Command::new(0xe5)).expect("CHECK POWER MODE");
    assert_eq!(drive.refused(&Command::at(0xf9, LIMIT, 0)), ABRT, "not just before");
    native(&drive, true);
    assert_eq!(drive.refused(&Command::at(0xf9, LIMIT, 0)), ABRT, "the other form's");
    // Whatever the features register says.
    native(&drive, false);
    assert_eq!(drive.run(&Command::at(0xf9, LIMIT - 1, 0).features(4)), Ok(()));
    assert_eq!(sectors(&drive), LIMIT);
    // What one form set the other one does not change.
    assert_eq!(
        set_max(&drive, 2000, true, false).map_err(|failed| failed.error),
        Err(ABRT)
    );
    // Beyond the disk.
    let failed = set_max(&drive, SECTORS as u64, false, false).expect_err("no such sector");
    assert_eq!((failed.error, failed.lba), (IDNF, SECTORS as u64));
}

#[test]
fn set_max_passwords_lock_unlock_and_freeze() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let command = |subcommand| Command::new(0xf9).features(subcommand);
    let mut sector = vec![0; 512];
    sector[2..6].copy_from_slice(b"word");
    let wrong = vec![7; 512];
    for subcommand in [2, 3, 4] {
        assert_eq!(drive.refused(&command(subcommand)), ABRT, "no password yet");
    }
    assert_eq!(drive.identify()[86] & 0x100, 0);
    assert_eq!(drive.give(&command(1), &sector), Ok(()));
    assert_eq!(drive.identify()[86] & 0x100, 0x100);
    assert_eq!(drive.run(&command(2)), Ok(()));
    for last in [LIMIT, SECTORS as u64 - 1] {
        assert_eq!(
            set_max(&drive, last, false, false).map_err(|failed| failed.error),
            Err(ABRT)
        );
    }
    assert_eq!(drive.refused(&command(1)), ABRT);
    assert_eq!(drive.refused(&command(4)), ABRT);
    assert!(drive.give(&command(3), &wrong).is_err());
    assert_eq!(drive.give(&command(3), &sector), Ok(()));
    assert_eq!(set_max(&drive, LIMIT - 1, false, false), Ok(()));
    // Five wrong passwords are too many.
    assert_eq!(drive.run(&command(2)), Ok(()));
    for _ in 0..4 {
        assert!(drive.give(&command(3), &wrong).is_err());
    }
    assert_eq!(drive.refused(&command(3)), ABRT);
    machine.chipset.reset_ide();
    // Power-on forgets password and lock. Frozen, nothing works any more.
    assert_eq!(drive.give(&command(1), &sector), Ok(()));
    assert_eq!(drive.run(&command(4)), Ok(()));
    for subcommand in [1, 2, 3, 4] {
        assert_eq!(drive.refused(&command(subcommand)), ABRT);
    }
    assert!(set_max(&drive, LIMIT, true, false).is_err());
}

#[test]
fn a_disk_that_grows_shows_its_new_size() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.disk().resize(2 * SECTORS * 512);
    assert_eq!(sectors(&drive), 2 * SECTORS as u64);
    assert_eq!(native(&drive, true), 2 * SECTORS as u64 - 1);
    assert!(drive.pio_read(&Command::at(0x20, SECTORS as u64, 1), 1, 1).is_ok());
    drive.disk().resize(SECTORS / 2 * 512);
    assert_eq!(sectors(&drive), SECTORS as u64 / 2);
    let failed = drive
        .pio_read(&Command::at(0x20, SECTORS as u64 / 2, 1), 1, 1)
        .expect_err("cut off");
    assert_eq!(failed.error, IDNF);
}
