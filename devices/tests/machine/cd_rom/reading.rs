//! READ, READ CD and SEEK.

use crate::cd_rom::driver::{BLOCKS, Check, content, drive, packet, read_10, ready};

const OUT_OF_RANGE: (u8, u8, u8) = (5, 0x21, 0);

fn read_cd(first: u32, blocks: u8, sector_type: u8, parts: u8, sub_channel: u8) -> [u8; 12] {
    let [a, b, c, d] = first.to_be_bytes();
    packet(&[0xbe, sector_type << 2, a, b, c, d, 0, 0, blocks, parts, sub_channel])
}

fn illegal(sense: (u8, u8, u8)) -> Option<Check> {
    Some(Check::of(sense.0, sense.1, sense.2))
}

#[test]
fn read_10_and_read_12_read_any_range() {
    let machine = ready();
    let cd_rom = drive(&machine);
    for (first, count) in [(0, 1), (0, BLOCKS), (BLOCKS - 1, 1), (123, 65)] {
        let expected = Ok(content(1, first, count));
        assert_eq!(cd_rom.run(read_10(first, count as u16)), expected);
        let [a, b, c, d] = first.to_be_bytes();
        let [e, f, g, h] = count.to_be_bytes();
        let read_12 = packet(&[0xa8, 0, a, b, c, d, e, f, g, h]);
        assert_eq!(cd_rom.run(read_12), expected);
    }
    assert_eq!(cd_rom.run(read_10(BLOCKS, 0)), Ok(vec![]), "nothing from the end on");
}

#[test]
fn what_is_beyond_the_medium_is_refused_before_any_data() {
    let machine = ready();
    let cd_rom = drive(&machine);
    for (first, count) in [
        (BLOCKS, 1),
        (BLOCKS - 1, 2),
        (u32::MAX, 1),
        (1, 0xffff),
        (BLOCKS + 1, 0),
    ] {
        assert_eq!(cd_rom.run(read_10(first, count)).err(), illegal(OUT_OF_RANGE));
    }
    let huge = packet(&[0xa8, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(cd_rom.run(huge).err(), illegal(OUT_OF_RANGE));
    assert_eq!(
        cd_rom.run(packet(&[0x2b, 0, 0, 0, 2, 0x58])).err(),
        illegal(OUT_OF_RANGE)
    );
    assert_eq!(cd_rom.run(packet(&[0x2b, 0, 0, 0, 2, 0x57])), Ok(vec![]));
    // The relative address bit.
    assert_eq!(cd_rom.run(packet(&[0x28, 1])).err(), illegal((5, 0x24, 0)));
}

#[test]
fn read_cd_gives_the_parts_of_a_sector_that_are_asked_for() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let data = content(1, 16, 2);
    assert_eq!(cd_rom.run(read_cd(16, 2, 0, 0x10, 0)), Ok(data.clone()));
    let raw = cd_rom.run(read_cd(16, 2, 2, 0xf8, 0)).expect("whole sectors");
    assert_eq!(raw.len(), 2 * 2352);
    for (index, sector) in raw.chunks(2352).enumerate() {
        assert_eq!(sector[..12], [0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0]);
        assert_eq!(sector[12..16], [0, 2, 0x16 + index as u8, 1]);
        assert_eq!(sector[16..2064], data[2048 * index..][..2048]);
        assert!(sector[2076..].iter().any(|byte| *byte != 0), "there is a parity");
    }
    for (parts, sub_channel, bytes) in [
        (0x00, 0, 0),
        (0x20, 0, 4),
        (0x40, 0, 0),
        (0x18, 0, 2048 + 288),
        (0x12, 0, 2048 + 294),
        (0x14, 0, 2048 + 296),
        (0xf8, 2, 2352 + 16),
        (0xfc, 2, 2352 + 296 + 16),
    ] {
        let read = cd_rom.run(read_cd(100, 3, 0, parts, sub_channel)).expect("parts");
        assert_eq!(read.len(), 3 * bytes, "{parts:#x} {sub_channel}");
        let dma = cd_rom.run_dma(read_cd(100, 3, 0, parts, sub_channel), 3 * bytes);
        if bytes > 0 {
            assert_eq!(dma, Ok(read));
        }
    }
    // Many: more than the drive reads at once.
    let many = cd_rom.run(read_cd(0, 200, 0, 0xf8, 0)).expect("whole sectors");
    assert_eq!(cd_rom.run_dma(read_cd(0, 200, 0, 0xf8, 0), 200 * 2352), Ok(many));
}

#[test]
fn read_cd_msf_counts_in_minutes_seconds_and_frames() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let msf = |start: [u8; 3], end: [u8; 3]| {
        let [a, b, c] = start;
        let [d, e, f] = end;
        packet(&[0xb9, 0, 0, a, b, c, d, e, f, 0x10])
    };
    assert_eq!(cd_rom.run(msf([0, 2, 0], [0, 2, 3])), Ok(content(1, 0, 3)));
    assert_eq!(cd_rom.run(msf([0, 9, 74], [0, 10, 0])), Ok(content(1, 599, 1)));
    assert_eq!(cd_rom.run(msf([0, 2, 5], [0, 2, 5])), Ok(vec![]));
    for (start, end) in [
        ([0, 1, 74], [0, 2, 1]),
        ([0, 2, 75], [0, 3, 1]),
        ([0, 2, 5], [0, 2, 4]),
        ([0, 2, 5], [0, 60, 4]),
    ] {
        assert_eq!(cd_rom.run(msf(start, end)).err(), illegal((5, 0x24, 0)));
    }
    assert_eq!(cd_rom.run(msf([0, 9, 74], [0, 10, 1])).err(), illegal(OUT_OF_RANGE));
}

#[test]
fn sectors_that_a_data_track_does_not_have_are_refused() {
    let machine = ready();
    let cd_rom = drive(&machine);
    for sector_type in [1, 3, 4, 5] {
        let audio = cd_rom.run(read_cd(0, 1, sector_type, 0x10, 0));
        assert_eq!(audio.err(), illegal((5, 0x64, 0)), "type {sector_type}");
    }
    for (sector_type, parts, sub_channel) in [(6, 0x10, 0), (0, 0x16, 0), (0, 0x10, 1), (0, 0x90, 0), (0, 0x08, 0)] {
        let odd = cd_rom.run(read_cd(0, 1, sector_type, parts, sub_channel));
        assert_eq!(
            odd.err(),
            illegal((5, 0x24, 0)),
            "{sector_type} {parts:#x} {sub_channel}"
        );
    }
}
