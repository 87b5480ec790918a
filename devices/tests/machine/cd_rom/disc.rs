//! What the disc is: capacity, table of contents, session and track, profiles.

use std::sync::Arc;

use disk::{Disk, Request};

use crate::cd_rom::driver::{BLOCKS, CHANGED, Check, check, drive, handle, insert, packet, read_10, ready};

/// A disc of any size, which nobody reads.
struct Sized(u64);

impl Disk for Sized {
    fn capacity(&self) -> u64 {
        self.0
    }

    fn read_only(&self) -> bool {
        true
    }

    fn submit(&self, _request: Request) {
        unreachable!("nobody reads this disc");
    }
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[test]
fn capacity_is_the_last_block_and_its_size() {
    let machine = ready();
    let data = drive(&machine).run(packet(&[0x25])).expect("a capacity");
    assert_eq!((be32(&data), be32(&data[4..]), data.len()), (BLOCKS - 1, 2048, 8));
}

#[test]
fn the_table_of_contents_has_one_data_track() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let toc = |bytes: &[u8]| cd_rom.run(packet(bytes));
    let blocks = [0, 0, 2, 0x58];
    let track = [0, 0x14, 1, 0, 0, 0, 0, 0];
    let lead_out = [[0, 0x14, 0xaa, 0], blocks].concat();
    let whole = [&[0, 18, 1, 1][..], &track, &lead_out].concat();
    assert_eq!(toc(&[0x43, 0, 0, 0, 0, 0, 0, 0, 99]), Ok(whole.clone()));
    assert_eq!(toc(&[0x43, 0, 0, 0, 0, 0, 1, 0, 99]), Ok(whole.clone()));
    assert_eq!(toc(&[0x43, 0, 0, 0, 0, 0, 1, 0, 4]), Ok(whole[..4].to_vec()));
    let end = [&[0, 10, 1, 1][..], &lead_out].concat();
    assert_eq!(toc(&[0x43, 0, 0, 0, 0, 0, 0xaa, 0, 99]), Ok(end));
    let times = toc(&[0x43, 2, 0, 0, 0, 0, 0, 0, 99]).expect("times");
    assert_eq!((&times[8..12], &times[16..20]), (&[0, 0, 2, 0][..], &[0, 0, 10, 0][..]));
    // Sessions, in the place of the format of MMC and in that of older drives.
    let session = [&[0, 10, 1, 1][..], &track].concat();
    assert_eq!(toc(&[0x43, 0, 1, 0, 0, 0, 0, 0, 99]), Ok(session.clone()));
    assert_eq!(toc(&[0x43, 0, 0, 0, 0, 0, 0, 0, 99, 0x40]), Ok(session));
    let raw = toc(&[0x43, 2, 2, 0, 0, 0, 1, 0, 99]).expect("a raw table");
    assert_eq!((raw.len(), raw[1]), (4 + 4 * 11, 46));
    let points: Vec<(u8, &[u8])> = raw[4..].chunks(11).map(|point| (point[3], &point[8..])).collect();
    assert_eq!(
        points,
        [
            (0xa0, &[1, 0, 0][..]),
            (0xa1, &[1, 0, 0]),
            (0xa2, &[0, 10, 0]),
            (1, &[0, 2, 0])
        ]
    );
    for wrong in [
        [0x43, 0, 0, 0, 0, 0, 2, 0, 99],
        [0x43, 0, 2, 0, 0, 0, 2, 0, 99],
        [0x43, 0, 5, 0, 0, 0, 0, 0, 99],
    ] {
        assert_eq!(toc(&wrong).err(), Some(Check::of(5, 0x24, 0)));
    }
}

#[test]
fn disc_and_track_information_tell_of_one_closed_session() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let disc = cd_rom.run(packet(&[0x51, 0, 0, 0, 0, 0, 0, 0, 99])).expect("an answer");
    assert_eq!((disc.len(), disc[1]), (34, 32));
    assert_eq!(disc[2..8], [0x0e, 1, 1, 1, 1, 0x20]);
    assert!(cd_rom.run(packet(&[0x51, 1, 0, 0, 0, 0, 0, 0, 99])).is_err());
    for (kind, number) in [(0, 0), (0, 2), (1, 1), (2, 1)] {
        let track = cd_rom
            .run(packet(&[0x52, kind, 0, 0, number, 0x57, 0, 0, 99]))
            .or_else(|_| cd_rom.run(packet(&[0x52, kind, 0, 0, 0, number, 0, 0, 99])))
            .expect("an answer");
        assert_eq!((track.len(), track[2], track[3], track[5], track[6]), (36, 1, 1, 4, 1));
        assert_eq!((be32(&track[8..]), be32(&track[24..])), (0, BLOCKS));
    }
    for wrong in [
        [0x52, 0, 0, 0, 2, 0x58],
        [0x52, 1, 0, 0, 0, 2],
        [0x52, 2, 0, 0, 0, 0],
        [0x52, 3, 0, 0, 0, 1],
    ] {
        let packet = packet(&[&wrong[..], &[0, 0, 99]].concat());
        assert_eq!(cd_rom.run(packet).err(), Some(Check::of(5, 0x24, 0)));
    }
}

#[test]
fn the_sub_channel_tells_the_position_and_that_nothing_plays() {
    let machine = ready();
    let cd_rom = drive(&machine);
    cd_rom.run(read_10(16, 4)).expect("blocks");
    let sub = |format: u8, as_time: u8| {
        cd_rom
            .run(packet(&[0x42, as_time, 0x40, format, 0, 0, 1, 0, 99]))
            .expect("an answer")
    };
    assert_eq!(sub(1, 0), [0, 0x15, 0, 12, 1, 0x14, 1, 1, 0, 0, 0, 20, 0, 0, 0, 20]);
    assert_eq!(sub(1, 2)[8..12], [0, 0, 2, 20]);
    assert_eq!((sub(2, 0).len(), sub(2, 0)[8]), (24, 0), "no catalogue number");
    assert_eq!((sub(3, 0).len(), sub(3, 0)[8]), (24, 0), "no recording code");
    assert_eq!(
        cd_rom.run(packet(&[0x42, 0, 0, 1, 0, 0, 0, 0, 99])),
        Ok(vec![0, 0x15, 0, 0])
    );
    for wrong in [[0x42, 0, 0x40, 9, 0, 0, 0, 0, 99], [0x42, 0, 0x40, 3, 0, 0, 2, 0, 99]] {
        assert_eq!(cd_rom.run(packet(&wrong)).err(), Some(Check::of(5, 0x24, 0)));
    }
    let mechanism = cd_rom
        .run(packet(&[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 99]))
        .expect("an answer");
    assert_eq!(mechanism, [0, 0, 0, 0, 20, 0, 0, 0]);
}

/// The profile and the codes of the features that GET CONFIGURATION lists.
fn configuration(data: &[u8]) -> (u16, Vec<u16>) {
    assert_eq!(be32(data) as usize, data.len() - 4);
    let mut codes = Vec::new();
    let mut at = 8;
    while at < data.len() {
        codes.push(u16::from_be_bytes([data[at], data[at + 1]]));
        at += 4 + usize::from(data[at + 3]);
    }
    assert_eq!(at, data.len());
    (u16::from_be_bytes([data[6], data[7]]), codes)
}

#[test]
fn the_profile_follows_the_medium() {
    let machine = ready();
    let (cd_rom, host) = (drive(&machine), handle(&machine));
    let get = |kind: u8, start: u16| {
        let [high, low] = start.to_be_bytes();
        configuration(
            &cd_rom
                .run(packet(&[0x46, kind, high, low, 0, 0, 0, 4, 0]))
                .expect("an answer"),
        )
    };
    let all = [0, 1, 2, 3, 0x10, 0x1d, 0x1e, 0x1f, 0x100, 0x105, 0x108];
    let (profile, codes) = get(0, 0);
    assert_eq!((profile, &codes[..]), (0x08, &all[..]));
    assert_eq!(get(0, 0x1e).1, all[6..]);
    assert_eq!(get(1, 0).1, [0, 1, 2, 3, 0x10, 0x1d, 0x1e, 0x100, 0x105, 0x108]);
    assert_eq!(get(2, 0x1e).1, [0x1e]);
    assert_eq!(get(2, 0x21).1, [] as [u16; 0], "no writing");
    // More than 80 minutes.
    insert(&machine, Arc::new(Sized(360_001 * 2048))).expect("a disc");
    assert_eq!(get(1, 0x1d), (0x10, vec![0x1d, 0x1f, 0x100, 0x105, 0x108]));
    insert(&machine, Arc::new(Sized(360_000 * 2048))).expect("a disc");
    assert_eq!(get(1, 0).0, 0x08);
    host.force_out();
    assert_eq!(get(1, 0x10), (0, vec![0x1d, 0x100, 0x105, 0x108]));
    let short = cd_rom.run(packet(&[0x46, 0, 0, 0, 0, 0, 0, 0, 8])).expect("an answer");
    assert_eq!(short.len(), 8);
    assert!(cd_rom.run(packet(&[0x46, 3, 0, 0, 0, 0, 0, 0, 8])).is_err());
}

#[test]
fn a_dvd_has_structures_and_a_cd_has_none() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let structure =
        |format: u8, media: u8, layer: u8| cd_rom.run(packet(&[0xad, media, 0, 0, 0, 0, layer, format, 0xff, 0xff]));
    assert_eq!(structure(0, 0, 0).err(), Some(Check::of(5, 0x30, 2)));
    let blocks = 2_000_000u32;
    insert(&machine, Arc::new(Sized(u64::from(blocks) * 2048))).expect("a disc");
    assert_eq!(cd_rom.test_unit_ready(), Err(check(CHANGED)));
    let physical = structure(0, 0, 0).expect("a structure");
    assert_eq!((physical.len(), &physical[..2]), (2052, &[0x08, 0x02][..]));
    assert_eq!(
        (be32(&physical[8..]), be32(&physical[12..])),
        (0x3_0000, 0x3_0000 + blocks - 1)
    );
    assert_eq!(structure(1, 0, 0), Ok(vec![0, 6, 0, 0, 0, 0, 0, 0]));
    assert_eq!(structure(4, 0, 0).map(|data| data.len()), Ok(2052));
    let list = structure(0xff, 0, 0).expect("a list");
    let codes: Vec<u8> = list[4..].chunks(4).map(|entry| entry[0]).collect();
    assert_eq!(codes, [0, 1, 4]);
    for (format, media, layer) in [(3, 0, 0), (0x20, 0, 0), (0, 1, 0), (0, 0, 1)] {
        assert_eq!(structure(format, media, layer).err(), Some(Check::of(5, 0x24, 0)));
    }
    // It has no sectors of 2352 bytes.
    let raw = cd_rom.run(packet(&[0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0xf8]));
    assert_eq!(raw.err(), Some(Check::of(5, 0x30, 2)));
    // Times end where their digits do.
    let times = cd_rom.run(packet(&[0x43, 2, 0, 0, 0, 0, 0, 0, 99])).expect("times");
    assert_eq!(times[16..20], [0, 99, 59, 74]);
}
