//! The bus master: transfers, PRD tables of every shape, and how they end.

use disk::DiskError;
use vm_memory::{Bytes, GuestAddress};

use crate::driver::{
    ABRT, Ata, BM_ACTIVE, BM_ERROR, BM_INTERRUPT, BSY, Command, DATA, ICRC, IDNF, Machine, READY, SECTORS, TABLE,
    pattern,
};

fn fresh(sectors: usize) -> Vec<u8> {
    (0..sectors * 512).map(|at| (at / 5) as u8 ^ 0xa5).collect()
}

/// A READ DMA of `sectors` sectors from LBA 0 that waits for the bus master, whose table is `entries`.
fn issue_read(drive: &Ata<'_>, sectors: u16, entries: &[(u32, u16)]) -> Command {
    drive.machine.put_table(entries);
    let command = Command::at(0xc8, 0, sectors);
    drive.issue_dma(&command, true);
    command
}

#[test]
fn reads_and_writes_with_28_and_48_bit_addresses() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    assert_eq!(drive.dma_read(&Command::at(0xc8, 40, 8), 8), Ok(pattern(0, 40, 8)));
    assert_eq!(drive.dma_read(&Command::at(0xc9, 41, 1), 1), Ok(pattern(0, 41, 1)));
    assert_eq!(
        drive.dma_read(&Command::extended(0x25, 42, 300), 300),
        Ok(pattern(0, 42, 300))
    );
    for command in [
        Command::at(0xca, 50, 16),
        Command::at(0xcb, 70, 16),
        Command::extended(0x35, 90, 16),
        Command::extended(0x3d, 110, 16),
    ] {
        assert_eq!(drive.dma_write(&command, &fresh(16)), Ok(()));
        let start = command.lba as usize * 512;
        assert_eq!(drive.disk().contents()[start..start + 16 * 512], fresh(16));
    }
}

#[test]
fn an_address_that_needs_the_high_bytes_takes_them_from_the_first_writes() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let failed = drive
        .dma_read(&Command::extended(0x25, 0x0123_4567_89ab, 1), 1)
        .expect_err("no such sector");
    assert_eq!((failed.error, failed.lba), (IDNF, 0x0123_4567_89ab));
    // The high bytes of the last command do not get into one with 28 bits.
    assert_eq!(drive.dma_read(&Command::at(0xc8, 3, 1), 1), Ok(pattern(0, 3, 1)));
}

#[test]
fn a_command_does_not_run_before_the_start_bit_nor_the_start_bit_before_the_command() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    machine.put_table(&[(DATA, 512)]);
    let command = Command::at(0xc8, 5, 1);
    // Command first.
    drive.load(&command);
    drive.set_up_dma(true);
    drive.set_register(7, 0xc8);
    assert_eq!(drive.disk().waiting(), 0);
    drive.start_dma();
    assert_eq!(drive.disk().waiting(), 1);
    machine.settle();
    assert_eq!(drive.finish_dma(&command), Ok(()));
    // Start bit first.
    drive.load(&command);
    drive.set_up_dma(true);
    drive.start_dma();
    assert_eq!(drive.bus_master_status() & BM_ACTIVE, BM_ACTIVE);
    assert_eq!(drive.disk().waiting(), 0);
    drive.set_register(7, 0xc8);
    assert_eq!(drive.disk().waiting(), 1);
    machine.settle();
    assert_eq!(drive.finish_dma(&command), Ok(()));
    assert_eq!(machine.get(DATA, 512), pattern(0, 5, 1));
}

#[test]
fn the_guest_runs_while_the_disk_works() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let command = issue_read(&drive, 1, &[(DATA, 512)]);
    assert_eq!(drive.status() & BSY, BSY);
    assert_eq!(drive.bus_master_status() & (BM_ACTIVE | BM_INTERRUPT), BM_ACTIVE);
    assert!(!drive.line.is_high());
    drive.step();
    assert!(drive.line.is_high());
    assert_eq!(drive.bus_master_status() & (BM_ACTIVE | BM_INTERRUPT), BM_INTERRUPT);
    assert_eq!(drive.finish_dma(&command), Ok(()));
}

#[test]
fn regions_scatter_and_a_count_of_zero_is_64_kib() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    machine.put_table(&[
        (DATA + 0x800, 0x0102),
        (DATA, 0x00fe),
        (0x40000, 0),
        (DATA + 0x1001, 0x201),
    ]);
    let command = Command::extended(0x25, 64, 1 + 128 + 1);
    drive.issue_dma(&command, true);
    machine.settle();
    assert_eq!(drive.finish_dma(&command), Ok(()));
    let expected = pattern(0, 64, 130);
    let found = [
        machine.get(DATA + 0x800, 0x102),
        machine.get(DATA, 0xfe),
        machine.get(0x40000, 0x10000),
        machine.get(DATA + 0x1000, 0x200),
    ];
    assert_eq!(found.concat(), expected);
}

#[test]
fn a_table_longer_than_the_command_leaves_the_bus_master_active() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let command = issue_read(&drive, 1, &[(DATA, 512), (DATA + 512, 512)]);
    machine.settle();
    assert_eq!(
        drive.bus_master_status() & (BM_ACTIVE | BM_INTERRUPT | BM_ERROR),
        BM_ACTIVE | BM_INTERRUPT
    );
    assert_eq!(drive.finish_dma(&command), Ok(()));
    assert_eq!(machine.get(DATA + 512, 512), [0; 512]);
}

#[test]
fn a_table_shorter_than_the_command_ends_without_interrupt_and_a_second_table_goes_on() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let command = issue_read(&drive, 4, &[(DATA, 1024 + 100)]);
    machine.settle();
    assert!(!drive.line.is_high());
    assert_eq!(drive.bus_master_status() & (BM_ACTIVE | BM_INTERRUPT | BM_ERROR), 0);
    assert_eq!(drive.alternate_status() & BSY, BSY, "the drive waits for the rest");
    assert_eq!(machine.get(DATA, 1024), pattern(0, 0, 2));
    // Another table for the rest.
    machine.outb(drive.bus_master, 0x08);
    machine.put_table(&[(DATA + 1024, 1024)]);
    drive.start_dma();
    machine.settle();
    assert_eq!(drive.finish_dma(&command), Ok(()));
    assert_eq!(machine.get(DATA, 2048), pattern(0, 0, 4));
}

#[test]
fn a_table_shorter_than_a_sector_moves_nothing_and_a_reset_recovers() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    issue_read(&drive, 1, &[(DATA, 100)]);
    machine.settle();
    assert_eq!(drive.bus_master_status() & (BM_ACTIVE | BM_INTERRUPT | BM_ERROR), 0);
    assert!(!drive.line.is_high());
    drive.software_reset();
    machine.outb(drive.bus_master, 0);
    assert_eq!(drive.dma_read(&Command::at(0xc8, 3, 1), 1), Ok(pattern(0, 3, 1)));
}

#[test]
fn a_table_or_region_outside_memory_sets_the_error_bit_and_aborts() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let beyond = crate::driver::MEMORY as u32;
    let before = drive.disk().contents();
    for (table, entries) in [
        (TABLE, &[(beyond, 512)][..]),
        (TABLE, &[(beyond - 256, 512)]),
        (TABLE, &[(DATA, 256), (0xffff_fffe, 256)]),
        (beyond, &[]),
        (0xffff_fffc, &[]),
    ] {
        for (opcode, to_memory) in [(0xc8, true), (0xca, false)] {
            machine.put_table(entries);
            let command = Command::at(opcode, 0, 1);
            drive.load(&command);
            drive.set_up_dma(to_memory);
            machine.outl(drive.bus_master + 4, table);
            drive.set_register(7, opcode);
            drive.start_dma();
            assert_eq!(drive.disk().waiting(), 0, "the disk is not asked");
            assert_eq!(
                drive.bus_master_status() & (BM_ACTIVE | BM_INTERRUPT | BM_ERROR),
                BM_ERROR | BM_INTERRUPT
            );
            let failed = drive.finish_dma(&command).expect_err("no memory");
            assert_eq!(failed.error, ABRT);
        }
    }
    assert_eq!(drive.disk().contents(), before);
}

#[test]
fn a_table_without_end_is_bounded() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    for index in 0..8192u64 {
        let entry = u64::from(DATA) | 2 << 32;
        machine
            .memory
            .write_obj(entry, GuestAddress(0x20000 + 8 * index))
            .expect("in memory");
    }
    let command = Command::extended(0x25, 0, 64);
    drive.load(&command);
    drive.set_up_dma(true);
    machine.outl(drive.bus_master + 4, 0x20000);
    drive.set_register(7, 0x25);
    drive.start_dma();
    assert_eq!(drive.bus_master_status() & BM_ERROR, BM_ERROR);
    assert_eq!(drive.finish_dma(&command).map_err(|failed| failed.error), Err(ABRT));
}

#[test]
fn the_wrong_direction_is_refused() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    machine.put_table(&[(DATA, 512)]);
    let command = Command::at(0xca, 0, 1);
    drive.issue_dma(&command, true);
    assert_eq!(drive.bus_master_status() & BM_ERROR, BM_ERROR);
    assert_eq!(drive.finish_dma(&command).map_err(|failed| failed.error), Err(ABRT));
}

#[test]
fn direction_and_read_only_bits_keep_while_the_bus_master_runs() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    issue_read(&drive, 1, &[(DATA, 512)]);
    machine.outb(drive.bus_master, 0x01);
    assert_eq!(machine.inb(drive.bus_master), 0x09);
    // Status: 5 and 6 are storage, 0 and 7 read-only, 1 and 2 cleared by ones.
    machine.outb(drive.bus_master + 2, 0xe1);
    assert_eq!(drive.bus_master_status(), 0x61);
    machine.settle();
    assert_eq!(drive.bus_master_status(), 0x60 | BM_INTERRUPT);
    machine.outb(drive.bus_master + 2, 0x20);
    assert_eq!(drive.bus_master_status(), 0x20 | BM_INTERRUPT);
    machine.outb(drive.bus_master + 2, 0x24);
    assert_eq!(drive.bus_master_status(), 0x20);
}

#[test]
fn the_table_pointer_takes_every_width_and_drops_its_low_bits() {
    let machine = Machine::new(&[0]);
    machine.outl(0xc004, 0x1234_5677);
    assert_eq!(machine.inl(0xc004), 0x1234_5674);
    machine.outw(0xc006, 0xabcd);
    machine.outb(0xc005, 0xee);
    assert_eq!(machine.inl(0xc004), 0xabcd_ee74);
    assert_eq!(machine.inw(0xc006), 0xabcd);
    // The secondary channel has its own.
    assert_eq!(machine.inl(0xc00c), 0);
    // A doubleword at 0 is command, reserved, status, reserved.
    machine.outl(0xc008, 0x0060_0008);
    assert_eq!(machine.inl(0xc008), 0x0060_0008);
}

#[test]
fn stopping_in_mid_transfer_aborts_when_the_disk_is_done() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let command = issue_read(&drive, 1, &[(DATA, 512)]);
    machine.outb(drive.bus_master, 0x08);
    assert_eq!(drive.bus_master_status() & BM_ACTIVE, 0);
    assert_eq!(drive.alternate_status() & BSY, BSY, "the request cannot be recalled");
    // A restart does not run the command a second time.
    drive.start_dma();
    assert_eq!(drive.disk().waiting(), 1);
    machine.settle();
    let failed = drive.finish_dma(&command).expect_err("stopped");
    assert_eq!(failed.error, ABRT);
    assert_eq!(drive.dma_read(&Command::at(0xc8, 3, 1), 1), Ok(pattern(0, 3, 1)));
}

#[test]
fn an_ultra_dma_burst_that_is_broken_off_is_a_crc_error() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.set_features(0x03, 0x42).expect("UDMA 2");
    // Stopped in mid-transfer.
    let command = issue_read(&drive, 1, &[(DATA, 512)]);
    machine.outb(drive.bus_master, 0x08);
    machine.settle();
    assert_eq!(
        drive.finish_dma(&command).map_err(|failed| failed.error),
        Err(ICRC | ABRT)
    );
    // And by memory that is not there, which the bus master tells, too.
    let command = issue_read(&drive, 1, &[(crate::driver::MEMORY as u32, 512)]);
    assert_eq!(drive.bus_master_status() & BM_ERROR, BM_ERROR);
    assert_eq!(
        drive.finish_dma(&command).map_err(|failed| failed.error),
        Err(ICRC | ABRT)
    );
    let data = drive
        .pio_read(&Command::at(0xb0, 0xc2_4f00, 1).features(0xd0), 1, 1)
        .expect("SMART READ DATA");
    let crc_errors = data[2..362].chunks_exact(12).find(|entry| entry[0] == 199);
    assert_eq!(crc_errors.map(|entry| entry[5]), Some(2));
}

#[test]
fn a_reset_in_mid_transfer_leaves_memory_alone_once_it_is_over() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    issue_read(&drive, 4, &[(DATA, 4 * 512)]);
    drive.software_reset();
    machine.outb(drive.bus_master, 0);
    assert_eq!(drive.alternate_status() & BSY, BSY, "the read is still on its way");
    machine.settle();
    assert_eq!(drive.status(), READY);
    machine.put(DATA, &[0x11; 4 * 512]);
    machine.settle();
    assert_eq!(machine.get(DATA, 4 * 512), [0x11; 4 * 512]);
    // The same with RST#.
    issue_read(&drive, 4, &[(DATA, 4 * 512)]);
    machine.chipset.reset_ide();
    assert_eq!(drive.alternate_status() & BSY, BSY);
    assert_eq!(machine.inb(drive.bus_master), 0);
    machine.settle();
    assert_eq!(drive.status(), READY);
}

#[test]
fn a_host_error_of_a_write_is_abrt_at_its_first_sector() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.disk().fail_next(DiskError::Io {
        operation: "io",
        offset: 0,
        error: std::io::Error::from_raw_os_error(5),
    });
    let failed = drive
        .dma(&Command::extended(0x35, 77, 4), false, 4 * 512)
        .expect_err("the host failed");
    assert_eq!((failed.error, failed.lba), (ABRT, 77));
    assert_eq!(failed.status, READY | 1);
}

#[test]
fn without_the_bus_master_bit_a_transfer_waits_for_it() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    machine.pci_write(1, 1, 0x04, 0x0001);
    let command = issue_read(&drive, 1, &[(DATA, 512)]);
    assert_eq!(drive.disk().waiting(), 0);
    machine.pci_write(1, 1, 0x04, 0x0005);
    assert_eq!(drive.disk().waiting(), 1);
    machine.settle();
    assert_eq!(drive.finish_dma(&command), Ok(()));
}

#[test]
fn the_largest_command_moves_65536_sectors_or_is_refused_whole() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let failed = drive
        .dma_read(&Command::extended(0x25, 0, 0), 1)
        .expect_err("larger than the disk");
    assert_eq!((failed.error, failed.lba), (IDNF, SECTORS as u64));
}
