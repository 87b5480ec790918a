//! Sectors that cannot be read: the host's, and those that the guest made so.

use crate::driver::{ABRT, Command, DATA, Failed, IDNF, Machine, READY, SECTORS, UNC, pattern};

const EIO: i32 = 5;

fn uncorrectable(lba: u64, count: u16, features: u16) -> Command {
    Command::extended(0x45, lba, count).features(features)
}

fn error<T>(outcome: Result<T, Failed>) -> (u8, u64) {
    let failed = outcome.err().expect("a command that fails");
    assert_eq!(failed.status, READY | 1);
    (failed.error, failed.lba)
}

#[test]
fn a_host_error_in_a_long_read_is_unc_at_the_bad_sector_and_what_is_before_it_arrives() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    for bad in [100, 101, 163, 227] {
        drive.disk().spoil(bad, EIO);
        drive.disk().spoil(227, EIO);
        machine.put(DATA, &[0xee; 128 * 512]);
        let command = Command::extended(0x25, 100, 128);
        assert_eq!(error(drive.dma(&command, true, 128 * 512)), (UNC, bad));
        let good = (bad - 100) as usize;
        assert_eq!(machine.get(DATA, good * 512), pattern(0, 100, good));
        // 28-bit addresses, READ VERIFY and blocks of READ MULTIPLE find the same sector.
        assert_eq!(
            error(drive.dma(&Command::at(0xc8, 100, 128), true, 128 * 512)),
            (UNC, bad)
        );
        assert_eq!(error(drive.run(&Command::at(0x40, 100, 128))), (UNC, bad));
        assert_eq!(error(drive.run(&Command::extended(0x42, 90, 600))), (UNC, bad));
        assert_eq!(error(drive.pio_read(&Command::at(0xc4, 100, 128), 128, 16)), (UNC, bad));
        assert_eq!(error(drive.pio_read(&Command::at(0x20, 100, 128), 128, 1)), (UNC, bad));
        // A write makes it readable.
        assert_eq!(drive.dma_write(&Command::at(0xca, bad, 1), &pattern(0, bad, 1)), Ok(()));
    }
    drive
        .dma_write(&Command::at(0xca, 227, 1), &pattern(0, 227, 1))
        .expect("the last one");
    assert_eq!(
        drive.dma_read(&Command::extended(0x25, 100, 128), 128),
        Ok(pattern(0, 100, 128))
    );
}

#[test]
fn a_chs_address_of_a_bad_sector_comes_back_as_chs() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.disk().spoil(16 * 63 + 63 + 4, EIO);
    let command = Command {
        lba_mode: false,
        ..Command::at(0x20, 1 | 1 << 8, 80)
    };
    let failed = drive.pio_read(&command, 80, 1).expect_err("a bad sector");
    assert_eq!(failed.error, UNC);
    // Cylinder 1, head 1, sector 5.
    assert_eq!(failed.lba, 5 | 1 << 8 | 1 << 24);
}

#[test]
fn an_error_that_does_not_come_again_is_none() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.disk().fail_next(disk::DiskError::Closed);
    drive.disk().fail_next(disk::DiskError::DurabilityLost);
    // Closed is no error of the medium that could be looked for; but a read is repeated whatever it was.
    assert_eq!(
        drive.dma_read(&Command::extended(0x25, 7, 64), 64),
        Ok(pattern(0, 7, 64))
    );
}

#[test]
fn sectors_made_uncorrectable_fail_until_they_are_written() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    assert_eq!(drive.run(&uncorrectable(200, 8, 0x55)), Ok(()));
    let before = drive.disk().contents();
    for command in [Command::extended(0x25, 190, 32), Command::at(0xc8, 190, 32)] {
        machine.put(DATA, &[0xee; 32 * 512]);
        assert_eq!(error(drive.dma(&command, true, 32 * 512)), (UNC, 200));
        assert_eq!(machine.get(DATA, 10 * 512), pattern(0, 190, 10));
        assert_eq!(machine.get(DATA + 10 * 512, 512), [0xee; 512]);
    }
    assert_eq!(error(drive.dma(&Command::at(0xc8, 203, 1), true, 512)), (UNC, 203));
    assert_eq!(error(drive.run(&Command::at(0x40, 100, 200))), (UNC, 200));
    assert_eq!(error(drive.pio_read(&Command::at(0x20, 198, 4), 4, 1)), (UNC, 200));
    assert_eq!(error(drive.pio_read(&Command::at(0xc4, 198, 4), 4, 4)), (UNC, 200));
    // Written ones can be read again, whichever way they are written.
    drive
        .dma_write(&Command::at(0xca, 200, 4), &pattern(0, 200, 4))
        .expect("WRITE DMA");
    assert_eq!(error(drive.dma(&Command::at(0xc8, 200, 8), true, 8 * 512)), (UNC, 204));
    drive
        .pio_write(&Command::at(0x30, 204, 2), &pattern(0, 204, 2), 1)
        .expect("WRITE SECTORS");
    let mut ranges = vec![0; 512];
    ranges[..8].copy_from_slice(&(206u64 | 2 << 48).to_le_bytes());
    drive
        .dma_write(&Command::extended(0x06, 0, 1).features(1), &ranges)
        .expect("TRIM");
    let mut expected = pattern(0, 190, 32);
    expected[16 * 512..18 * 512].fill(0);
    assert_eq!(drive.dma_read(&Command::at(0xc8, 190, 32), 32), Ok(expected));
    assert_eq!(before[..200 * 512], drive.disk().contents()[..200 * 512]);
}

#[test]
fn pseudo_errors_are_logged_and_flagged_ones_are_not() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let logged = || {
        let log = drive
            .pio_read(&Command::at(0xb0, 0xc2_4f01, 1).features(0xd5), 1, 1)
            .expect("SMART READ LOG");
        u16::from_le_bytes([log[452], log[453]])
    };
    drive.run(&uncorrectable(10, 1, 0xaa)).expect("flagged");
    drive.run(&uncorrectable(20, 1, 0x55)).expect("pseudo");
    assert_eq!(error(drive.run(&Command::at(0x40, 10, 1))), (UNC, 10));
    assert_eq!(logged(), 0);
    assert_eq!(error(drive.run(&Command::at(0x40, 20, 1))), (UNC, 20));
    assert_eq!(logged(), 1);
    // Other kinds, and places that are not there.
    for features in [0x00, 0x5a, 0xa5] {
        assert_eq!(drive.refused(&uncorrectable(0, 1, features)), ABRT);
    }
    assert_eq!(
        error(drive.run(&uncorrectable(SECTORS as u64 - 1, 2, 0x55))),
        (IDNF, SECTORS as u64)
    );
    // They stay bad without power.
    machine.chipset.reset_ide();
    assert_eq!(error(drive.run(&Command::at(0x40, 10, 1))), (UNC, 10));
}

#[test]
fn a_self_test_fails_at_the_first_bad_sector() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let test = |kind: u64| Command::at(0xb0, 0xc2_4f00 | kind, 0).features(0xd4);
    drive.run(&test(0x81)).expect("a captive test");
    drive
        .run(&uncorrectable(3000, 2, 0x55))
        .expect("WRITE UNCORRECTABLE EXT");
    drive.run(&test(1)).expect("a test that tells its end later");
    let failed = drive.run(&test(0x82)).expect_err("a captive test that fails");
    assert_eq!((failed.error, failed.lba & 0xff_ff00), (ABRT, 0x2c_f400));
    let log = drive
        .pio_read(&Command::at(0xb0, 0xc2_4f06, 1).features(0xd5), 1, 1)
        .expect("SMART READ LOG");
    assert_eq!([log[3], log[2 + 24 + 1], log[2 + 48 + 1]], [0, 0x70, 0x70]);
    assert_eq!(log[2 + 24 + 5..2 + 24 + 9], 3000u32.to_le_bytes());
    let log = drive
        .pio_read(&Command::extended(0x2f, 7, 1), 1, 1)
        .expect("READ LOG EXT");
    assert_eq!(log[4 + 52 + 5..4 + 52 + 11], 3000u64.to_le_bytes()[..6]);
}
