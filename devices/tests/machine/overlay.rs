//! DEVICE CONFIGURATION: what can be hidden of a drive.

use crate::driver::{ABRT, Ata, Command, Failed, Machine, SECTORS};

fn identify(drive: &Ata<'_>) -> Vec<u8> {
    drive
        .pio_read(&Command::new(0xb1).features(0xc2), 1, 1)
        .expect("DEVICE CONFIGURATION IDENTIFY")
}

fn word(page: &[u8], index: usize) -> u16 {
    u16::from_le_bytes([page[2 * index], page[2 * index + 1]])
}

fn set(page: &mut [u8], index: usize, value: u16) {
    page[2 * index..2 * index + 2].copy_from_slice(&value.to_le_bytes());
    page[511] = 0;
    page[511] = page.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
}

fn configure(drive: &Ata<'_>, page: &[u8]) -> Result<(), Failed> {
    drive.give(&Command::new(0xb1).features(0xc3), page)
}

fn restore(drive: &Ata<'_>) -> Result<(), Failed> {
    drive.run(&Command::new(0xb1).features(0xc0))
}

#[test]
fn identify_says_what_there_is() {
    let machine = Machine::new(&[0]);
    let page = identify(&machine.drive(0));
    assert_eq!((word(&page, 0), word(&page, 1), word(&page, 2)), (2, 7, 0x3f));
    assert_eq!(word(&page, 3), SECTORS as u16 - 1);
    assert_eq!(word(&page, 7), 0x09cf);
    assert_eq!(word(&page, 255) & 0xff, 0xa5);
    assert_eq!(page.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
}

#[test]
fn what_is_hidden_is_gone_until_restore() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.set_features(0x03, 0x45).expect("UDMA 5");
    let mut page = identify(&drive);
    set(&mut page, 2, 0x0007);
    set(&mut page, 3, 999);
    // Without SMART, SECURITY, acoustic management, protected area and 48-bit addresses.
    set(&mut page, 7, 0x0006);
    assert_eq!(configure(&drive, &page), Ok(()));
    let words = drive.identify();
    assert_eq!(words[88], 0x0007, "and the mode that was set is none any more");
    assert_eq!((words[60], words[100]), (1000, 0));
    assert_eq!(words[82] & 0x0403, 0);
    assert_eq!(words[83] & 0x2700, 0);
    assert_eq!(words[128], 0);
    for command in [
        Command::at(0xb0, 0xc2_4f00, 0).features(0xda),
        Command::new(0xf1),
        Command::new(0xf8),
        Command::new(0xf9),
        Command::extended(0x24, 0, 1),
        Command::extended(0x35, 0, 1),
        Command::extended(0x3d, 0, 1),
        Command::extended(0x2f, 0, 1),
        Command::at(0xef, 0, 0x80).features(0x42),
        Command::at(0xef, 0, 0x45).features(0x03),
    ] {
        assert_eq!(drive.refused(&command), ABRT, "opcode {:#x}", command.opcode);
    }
    // It stays so without power, and changes once.
    machine.chipset.reset_ide();
    assert_eq!(drive.identify()[60], 1000);
    let failed = drive
        .run(&Command::new(0xb1).features(0xc3))
        .expect_err("modified already");
    assert_eq!((failed.error, drive.register(2)), (ABRT, 3));
    assert_eq!(restore(&drive), Ok(()));
    assert_eq!(drive.identify()[60], SECTORS as u16);
    assert_eq!(word(&identify(&drive), 7), 0x09cf);
}

#[test]
fn what_cannot_be_set_is_named() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let good = identify(&drive);
    let mut page = good.clone();
    page[511] ^= 1;
    assert_eq!(configure(&drive, &page).map_err(|failed| failed.error), Err(ABRT));
    assert_eq!(drive.register(2), 0xff, "the checksum");
    let mut page = good.clone();
    set(&mut page, 7, word(&good, 7) | 0x2010);
    assert!(configure(&drive, &page).is_err());
    assert_eq!(
        [3, 4, 5].map(|offset| drive.register(offset)),
        [0x20, 0x10, 7],
        "bits 13 and 4 of word 7"
    );
    let mut page = good.clone();
    set(&mut page, 3, SECTORS as u16);
    assert!(configure(&drive, &page).is_err());
    assert_eq!(drive.register(5), 3);
    // SECURITY cannot be hidden while it is on.
    let mut sector = vec![0; 512];
    sector[2] = 1;
    drive.give(&Command::new(0xf1), &sector).expect("SECURITY SET PASSWORD");
    let mut page = good.clone();
    set(&mut page, 7, word(&good, 7) & !8);
    assert!(configure(&drive, &page).is_err());
    assert_eq!([2, 3, 4, 5].map(|offset| drive.register(offset)), [4, 0, 8, 7]);
    assert_eq!(identify(&drive), good, "nothing was changed");
}

#[test]
fn a_protected_area_and_a_freeze_stand_in_the_way() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let page = identify(&drive);
    drive.run(&Command::new(0xf8)).expect("READ NATIVE MAX ADDRESS");
    drive.run(&Command::at(0xf9, 99, 0)).expect("SET MAX ADDRESS");
    assert!(configure(&drive, &page).is_err());
    assert_eq!(drive.register(2), 6);
    assert!(restore(&drive).is_err());
    machine.chipset.reset_ide();
    drive.run(&Command::new(0xb1).features(0xc1)).expect("FREEZE LOCK");
    for subcommand in 0xc0..=0xc3 {
        let command = Command::new(0xb1).features(subcommand);
        assert_eq!((drive.refused(&command), drive.register(2)), (ABRT, 1));
    }
    machine.chipset.reset_ide();
    assert_eq!(restore(&drive), Ok(()));
    assert_eq!(drive.refused(&Command::new(0xb1).features(0x00)), ABRT);
}
