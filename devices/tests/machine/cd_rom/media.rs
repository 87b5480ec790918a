//! Media that come and go, by the guest's hand and by the host's, and what each side learns of it.

use std::sync::{Arc, Mutex};

use devices::ide::cd_rom_handle::{ButtonOutcome, EjectOutcome, Medium, TrayLocked, TrayState};

use crate::cd_rom::driver::{
    CHANGED, Check, NO_MEDIUM, POWER_ON, TRAY_OPEN, check, content, drive, handle, insert, machine, medium, packet,
    read_10, ready,
};
use crate::driver::{BSY, DRQ};

/// Events of the media class.
const NONE: u8 = 0;
const EJECT_REQUEST: u8 = 1;
const NEW_MEDIA: u8 = 2;
const MEDIA_REMOVAL: u8 = 3;
/// Its status.
const CLOSED_EMPTY: u8 = 0;
const OPEN: u8 = 1;
const PRESENT: u8 = 2;

#[test]
fn power_on_is_told_once_and_only_where_it_must_be() {
    let machine = machine(Some(medium(1)));
    let cd_rom = drive(&machine);
    // Who asks what the drive is, is told that.
    cd_rom.run(packet(&[0x12, 0, 0, 0, 36])).expect("INQUIRY");
    cd_rom
        .run(packet(&[0x46, 0, 0, 0, 0, 0, 0, 0, 8]))
        .expect("GET CONFIGURATION");
    assert_eq!(cd_rom.media_event(), (NONE, PRESENT));
    assert_eq!(cd_rom.run(read_10(0, 1)), Err(check(POWER_ON)));
    assert_eq!(cd_rom.run(read_10(0, 1)), Ok(content(1, 0, 1)));
    // REQUEST SENSE tells it without a failed command.
    let machine = crate::cd_rom::driver::machine(None);
    assert_eq!(drive(&machine).sense(), POWER_ON);
    assert_eq!(drive(&machine).sense(), (0, 0, 0));
    assert_eq!(drive(&machine).test_unit_ready(), Err(check(NO_MEDIUM)));
}

#[test]
fn without_a_medium_commands_that_need_one_are_not_ready() {
    let machine = machine(None);
    let cd_rom = drive(&machine);
    assert_eq!(cd_rom.sense(), POWER_ON);
    for (sense, open) in [(NO_MEDIUM, false), (TRAY_OPEN, true)] {
        for bytes in [
            &[0x00][..],
            &[0x1b, 0, 0, 0, 1],
            &[0x25],
            &[0x28, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0xa8, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0xbe, 0, 0, 0, 0, 0, 0, 0, 1, 0x10],
            &[0xb9, 0, 0, 0, 2, 0, 0, 2, 1, 0x10],
            &[0x2b],
            &[0x42, 0, 0x40, 1, 0, 0, 0, 0, 16],
            &[0x43, 0, 0, 0, 0, 0, 0, 0, 12],
            &[0x51, 0, 0, 0, 0, 0, 0, 0, 34],
            &[0x52, 1, 0, 0, 0, 1, 0, 0, 36],
            &[0xac, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0xad, 0, 0, 0, 0, 0, 0, 0, 0, 8],
        ] {
            assert_eq!(cd_rom.run(packet(bytes)).err(), Some(check(sense)), "{bytes:x?}");
        }
        let status = if open { OPEN } else { CLOSED_EMPTY };
        assert_eq!(cd_rom.media_event().1, status);
        let mechanism = cd_rom
            .run(packet(&[0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8]))
            .expect("an answer");
        assert_eq!(mechanism[1] & 0x10 != 0, open);
        let mode = cd_rom
            .run(packet(&[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 8]))
            .expect("an answer");
        assert_eq!(mode[2], if open { 0x71 } else { 0x70 });
        cd_rom.eject().expect("nothing is locked");
    }
    // Closing an empty tray is no event.
    assert_eq!(cd_rom.media_event(), (NONE, OPEN));
    cd_rom.load().expect("it closes");
    assert_eq!(cd_rom.media_event(), (NONE, CLOSED_EMPTY));
    assert_eq!(cd_rom.test_unit_ready(), Err(check(NO_MEDIUM)));
}

#[test]
fn the_guest_ejects_and_loads() {
    let machine = ready();
    let cd_rom = drive(&machine);
    assert_eq!(cd_rom.media_event(), (NONE, PRESENT));
    cd_rom.eject().expect("the tray opens");
    assert_eq!(cd_rom.media_event(), (MEDIA_REMOVAL, OPEN));
    assert_eq!(cd_rom.media_event(), (NONE, OPEN), "an event is told once");
    assert_eq!(cd_rom.run(read_10(0, 1)), Err(check(TRAY_OPEN)));
    cd_rom.load().expect("the tray closes");
    assert_eq!(cd_rom.media_event(), (NEW_MEDIA, PRESENT));
    assert_eq!(cd_rom.test_unit_ready(), Err(check(CHANGED)), "it may be another one");
    assert_eq!(cd_rom.run(read_10(0, 1)), Ok(content(1, 0, 1)));
    cd_rom.load().expect("it is closed already");
    assert_eq!(cd_rom.test_unit_ready(), Ok(()), "and nothing happened");
}

#[test]
fn a_locked_tray_stays_closed_for_both_sides() {
    let machine = ready();
    let (cd_rom, host) = (drive(&machine), handle(&machine));
    cd_rom.lock(true);
    assert_eq!(cd_rom.eject(), Err(Check::of(5, 0x53, 2)));
    assert_eq!(cd_rom.media_event(), (NONE, PRESENT));
    assert_eq!(insert(&machine, medium(2)), Err(TrayLocked));
    // The button is a wish, of which the guest learns.
    assert_eq!(host.request_eject(), EjectOutcome::Requested);
    assert_eq!(cd_rom.media_event(), (EJECT_REQUEST, PRESENT));
    assert_eq!(cd_rom.run(read_10(0, 1)), Ok(content(1, 0, 1)));
    cd_rom.lock(false);
    cd_rom.eject().expect("the tray opens");
    assert_eq!(cd_rom.media_event(), (MEDIA_REMOVAL, OPEN));
    // A lock on an open tray holds once it is closed.
    cd_rom.lock(true);
    insert(&machine, medium(2)).expect("it is open");
    assert_eq!(cd_rom.eject(), Err(check(CHANGED)));
    assert_eq!(cd_rom.eject(), Err(Check::of(5, 0x53, 2)));
    // No reset of the interface opens the lock.
    cd_rom.ata.set_control(4);
    cd_rom.ata.set_control(0);
    assert_eq!(cd_rom.eject(), Err(Check::of(5, 0x53, 2)));
    host.force_out();
    assert_eq!(cd_rom.test_unit_ready(), Err(check(TRAY_OPEN)));
}

#[test]
fn the_host_changes_the_medium() {
    let machine = ready();
    let (cd_rom, host) = (drive(&machine), handle(&machine));
    let second = medium(2);
    insert(&machine, second.clone()).expect("the tray is not locked");
    assert_eq!(cd_rom.media_event(), (NEW_MEDIA, PRESENT));
    assert_eq!(cd_rom.run(read_10(5, 2)), Err(check(CHANGED)));
    cd_rom.send(0, 0xfffe, read_10(5, 2));
    second.run();
    assert_eq!(cd_rom.blocks_to_end(0xfffe), Ok(content(2, 5, 2)));
    assert_eq!(host.request_eject(), EjectOutcome::Open);
    assert_eq!(cd_rom.media_event(), (MEDIA_REMOVAL, OPEN));
    assert_eq!(host.request_eject(), EjectOutcome::Open);
    assert_eq!(cd_rom.media_event(), (NONE, OPEN));
    host.force_out();
    cd_rom.load().expect("the tray closes");
    assert_eq!(cd_rom.test_unit_ready(), Err(check(NO_MEDIUM)), "over nothing");
}

#[test]
fn what_reads_a_medium_that_goes_fails() {
    for dma in [false, true] {
        let machine = ready();
        let (cd_rom, host) = (drive(&machine), handle(&machine));
        let disc = machine.disks[2].clone().expect("a medium");
        cd_rom.put_table(2048);
        let start = || {
            if dma {
                cd_rom.start_dma(read_10(0, 1), true);
            } else {
                cd_rom.send(0, 0xfffe, read_10(0, 1));
            }
            assert_eq!(cd_rom.ata.alternate_status(), BSY);
        };
        start();
        insert(&machine, medium(2)).expect("the tray is not locked");
        disc.run();
        assert_eq!(cd_rom.outcome(), Err(check(CHANGED)));
        machine.outb(cd_rom.ata.bus_master, 0x08);
        assert_eq!(cd_rom.test_unit_ready(), Ok(()), "the change was told");
        insert(&machine, disc.clone()).expect("the tray is not locked");
        assert_eq!(cd_rom.test_unit_ready(), Err(check(CHANGED)));
        start();
        host.force_out();
        disc.run();
        assert_eq!(cd_rom.outcome(), Err(check(TRAY_OPEN)));
    }
}

#[test]
fn a_block_that_the_host_has_is_delivered_whatever_becomes_of_the_medium() {
    let machine = ready();
    let (cd_rom, host) = (drive(&machine), handle(&machine));
    cd_rom.send(0, 2048, read_10(0, 2));
    machine.settle();
    assert_eq!(cd_rom.ata.alternate_status() & DRQ, DRQ);
    host.force_out();
    let mut data = vec![0; 2048];
    machine.bus.read(cd_rom.ata.command, 2, &mut data);
    assert_eq!(data, content(1, 0, 1));
    machine.settle();
    assert_eq!(cd_rom.outcome(), Err(check(TRAY_OPEN)));
}

#[test]
fn events_are_told_to_who_asks_for_their_class() {
    let machine = ready();
    let (cd_rom, host) = (drive(&machine), handle(&machine));
    host.request_eject();
    let ask = |classes: u8, allocated: u8| {
        cd_rom
            .run(packet(&[0x4a, 1, 0, 0, classes, 0, 0, 0, allocated]))
            .expect("an answer")
    };
    assert_eq!(
        ask(0x02, 8),
        [0, 2, 0x80, 0x10],
        "there is no such event, but of the media class"
    );
    assert_eq!(ask(0x10, 4), [0, 6, 4, 0x10], "the header alone leaves the event");
    assert_eq!(ask(0x7e, 8), [0, 6, 4, 0x10, MEDIA_REMOVAL, OPEN, 0, 0]);
    assert_eq!(ask(0x10, 8), [0, 6, 4, 0x10, NONE, OPEN, 0, 0]);
}

#[test]
fn what_is_no_disc_is_refused_by_its_size() {
    for bytes in [0, 512, 2048 + 512] {
        let odd = Arc::new(disk::MemoryDisk::new(vec![0; bytes], true));
        let error = Medium::new(odd).err().expect("no whole blocks").to_string();
        assert!(
            error.starts_with(&format!("{bytes} bytes are not one or more whole blocks")),
            "{error}"
        );
    }
    let machine = ready();
    assert!(machine.chipset.cd_rom(0).is_none(), "hda is a disk");
    assert!(machine.chipset.cd_rom(7).is_none());
}

#[test]
fn the_button_moves_the_tray_and_the_host_is_told_of_every_move() {
    let machine = ready();
    let (cd_rom, host) = (drive(&machine), handle(&machine));
    let moves = Arc::new(Mutex::new(Vec::new()));
    let seen = moves.clone();
    host.observe(Box::new(move |open| seen.lock().expect("no panic").push(open)));
    let state = |open, locked, occupied| TrayState { open, locked, occupied };
    assert_eq!(host.state(), state(false, false, true));
    assert_eq!(host.press_button(), ButtonOutcome::Opened);
    assert_eq!(host.state(), state(true, false, true));
    assert_eq!(host.press_button(), ButtonOutcome::Closed);
    assert_eq!(cd_rom.media_event(), (NEW_MEDIA, PRESENT));
    assert_eq!(cd_rom.test_unit_ready(), Err(check(CHANGED)));
    cd_rom.lock(true);
    assert_eq!(host.press_button(), ButtonOutcome::Requested);
    assert_eq!(host.state(), state(false, true, true));
    cd_rom.lock(false);
    cd_rom.eject().expect("nothing is locked");
    cd_rom.eject().expect("it is open already");
    host.force_out();
    assert_eq!(host.state(), state(true, false, false));
    insert(&machine, medium(2)).expect("it is open");
    insert(&machine, medium(1)).expect("it is not locked");
    assert_eq!(*moves.lock().expect("no panic"), [true, false, true, false]);
}

#[test]
fn spinning_up_and_down_and_power_conditions_change_nothing() {
    let machine = ready();
    let cd_rom = drive(&machine);
    for byte in [0x00, 0x01, 0x10, 0x20, 0x30, 0x50] {
        assert_eq!(cd_rom.run(packet(&[0x1b, 1, 0, 0, byte])), Ok(vec![]));
    }
    assert_eq!(cd_rom.run(read_10(0, 1)), Ok(content(1, 0, 1)));
}
