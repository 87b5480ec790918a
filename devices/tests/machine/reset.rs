//! Software reset, diagnostics, and the interrupt line.

use crate::driver::{ABRT, BM_INTERRUPT, BSY, Command, DATA, DRQ, Machine, READY, pattern};

#[test]
fn a_reset_shows_the_signature() {
    let machine = Machine::new(&[0, 1]);
    for slot in [1, 0] {
        let drive = machine.drive(slot);
        drive.load(&Command::at(0, 0x123_4567, 0x89));
        drive.set_control(4);
        assert_eq!(drive.status() & BSY, BSY);
        drive.set_control(0);
        assert_eq!(drive.register(6) & 0x10, 0, "device 0 is selected");
        drive.select();
        let registers: Vec<u8> = (1..=5).map(|offset| drive.register(offset)).collect();
        assert_eq!(registers, [1, 1, 1, 0, 0]);
        assert_eq!(drive.status(), READY);
        assert!(!drive.line.is_high());
    }
}

#[test]
fn a_reset_during_a_pio_transfer_ends_it() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.issue(&Command::at(0x20, 0, 2));
    machine.settle();
    machine.inw(0x1f0);
    drive.software_reset();
    assert_eq!(drive.status() & DRQ, 0);
    drive.issue(&Command::at(0x30, 0, 1));
    machine.outw(0x1f0, 0xffff);
    drive.software_reset();
    assert_eq!(drive.disk().waiting(), 0);
    assert_eq!(drive.pio_read(&Command::at(0x20, 0, 1), 1, 1), Ok(pattern(0, 0, 1)));
}

#[test]
fn a_reset_waits_for_the_request_in_flight_and_ignores_its_outcome() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    machine.put(DATA, &[0xab; 512]);
    machine.put_table(&[(DATA, 512)]);
    drive.issue_dma(&Command::at(0xca, 7, 1), false);
    drive.software_reset();
    machine.outb(drive.bus_master, 0);
    assert_eq!(drive.status() & BSY, BSY, "a later command must not overtake the write");
    drive.set_register(7, 0xec);
    assert_eq!(drive.disk().waiting(), 1);
    drive.step();
    assert_eq!(drive.status(), READY);
    assert!(!drive.line.is_high(), "the old command's end is nobody's interrupt");
    assert_eq!(drive.bus_master_status() & BM_INTERRUPT, 0);
    assert_eq!(drive.pio_read(&Command::at(0x20, 7, 1), 1, 1), Ok(vec![0xab; 512]));
}

#[test]
fn a_request_that_ends_while_srst_is_set_does_not_end_the_reset() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.issue(&Command::new(0xe7));
    drive.set_control(4);
    drive.step();
    assert_eq!(drive.status() & BSY, BSY);
    drive.set_control(0);
    assert_eq!(drive.status(), READY);
}

#[test]
fn a_reset_reaches_both_drives_and_each_recovers_by_itself() {
    let machine = Machine::new(&[0, 1]);
    let (master, slave) = (machine.drive(0), machine.drive(1));
    slave.issue(&Command::new(0xe7));
    slave.software_reset();
    assert_eq!(master.status(), READY);
    assert_eq!(master.pio_read(&Command::at(0x20, 1, 1), 1, 1), Ok(pattern(0, 1, 1)));
    slave.step_if_waiting();
    slave.select();
    assert_eq!(slave.status(), READY);
    assert_eq!(slave.pio_read(&Command::at(0x20, 1, 1), 1, 1), Ok(pattern(1, 1, 1)));
}

#[test]
fn settings_survive_a_reset_unless_reverting_is_on() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.set_features(0x82, 0).expect("write cache off");
    drive.software_reset();
    assert_eq!(drive.identify()[85] & 0x20, 0);
    drive.set_features(0xcc, 0).expect("revert to power-on defaults");
    drive.software_reset();
    assert_eq!(drive.identify()[85] & 0x20, 0x20);
}

#[test]
fn diagnostics_run_on_both_drives_and_device_0_interrupts() {
    let machine = Machine::new(&[0, 1]);
    let slave = machine.drive(1);
    slave.issue(&Command::new(0x90));
    assert!(slave.line.is_high());
    assert_eq!(slave.register(6) & 0x10, 0);
    assert_eq!(slave.status(), READY);
    assert!(!slave.line.is_high());
    assert_eq!(slave.register(1), 1, "both passed");
    slave.select();
    assert_eq!((slave.register(1), slave.register(2), slave.register(3)), (1, 1, 1));
}

#[test]
fn nien_holds_an_interrupt_back_and_does_not_lose_it() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.set_control(2);
    drive.issue(&Command::new(0xe7));
    machine.settle();
    assert!(!drive.line.is_high());
    assert_eq!(drive.bus_master_status() & BM_INTERRUPT, 0);
    assert_eq!(drive.alternate_status(), READY);
    drive.set_control(0);
    assert!(drive.line.is_high());
    assert_eq!(drive.bus_master_status() & BM_INTERRUPT, BM_INTERRUPT);
    assert_eq!(drive.outcome(&Command::new(0xe7)), Ok(()));
    // Acknowledged while it was held back, it does not come later.
    drive.set_control(2);
    drive.issue(&Command::new(0xe7));
    machine.settle();
    drive.status();
    drive.set_control(0);
    assert!(!drive.line.is_high());
}

#[test]
fn the_line_follows_the_selected_drive() {
    let machine = Machine::new(&[0, 1]);
    let (master, slave) = (machine.drive(0), machine.drive(1));
    master.issue(&Command::new(0xe7));
    machine.settle();
    assert!(master.line.is_high());
    slave.select();
    assert!(!master.line.is_high());
    slave.status();
    master.select();
    assert!(
        master.line.is_high(),
        "the slave's status acknowledges nothing of the master's"
    );
    master.status();
    assert!(!master.line.is_high());
}

#[test]
fn a_command_acknowledges_the_interrupt_of_the_one_before() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.issue(&Command::new(0x00));
    assert!(drive.line.is_high());
    let edges = drive.line.edges();
    drive.set_register(7, 0xe7);
    assert!(!drive.line.is_high());
    machine.settle();
    assert_eq!(drive.line.edges(), edges + 1);
    assert_eq!(drive.outcome(&Command::new(0xe7)), Ok(()));
    assert_eq!(drive.run(&Command::new(0x00)).map_err(|failed| failed.error), Err(ABRT));
}

#[test]
fn hob_shows_the_previous_content_until_the_next_write() {
    let machine = Machine::new(&[0]);
    let drive = machine.drive(0);
    drive.select();
    for (offset, values) in [
        (2, [0x11, 0x22]),
        (3, [0x33, 0x44]),
        (4, [0x55, 0x66]),
        (5, [0x77, 0x88]),
    ] {
        for value in values {
            drive.set_register(offset, value);
        }
    }
    drive.set_control(0x80);
    assert_eq!(
        [2, 3, 4, 5].map(|offset| drive.register(offset)),
        [0x11, 0x33, 0x55, 0x77]
    );
    drive.set_register(1, 0);
    assert_eq!(
        [2, 3, 4, 5].map(|offset| drive.register(offset)),
        [0x22, 0x44, 0x66, 0x88]
    );
}
