//! The PCI side: native mode, identities, what configuration decides.

use devices::ide::controller::{ChannelModes, Chip, IdeOptions};

use crate::driver::{Ata, Command, Machine, READY, pattern};

fn machine(chip: Chip, modes: ChannelModes) -> Machine {
    let options = IdeOptions {
        chip,
        modes,
        pci_line: None,
    };
    Machine::configured(Machine::new(&[0, 2]).disks, &options, |_, _| {})
}

/// The drive in `slot` by the ports of native mode.
fn native(machine: &Machine, slot: usize) -> Ata<'_> {
    let channel = slot / 2;
    Ata {
        command: [0xc010, 0xc020][channel],
        control: [0xc01a, 0xc02a][channel],
        line: &machine.pci_line,
        ..machine.drive(slot)
    }
}

fn interface(machine: &Machine) -> u32 {
    machine.pci_read(1, 1, 0x08) >> 8 & 0xff
}

#[test]
fn without_the_option_the_channels_stay_as_they_are() {
    let machine = Machine::new(&[0]);
    assert_eq!(interface(&machine), 0x80);
    machine.pci_write(1, 1, 0x08, 0xffff_ffff);
    machine.pci_write(1, 1, 0x10, 0xffff_ffff);
    machine.pci_write(1, 1, 0x3c, 0x0000_010b);
    assert_eq!(interface(&machine), 0x80);
    assert_eq!(machine.pci_read(1, 1, 0x10), 0);
    assert_eq!(machine.pci_read(1, 1, 0x3c) & 0xffff, 0x000b, "no interrupt pin");
}

#[test]
fn a_channel_can_be_switched_to_native_mode_and_back() {
    let machine = machine(Chip::Piix4, ChannelModes::Switchable);
    assert_eq!(interface(&machine), 0x8a);
    assert_eq!(machine.pci_read(1, 1, 0x3c) >> 8 & 0xff, 1, "INTA#");
    assert_eq!(
        machine.drive(0).pio_read(&Command::at(0x20, 1, 1), 1, 1),
        Ok(pattern(0, 1, 1))
    );
    // Only the first channel.
    machine.pci_write(1, 1, 0x08, 0x0101_8b01);
    assert_eq!(interface(&machine), 0x8b);
    assert_eq!(machine.inb(0x1f7), 0xff, "the old ports are free");
    assert_eq!(machine.inb(0x3f6), 0xff);
    assert_eq!(machine.drive(2).status(), READY);
    let drive = native(&machine, 0);
    let edges = machine.lines[0].edges();
    assert_eq!(drive.pio_read(&Command::at(0x20, 2, 2), 2, 1), Ok(pattern(0, 2, 2)));
    assert_eq!(drive.dma_read(&Command::at(0xc8, 9, 4), 4), Ok(pattern(0, 9, 4)));
    assert_eq!(machine.lines[0].edges(), edges, "IRQ 14 is silent");
    // The block moves with its BAR.
    machine.pci_write(1, 1, 0x10, 0x0000_d001);
    assert_eq!(machine.inb(0xc017), 0xff);
    assert_eq!(machine.inb(0xd007), READY);
    machine.pci_write(1, 1, 0x10, 0xffff_ffff);
    assert_eq!(machine.pci_read(1, 1, 0x10), 0x0000_fff9, "8 ports");
    machine.pci_write(1, 1, 0x14, 0xffff_ffff);
    assert_eq!(machine.pci_read(1, 1, 0x14), 0x0000_fffd, "4 ports");
    machine.pci_write(1, 1, 0x08, 0x0101_8a01);
    assert_eq!(
        machine.drive(0).pio_read(&Command::at(0x20, 1, 1), 1, 1),
        Ok(pattern(0, 1, 1))
    );
}

#[test]
fn both_channels_share_the_level_of_one_line() {
    let machine = machine(Chip::Piix4, ChannelModes::Native);
    assert_eq!(interface(&machine), 0x8f);
    let (first, second) = (native(&machine, 0), native(&machine, 2));
    first.issue(&Command::new(0xe7));
    second.issue(&Command::new(0xe7));
    machine.settle();
    assert!(machine.pci_line.is_high());
    first.status();
    assert!(machine.pci_line.is_high(), "the other channel holds it");
    assert_eq!(machine.pci_line.edges(), 1);
    second.status();
    assert!(!machine.pci_line.is_high());
    // A pending interrupt moves with the mode.
    first.issue(&Command::new(0xe7));
    machine.settle();
    assert!(machine.pci_line.is_high() && !machine.lines[0].is_high());
    machine.pci_write(1, 1, 0x08, 0x0101_8e01);
    assert!(!machine.pci_line.is_high() && machine.lines[0].is_high());
}

#[test]
fn a_piix3_has_its_own_id_and_no_ultra_dma_registers() {
    for (chip, id) in [(Chip::Piix3, 0x7010_8086), (Chip::Piix4, 0x7111_8086)] {
        let machine = machine(chip, ChannelModes::Compatibility);
        assert_eq!(machine.pci_read(1, 1, 0x00), id);
        machine.pci_write(1, 1, 0x48, 0xffff_ffff);
        let expected = if chip == Chip::Piix3 { 0 } else { 0x3333_000f };
        assert_eq!(machine.pci_read(1, 1, 0x48), expected);
        assert_eq!(
            machine.drive(0).pio_read(&Command::at(0x20, 1, 1), 1, 1),
            Ok(pattern(0, 1, 1))
        );
    }
}

#[test]
fn a_hardware_reset_puts_the_ports_back() {
    let machine = Machine::new(&[0]);
    machine.pci_write(1, 1, 0x20, 0xd001);
    machine.pci_write(1, 1, 0x40, 0);
    machine.outb(0xd000, 0x08);
    assert_eq!(machine.inb(0x1f7), 0xff);
    machine.chipset.reset_ide();
    assert_eq!(machine.pci_read(1, 1, 0x20), 0xc001);
    assert_eq!(machine.inb(0xc000), 0);
    assert_eq!(
        machine.drive(0).pio_read(&Command::at(0x20, 1, 1), 1, 1),
        Ok(pattern(0, 1, 1))
    );
}
