//! A guest that does anything, while the host changes media: nothing panics or hangs, and a reset always recovers.

use std::sync::Arc;

use disk::{DiskError, MemoryDisk};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::cd_rom::driver::{BLOCKS, SLOT, content, drive, handle, insert, machine, medium, packet, read_10};
use crate::driver::{BSY, DATA, DRQ, Machine, TABLE};

/// Every operation that the drive has, and some that it has not.
const OPERATIONS: [u8; 26] = [
    0x00, 0x03, 0x12, 0x1b, 0x1e, 0x25, 0x28, 0x28, 0x2b, 0x42, 0x43, 0x46, 0x4a, 0x51, 0x52, 0x55, 0x5a, 0xa8, 0xac,
    0xad, 0xb9, 0xbb, 0xbd, 0xbe, 0xff, 0x2a,
];

/// A packet that often makes sense: small numbers, and addresses near the medium's end.
fn random_packet(random: &mut StdRng) -> [u8; 12] {
    let mut bytes: [u8; 12] = random.random();
    bytes[0] = OPERATIONS[random.random_range(0..OPERATIONS.len())];
    if random.random_bool(0.7) {
        let block = random.random_range(0..BLOCKS + 4);
        bytes[2..6].copy_from_slice(&block.to_be_bytes());
        bytes[6] = 0;
        bytes[7] = 0;
        bytes[1] &= 0x1f;
    }
    bytes
}

fn act(machine: &Machine, media: &[Arc<MemoryDisk>], random: &mut StdRng) {
    let ata = machine.drive(SLOT);
    match random.random_range(0..24) {
        0..8 => {
            ata.set_register(6, 0xa0);
            ata.set_register(1, random.random_range(0..2));
            ata.set_register(4, random.random());
            ata.set_register(5, random.random());
            ata.set_register(7, 0xa0);
            let size = [2, 4][random.random_range(0..2)];
            machine.bus.write(ata.command, size, &random_packet(random));
        }
        8..12 => {
            let mut data = vec![0; 4 * random.random_range(1..1200)];
            machine
                .bus
                .read(ata.command, [1, 2, 4][random.random_range(0..3)], &mut data);
        }
        12 => {
            let data: [u8; 16] = random.random();
            machine.bus.write(ata.command, 2, &data);
        }
        13 => machine.outb(ata.bus_master, random.random()),
        14 => machine.outl(ata.bus_master + 4, TABLE),
        15 => ata.set_register(random.random_range(1..8), random.random()),
        16 => ata.set_register(7, [0x08, 0xa1, 0xec, 0xe5, 0xef, 0x90][random.random_range(0..6)]),
        17 if random.random_bool(0.2) => ata.set_control(random.random()),
        18 => {
            let disc = &media[random.random_range(0..media.len())];
            if random.random_bool(0.2) {
                disc.fail_next(DiskError::Closed);
            }
            disc.run_one();
        }
        19 if random.random_bool(0.3) => {
            let disc = media[random.random_range(0..media.len())].clone();
            // The guest may have locked the tray.
            let _ = insert(machine, disc);
        }
        20 if random.random_bool(0.3) => {
            handle(machine).press_button();
        }
        21 if random.random_bool(0.1) => handle(machine).force_out(),
        _ => media.iter().for_each(|disc| {
            disc.run();
        }),
    }
}

#[test]
fn random_packets_never_panic_and_a_reset_recovers() {
    for seed in 0..40 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let media = [medium(1), medium(2)];
        let machine = machine(Some(media[0].clone()));
        // Regions anywhere, most of them memory.
        for index in 0..64 {
            let address = if random.random_bool(0.9) {
                DATA + random.random_range(0..0x4_0000)
            } else {
                random.random()
            };
            let last = u32::from(random.random_bool(0.1)) << 31;
            machine.put(TABLE + 8 * index, &u32::to_le_bytes(address));
            machine.put(
                TABLE + 8 * index + 4,
                &u32::to_le_bytes(random.random_range(0..0x1_0000) | last),
            );
        }
        for _ in 0..1500 {
            act(&machine, &media, &mut random);
        }
        recover(&machine, &media);
    }
}

/// After a reset and a fresh medium, the drive reads.
fn recover(machine: &Machine, media: &[Arc<MemoryDisk>; 2]) {
    let settle = || while media.iter().map(|disc| disc.run()).sum::<usize>() > 0 {};
    let cd_rom = drive(machine);
    settle();
    machine.outb(cd_rom.ata.bus_master, 0);
    cd_rom.ata.set_control(4);
    cd_rom.ata.set_control(0);
    settle();
    cd_rom.ata.select();
    assert_eq!(cd_rom.ata.status() & (BSY | DRQ), 0);
    machine.outb(cd_rom.ata.bus_master + 2, 0x06);
    cd_rom.lock(false);
    handle(machine).force_out();
    let fresh = medium(2);
    insert(machine, fresh.clone()).expect("the tray is open");
    while let Err(check) = cd_rom.run(packet(&[0x00])) {
        assert_eq!(check.sense.0, 6, "attentions, and then no more");
    }
    for limit in [0x800, 0xfffe] {
        cd_rom.send(0, limit, read_10(3, 2));
        let mut data = Vec::new();
        while cd_rom.ata.alternate_status() & BSY != 0 || cd_rom.ata.alternate_status() & DRQ != 0 {
            fresh.run();
            if cd_rom.ata.status() & DRQ != 0 {
                let mut block = vec![0; cd_rom.byte_count()];
                machine.bus.read(cd_rom.ata.command, 2, &mut block);
                data.extend(block);
            }
        }
        assert_eq!(cd_rom.outcome(), Ok(()));
        assert_eq!(data, content(2, 3, 2));
    }
}
