//! How a packet device is told from a disk, and one drive from two.

use std::sync::Arc;

use devices::chipset::{CdRomConfig, DriveConfig, Plugged};
use devices::ide::cd_rom_handle::Medium;
use disk::MemoryDisk;

use crate::cd_rom::driver::{SLOT, drive, machine, medium, ready};
use crate::driver::{ABRT, BSY, Command, DRQ, ERR, READY, pattern};

/// The signature of a packet device: count, LBA low, mid, high, and the device register without its obsolete bits.
fn signature(machine: &crate::driver::Machine) -> [u8; 5] {
    let ata = machine.drive(SLOT);
    let read = |offset| ata.register(offset);
    [read(2), read(3), read(4), read(5), read(6) & 0x5f]
}

#[test]
fn power_on_reset_and_diagnostics_show_the_signature_and_a_status_of_zero() {
    let machine = machine(None);
    let ata = machine.drive(SLOT);
    assert_eq!(signature(&machine), [1, 1, 0x14, 0xeb, 0]);
    assert_eq!((ata.status(), ata.register(1)), (0, 1));
    // As libata does it.
    for control in [0, 4, 0] {
        ata.set_control(control);
    }
    assert_eq!(signature(&machine), [1, 1, 0x14, 0xeb, 0]);
    assert_eq!((ata.status(), ata.register(1)), (0, 1));
    assert!(!ata.line.is_high());
    ata.set_register(7, 0x90);
    assert!(ata.line.is_high());
    assert_eq!((ata.status(), ata.register(1)), (0, 1));
    assert_eq!(signature(&machine), [1, 1, 0x14, 0xeb, 0]);
}

#[test]
fn disk_commands_are_aborted_with_the_signature() {
    let machine = ready();
    let ata = machine.drive(SLOT);
    for opcode in [0xec, 0x20] {
        ata.select();
        for offset in 2..6 {
            ata.set_register(offset, 0x77);
        }
        ata.set_register(7, opcode);
        assert!(ata.line.is_high());
        assert_eq!(ata.status(), READY | ERR);
        assert_eq!(ata.register(1), ABRT);
        assert_eq!(signature(&machine)[..4], [1, 1, 0x14, 0xeb]);
    }
    for opcode in [0x00, 0x24, 0xc8, 0xca, 0x35, 0xe7, 0xb0, 0x91, 0xc6, 0xa2, 0x42] {
        ata.set_register(7, opcode);
        assert_eq!(ata.status(), READY | ERR, "{opcode:#x}");
        assert_eq!(ata.register(1), ABRT);
    }
}

#[test]
fn identify_packet_device_says_what_linux_looks_at() {
    let machine = machine(None);
    let ata = machine.drive(SLOT);
    ata.select();
    ata.set_register(7, 0xa1);
    assert!(ata.line.is_high());
    assert_eq!(ata.status(), READY | DRQ);
    let mut bytes = [0; 512];
    machine.bus.read(ata.command, 4, &mut bytes);
    assert_eq!(ata.status(), READY);
    assert!(!ata.line.is_high(), "no interrupt after the page");
    let words: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|word| u16::from_le_bytes([word[0], word[1]]))
        .collect();
    assert_eq!(
        words[0], 0x85c0,
        "a CD-ROM with packets of 12 bytes, without an interrupt for them"
    );
    let text = |range: std::ops::Range<usize>| -> String {
        let bytes = words[range].iter().flat_map(|word| word.to_be_bytes());
        String::from_utf8(bytes.collect()).expect("ASCII").trim().to_owned()
    };
    assert_eq!(text(27..47), "spindle CD-ROM");
    assert_eq!(text(10..20), "SPCD000003");
    assert_eq!(words[49] & 0x0300, 0x0300, "LBA and DMA");
    assert_eq!((words[53], words[63], words[64], words[88]), (6, 7, 3, 0x3f));
    assert_eq!(words[82] & words[85] & 0x4210, 0x4210, "NOP, DEVICE RESET, PACKET");
    assert_eq!(words[125], 0, "a byte count limit of zero is none");
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    assert_eq!((words[255] & 0xff, sum), (0xa5, 0));
}

#[test]
fn the_transfer_mode_shows_in_the_page_and_outlives_resets() {
    let machine = machine(None);
    let ata = machine.drive(SLOT);
    let modes = || {
        ata.select();
        ata.set_register(7, 0xa1);
        let mut bytes = [0; 512];
        machine.bus.read(ata.command, 2, &mut bytes);
        assert_eq!(ata.status(), READY);
        (bytes[127], bytes[177])
    };
    let set = |mode: u8| {
        ata.select();
        ata.set_register(1, 0x03);
        ata.set_register(2, mode);
        ata.set_register(7, 0xef);
        ata.status() & ERR == 0
    };
    assert_eq!(modes(), (0, 0));
    assert!(set(0x42));
    assert_eq!(modes(), (0, 4));
    ata.set_control(4);
    ata.set_control(0);
    assert_eq!(modes(), (0, 4));
    assert!(set(0x21));
    assert_eq!(modes(), (2, 0));
    assert!(set(0x0c) && set(0x00));
    assert!(!set(0x0d) && !set(0x23) && !set(0x46) && !set(0x10));
    assert_eq!(modes(), (2, 0));
}

#[test]
fn an_absent_slave_of_a_packet_device_reads_as_zeros() {
    let machine = machine(None);
    let slave = machine.drive(SLOT + 1);
    slave.select();
    // libata's ata_devchk.
    slave.set_register(2, 0x55);
    slave.set_register(3, 0xaa);
    for offset in 1..8 {
        assert_eq!(slave.register(offset), 0, "register {offset}");
    }
    assert_eq!(slave.alternate_status(), 0);
    slave.set_register(7, 0xa1);
    assert!(!slave.line.is_high());
    // Diagnostics are for both, whichever is selected.
    slave.set_register(7, 0x90);
    assert_eq!(signature(&machine), [1, 1, 0x14, 0xeb, 0]);
}

#[test]
fn device_reset_ends_any_command_at_once_and_without_an_interrupt() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let ata = cd_rom.ata;
    // Idle, waiting for the packet, in the middle of data.
    for prepare in [0, 1, 2] {
        if prepare >= 1 {
            ata.select();
            ata.set_register(5, 0xff);
            ata.set_register(7, 0xa0);
            assert_eq!(ata.alternate_status(), READY | DRQ);
        }
        if prepare >= 2 {
            let read = crate::cd_rom::driver::read_10(0, 2);
            machine.bus.write(ata.command, 2, &read);
            machine.settle();
            assert_eq!(ata.alternate_status(), READY | DRQ);
            machine.inw(ata.command);
        }
        ata.set_register(7, 0x08);
        assert_eq!((ata.alternate_status(), ata.register(1)), (0, 1));
        assert!(!ata.line.is_high());
        assert_eq!(signature(&machine), [1, 1, 0x14, 0xeb, 0]);
        assert_eq!(cd_rom.test_unit_ready(), Ok(()), "the tray and its state are as before");
    }
}

#[test]
fn a_reset_waits_for_the_medium_and_ignores_what_comes() {
    for by_command in [false, true] {
        let machine = ready();
        let cd_rom = drive(&machine);
        let ata = cd_rom.ata;
        cd_rom.send(0, 0x800, crate::cd_rom::driver::read_10(0, 1));
        assert_eq!(ata.alternate_status(), BSY);
        if by_command {
            ata.set_register(7, 0x08);
        } else {
            ata.set_control(4);
            ata.set_control(0);
        }
        assert_eq!(ata.alternate_status(), BSY, "the request cannot be recalled");
        machine.settle();
        assert_eq!(ata.alternate_status(), 0);
        assert!(!ata.line.is_high());
        assert_eq!(cd_rom.test_unit_ready(), Ok(()));
    }
}

#[test]
fn a_sleeping_drive_hears_only_resets() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let ata = cd_rom.ata;
    let power = || {
        ata.set_register(7, 0xe5);
        ata.status();
        ata.register(2)
    };
    assert_eq!(power(), 0xff);
    ata.set_register(7, 0xe0);
    ata.status();
    assert_eq!(power(), 0);
    assert_eq!(cd_rom.test_unit_ready(), Ok(()), "a packet wakes a drive in standby");
    assert_eq!(power(), 0xff);
    ata.set_register(7, 0xe6);
    ata.status();
    ata.set_register(7, 0xa1);
    assert_eq!(ata.alternate_status(), READY, "asleep");
    ata.set_register(7, 0x08);
    assert_eq!(cd_rom.test_unit_ready(), Ok(()));
}

#[test]
fn a_disk_and_a_cd_rom_share_a_cable() {
    let disk = Arc::new(MemoryDisk::new(pattern(3, 0, crate::driver::SECTORS), false));
    let disc = medium(1);
    let plugged = [
        None,
        None,
        Some(Plugged::CdRom(CdRomConfig::new(
            Some(Medium::new(disc.clone()).expect("whole blocks")),
            2,
        ))),
        Some(Plugged::Disk(DriveConfig::new(disk.clone(), 3))),
    ];
    let machine = crate::driver::Machine::with_plugged(plugged, [None, None, Some(disc), Some(disk)]);
    let cd_rom = drive(&machine);
    cd_rom.test_unit_ready().expect_err("it was powered on");
    for lba in 0..4 {
        let data = cd_rom.run(crate::cd_rom::driver::read_10(lba, 1));
        assert_eq!(data, Ok(crate::cd_rom::driver::content(1, lba, 1)));
        let read = machine.drive(3).dma_read(&Command::at(0xc8, lba.into(), 1), 1);
        assert_eq!(read, Ok(pattern(3, lba.into(), 1)));
    }
    // EXECUTE DEVICE DIAGNOSTIC selects device 0, and each shows what it is.
    machine.drive(3).set_register(7, 0x90);
    assert_eq!(signature(&machine)[..4], [1, 1, 0x14, 0xeb]);
    machine.drive(3).select();
    assert_eq!(machine.drive(3).register(4), 0);
}
