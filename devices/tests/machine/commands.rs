//! Commands that move no sectors of the disk: IDENTIFY, settings, flush, TRIM, SMART, power.

use std::sync::Arc;

use disk::{DiskError, MemoryDisk};

use crate::driver::{ABRT, Command, DATA, IDNF, Machine, SECTORS, pattern};

fn text(words: &[u16]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    String::from_utf8(bytes).expect("ASCII").trim_end().to_owned()
}

#[test]
fn identify_says_what_linux_reads() {
    let machine = Machine::new(&[0]);
    let words = machine.drive(0).identify();
    assert_eq!(text(&words[10..20]), "SP00000001");
    assert_eq!(text(&words[27..47]), "spindle disk");
    assert_eq!(words[49] & 0x0300, 0x0300, "LBA and DMA");
    assert_eq!(words[53] & 7, 7);
    assert_eq!(u32::from(words[60]) | u32::from(words[61]) << 16, SECTORS as u32);
    assert_eq!(words[100..104], [SECTORS as u16, 0, 0, 0]);
    assert_eq!(words[63] & 7, 7, "multiword DMA 0 to 2");
    assert_eq!(words[88] & 7, 7, "Ultra DMA 0 to 2");
    assert_eq!(words[83] & 0xc000, 0x4000);
    assert_eq!(words[83] & 0x3400, 0x3400, "LBA48, FLUSH CACHE, FLUSH CACHE EXT");
    assert_eq!(words[85] & 0x20, 0x20, "write cache on");
    assert_eq!(words[87] & 0xc000, 0x4000);
    // Not zero, or Linux takes it for a SATA drive; and not 80 conductors.
    assert_eq!(words[93] & 0xe000, 0x4000);
    assert_eq!(words[106] & 0xd000, 0x4000, "512-byte sectors");
    assert_eq!(words[169], 1, "TRIM");
    assert_eq!(words[217], 1, "non-rotating");
    let sum = words
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .fold(0u8, u8::wrapping_add);
    assert_eq!((words[255] & 0xff, sum), (0xa5, 0));
}

#[test]
fn set_features_shows_in_identify() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.set_features(0x03, 0x42).expect("UDMA 2");
    assert_eq!((drive.identify()[63] >> 8, drive.identify()[88] >> 8), (0, 4));
    drive.set_features(0x03, 0x21).expect("MWDMA 1");
    assert_eq!((drive.identify()[63] >> 8, drive.identify()[88] >> 8), (2, 0));
    drive.set_features(0x03, 0x0c).expect("PIO 4");
    drive.set_features(0x03, 0x12).expect("single word DMA 2");
    let words = drive.identify();
    assert_eq!((words[62], words[63] >> 8, words[88] >> 8), (0x0407, 0, 0));
    for bad in [0x0d, 0x02, 0x13, 0x23, 0x46, 0x80, 0xff] {
        assert_eq!(
            drive.set_features(0x03, bad).map_err(|failed| failed.error),
            Err(ABRT),
            "{bad:#x}"
        );
    }
    drive.set_features(0x55, 0).expect("read-ahead off");
    assert_eq!(drive.identify()[85] & 0x40, 0);
    drive.set_features(0x05, 0x80).expect("power management");
    assert_eq!((drive.identify()[86] & 8, drive.identify()[91]), (8, 0x80));
    assert_eq!(drive.set_features(0x77, 0).map_err(|failed| failed.error), Err(ABRT));
}

#[test]
fn acoustic_management_and_reverting_are_remembered() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.set_features(0x42, 0x80).expect("acoustic management");
    let words = drive.identify();
    assert_eq!((words[86] & 0x200, words[94]), (0x200, 0x80));
    drive.set_features(0xc2, 0).expect("off");
    assert_eq!(drive.identify()[86] & 0x200, 0);
    drive.set_features(0x85, 0).expect("power management off");
    for bad in [0x00, 0xff] {
        assert_eq!(drive.set_features(0x05, bad).map_err(|failed| failed.error), Err(ABRT));
    }
    drive.set_features(0xcc, 0).expect("revert");
    drive.set_features(0x66, 0).expect("do not revert");
    drive.set_features(0x55, 0).expect("read-ahead off");
    drive.software_reset();
    assert_eq!(drive.identify()[85] & 0x40, 0);
}

#[test]
fn zeros_after_trim_are_promised_only_where_they_come() {
    let machine = Machine::new(&[0]);
    assert_eq!(machine.drive(0).identify()[69] & 0x4020, 0x4020, "a disk in memory");
    let machine = Machine::with_drives(&[0], |_, config| {
        config.disk = Arc::new(Promises(config.disk.clone()));
    });
    let words = machine.drive(0).identify();
    assert_eq!((words[69], words[169]), (0, 1), "TRIM, and no promise");
}

/// A disk that promises nothing.
struct Promises(Arc<dyn disk::Disk>);

impl disk::Disk for Promises {
    fn capacity(&self) -> u64 {
        self.0.capacity()
    }

    fn read_only(&self) -> bool {
        self.0.read_only()
    }

    fn submit(&self, request: disk::Request) {
        self.0.submit(request);
    }
}

#[test]
fn strings_and_name_are_what_the_user_chose() {
    let machine = Machine::with_drives(&[0], |_, config| {
        config.serial = "S-77".to_owned();
        config.model = "A model of forty characters, which fits.".to_owned();
        config.firmware = "1.2.3.4x".to_owned();
        config.world_wide_name = Some(0x5000_c500_a1b2_c3d4);
    });
    let words = machine.drive(0).identify();
    assert_eq!(text(&words[10..20]), "S-77");
    assert_eq!(text(&words[27..47]), "A model of forty characters, which fits.");
    assert_eq!(text(&words[23..27]), "1.2.3.4x");
    assert_eq!(words[108..112], [0x5000, 0xc500, 0xa1b2, 0xc3d4]);
    assert_eq!((words[84] & 0x100, words[87] & 0x100), (0x100, 0x100));
}

#[test]
fn flush_reaches_the_disk_and_fails_with_it() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    for opcode in [0xe7, 0xea] {
        drive.issue(&Command::new(opcode));
        assert_eq!(drive.disk().waiting(), 1);
        assert!(!drive.line.is_high());
        machine.settle();
        assert_eq!(drive.outcome(&Command::new(opcode)), Ok(()));
    }
    assert_eq!(drive.disk().flushes(), 2);
    drive.disk().fail_next(DiskError::Closed);
    let failed = drive.run(&Command::new(0xe7)).expect_err("the disk failed");
    assert_eq!(failed.error, ABRT);
}

#[test]
fn without_write_cache_every_write_is_flushed_and_so_is_fua() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive
        .dma_write(&Command::extended(0x3d, 0, 1), &[1; 512])
        .expect("WRITE DMA FUA EXT");
    assert_eq!(drive.disk().flushes(), 1);
    drive.dma_write(&Command::at(0xca, 0, 1), &[2; 512]).expect("WRITE DMA");
    assert_eq!(drive.disk().flushes(), 1);
    drive.set_features(0x82, 0).expect("write cache off");
    assert_eq!(drive.disk().flushes(), 2, "what it held is flushed");
    drive.dma_write(&Command::at(0xca, 0, 1), &[3; 512]).expect("WRITE DMA");
    drive
        .pio_write(&Command::at(0x30, 1, 2), &[4; 1024], 1)
        .expect("WRITE SECTORS");
    assert_eq!(drive.disk().flushes(), 4);
    assert_eq!(drive.identify()[85] & 0x20, 0);
    drive.set_features(0x02, 0).expect("write cache on");
    assert_eq!(drive.identify()[85] & 0x20, 0x20);
}

#[test]
fn verify_reads_and_tells_of_errors() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    for command in [
        Command::at(0x40, 0, 0),
        Command::at(0x41, 9, 9),
        Command::extended(0x42, 0, 1000),
    ] {
        assert_eq!(drive.run(&command), Ok(()));
    }
    assert_eq!(
        drive
            .run(&Command::at(0x40, SECTORS as u64, 1))
            .map_err(|failed| failed.error),
        Err(IDNF)
    );
    drive.disk().fail_next(DiskError::Closed);
    assert_eq!(
        drive.run(&Command::at(0x40, 5, 1)).map_err(|failed| failed.error),
        Err(0x40)
    );
}

#[test]
fn native_max_address_is_the_last_sector() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.run(&Command::new(0xf8)).expect("READ NATIVE MAX ADDRESS");
    assert_eq!(drive.lba(false), SECTORS as u64 - 1);
    drive.run(&Command::new(0x27)).expect("READ NATIVE MAX ADDRESS EXT");
    assert_eq!(drive.lba(true), SECTORS as u64 - 1);
}

#[test]
fn trim_discards_each_range_and_refuses_ranges_beyond_the_disk() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let trim = Command::extended(0x06, 0, 1).features(1);
    let payload = |ranges: &[(u64, u64)]| {
        let mut bytes: Vec<u8> = ranges
            .iter()
            .flat_map(|(lba, count)| (lba | count << 48).to_le_bytes())
            .collect();
        bytes.resize(512, 0);
        bytes
    };
    assert_eq!(drive.dma_write(&trim, &payload(&[(8, 8), (100, 1)])), Ok(()));
    let contents = drive.disk().contents();
    assert_eq!(contents[8 * 512..16 * 512], [0; 8 * 512]);
    assert_eq!(contents[100 * 512..101 * 512], [0; 512]);
    assert_eq!(contents[16 * 512..100 * 512], pattern(0, 16, 84));
    let failed = drive
        .dma_write(&trim, &payload(&[(200, 1), (SECTORS as u64 - 1, 2)]))
        .expect_err("beyond the disk");
    assert_eq!((failed.error, failed.lba), (IDNF, SECTORS as u64));
    assert_eq!(drive.disk().contents(), contents, "none of the ranges was discarded");
    // Not TRIM, no blocks, too many blocks.
    for (features, count) in [(0, 1), (1, 0), (1, 9)] {
        let command = Command::extended(0x06, 0, count).features(features);
        assert_eq!(drive.run(&command).map_err(|failed| failed.error), Err(ABRT));
    }
}

#[test]
fn a_read_only_disk_aborts_everything_that_changes_it() {
    let disk = Arc::new(MemoryDisk::new(pattern(0, 0, 64), true));
    let machine = Machine::with_disks([Some(disk), None, None, None]);
    let drive = machine.drive(0);
    for command in [
        Command::at(0x30, 0, 1),
        Command::at(0xca, 0, 1),
        Command::extended(0x06, 0, 1).features(1),
    ] {
        assert_eq!(drive.run(&command).map_err(|failed| failed.error), Err(ABRT));
    }
    assert_eq!(drive.identify()[169], 0);
    assert_eq!(drive.pio_read(&Command::at(0x20, 1, 1), 1, 1), Ok(pattern(0, 1, 1)));
}

#[test]
fn smart_status_data_thresholds_and_logs() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let smart = |subcommand, low: u64, count| Command::at(0xb0, low | 0xc2_4f00, count).features(subcommand);
    drive.run(&smart(0xda, 0, 0)).expect("RETURN STATUS");
    assert_eq!(drive.lba(false) & 0xff_ff00, 0xc2_4f00, "no threshold exceeded");
    drive.run(&smart(0xd4, 1, 0)).expect("short self-test");
    let _ = drive
        .pio_read(&Command::at(0x20, SECTORS as u64, 1), 1, 1)
        .expect_err("an error to log");
    for (command, sectors) in [(smart(0xd0, 0, 1), 1), (smart(0xd1, 0, 1), 1)] {
        let page = drive.pio_read(&command, sectors, 1).expect("a page");
        assert_eq!(page.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    }
    let log = |address| drive.pio_read(&smart(0xd5, address, 1), 1, 1);
    assert_eq!(log(0).map(|page| (page[2], page[12])), Ok((1, 1)));
    assert_eq!(log(1).map(|page| (page[1], page[452], page[2 + 61])), Ok((1, 1, IDNF)));
    assert_eq!(log(6).map(|page| (page[2], page[508])), Ok((1, 1)));
    assert_eq!(log(9).map_err(|failed| failed.error), Err(ABRT));
    // Without its key, and while it is off, SMART aborts.
    assert_eq!(
        drive
            .run(&Command::at(0xb0, 0, 0).features(0xda))
            .map_err(|failed| failed.error),
        Err(ABRT)
    );
    drive.run(&smart(0xd9, 0, 0)).expect("DISABLE OPERATIONS");
    assert_eq!(drive.identify()[85] & 1, 0);
    assert_eq!(drive.run(&smart(0xda, 0, 0)).map_err(|failed| failed.error), Err(ABRT));
    drive.run(&smart(0xd8, 0, 0)).expect("ENABLE OPERATIONS");
    drive.run(&smart(0xda, 0, 0)).expect("RETURN STATUS");
}

#[test]
fn power_modes_are_remembered_and_a_sleeping_drive_hears_only_resets() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let mode = || {
        drive.run(&Command::new(0xe5)).expect("CHECK POWER MODE");
        drive.register(2)
    };
    assert_eq!(mode(), 0xff);
    for (opcode, expected) in [
        (0xe0, 0x00),
        (0xe1, 0x80),
        (0xe2, 0x00),
        (0xe3, 0x80),
        (0x94, 0x00),
        (0x95, 0x80),
    ] {
        drive.run(&Command::new(opcode)).expect("a power command");
        assert_eq!(mode(), expected, "after {opcode:#x}");
    }
    drive.pio_read(&Command::at(0x20, 0, 1), 1, 1).expect("a read wakes");
    assert_eq!(mode(), 0xff);
    drive.run(&Command::new(0xe6)).expect("SLEEP");
    drive.issue(&Command::new(0xe5));
    assert!(!drive.line.is_high());
    drive.software_reset();
    assert_eq!(mode(), 0xff);
}

#[test]
fn the_sector_buffer_keeps_what_was_written() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let data: Vec<u8> = (0..512).map(|at| at as u8).collect();
    drive.issue(&Command::new(0xe8));
    machine.bus.write(drive.command, 2, &data);
    assert_eq!(drive.outcome(&Command::new(0xe8)), Ok(()));
    assert_eq!(drive.pio_read(&Command::new(0xe4), 1, 1), Ok(data));
}

#[test]
fn commands_that_a_disk_does_not_have_abort() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    machine.put_table(&[(DATA, 512)]);
    // NOP, DEVICE RESET, DOWNLOAD MICROCODE, PACKET, IDENTIFY PACKET DEVICE, the CFA feature set, vendor specific.
    for opcode in [0x00, 0x08, 0x92, 0xa0, 0xa1, 0x03, 0x38, 0x87, 0xc0, 0xcd, 0xff] {
        let failed = drive.run(&Command::new(opcode)).expect_err("not a disk's");
        assert_eq!(failed.error, ABRT, "opcode {opcode:#x}");
    }
}
