//! Which drives are there, and how those answer that are not.

use crate::driver::{Command, Machine, READY, pattern};

#[test]
fn all_four_drives_are_found_and_differ() {
    let machine = Machine::new(&[0, 1, 2, 3]);
    for slot in 0..4 {
        let drive = machine.drive(slot);
        drive.software_reset();
        assert!(drive.answers() && drive.is_disk(), "slot {slot}");
        let words = drive.identify();
        assert_eq!(words[14].to_be_bytes(), [b'0', b'1' + slot as u8], "serial number");
        assert_eq!(drive.dma_read(&Command::at(0xc8, 9, 4), 4), Ok(pattern(slot, 9, 4)));
    }
}

#[test]
fn an_absent_slave_shows_the_masters_registers_and_no_status() {
    let machine = Machine::new(&[0]);
    let (master, slave) = (machine.drive(0), machine.drive(1));
    master.software_reset();
    slave.select();
    assert_eq!((slave.status(), slave.alternate_status(), slave.register(1)), (0, 0, 0));
    assert_eq!((slave.register(2), slave.register(3)), (1, 1));
    assert_eq!(slave.register(6) & 0x10, 0x10);
    assert!(!slave.is_disk());
    // Commands to it are lost.
    slave.set_register(7, 0xec);
    assert!(!slave.line.is_high());
    master.select();
    assert_eq!(master.status(), READY);
    assert_eq!(
        machine.drive(0).identify()[93] & 0x0040,
        0x0040,
        "device 0 answers for device 1"
    );
}

#[test]
fn an_absent_master_leaves_the_bus_to_the_pull_down_resistor() {
    let machine = Machine::new(&[1]);
    let (master, slave) = (machine.drive(0), machine.drive(1));
    master.software_reset();
    assert!(!master.answers());
    master.select();
    assert_eq!(
        (master.status(), master.alternate_status(), master.register(2)),
        (0x7f, 0x7f, 0x7f)
    );
    assert!(slave.answers());
    slave.software_reset();
    assert!(slave.is_disk());
    assert_eq!(slave.dma_read(&Command::at(0xc8, 9, 4), 4), Ok(pattern(1, 9, 4)));
}

#[test]
fn an_empty_channel_is_off_and_enabled_it_has_nobody() {
    let machine = Machine::new(&[0]);
    assert_eq!(
        machine.pci_read(1, 1, 0x40),
        0x0000_8000,
        "only the primary channel decodes"
    );
    assert_eq!((machine.inb(0x177), machine.inb(0x376)), (0xff, 0xff));
    machine.pci_write(1, 1, 0x40, 0x8000_8000);
    let (master, slave) = (machine.drive(2), machine.drive(3));
    assert_eq!((master.status(), master.alternate_status()), (0x7f, 0x7f));
    assert_eq!(machine.inw(0x170), 0xff7f);
    assert!(!master.answers() && !slave.answers());
    master.set_register(7, 0xec);
    assert!(!master.line.is_high());
}

#[test]
fn both_channels_work_at_the_same_time() {
    let machine = Machine::new(&[0, 1, 2, 3]);
    for (first, second) in [(0, 2), (1, 3), (0, 3), (1, 2)] {
        let (a, b) = (machine.drive(first), machine.drive(second));
        let (one, other) = (Command::at(0xc8, 33, 2), Command::at(0x24, 44, 1));
        let other = Command {
            extended: true,
            ..other
        };
        machine.put_table(&[(crate::driver::DATA, 1024)]);
        a.issue_dma(&one, true);
        b.issue(&other);
        b.step();
        assert!(b.line.is_high() && !a.line.is_high());
        a.step();
        let mut bytes = vec![0; 512];
        assert_eq!(b.status(), READY | 0x08);
        machine.bus.read(b.command, 4, &mut bytes);
        assert_eq!(bytes, pattern(second, 44, 1));
        assert_eq!(a.finish_dma(&one), Ok(()));
        assert_eq!(machine.get(crate::driver::DATA, 1024), pattern(first, 33, 2));
    }
}
