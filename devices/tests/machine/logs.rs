//! READ LOG EXT, WRITE LOG EXT and what is in the logs.

use crate::driver::{ABRT, Command, DATA, IDNF, Machine, SECTORS};

/// READ LOG EXT of `count` pages from `page` on.
fn read_log(address: u64, page: u64, count: u16) -> Command {
    Command::extended(0x2f, address | (page & 0xff) << 8 | (page >> 8) << 32, count)
}

fn sum(page: &[u8]) -> u8 {
    page.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte))
}

#[test]
fn the_directory_names_every_log_and_every_log_is_there() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let directory = drive.pio_read(&read_log(0, 0, 1), 1, 1).expect("the directory");
    let pages = |address: usize| u16::from_le_bytes([directory[2 * address], directory[2 * address + 1]]);
    assert_eq!(pages(0), 1, "version");
    assert_eq!([3, 4, 7, 0x30, 0x80, 0x9f].map(pages), [1, 8, 1, 3, 16, 16]);
    for address in 1..=255 {
        let count = pages(address);
        let read = |page, count| drive.pio_read(&read_log(address as u64, page, count), count.into(), 1);
        if count > 0 {
            assert_eq!(read(0, count).map(|bytes| bytes.len()), Ok(usize::from(count) * 512));
        }
        let failed = drive
            .run(&read_log(address as u64, count.into(), 1))
            .expect_err("a page that is not there");
        assert_eq!(failed.error, ABRT, "log {address:#x}");
    }
    assert_eq!(drive.refused(&read_log(0, 0, 0)), ABRT, "no pages at all");
    assert_eq!(drive.identify()[84] & 0x20, 0x20, "general purpose logging");
}

#[test]
fn identify_data_and_statistics_are_logs_too() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive
        .dma_write(&Command::at(0xca, 0, 3), &[1; 3 * 512])
        .expect("WRITE DMA");
    drive.dma_read(&Command::at(0xc8, 0, 2), 2).expect("READ DMA");
    let log = drive.pio_read(&read_log(0x30, 0, 3), 3, 1).expect("IDENTIFY log");
    assert_eq!(log[8..12], [3, 0, 1, 2]);
    let words: Vec<u8> = drive.identify().iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(log[512..1024], words);
    assert_eq!(log[1024 + 8..1024 + 12], (SECTORS as u32).to_le_bytes());
    let field = |page: &[u8], at: usize| {
        assert_eq!(page[at + 7], 0xc0, "supported and valid");
        u64::from_le_bytes(page[at..at + 8].try_into().expect("8 bytes")) & 0xffff_ffff_ffff
    };
    let general = drive.pio_read(&read_log(4, 1, 1), 1, 1).expect("statistics");
    assert_eq!([8, 24, 32, 40, 48].map(|at| field(&general, at)), [1, 3, 1, 2, 1]);
    let statistics = machine.chipset.statistics()[0].expect("a disk");
    assert_eq!((statistics.writes, statistics.sectors_written), (1, 3));
    assert_eq!((statistics.reads, statistics.sectors_read), (1, 2));
}

#[test]
fn logs_come_by_dma_as_well() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let by_port = drive.pio_read(&read_log(0x30, 0, 3), 3, 1).expect("by PIO");
    let command = Command {
        opcode: 0x47,
        ..read_log(0x30, 0, 3)
    };
    assert_eq!(drive.dma_read(&command, 3), Ok(by_port));
    // In two tables.
    machine.put_table(&[(DATA, 512)]);
    drive.issue_dma(&command, true);
    assert_eq!(drive.bus_master_status() & 0x05, 0);
    machine.outb(drive.bus_master, 0x08);
    machine.put_table(&[(DATA + 512, 1024)]);
    drive.start_dma();
    assert_eq!(drive.finish_dma(&command), Ok(()));
}

#[test]
fn the_hosts_logs_keep_what_it_writes() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let data: Vec<u8> = (0..1024).map(|at| (at / 7) as u8).collect();
    let write = Command {
        opcode: 0x3f,
        ..read_log(0x85, 3, 2)
    };
    assert_eq!(drive.give(&write, &data), Ok(()));
    assert_eq!(drive.pio_read(&read_log(0x85, 3, 2), 2, 1), Ok(data.clone()));
    assert_eq!(drive.pio_read(&read_log(0x84, 3, 1), 1, 1), Ok(vec![0; 512]));
    // The same by SMART.
    let smart = |subcommand, count| Command::at(0xb0, 0xc2_4f90, count).features(subcommand);
    assert_eq!(drive.give(&smart(0xd6, 2), &data), Ok(()));
    assert_eq!(drive.pio_read(&smart(0xd5, 2), 2, 1), Ok(data.clone()));
    machine.chipset.reset_ide();
    assert_eq!(drive.pio_read(&smart(0xd5, 2), 2, 1), Ok(data));
    // Logs that are not the host's, and pages that are not there.
    for command in [
        read_log(0x03, 0, 1),
        read_log(0x80, 16, 1),
        read_log(0x80, 15, 2),
        read_log(0x80, 0, 0),
    ] {
        let command = Command {
            opcode: 0x3f,
            ..command
        };
        assert_eq!(drive.refused(&command), ABRT);
    }
}

#[test]
fn errors_are_logged_with_addresses_of_48_bits() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    let far = 0x0123_4567_89ab;
    for lba in [far, far + 1, far + 2] {
        drive
            .run(&Command::extended(0x42, lba, 1))
            .expect_err("beyond the disk");
    }
    let log = drive.pio_read(&read_log(3, 0, 1), 1, 1).expect("error log");
    assert_eq!(sum(&log), 0);
    assert_eq!((log[2], log[500]), (3, 3));
    let error = &log[4 + 2 * 124 + 90..4 + 3 * 124];
    assert_eq!(error[1], IDNF);
    assert_eq!(error[4..10], [0xad, 0x45, 0x89, 0x23, 0x67, 0x01]);
    let command = &log[4 + 2 * 124 + 72..4 + 2 * 124 + 90];
    assert_eq!(command[12], 0x42);
}

#[test]
fn smart_attributes_count_what_happens() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive
        .run(&Command::extended(0x45, 9, 2).features(0x55))
        .expect("WRITE UNCORRECTABLE EXT");
    drive.run(&Command::at(0x40, 9, 1)).expect_err("uncorrectable");
    drive
        .dma_write(&Command::at(0xca, 100, 5), &[1; 5 * 512])
        .expect("a write");
    machine.clock.advance(std::time::Duration::from_secs(3 * 3600 + 1));
    let data = drive
        .pio_read(&Command::at(0xb0, 0xc2_4f00, 1).features(0xd0), 1, 1)
        .expect("SMART READ DATA");
    let raw = |id: u8| {
        let entry = data[2..362]
            .chunks_exact(12)
            .find(|entry| entry[0] == id)
            .expect("an attribute");
        u32::from_le_bytes([entry[5], entry[6], entry[7], entry[8]])
    };
    assert_eq!([9, 12, 187, 197, 199, 241].map(raw), [3, 1, 1, 2, 0, 5]);
    machine.chipset.reset_ide();
    let thresholds = drive
        .pio_read(&Command::at(0xb0, 0xc2_4f00, 1).features(0xd1), 1, 1)
        .expect("SMART READ THRESHOLDS");
    assert_eq!(sum(&thresholds), 0);
    // Autosave, automatic off-line collection, and their values.
    let smart = |subcommand, count| Command::at(0xb0, 0xc2_4f00, count).features(subcommand);
    for command in [
        smart(0xd2, 0),
        smart(0xd2, 0xf1),
        smart(0xd3, 0),
        smart(0xdb, 0xf8),
        smart(0xdb, 0),
    ] {
        assert_eq!(drive.run(&command), Ok(()));
    }
    for command in [smart(0xd2, 7), smart(0xdb, 1), smart(0xd7, 0), smart(0xd5, 0)] {
        assert_eq!(drive.refused(&command), ABRT);
    }
}
