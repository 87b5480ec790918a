//! PCI configuration and the devices that are not IDE.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use devices::bus::PortBus;
use devices::chipset::{Chipset, ChipsetConfig, ChipsetError, DriveConfig, Plugged};
use devices::interrupt::CountingLine;
use devices::piix4::power_management::{PM_TIMER_PORT, PM1A_CONTROL_PORT, SLEEP_TYPE_S5};
use devices::reset::{RESET_PORT, RESET_VALUE};
use devices::serial::Serial;
use disk::MemoryDisk;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::driver::{Command, Machine, RecordedPower, pattern};

#[test]
fn the_bus_has_a_host_bridge_and_the_piix4() {
    let machine = Machine::new(&[0]);
    for (device, function, id, class) in [
        (0, 0, 0x1237_8086, 0x0600),
        (1, 0, 0x7110_8086, 0x0601),
        (1, 1, 0x7111_8086, 0x0101),
        (1, 3, 0x7113_8086, 0x0680),
    ] {
        assert_eq!(machine.pci_read(device, function, 0), id);
        assert_eq!(machine.pci_read(device, function, 8) >> 16, class);
    }
    assert_eq!(machine.pci_read(1, 0, 0x0c) >> 16 & 0x80, 0x80, "multifunction");
    assert_eq!(
        machine.pci_read(1, 1, 8) >> 8 & 0xff,
        0x80,
        "compatibility mode, bus master"
    );
    for (device, function) in [(1, 2), (2, 0), (31, 7)] {
        assert_eq!(machine.pci_read(device, function, 0), 0xffff_ffff);
    }
    // Another bus, and configuration cycles that are off.
    for address in [0x8001_0000, 0x0000_0000] {
        machine.outl(0xcf8, address);
        assert_eq!(machine.inl(0xcfc), 0xffff_ffff);
    }
}

#[test]
fn configuration_data_takes_bytes_and_words() {
    let machine = Machine::new(&[0]);
    machine.outl(0xcf8, 0x8000_0900);
    assert_eq!(machine.inl(0xcf8), 0x8000_0900);
    assert_eq!((machine.inw(0xcfc), machine.inw(0xcfe)), (0x8086, 0x7111));
    assert_eq!((machine.inb(0xcfd), machine.inb(0xcff)), (0x80, 0x71));
    machine.outl(0xcf8, 0x8000_0904);
    machine.outw(0xcfc, 0xffff);
    assert_eq!(machine.inw(0xcfc), 0x0005);
    // Read-only: identity, class.
    machine.pci_write(1, 1, 0, 0);
    machine.pci_write(1, 1, 8, 0);
    assert_eq!(
        (machine.pci_read(1, 1, 0), machine.pci_read(1, 1, 8) >> 8),
        (0x7111_8086, 0x01_0180)
    );
}

#[test]
fn the_bus_master_bar_can_be_sized_and_moved() {
    let machine = Machine::new(&[0]);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    machine
        .chipset
        .observe_bus_master(Box::new(move |port| record.lock().expect("no panic").push(port)));
    assert_eq!(machine.pci_read(1, 1, 0x20), 0xc001);
    machine.pci_write(1, 1, 0x04, 0x0004);
    machine.pci_write(1, 1, 0x20, 0xffff_ffff);
    assert_eq!(machine.pci_read(1, 1, 0x20), 0x0000_fff1, "16 ports");
    machine.pci_write(1, 1, 0x20, 0xd120);
    machine.pci_write(1, 1, 0x04, 0x0005);
    machine.outl(0xd124, 0x1234_5678);
    assert_eq!((machine.inl(0xd124), machine.inl(0xc004)), (0x1234_5678, 0xffff_ffff));
    // Onto ports that are taken: they stay with their owner.
    machine.pci_write(1, 1, 0x20, 0x3f0);
    assert_eq!(machine.inb(0x3f6), 0x50);
    machine.pci_write(1, 1, 0x20, 0xc000);
    let seen = seen.lock().expect("no panic").clone();
    assert_eq!(seen, [Some(0xc000), None, Some(0xd120), None, Some(0xc000)]);
    assert_eq!(
        machine.drive(0).dma_read(&Command::at(0xc8, 1, 1), 1),
        Ok(pattern(0, 1, 1))
    );
}

#[test]
fn without_io_space_the_controller_is_silent() {
    let machine = Machine::new(&[0]);
    machine.pci_write(1, 1, 0x04, 0);
    assert_eq!([0x1f7, 0x3f6, 0xc002].map(|port| machine.inb(port)), [0xff; 3]);
    machine.pci_write(1, 1, 0x04, 5);
    assert_eq!([0x1f7, 0x3f6, 0xc002].map(|port| machine.inb(port)), [0x50, 0x50, 0]);
}

#[test]
fn every_way_to_reset_is_one_reset() {
    let machine = Machine::new(&[]);
    let resets = || machine.power.resets.load(Ordering::SeqCst);
    machine.outb(0x64, 0xfe);
    assert_eq!(resets(), 1);
    machine.outb(RESET_PORT, 0x02);
    assert_eq!(resets(), 1);
    machine.outb(RESET_PORT, RESET_VALUE);
    machine.outb(RESET_PORT, RESET_VALUE);
    assert_eq!(resets(), 2);
    machine.outb(0x92, 0x03);
    assert_eq!(resets(), 3);
    machine.outb(0x64, 0xd1);
    machine.outb(0x60, 0xdf);
    assert_eq!(resets(), 3);
    machine.outb(0x64, 0xd1);
    machine.outb(0x60, 0xde);
    assert_eq!(resets(), 4);
}

#[test]
fn the_keyboard_controller_answers_its_self_test_and_its_buffers_are_never_full() {
    let machine = Machine::new(&[]);
    assert_eq!(machine.inb(0x64) & 0x03, 0);
    machine.outb(0x64, 0xaa);
    assert_eq!(machine.inb(0x64) & 0x03, 1);
    assert_eq!(machine.inb(0x60), 0x55);
    machine.outb(0x64, 0x60);
    machine.outb(0x60, 0x65);
    machine.outb(0x64, 0x20);
    assert_eq!(machine.inb(0x60), 0x65);
    assert_eq!(machine.inb(0x64) & 0x03, 0);
}

#[test]
fn soft_off_is_sleep_enable_with_the_type_of_s5() {
    let machine = Machine::new(&[]);
    let offs = || machine.power.power_offs.load(Ordering::SeqCst);
    assert_eq!(machine.inw(PM1A_CONTROL_PORT) & 1, 1, "ACPI mode");
    machine.outw(PM1A_CONTROL_PORT, 0x0001 | 5 << 10 | 1 << 13);
    assert_eq!(offs(), 0, "another sleep type");
    machine.outw(PM1A_CONTROL_PORT, 0x0001 | u16::from(SLEEP_TYPE_S5) << 10);
    assert_eq!(offs(), 0, "no sleep enable");
    machine.outw(PM1A_CONTROL_PORT, 0x0001 | u16::from(SLEEP_TYPE_S5) << 10 | 1 << 13);
    assert_eq!(offs(), 1);
}

#[test]
fn the_pm_timer_counts_up_in_24_bits() {
    let machine = Machine::new(&[]);
    let first = machine.inl(PM_TIMER_PORT);
    while machine.inl(PM_TIMER_PORT) == first {}
    assert_eq!(machine.inl(PM_TIMER_PORT) >> 24, 0);
}

#[test]
fn serial_output_and_input_lose_nothing() {
    let rooms = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let line = Arc::new(CountingLine::default());
    let told = rooms.clone();
    let serial = Serial::new(
        line.clone(),
        Box::new(std::io::sink()),
        Box::new(move || {
            told.fetch_add(1, Ordering::SeqCst);
        }),
    );
    let bus = PortBus::default();
    bus.insert(0x3f8..=0x3ff, "COM1", serial.clone()).expect("free");
    let read = |port| {
        let mut data = [0];
        bus.read(port, 1, &mut data);
        data[0]
    };
    bus.write(0x3f9, 1, &[1]);
    let input: Vec<u8> = (0..200).collect();
    let mut sent = serial.enqueue(&input);
    assert_eq!((sent, line.edges()), (64, 1));
    let mut received = Vec::new();
    while received.len() < input.len() {
        assert_eq!(read(0x3fd) & 1, 1, "data is ready");
        received.push(read(0x3f8));
        if rooms.swap(0, Ordering::SeqCst) > 0 {
            sent += serial.enqueue(&input[sent..]);
        }
    }
    assert_eq!(received, input);
    assert_eq!(read(0x3fd) & 1, 0);
}

#[test]
fn cmos_tells_the_memory_size() {
    let machine = Machine::new(&[]);
    let cmos = |index| {
        machine.outb(0x70, index);
        u16::from(machine.inb(0x71))
    };
    // 1 MiB: nothing above.
    assert_eq!(cmos(0x15) | cmos(0x16) << 8, 640);
    assert_eq!(cmos(0x30) | cmos(0x31) << 8, 0);
    assert_eq!(cmos(0x34) | cmos(0x35) << 8, 0);
    assert_eq!(machine.inb(0x80), 0xff);
}

fn build(drives: [Option<DriveConfig>; 4]) -> Result<Chipset, ChipsetError> {
    let line = || Arc::new(CountingLine::default());
    Chipset::new(ChipsetConfig {
        memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).expect("anonymous memory"),
        bus: Arc::new(PortBus::default()),
        ide_lines: [line(), line()],
        ide: devices::ide::controller::IdeOptions::default(),
        drives: drives.map(|drive| drive.map(Plugged::Disk)),
        serial: Serial::new(line(), Box::new(std::io::sink()), Box::new(|| {})),
        power: Arc::new(RecordedPower::default()),
    })
}

#[test]
fn a_drive_that_cannot_be_is_refused_by_name() {
    let disk = |bytes: usize| Arc::new(MemoryDisk::new(vec![0; bytes], false));
    let error = build([None, Some(DriveConfig::new(disk(0), 1)), None, None])
        .err()
        .expect("no sectors");
    assert_eq!(
        error.to_string(),
        "Drive hdb: a disk of 0 bytes; an IDE disk has 512 bytes to 128 PiB, in whole sectors"
    );
    let long = DriveConfig {
        serial: "123456789012345678901".to_owned(),
        ..DriveConfig::new(disk(512), 2)
    };
    let error = build([None, None, Some(long), None]).err().expect("too long");
    assert_eq!(
        error.to_string(),
        "Drive hdc: Serial number \"123456789012345678901\" of 21 characters is not 1 to 20 printable ASCII characters"
    );
}
