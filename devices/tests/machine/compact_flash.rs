//! A drive that is a CompactFlash card.

use crate::driver::{ABRT, Command, IDNF, Machine, SECTORS, pattern};

fn card() -> Machine {
    Machine::with_drives(&[0], |_, config| config.compact_flash = true)
}

#[test]
fn identify_tells_of_a_card() {
    let machine = card();
    let words = machine.drive(0).identify();
    assert_eq!(words[0], 0x848a);
    assert_eq!((words[83] & 4, words[86] & 4), (4, 4));
    let sectors = u32::from(words[7]) << 16 | u32::from(words[8]);
    assert_eq!(sectors, 4 * 16 * 63);
    assert_eq!(Machine::new(&[0]).drive(0).identify()[83] & 4, 0);
}

#[test]
fn writes_without_erase_and_erases_change_the_card() {
    let machine = card();
    let drive = machine.drive(0);
    assert_eq!(drive.pio_write(&Command::at(0x38, 9, 2), &pattern(1, 0, 2), 1), Ok(()));
    assert_eq!(
        drive.pio_write(&Command::at(0xcd, 20, 16), &pattern(1, 9, 16), 16),
        Ok(())
    );
    assert_eq!(drive.run(&Command::at(0xc0, 30, 3)), Ok(()));
    let contents = drive.disk().contents();
    assert_eq!(contents[9 * 512..11 * 512], pattern(1, 0, 2));
    assert_eq!(contents[20 * 512..30 * 512], pattern(1, 9, 10));
    assert_eq!(contents[30 * 512..33 * 512], [0; 3 * 512]);
    assert_eq!(contents[33 * 512..36 * 512], pattern(1, 22, 3));
    let failed = drive.run(&Command::at(0xc0, SECTORS as u64, 1)).expect_err("beyond");
    assert_eq!(failed.error, IDNF);
}

#[test]
fn translate_sector_gives_the_address_in_both_ways() {
    let machine = card();
    let drive = machine.drive(0);
    let page = drive
        .pio_read(&Command::at(0x87, 16 * 63 + 63 + 4, 0), 1, 1)
        .expect("TRANSLATE SECTOR");
    assert_eq!(page[..2], [0, 1], "cylinder");
    assert_eq!((page[2] & 0x0f, page[3]), (1, 5), "head and sector");
    assert_eq!(page[4..7], [0, 4, 0x33]);
}

#[test]
fn request_extended_error_says_more() {
    let machine = card();
    let drive = machine.drive(0);
    let code = || {
        drive.run(&Command::new(0x03)).expect("REQUEST EXTENDED ERROR");
        drive.register(1)
    };
    drive.run(&Command::new(0xe5)).expect("CHECK POWER MODE");
    assert_eq!(code(), 0x00);
    assert_eq!(drive.refused(&Command::new(0xff)), ABRT);
    assert_eq!(code(), 0x20);
    drive.run(&Command::at(0x40, SECTORS as u64, 1)).expect_err("beyond");
    drive.issue(&Command::at(0x03, SECTORS as u64, 0));
    assert_eq!(drive.outcome(&Command::new(0x03)), Ok(()));
    assert_eq!(drive.register(1), 0x2f);
}
