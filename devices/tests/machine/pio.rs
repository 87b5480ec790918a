//! Reading and writing through the data register.

use disk::DiskError;

use crate::driver::{ABRT, BSY, Command, DRQ, Failed, IDNF, Machine, READY, SECTORS, UNC, pattern};

/// Content that no sector has at first.
fn fresh(sectors: usize) -> Vec<u8> {
    (0..sectors * 512).map(|at| (at / 3) as u8 ^ 0x5a).collect()
}

fn host_error() -> DiskError {
    DiskError::Io {
        operation: "preadv",
        offset: 0,
        error: std::io::Error::from_raw_os_error(5),
    }
}

#[test]
fn read_sectors_gives_an_interrupt_per_sector() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    for (opcode, extended) in [(0x20, false), (0x21, false), (0x24, true)] {
        let command = Command {
            extended,
            ..Command::at(opcode, 7, 3)
        };
        let edges = drive.line.edges();
        assert_eq!(drive.pio_read(&command, 3, 1), Ok(pattern(0, 7, 3)));
        assert_eq!(drive.line.edges() - edges, 3, "opcode {opcode:#x}");
    }
}

#[test]
fn write_sectors_reaches_the_disk_and_reads_back() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    for (opcode, lba, extended) in [(0x30, 1, false), (0x31, 11, false), (0x34, 21, true)] {
        let command = Command {
            extended,
            ..Command::at(opcode, lba, 3)
        };
        assert_eq!(drive.pio_write(&command, &fresh(3), 1), Ok(()));
        assert_eq!(drive.pio_read(&Command::at(0x20, lba, 3), 3, 1), Ok(fresh(3)));
    }
    // Their neighbours are as they were.
    assert_eq!(drive.pio_read(&Command::at(0x20, 0, 1), 1, 1), Ok(pattern(0, 0, 1)));
    assert_eq!(drive.pio_read(&Command::at(0x20, 4, 7), 7, 1), Ok(pattern(0, 4, 7)));
}

#[test]
fn multiple_commands_move_blocks_and_a_shorter_last_one() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.run(&Command::at(0xc6, 0, 4)).expect("SET MULTIPLE MODE");
    for (read, write, extended) in [(0xc4, 0xc5, false), (0x29, 0x39, true), (0x29, 0xce, true)] {
        let command = |opcode| Command {
            extended,
            ..Command::at(opcode, 100, 10)
        };
        let edges = drive.line.edges();
        assert_eq!(drive.pio_write(&command(write), &fresh(10), 4), Ok(()));
        assert_eq!(drive.pio_read(&command(read), 10, 4), Ok(fresh(10)));
        assert_eq!(drive.line.edges() - edges, 6);
        assert_eq!(
            drive.pio_write(&command(write), &pattern(0, 100, 10), 4),
            Ok(()),
            "restored"
        );
    }
}

#[test]
fn multiple_commands_abort_while_no_block_is_set() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    assert_eq!(drive.identify()[59], 0x0110, "16 sectors after power-on");
    drive.run(&Command::at(0xc6, 0, 0)).expect("multiple mode off");
    let aborted = |outcome: Result<Vec<u8>, Failed>| outcome.map_err(|failed| failed.error) == Err(ABRT);
    assert!(aborted(drive.pio_read(&Command::at(0xc4, 0, 2), 2, 1)));
    for bad in [3, 32, 255] {
        drive.run(&Command::at(0xc6, 0, 4)).expect("SET MULTIPLE MODE");
        let failed = drive.run(&Command::at(0xc6, 0, bad)).expect_err("a bad count");
        assert_eq!(failed.error, ABRT);
        // The abort switches multiple mode off.
        assert!(aborted(drive.pio_read(&Command::at(0xc4, 0, 2), 2, 1)));
        assert_eq!(drive.identify()[59], 0);
    }
}

#[test]
fn a_count_of_zero_is_256_sectors() {
    let machine = Machine::new(&[0]);
    let data = machine.drive(0).pio_read(&Command::at(0x20, 5, 0), 256, 1);
    assert_eq!(data, Ok(pattern(0, 5, 256)));
}

#[test]
fn chs_addresses_follow_initialize_device_parameters() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let chs = |cylinder: u64, head: u64, sector: u64, count| Command {
        lba_mode: false,
        ..Command::at(0x20, sector | cylinder << 8 | head << 24, count)
    };
    // 16 heads, 63 sectors after power-on.
    let lba = (16 + 3) * 63 + 4;
    assert_eq!(drive.pio_read(&chs(1, 3, 5, 2), 2, 1), Ok(pattern(0, lba, 2)));
    // 4 heads, 17 sectors.
    let parameters = Command {
        lba_mode: false,
        ..Command::at(0x91, 3 << 24, 17)
    };
    drive.run(&parameters).expect("INITIALIZE DEVICE PARAMETERS");
    let lba = (2 * 4 + 3) * 17 + 16;
    assert_eq!(drive.pio_read(&chs(2, 3, 17, 2), 2, 1), Ok(pattern(0, lba, 2)));
    let words = drive.identify();
    assert_eq!(words[54..57], [60, 4, 17]);
    assert_eq!(u32::from(words[57]) | u32::from(words[58]) << 16, 60 * 4 * 17);
    // Addresses that the geometry does not have.
    for (cylinder, head, sector) in [(2, 4, 1), (2, 0, 18), (2, 0, 0), (60, 0, 1)] {
        let failed = drive
            .pio_read(&chs(cylinder, head, sector, 1), 1, 1)
            .expect_err("no such sector");
        assert_eq!(failed.error, IDNF, "{cylinder}/{head}/{sector}");
    }
    // No sectors at all.
    let failed = drive.run(&Command::at(0x91, 3 << 24, 0)).expect_err("no sectors");
    assert_eq!(failed.error, ABRT);
}

#[test]
fn addresses_beyond_the_disk_are_not_found() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let last = SECTORS as u64 - 1;
    assert!(drive.pio_read(&Command::at(0x20, last, 1), 1, 1).is_ok());
    let failed = drive
        .pio_read(&Command::at(0x20, last, 2), 2, 1)
        .expect_err("one too many");
    assert_eq!((failed.error, failed.lba), (IDNF, last + 1));
    let far = 0xfedc_ba98_7654;
    let failed = drive
        .pio_read(&Command::extended(0x24, far, 1), 1, 1)
        .expect_err("far away");
    assert_eq!((failed.error, failed.lba), (IDNF, far));
    let failed = drive
        .pio_write(&Command::at(0x30, last + 1, 1), &fresh(1), 1)
        .expect_err("beyond");
    assert_eq!((failed.error, failed.lba), (IDNF, last + 1));
    assert_eq!(drive.disk().contents(), pattern(0, 0, SECTORS), "nothing was written");
}

#[test]
fn a_host_read_error_is_unc_at_the_sector_and_the_sectors_before_it_are_good() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let command = Command::at(0x20, 30, 3);
    drive.issue(&command);
    drive.step();
    let mut first = vec![0; 512];
    assert_eq!(drive.status(), READY | DRQ);
    drive.disk().fail_next(host_error());
    machine.bus.read(0x1f0, 2, &mut first);
    assert_eq!(first, pattern(0, 30, 1));
    drive.step();
    let failed = drive.outcome(&command).expect_err("the host failed");
    assert_eq!((failed.error, failed.lba), (UNC, 31));
}

#[test]
fn a_host_write_error_aborts_with_the_address_and_the_drive_goes_on_working() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.disk().fail_next(host_error());
    let failed = drive
        .pio_write(&Command::extended(0x34, 30, 2), &fresh(2), 1)
        .expect_err("the host failed");
    assert_eq!((failed.error, failed.lba), (ABRT, 30));
    assert_eq!(drive.pio_write(&Command::at(0x30, 30, 2), &fresh(2), 1), Ok(()));
}

#[test]
fn a_write_waits_for_the_disk_and_the_guest_goes_on() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.issue(&Command::at(0x30, 3, 1));
    machine.bus.write(0x1f0, 2, &fresh(1));
    assert_eq!(drive.disk().waiting(), 1);
    assert_eq!(drive.status() & BSY, BSY);
    assert!(!drive.line.is_high());
    // Registers and commands are not taken meanwhile.
    drive.set_register(2, 0x77);
    drive.set_register(7, 0xec);
    drive.set_register(6, 0xb0);
    drive.step();
    assert_eq!(drive.status(), READY);
    assert_eq!(drive.register(2), 1);
    assert_eq!(drive.register(6) & 0x10, 0);
    assert_eq!(drive.disk().contents()[3 * 512..4 * 512], fresh(1));
}

#[test]
fn data_register_accesses_of_every_width() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let expected = pattern(0, 9, 1);
    drive.issue(&Command::at(0x20, 9, 1));
    machine.settle();
    // A byte takes a word and shows its low half.
    assert_eq!(machine.inb(0x1f0), expected[0]);
    assert_eq!(machine.inw(0x1f0).to_le_bytes(), expected[2..4]);
    assert_eq!(machine.inl(0x1f0).to_le_bytes(), expected[4..8]);
    let mut rest = vec![0; 504];
    machine.bus.read(0x1f0, 2, &mut rest);
    assert_eq!(rest, expected[8..]);
    assert_eq!(drive.status(), READY);
    // Reading on gives nothing and changes nothing.
    assert_eq!(machine.inl(0x1f0), 0);
    machine.outw(0x1f0, 0x1234);
    assert_eq!(drive.status(), READY);
}

#[test]
fn one_string_read_crosses_no_block() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.issue(&Command::at(0x20, 0, 2));
    machine.settle();
    // More than the block holds: the rest reads as zeros, and the second sector is still to come.
    let mut bytes = vec![0xee; 1024];
    machine.bus.read(0x1f0, 2, &mut bytes);
    assert_eq!(bytes[..512], pattern(0, 0, 1));
    assert_eq!(bytes[512..], [0; 512]);
    machine.settle();
    let mut bytes = vec![0; 512];
    machine.bus.read(0x1f0, 4, &mut bytes);
    assert_eq!(bytes, pattern(0, 1, 1));
}
