//! What the host cannot read.

use disk::DiskError;

use crate::cd_rom::driver::{Check, content, drive, packet, read_10, ready};
use crate::driver::{BSY, DATA, ERR, READY};

fn unreadable() -> DiskError {
    DiskError::Corrupt(disk::Corruption {
        structure: "a test",
        at: 0,
        found: 0,
        expected: "nothing",
    })
}

/// The block that sense data names.
fn block(sense: &[u8]) -> u32 {
    assert_eq!(sense[0], 0xf0, "the information is valid");
    u32::from_be_bytes([sense[3], sense[4], sense[5], sense[6]])
}

#[test]
fn a_bad_block_is_named_and_those_before_it_are_delivered() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let disc = machine.disks[2].clone().expect("a medium");
    // The first request reads many blocks and fails; of those that follow, one by one, the fourth fails.
    for dma in [false, true] {
        disc.fail_next(unreadable());
        if dma {
            cd_rom.put_table(10 * 2048);
            cd_rom.start_dma(read_10(50, 10), true);
            assert!(disc.run_one());
        } else {
            cd_rom.send(0, 0xfffe, read_10(50, 10));
            assert!(disc.run_one());
        }
        let mut delivered = Vec::new();
        for _ in 0..3 {
            assert_eq!(cd_rom.ata.alternate_status(), BSY);
            assert!(disc.run_one());
            if !dma {
                let mut bytes = vec![0; cd_rom.byte_count()];
                machine.bus.read(cd_rom.ata.command, 4, &mut bytes);
                delivered.extend(bytes);
            }
        }
        disc.fail_next(unreadable());
        assert!(disc.run_one());
        assert!(!disc.run_one(), "the command is over");
        if dma {
            delivered = machine.get(DATA, 3 * 2048);
            machine.outb(cd_rom.ata.bus_master, 0x08);
        }
        assert_eq!(delivered, content(1, 50, 3));
        assert!(cd_rom.ata.line.is_high());
        assert_eq!((cd_rom.ata.status(), cd_rom.ata.register(1)), (READY | ERR, 0x30));
        let sense = cd_rom.request_sense();
        assert_eq!((sense[2], sense[12], sense[13]), (3, 0x11, 0));
        assert_eq!(block(&sense), 53);
    }
}

#[test]
fn an_error_that_does_not_come_again_is_none() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let disc = machine.disks[2].clone().expect("a medium");
    disc.fail_next(unreadable());
    assert_eq!(cd_rom.run(read_10(0, 40)), Ok(content(1, 0, 40)));
    disc.fail_next(unreadable());
    assert_eq!(cd_rom.run_dma(read_10(0, 40), 40 * 2048), Ok(content(1, 0, 40)));
    // A single block is not read again.
    disc.fail_next(unreadable());
    assert_eq!(cd_rom.run_dma(read_10(7, 1), 2048), Err(Check::of(3, 0x11, 0)));
}

#[test]
fn raw_sectors_fail_alike() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let disc = machine.disks[2].clone().expect("a medium");
    let raw = packet(&[0xbe, 0, 0, 0, 0, 9, 0, 0, 1, 0xf8]);
    for dma in [false, true] {
        disc.fail_next(unreadable());
        let read = if dma {
            cd_rom.run_dma(raw, 2352)
        } else {
            cd_rom.run(raw)
        };
        assert_eq!(read, Err(Check::of(3, 0x11, 0)));
    }
}

#[test]
fn an_invalid_field_is_pointed_at() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let failed = |bytes: &[u8]| {
        cd_rom.send(0, 0xfffe, packet(bytes));
        assert_eq!(cd_rom.ata.status(), READY | ERR);
        let sense = cd_rom.request_sense();
        assert_eq!((sense[2], sense[12]), (5, 0x24));
        assert_eq!(sense[15], 0xc0, "a field of the packet");
        u16::from_be_bytes([sense[16], sense[17]])
    };
    assert_eq!(failed(&[0x43, 0, 3, 0, 0, 0, 0, 0, 12]), 2, "READ TOC: format");
    assert_eq!(failed(&[0x43, 0, 0, 0, 0, 0, 5, 0, 12]), 6, "READ TOC: track");
    assert_eq!(failed(&[0x5a, 0, 0x05, 0, 0, 0, 0, 0, 99]), 2, "MODE SENSE: page");
    assert_eq!(
        failed(&[0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8]),
        1,
        "GET EVENT STATUS: not polled"
    );
    assert_eq!(failed(&[0x12, 1, 0x99, 0, 36]), 2, "INQUIRY: page");
    assert_eq!(failed(&[0x1b, 0, 0, 0, 0x40]), 4, "START STOP UNIT: power condition");
}
