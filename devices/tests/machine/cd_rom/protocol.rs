//! The phases of a packet command: byte count limit, interrupt reason, bus master.

use crate::cd_rom::driver::{Check, DONE, check, content, drive, packet, read_10, ready};
use crate::driver::{ABRT, BM_ACTIVE, BM_ERROR, BM_INTERRUPT, BSY, DATA, DRQ, ERR, READY, TABLE};

/// INQUIRY: 36 bytes.
const INQUIRY: [u8; 12] = [0x12, 0, 0, 0, 36, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn data_comes_in_blocks_of_at_most_the_limit() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let whole = cd_rom.run(INQUIRY).expect("an answer");
    assert_eq!(whole.len(), 36);
    for limit in [2, 6, 7, 8, 34, 35, 36, 37, 0xfffe, 0xffff] {
        assert_eq!(
            cd_rom.read_with_limit(INQUIRY, limit),
            Ok(whole.clone()),
            "limit {limit}"
        );
    }
    let blocks = content(1, 20, 70);
    for limit in [512, 2048, 2050, 4096, 0xf800, 0xffff] {
        assert_eq!(
            cd_rom.read_with_limit(read_10(20, 70), limit),
            Ok(blocks.clone()),
            "limit {limit}"
        );
    }
}

#[test]
fn an_odd_answer_is_one_block_with_a_pad_byte() {
    let machine = ready();
    let cd_rom = drive(&machine);
    for allocated in 1..=36u8 {
        let mut short = INQUIRY;
        short[4] = allocated;
        cd_rom.send(0, allocated.into(), short);
        assert_eq!(cd_rom.byte_count(), usize::from(allocated), "one block");
        let data = cd_rom.blocks_to_end(allocated.into()).expect("an answer");
        assert_eq!(data, cd_rom.run(INQUIRY).expect("an answer")[..allocated.into()]);
    }
    // An odd limit, and more than it: the blocks before the last are even.
    cd_rom.send(0, 7, INQUIRY);
    assert_eq!(cd_rom.byte_count(), 6);
    cd_rom.blocks_to_end(7).expect("an answer");
}

#[test]
fn data_without_a_limit_is_aborted_and_no_data_needs_none() {
    let machine = ready();
    let cd_rom = drive(&machine);
    cd_rom.send(0, 0, INQUIRY);
    assert!(cd_rom.ata.line.is_high());
    assert_eq!(cd_rom.ata.status(), READY | ERR);
    assert_eq!(cd_rom.ata.register(1), ABRT);
    assert_eq!(cd_rom.read_with_limit(packet(&[0x00]), 0), Ok(vec![]));
    assert_eq!(cd_rom.read_with_limit(read_10(0, 0), 0), Ok(vec![]));
}

#[test]
fn overlapped_packets_are_aborted() {
    let machine = ready();
    let ata = drive(&machine).ata;
    ata.select();
    ata.set_register(1, 2);
    ata.set_register(7, 0xa0);
    assert_eq!(ata.status(), READY | ERR);
    assert_eq!(ata.register(1), ABRT);
}

#[test]
fn words_of_four_bytes_do_not_cross_into_the_next_block() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let whole = cd_rom.run(INQUIRY).expect("an answer");
    cd_rom.send(0, 6, INQUIRY);
    let mut data = Vec::new();
    while cd_rom.ata.status() & DRQ != 0 {
        let mut block = [0xff; 8];
        machine.bus.read(cd_rom.ata.command, 4, &mut block[..4]);
        machine.bus.read(cd_rom.ata.command, 4, &mut block[4..]);
        assert_eq!(block[6..], [0, 0]);
        data.extend_from_slice(&block[..6]);
    }
    assert_eq!(data, whole);
}

#[test]
fn dma_moves_blocks_in_place_and_answers_of_any_length() {
    let machine = ready();
    let cd_rom = drive(&machine);
    assert_eq!(cd_rom.run_dma(read_10(7, 40), 40 * 2048), Ok(content(1, 7, 40)));
    let whole = cd_rom.run(INQUIRY).expect("an answer");
    for allocated in [2, 5, 8, 36] {
        let mut short = INQUIRY;
        short[4] = allocated;
        let length = usize::from(allocated).next_multiple_of(2);
        let data = cd_rom.run_dma(short, length).expect("an answer");
        assert_eq!(data[..allocated.into()], whole[..allocated.into()]);
    }
    // The table may be longer than the answer: then the bus master is still active when the interrupt comes.
    cd_rom.put_table(256);
    cd_rom.start_dma(INQUIRY, true);
    assert_eq!(
        cd_rom.ata.bus_master_status() & (BM_ACTIVE | BM_INTERRUPT),
        BM_ACTIVE | BM_INTERRUPT
    );
    assert_eq!(cd_rom.finish_dma(), Ok(()));
    assert_eq!(machine.get(DATA, 36), whole);
    // And a command without data may say DMA.
    cd_rom.send(1, 0, packet(&[0x00]));
    assert_eq!(cd_rom.outcome(), Ok(()));
}

#[test]
fn a_short_table_is_followed_by_another_one() {
    let machine = ready();
    let cd_rom = drive(&machine);
    // 2.5 blocks of 4: two are transferred, and the drive waits.
    cd_rom.put_table(5120);
    cd_rom.start_dma(read_10(3, 4), true);
    machine.settle();
    assert_eq!(cd_rom.ata.alternate_status(), BSY);
    assert_eq!(cd_rom.ata.bus_master_status() & (BM_ACTIVE | BM_INTERRUPT), 0);
    assert_eq!(machine.get(DATA, 4096), content(1, 3, 2));
    machine.outb(cd_rom.ata.bus_master, 0x08);
    cd_rom.put_table(4096);
    machine.outl(cd_rom.ata.bus_master + 4, TABLE);
    cd_rom.ata.start_dma();
    machine.settle();
    assert_eq!(cd_rom.finish_dma(), Ok(()));
    assert_eq!(machine.get(DATA, 4096), content(1, 5, 2));
    // An answer in two parts.
    let whole = cd_rom.run(INQUIRY).expect("an answer");
    cd_rom.put_table(10);
    cd_rom.start_dma(INQUIRY, true);
    assert_eq!(machine.get(DATA, 10), whole[..10]);
    machine.outb(cd_rom.ata.bus_master, 0x08);
    cd_rom.put_table(26);
    cd_rom.ata.start_dma();
    assert_eq!(cd_rom.finish_dma(), Ok(()));
    assert_eq!(machine.get(DATA, 26), whole[10..]);
}

#[test]
fn a_table_outside_memory_fails_the_command() {
    let machine = ready();
    let cd_rom = drive(&machine);
    machine.put_table(&[(0xf000_0000, 2048)]);
    cd_rom.start_dma(read_10(0, 1), true);
    machine.settle();
    assert_eq!(cd_rom.ata.bus_master_status() & (BM_ACTIVE | BM_ERROR), BM_ERROR);
    assert_eq!(cd_rom.finish_dma(), Err(Check::of(0xb, 0x4b, 0)));
    // The wrong direction, too.
    cd_rom.put_table(2048);
    cd_rom.start_dma(read_10(0, 1), false);
    machine.settle();
    assert_eq!(cd_rom.finish_dma(), Err(Check::of(0xb, 0x4b, 0)));
    assert_eq!(cd_rom.run_dma(read_10(0, 1), 2048), Ok(content(1, 0, 1)));
}

#[test]
fn a_stopped_transfer_is_aborted_when_the_medium_is_done() {
    let machine = ready();
    let cd_rom = drive(&machine);
    cd_rom.put_table(4096);
    cd_rom.start_dma(read_10(0, 2), true);
    assert_eq!(cd_rom.ata.alternate_status(), BSY);
    machine.outb(cd_rom.ata.bus_master, 0x08);
    assert_eq!(cd_rom.ata.alternate_status(), BSY);
    machine.settle();
    assert_eq!(cd_rom.outcome(), Err(Check::of(0xb, 0x4b, 0)));
    assert_eq!(cd_rom.test_unit_ready(), Ok(()));
}

#[test]
fn registers_are_the_drives_while_it_works_and_commands_are_lost() {
    let machine = ready();
    let cd_rom = drive(&machine);
    let ata = cd_rom.ata;
    cd_rom.send(0, 0x800, read_10(9, 1));
    assert_eq!(ata.alternate_status(), BSY);
    ata.set_register(7, 0xa1);
    ata.set_register(6, 0xb0);
    assert_eq!(ata.alternate_status(), BSY);
    machine.settle();
    assert_eq!(ata.status(), READY | DRQ);
    ata.set_register(4, 0);
    ata.set_register(7, 0xa0);
    assert_eq!(ata.status(), READY | DRQ);
    assert_eq!(cd_rom.byte_count(), 2048);
    // Writing to the data register in the wrong direction changes nothing.
    machine.outw(ata.command, 0xffff);
    let mut data = vec![0; 2048];
    machine.bus.read(ata.command, 4, &mut data);
    assert_eq!(data, content(1, 9, 1));
    assert_eq!(ata.register(2), DONE);
    assert_eq!(cd_rom.outcome(), Ok(()));
    assert_eq!(machine.inw(ata.command), 0, "there is no data at rest");
}

#[test]
fn a_packet_of_nonsense_is_refused_with_sense() {
    let machine = ready();
    let cd_rom = drive(&machine);
    for opcode in [0x01, 0x08, 0x1a, 0x2a, 0x47, 0x5b, 0xa0, 0xaa, 0xff] {
        assert_eq!(cd_rom.run(packet(&[opcode])), Err(Check::of(5, 0x20, 0)), "{opcode:#x}");
        assert_eq!(cd_rom.sense(), (0, 0, 0), "telling it clears it");
    }
    // The sense data of a failed command goes with the next command.
    cd_rom.send(0, 0xfffe, packet(&[0xff]));
    assert_eq!(cd_rom.ata.status(), READY | ERR);
    assert_eq!(cd_rom.test_unit_ready(), Ok(()));
    assert_eq!(cd_rom.sense(), (0, 0, 0));
    assert_eq!(check((5, 0x20, 0)).error, 0x54);
}
