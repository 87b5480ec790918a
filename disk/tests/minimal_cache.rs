//! The smallest metadata cache is slow, not stuck: whatever fills it up is written back, refcounts too.

use disk::simulation::{Outcome, Simulation};
use disk::{Buffer, Command, CreateOptions};

/// More storage operations than any of this needs, so that a standstill that keeps busy is seen, too.
const MANY_STEPS: usize = 2_000_000;

/// Clusters of 512 bytes and refcounts of 64 bits: a slice of refcounts describes 32 KiB, and the 64 slots of the
/// smallest cache describe 2 MiB.
fn small_slices(size: u64) -> Vec<u8> {
    let options = CreateOptions {
        cluster_bits: 9,
        refcount_order: 6,
        ..CreateOptions::new(size)
    };
    options.metadata().expect("valid")
}

fn run(simulation: &mut Simulation, start: impl FnOnce(&Simulation) -> Outcome) {
    let outcome = start(simulation);
    for _ in 0..MANY_STEPS {
        if outcome.is_done() || !simulation.step() {
            break;
        }
    }
    assert!(outcome.is_done(), "it stands still, or turns round for ever");
    assert!(outcome.succeeded(), "{:?}", outcome.error());
}

fn write(offset: u64, length: usize, value: u8) -> Command {
    Command::Write {
        offset,
        buffer: Buffer::from_slice(&vec![value; length]),
    }
}

#[test]
fn a_snapshot_whose_refcounts_do_not_fit_into_the_cache_is_taken_and_deleted() {
    let mut simulation = Simulation::open(small_slices(8 << 20), None, None, 1).expect("opens");
    for part in 0..5 {
        run(&mut simulation, |simulation| {
            simulation.submit(write(part << 20, 1 << 20, 1))
        });
    }
    run(&mut simulation, |simulation| simulation.snapshot_create("before"));
    run(&mut simulation, |simulation| simulation.submit(write(0, 3 << 20, 2)));
    run(&mut simulation, |simulation| simulation.snapshot_apply("before"));
    run(&mut simulation, |simulation| simulation.snapshot_delete("before"));
    let buffer = Buffer::zeroed(5 << 20);
    run(&mut simulation, |simulation| {
        simulation.submit(Command::Read {
            offset: 0,
            buffer: buffer.clone(),
        })
    });
    assert!(buffer.to_vec().iter().all(|byte| *byte == 1));
    simulation.close().expect("closes");
}

#[test]
fn many_requests_at_once_share_the_smallest_cache() {
    // Each request needs another L2 slice (of 64 clusters) and, together, more of them than there are slots, all dirty.
    let mut simulation = Simulation::open(small_slices(64 << 20), None, None, 2).expect("opens");
    let outcomes: Vec<_> = (0..400)
        .map(|request| simulation.submit(write(request * (128 << 10), 1024, request as u8)))
        .collect();
    for _ in 0..MANY_STEPS {
        if !simulation.step() {
            break;
        }
    }
    assert!(outcomes.iter().all(Outcome::succeeded));
    for request in (0..400).step_by(7) {
        let buffer = Buffer::zeroed(1024);
        run(&mut simulation, |simulation| {
            simulation.submit(Command::Read {
                offset: request * (128 << 10),
                buffer: buffer.clone(),
            })
        });
        assert!(buffer.to_vec().iter().all(|byte| *byte == request as u8));
    }
    simulation.close().expect("closes");
}
