//! A request that is dropped at any of its awaits leaves the image consistent, and everybody else's data alone.
//!
//! Each command is cancelled after each number of storage operations that it lives through. At once others want its clusters and
//! those that it may have freed, while what it started is still in flight.

mod judge;
mod stamps;

use std::ops::Range;

use disk::simulation::{Outcome, Simulation};
use disk::{Buffer, Command, CreateOptions};
use stamps::{SECTOR, ids, read_all, write};

/// Sectors of the disks here.
const SECTORS: u64 = 1024;

/// What the disk holds before: written, never written, and given up again.
const OLD: u64 = 1;
const WRITTEN: Range<u64> = 0..512;
const GIVEN_UP: Range<u64> = 128..160;

/// The ids of the command that is cancelled, and of those that come after it.
const CANCELLED: u64 = 2;
const RIVAL: u64 = 3;
const NEIGHBOUR: u64 = 4;
const NEIGHBOURS: Range<u64> = 900..964;
const LATE_NEIGHBOURS: Range<u64> = 964..1020;

fn range_command(range: &Range<u64>, command: fn(u64, u64) -> Command) -> Command {
    command(range.start * SECTOR, (range.end - range.start) * SECTOR)
}

fn run(simulation: &mut Simulation, command: Command) {
    let outcome = simulation.submit(command);
    simulation.settle();
    assert!(outcome.succeeded());
}

fn discard(offset: u64, length: u64) -> Command {
    Command::Discard { offset, length }
}

fn write_zeroes(offset: u64, length: u64) -> Command {
    Command::WriteZeroes { offset, length }
}

fn read(offset: u64, length: u64) -> Command {
    let buffer = Buffer::zeroed(length as usize);
    Command::Read { offset, buffer }
}

/// Lets everything come to its end that does not wait for the `held` oldest operations in flight.
fn settle_all_but_oldest(simulation: &mut Simulation, held: usize) {
    loop {
        let mut older = 0;
        let progress = simulation.step_where(|_| {
            older += 1;
            older > held
        });
        if !progress {
            return;
        }
    }
}

/// Cancels `command`, which concerns `range`, after `steps` operations. Returns whether it was done before.
fn cancel_after(options: &CreateOptions, command: &Command, range: &Range<u64>, steps: usize, seed: u64) -> bool {
    let image = options.metadata().expect("valid");
    let mut simulation = Simulation::open(image, None, None, seed).expect("opens");
    run(&mut simulation, write(WRITTEN, OLD));
    run(&mut simulation, range_command(&GIVEN_UP, discard));
    run(&mut simulation, Command::Flush);
    let before = ids(&read_all(&mut simulation));

    let cancellable = simulation.submit_cancellable(command.clone());
    for _ in 0..steps {
        simulation.step();
    }
    let done = cancellable.outcome.is_done();
    let orphans = simulation.disk().in_flight();
    drop(cancellable);
    // The rival wants some of the same clusters, in the same or another state.
    let rivals = range.start..range.start + (range.end - range.start).div_ceil(2);
    let rival = if seed.is_multiple_of(2) {
        simulation.submit(write(rivals.clone(), RIVAL))
    } else {
        simulation.submit(range_command(&rivals, discard))
    };
    let flush = simulation.submit(Command::Flush);
    let neighbour = simulation.submit(write(NEIGHBOURS, NEIGHBOUR));
    if seed & 2 != 0 {
        settle_all_but_oldest(&mut simulation, orphans);
        simulation.submit(Command::Flush);
        settle_all_but_oldest(&mut simulation, orphans);
    }
    // What the rival freed may be used again by now, with the orphans still on their way.
    let late = simulation.submit(write(LATE_NEIGHBOURS, NEIGHBOUR));
    if seed & 2 != 0 {
        settle_all_but_oldest(&mut simulation, orphans);
    }
    simulation.settle();
    assert!(late.succeeded());
    assert!(rival.succeeded() && flush.succeeded() && neighbour.succeeded());
    run(&mut simulation, Command::Flush);

    let after = ids(&read_all(&mut simulation));
    for (sector, (&before, &after)) in before.iter().zip(&after).enumerate() {
        let is_in = |range: &Range<u64>| range.contains(&(sector as u64));
        let allowed: &[u64] = match () {
            () if is_in(&NEIGHBOURS) || is_in(&LATE_NEIGHBOURS) => &[NEIGHBOUR],
            () if is_in(range) => &[before, CANCELLED, RIVAL, 0],
            () => &[before],
        };
        assert!(
            allowed.contains(&after),
            "after {steps} steps of {command:?} sector {sector} is of write {after}, not {allowed:?}"
        );
    }
    let closed = simulation.close().expect("closes");
    let report = judge::check(&closed);
    assert!(report.is_clean(), "after {steps} steps of {command:?}: {report:?}");
    let mut again = Simulation::open(closed, None, None, seed).expect("opens");
    assert!(
        ids(&read_all(&mut again)) == after,
        "after {steps} steps of {command:?} and closing"
    );
    done
}

#[test]
fn a_command_that_is_cancelled_at_any_moment_leaves_the_image_consistent() {
    let ranges = [
        // In place, into new clusters, both in one, and what was given up.
        3..61,
        600..700,
        480..560,
        100..200,
    ];
    for (cluster_bits, refcount_order) in [(9, 6), (12, 4)] {
        let mut options = CreateOptions::new(SECTORS * SECTOR);
        options.cluster_bits = cluster_bits;
        options.refcount_order = refcount_order;
        for range in &ranges {
            let commands = [
                write(range.clone(), CANCELLED),
                range_command(range, discard),
                range_command(range, write_zeroes),
                range_command(range, read),
                Command::Flush,
            ];
            for command in commands {
                for seed in 0..4 {
                    let longest = (0..).find(|&steps| cancel_after(&options, &command, range, steps, seed));
                    assert!(longest.is_some());
                }
            }
        }
    }
}

/// Cancels a write, which makes the refcount table grow, after `steps` operations. Returns whether it was done before.
fn cancel_growth(image: &[u8], steps: usize, seed: u64) -> bool {
    let mut simulation = Simulation::open(image.to_vec(), None, None, seed).expect("opens");
    let before = ids(&read_all(&mut simulation));
    let cancellable = simulation.submit_cancellable(write(5000..5016, CANCELLED));
    for _ in 0..steps {
        simulation.step();
    }
    let done = cancellable.outcome.is_done();
    let orphans = simulation.disk().in_flight();
    drop(cancellable);
    // Others allocate, or nobody does.
    let neighbour = seed
        .is_multiple_of(2)
        .then(|| simulation.submit(write(6000..6200, NEIGHBOUR)));
    if seed & 2 != 0 {
        settle_all_but_oldest(&mut simulation, orphans);
        simulation.submit(Command::Flush);
        settle_all_but_oldest(&mut simulation, orphans);
    }
    simulation.settle();
    assert!(neighbour.as_ref().is_none_or(Outcome::succeeded));
    let found = ids(&read_all(&mut simulation));
    for (sector, (&id, &before)) in found.iter().zip(&before).enumerate() {
        let allowed: &[u64] = match sector {
            5000..5016 => &[before, CANCELLED],
            6000..6200 if neighbour.is_some() => &[NEIGHBOUR],
            _ => &[before],
        };
        assert!(
            allowed.contains(&id),
            "seed {seed}, {steps} steps: sector {sector} is of write {id}, not {allowed:?}"
        );
    }
    let closed = simulation.close().expect("closes");
    let report = judge::check(&closed);
    assert!(report.is_clean(), "seed {seed}, {steps} steps: {report:?}");
    let mut again = Simulation::open(closed, None, None, seed).expect("opens");
    assert!(
        ids(&read_all(&mut again)) == found,
        "seed {seed}, {steps} steps: after closing"
    );
    done
}

/// The refcount table of clusters of 512 bytes with 64-bit refcounts describes 2 MiB; what is beyond that moves it.
#[test]
fn a_write_that_is_cancelled_while_the_refcount_table_grows_leaves_the_image_consistent() {
    const TABLE_DESCRIBES: usize = 2 << 20;
    let mut options = CreateOptions::new(8192 * SECTOR);
    options.cluster_bits = 9;
    options.refcount_order = 6;
    let mut simulation = Simulation::open(options.metadata().expect("valid"), None, None, 0).expect("opens");
    let mut sector = 0;
    while simulation.disk().contents().len() < TABLE_DESCRIBES - 8 * SECTOR as usize {
        run(&mut simulation, write(sector..sector + 1, OLD));
        sector += 1;
    }
    let image = simulation.close().expect("closes");
    for seed in 0..4 {
        let longest = (0..).find(|&steps| cancel_growth(&image, steps, seed));
        assert!(longest.is_some_and(|steps| steps > 4), "there was no growth");
    }
}
