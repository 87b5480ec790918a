//! INQUIRY, MODE SENSE and MODE SELECT, and speeds.

use crate::cd_rom::driver::{CdRom, Check, drive, packet, ready};

fn sense(cd_rom: &CdRom<'_>, control: u8, page: u8) -> Result<Vec<u8>, Check> {
    let data = cd_rom.run(packet(&[0x5a, 0, control << 6 | page, 0, 0, 0, 0, 1, 0]))?;
    assert_eq!(usize::from(data[0]) << 8 | usize::from(data[1]), data.len() - 2);
    assert_eq!(data[6..8], [0, 0], "no block descriptors");
    Ok(data[8..].to_vec())
}

fn select(cd_rom: &CdRom<'_>, pages: &[u8]) -> Result<(), Check> {
    let list = [&[0; 8], pages].concat();
    cd_rom.write(packet(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, list.len() as u8]), &list, 0xfffe)
}

#[test]
fn every_page_comes_alone_and_all_of_them_together() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let mut together = Vec::new();
    for page in [0x01, 0x0d, 0x0e, 0x1a, 0x1d, 0x2a] {
        for control in 0..3 {
            let alone = sense(&cd_rom, control, page).expect("a page");
            assert_eq!((alone[0], usize::from(alone[1])), (page, alone.len() - 2));
        }
        together.extend(sense(&cd_rom, 0, page).expect("a page"));
        assert_eq!(
            sense(&cd_rom, 3, page).err(),
            Some(Check::of(5, 0x39, 0)),
            "nothing is saved"
        );
    }
    assert_eq!(sense(&cd_rom, 0, 0x3f), Ok(together));
    // A subpage.
    let sub = cd_rom.run(packet(&[0x5a, 0, 0x01, 0x01, 0, 0, 0, 0, 99]));
    assert_eq!(sub.err(), Some(Check::of(5, 0x24, 0)));
}

#[test]
fn the_capabilities_are_those_that_linux_prints() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let page = sense(&cd_rom, 0, 0x2a).expect("a page");
    // sr_mod's get_capabilities, by its offsets.
    assert_eq!(page[6] >> 5, 1, "a tray");
    assert_eq!(page[3], 0, "writes nothing");
    assert_eq!(page[2] & 0x08, 0x08, "reads DVDs");
    assert_eq!(page[6] & 0x0b, 0x09, "locks and ejects, and is not locked");
    assert_eq!(u16::from_be_bytes([page[8], page[9]]), 8467);
    cd_rom.lock(true);
    assert_eq!(sense(&cd_rom, 0, 0x2a).expect("a page")[6] & 0x02, 0x02);
}

#[test]
fn parameters_are_set_kept_and_told() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let mut recovery = sense(&cd_rom, 0, 0x01).expect("a page");
    let mut audio = sense(&cd_rom, 0, 0x0e).expect("a page");
    let default = recovery.clone();
    recovery[3] = 9;
    audio[9] = 0x40;
    select(&cd_rom, &[&recovery[..], &audio].concat()).expect("both are changeable");
    assert_eq!(sense(&cd_rom, 0, 0x01), Ok(recovery.clone()));
    assert_eq!(sense(&cd_rom, 0, 0x0e), Ok(audio));
    assert_eq!(sense(&cd_rom, 2, 0x01), Ok(default));
    // In blocks of four bytes, and by DMA.
    recovery[3] = 7;
    let list = [&[0; 8], &recovery[..]].concat();
    let command = packet(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, list.len() as u8]);
    cd_rom.write(command, &list, 4).expect("in pieces");
    assert_eq!(sense(&cd_rom, 0, 0x01), Ok(recovery.clone()));
    recovery[3] = 6;
    let list = [&[0; 8], &recovery[..]].concat();
    machine.put(crate::driver::DATA, &list);
    cd_rom.put_table(list.len());
    cd_rom.start_dma(command, false);
    assert_eq!(cd_rom.finish_dma(), Ok(()));
    assert_eq!(sense(&cd_rom, 0, 0x01), Ok(recovery));
    // No list at all is none to object to.
    assert_eq!(cd_rom.run(packet(&[0x55, 0x10])), Ok(vec![]));
}

#[test]
fn a_wrong_parameter_list_changes_nothing_and_is_pointed_at() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let before = sense(&cd_rom, 0, 0x3f).expect("all pages");
    let mut recovery = sense(&cd_rom, 0, 0x01).expect("a page");
    recovery[3] = 1;
    let wrong = |pages: &[u8]| select(&cd_rom, pages).expect_err("a wrong list").sense;
    let capabilities = sense(&cd_rom, 0, 0x2a).expect("a page");
    // A page that cannot be set, one that there is not, a byte that cannot change, a page that is cut, one too long.
    assert_eq!(wrong(&[&recovery[..], &capabilities].concat()), (5, 0x26, 0));
    assert_eq!(wrong(&[0x33, 2, 0, 0]), (5, 0x26, 0));
    assert_eq!(wrong(&[0x01, 10, 0, 5, 1, 0, 0, 0, 0, 0, 0, 0]), (5, 0x26, 0));
    assert_eq!(wrong(&recovery[..6]), (5, 0x1a, 0));
    assert_eq!(wrong(&[0x01]), (5, 0x1a, 0));
    assert_eq!(wrong(&[0x01, 11, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), (5, 0x26, 0));
    let short = cd_rom.write(packet(&[0x55, 0x10, 0, 0, 0, 0, 0, 0, 5]), &[0; 5], 0xfffe);
    assert_eq!(short, Err(Check::of(5, 0x1a, 0)));
    assert_eq!(
        cd_rom.run(packet(&[0x55, 0x00, 0, 0, 0, 0, 0, 0, 5])).err(),
        Some(Check::of(5, 0x24, 0))
    );
    assert_eq!(
        cd_rom.run(packet(&[0x55, 0x11, 0, 0, 0, 0, 0, 0, 5])).err(),
        Some(Check::of(5, 0x24, 0))
    );
    assert_eq!(sense(&cd_rom, 0, 0x3f), Ok(before));
}

#[test]
fn inquiry_says_who_the_drive_is() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let standard = cd_rom.run(packet(&[0x12, 0, 0, 0, 255])).expect("an answer");
    assert_eq!(
        (standard[0], standard[1], standard[2], usize::from(standard[4])),
        (5, 0x80, 5, standard.len() - 5)
    );
    assert_eq!(&standard[8..32], b"SPINDLE spindle CD-ROM  ");
    let page = |page: u8| cd_rom.run(packet(&[0x12, 1, page, 0, 255])).expect("a page");
    assert_eq!(page(0x00), [5, 0, 0, 3, 0x00, 0x80, 0x83]);
    assert_eq!(&page(0x80)[4..], b"SPCD000003");
    let identification = page(0x83);
    assert_eq!(usize::from(identification[3]), identification.len() - 4);
    assert_eq!(&identification[8..], b"SPINDLE spindle CD-ROM  SPCD000003");
    for wrong in [[0x12, 1, 0x7f, 0, 255], [0x12, 0, 0x80, 0, 255], [0x12, 2, 0, 0, 255]] {
        assert_eq!(cd_rom.run(packet(&wrong)).err(), Some(Check::of(5, 0x24, 0)));
    }
}

#[test]
fn speeds_are_limited_and_told() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let current = || {
        let page = sense(&cd_rom, 0, 0x2a).expect("a page");
        let performance = cd_rom
            .run(packet(&[0xac, 0x10, 0, 0, 0, 0, 0, 0, 0, 1]))
            .expect("an answer");
        assert_eq!((performance.len(), performance[3]), (24, 20));
        let told = u16::from_be_bytes([page[14], page[15]]);
        assert_eq!(
            u32::from_be_bytes([performance[12], performance[13], performance[14], performance[15]]),
            u32::from(told)
        );
        told
    };
    for (asked, expected) in [(0x0b00, 0x0b00), (0xffff, 8467), (1, 176)] {
        let [high, low] = u16::to_be_bytes(asked);
        assert_eq!(cd_rom.run(packet(&[0xbb, 0, high, low])), Ok(vec![]));
        assert_eq!(current(), expected);
    }
}
