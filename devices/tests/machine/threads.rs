//! Two vCPUs on two channels, and an engine on a thread of its own.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::driver::{Ata, BSY, Command, DATA, DRQ, Machine, READY, pattern};

const ROUNDS: u64 = 300;

/// Waits for the drive's interrupt, however long the other threads take.
fn wait(drive: &Ata<'_>) {
    while !drive.line.is_high() {
        thread::yield_now();
    }
}

/// DMA on the primary channel.
fn transfer(machine: &Machine) {
    machine.put_table(&[(DATA, 2048)]);
    for round in 0..ROUNDS {
        let slot = (round % 2) as usize;
        let drive = machine.drive(slot);
        let command = Command::at(0xc8, round, 4);
        drive.issue_dma(&command, true);
        wait(&drive);
        assert_eq!(drive.finish_dma(&command), Ok(()));
        assert_eq!(machine.get(DATA, 2048), pattern(slot, round, 4));
    }
}

/// PIO on the secondary channel.
fn read(machine: &Machine) {
    for round in 0..ROUNDS {
        let slot = 2 + (round % 2) as usize;
        let drive = machine.drive(slot);
        drive.issue(&Command::extended(0x24, round, 2));
        let mut data = Vec::new();
        for _ in 0..2 {
            wait(&drive);
            assert_eq!(drive.status() & (BSY | DRQ), DRQ);
            let mut sector = vec![0; 512];
            machine.bus.read(drive.command, 4, &mut sector);
            data.extend(sector);
        }
        assert_eq!(drive.status(), READY);
        assert_eq!(data, pattern(slot, round, 2));
    }
}

#[test]
fn vcpus_and_completions_meet_without_losing_anything() {
    let machine = Machine::new(&[0, 1, 2, 3]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                machine.settle();
                thread::yield_now();
            }
        });
        let guests = [scope.spawn(|| transfer(&machine)), scope.spawn(|| read(&machine))];
        let outcomes = guests.map(thread::ScopedJoinHandle::join);
        done.store(true, Ordering::SeqCst);
        assert!(outcomes.iter().all(Result::is_ok));
    });
}
