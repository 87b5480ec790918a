//! A guest that writes anything anywhere: nothing panics, and a reset always recovers.

use std::sync::Arc;

use disk::MemoryDisk;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::driver::{Command, Machine, TABLE, pattern};

/// Sectors of the disks here: few, so that thousands of commands are quick.
const SECTORS: usize = 300;

const PORTS: [u16; 24] = [
    0x1f0, 0x1f1, 0x1f2, 0x1f3, 0x1f4, 0x1f5, 0x1f6, 0x1f7, 0x3f6, 0x170, 0x171, 0x172, 0x173, 0x174, 0x175, 0x176,
    0x177, 0x376, 0xc000, 0xc002, 0xc004, 0xc008, 0xc00a, 0xc00c,
];

/// Opcodes that lead somewhere, tried more often than others.
const OPCODES: [u8; 20] = [
    0x20, 0x24, 0x25, 0x30, 0x34, 0x35, 0x40, 0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0x06, 0x90, 0x91, 0xb0, 0xe7, 0xec, 0xef,
    0xe8,
];

fn act(machine: &Machine, random: &mut StdRng) {
    let port = PORTS[random.random_range(0..PORTS.len())];
    let size = [1, 1, 1, 2, 4][random.random_range(0..5)];
    let mut data = [0; 64];
    random.fill(&mut data[..]);
    let length = size * random.random_range(1..=64 / size);
    match random.random_range(0..20) {
        0..6 => {
            machine.bus.write(port, size, &data[..size]);
        }
        6..8 => {
            machine.bus.write(port, size, &data[..length]);
        }
        8..12 => machine.bus.read(port, size, &mut data[..length]),
        12..16 => {
            let command = [0x1f7, 0x177][random.random_range(0..2)];
            machine.outb(command, OPCODES[random.random_range(0..OPCODES.len())]);
        }
        16 => machine.outl([0xc004, 0xc00c][random.random_range(0..2)], TABLE),
        17 => {
            let disk = &machine.disks[random.random_range(0..4)];
            disk.as_ref().map(|disk| disk.run_one());
        }
        18 => machine.settle(),
        _ => machine.pci_write(
            1,
            1,
            [0x04, 0x20, 0x40, 0x48][random.random_range(0..4)],
            random.random(),
        ),
    }
}

fn recover(machine: &Machine, slot: usize) {
    machine.pci_write(1, 1, 0x20, 0xc001);
    machine.pci_write(1, 1, 0x40, 0x8000_8000);
    machine.pci_write(1, 1, 0x04, 0x0005);
    let drive = machine.drive(slot);
    machine.settle();
    drive.software_reset();
    machine.settle();
    machine.outb(drive.bus_master, 0);
    machine.outb(drive.bus_master + 2, 0x06);
    drive.select();
    assert_eq!(drive.status(), 0x50);
}

#[test]
fn random_accesses_never_panic_and_a_reset_recovers() {
    for seed in 0..50 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let disk = |slot| Some(Arc::new(MemoryDisk::new(pattern(slot, 0, SECTORS), false)));
        let machine = Machine::with_disks([disk(0), disk(1), disk(2), None]);
        // Tables that point anywhere, some of it memory.
        for index in 0..64 {
            let address = if random.random_bool(0.8) {
                random.random_range(0..1 << 20)
            } else {
                random.random()
            };
            let entry: [u8; 4] = random.random();
            machine.put(TABLE + 8 * index, &u32::to_le_bytes(address));
            machine.put(TABLE + 8 * index + 4, &entry);
        }
        for _ in 0..2000 {
            act(&machine, &mut random);
        }
        for slot in 0..3 {
            recover(&machine, slot);
            let lba = random.random_range(0..SECTORS as u64 - 2);
            let data = pattern(3, lba, 2);
            let drive = machine.drive(slot);
            drive
                .dma_write(&Command::at(0xca, lba, 2), &data)
                .expect("a working write");
            assert_eq!(drive.pio_read(&Command::extended(0x24, lba, 2), 2, 1), Ok(data.clone()));
            assert_eq!(drive.dma_read(&Command::extended(0x25, lba, 2), 2), Ok(data));
        }
    }
}
