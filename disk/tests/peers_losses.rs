//! The eight ways in which other writers of qcow2 lose data, tried on this one. Each test is named after what must hold,
//! and its comment says what was seen elsewhere.
//!
//! Where the loss needs a crash, the engine runs on the simulated disk: before each storage operation that completes, every state
//! that a kill or a power cut could leave is recovered, judged and compared.

mod judge;
mod session;
mod stamps;

use disk::simulation::{Operation, Simulation};
use disk::{Aio, Command, CreateOptions, Format};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use session::{Session, Workshop};
use stamps::{Crashes, History, SECTOR, carries, ids, read_all, stamps, write};

/// Sectors of a cluster of the images here, but those that QEMU makes.
const CLUSTER: u64 = 8;

/// An empty image of 64 clusters of 4 KiB.
fn fresh() -> (Simulation, History) {
    let mut options = CreateOptions::new(64 * CLUSTER * SECTOR);
    options.cluster_bits = 12;
    open(options.metadata().expect("valid"), 1)
}

fn open(image: Vec<u8>, seed: u64) -> (Simulation, History) {
    let mut simulation = Simulation::open(image, None, None, seed).expect("opens");
    let durable = ids(&read_all(&mut simulation));
    (simulation, History::new(durable))
}

/// The sectors of guest clusters.
fn clusters(range: std::ops::Range<u64>) -> std::ops::Range<u64> {
    range.start * CLUSTER..range.end * CLUSTER
}

fn flush(simulation: &mut Simulation, history: &mut History) {
    // A flush covers what was complete when it was submitted.
    simulation.settle();
    let outcome = simulation.submit(Command::Flush);
    simulation.settle();
    assert!(outcome.succeeded());
    let durable = ids(&read_all(simulation));
    history.flushed(durable);
}

/// Elsewhere the freed cluster is used again while the table on disk still points at it: the discarded block reads what
/// was written to another one.
#[test]
fn a_discarded_block_never_shows_what_its_cluster_was_used_for_next() {
    for zeroes in [false, true] {
        // How much of a flush there is between the discard and the write that could use the cluster again.
        for steps_of_flush in 0..8 {
            let (mut simulation, mut history) = fresh();
            history.write(&simulation, clusters(0..4), 0xaa);
            flush(&mut simulation, &mut history);
            if zeroes {
                history.write_zeroes(&simulation, clusters(0..4));
            } else {
                history.discard(&simulation, clusters(0..4));
            }
            let mut crashes = Crashes::default();
            simulation.submit(Command::Flush);
            for _ in 0..steps_of_flush {
                crashes.look(&mut simulation, &history);
                simulation.step();
            }
            let length = simulation.disk().contents().len();
            history.write(&simulation, clusters(40..44), 0xee);
            crashes.step_through(&mut simulation, &history);
            simulation.submit(Command::Flush);
            crashes.step_through(&mut simulation, &history);
            // After the whole flush the write takes the clusters that the discard freed, and the file does not grow.
            assert!(steps_of_flush < 7 || simulation.disk().contents().len() == length);
        }
    }
}

/// A file of two clusters of 64 KiB, each with 40 KiB that cannot be compressed, then zeros: QEMU compresses it so that the
/// two share host clusters.
fn compressed(workshop: &Workshop) -> Vec<u8> {
    let mut source = Vec::new();
    for cluster in 1..=2 {
        source.extend((0..80).flat_map(|sector| stamps::stamp(cluster << 16 | sector)));
        source.resize(cluster as usize * (64 << 10), 0);
    }
    source.resize(1 << 20, 0);
    workshop.put("source.raw", &source);
    workshop.img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "source.raw", "disk.qcow2"]);
    workshop.bytes("disk.qcow2")
}

/// Elsewhere the compressed data is overwritten before the table that points at it is: what the guest did not write is lost.
#[test]
fn a_compressed_cluster_that_is_partly_overwritten_keeps_the_rest() {
    let workshop = Workshop::new();
    let (mut simulation, mut history) = open(compressed(&workshop), 2);
    let mut crashes = Crashes::default();
    history.write(&simulation, 120..128, 0xbb);
    history.write(&simulation, 248..256, 0xcc);
    crashes.step_through(&mut simulation, &history);
    // The first is used again as soon as that is possible.
    simulation.submit(Command::Flush);
    for _ in 0..4 {
        crashes.look(&mut simulation, &history);
        simulation.step();
    }
    history.write(&simulation, 1024..1152, 0xdd);
    crashes.step_through(&mut simulation, &history);
    simulation.submit(Command::Flush);
    history.write(&simulation, 1280..1536, 0xee);
    crashes.step_through(&mut simulation, &history);
    qemu_judges(&workshop, &crashes);
}

/// Some of the recovered images, and the last.
fn qemu_judges(workshop: &Workshop, crashes: &Crashes) {
    let every = (crashes.recovered.len() / 16).max(1);
    let some = crashes.recovered.iter().rev().step_by(every);
    for image in some {
        workshop.put("recovered.qcow2", image);
        workshop.check("recovered.qcow2");
    }
}

/// Completes whatever is in flight but the data of write number `id`; in which order, the seed decides.
fn settle_all_but(simulation: &mut Simulation, id: u64, rng: &mut SmallRng) {
    loop {
        let mut candidates = 0;
        simulation.step_where(|operation| {
            candidates += usize::from(!carries(operation, id));
            false
        });
        if candidates == 0 {
            return;
        }
        let mut skip = rng.random_range(0..candidates);
        simulation.step_where(|operation| {
            let chosen = !carries(operation, id) && skip == 0;
            skip = skip.saturating_sub(usize::from(!carries(operation, id)));
            chosen
        });
    }
}

/// The cluster of a write in flight is discarded and, if that frees it, given to another write.
fn race(seed: u64, allocating: bool) {
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut simulation, mut history) = fresh();
    history.write(&simulation, clusters(0..1), 1);
    simulation.settle();
    if allocating {
        history.write_zeroes(&simulation, clusters(0..1));
    }
    flush(&mut simulation, &mut history);
    let held = simulation.submit(write(clusters(0..1), 2));
    let in_flight = |simulation: &mut Simulation| {
        let mut found = false;
        simulation.step_where(|operation| {
            found |= carries(operation, 2);
            false
        });
        found
    };
    while !in_flight(&mut simulation) {
        assert!(simulation.step(), "the data of the write never came");
    }

    let discard = simulation.submit(Command::Discard {
        offset: 0,
        length: CLUSTER * SECTOR,
    });
    simulation.submit(Command::Flush);
    settle_all_but(&mut simulation, 2, &mut rng);
    let other = simulation.submit(write(clusters(32..33), 3));
    settle_all_but(&mut simulation, 2, &mut rng);
    assert!(other.succeeded(), "the other write need not wait");
    assert!(!held.is_done());
    simulation.settle();

    assert!(held.succeeded() && discard.succeeded());
    let found = ids(&read_all(&mut simulation));
    assert!(
        found[..8] == [0; 8] || found[..8] == [2; 8],
        "the raced cluster holds {:?}",
        &found[..8]
    );
    assert_eq!(found[32 * 8..33 * 8], [3; 8], "the other write");
    let report = judge::check(&simulation.close().expect("closes"));
    assert!(report.is_clean(), "{report:?}");
}

/// Elsewhere the discard takes away the cluster that the write is about to link: two blocks share it.
#[test]
fn an_allocating_write_in_flight_and_a_discard_do_not_share_a_cluster() {
    (0..50).for_each(|seed| race(seed, true));
}

/// Elsewhere the data lands in a cluster that belongs to somebody else by then.
#[test]
fn a_write_in_place_that_is_in_flight_keeps_its_cluster_from_a_discard() {
    (0..50).for_each(|seed| race(seed, false));
}

/// Elsewhere the first write to an image leaves a table whose own refcount is 0, and the next process allocates it again.
#[test]
fn the_first_write_to_a_fresh_image_survives_a_crash_and_the_next_write() {
    for refcount_order in [0, 4, 6] {
        for cluster_bits in [9, 12] {
            let mut options = CreateOptions::new(1 << 20);
            options.cluster_bits = cluster_bits;
            options.refcount_order = refcount_order;
            let (mut simulation, mut history) = open(options.metadata().expect("valid"), 4);
            let mut crashes = Crashes::default();
            history.write(&simulation, 0..128, 1);
            crashes.step_through(&mut simulation, &history);
            simulation.submit(Command::Flush);
            crashes.step_through(&mut simulation, &history);
        }
    }
}

/// Elsewhere the refcount goes down on disk before the table lets go of the cluster.
#[test]
fn a_refcount_goes_down_on_disk_only_after_the_unlinking_is_durable() {
    let (mut simulation, mut history) = fresh();
    history.write(&simulation, clusters(0..1), 1);
    flush(&mut simulation, &mut history);
    let image = simulation.disk().contents();
    let word = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().expect("eight bytes")) & !(1 << 63);
    let l2_table = word(word(40) as usize);
    let refcount_block = word(word(48) as usize);

    history.discard(&simulation, clusters(0..1));
    let mut order = Vec::new();
    // The second flush writes what the first set free.
    for _ in 0..2 {
        simulation.submit(Command::Flush);
        while simulation.step_where(|operation| {
            order.push(match operation {
                Operation::Write { offset, .. } if *offset & !4095 == l2_table => "L2 table",
                Operation::Write { offset, .. } if *offset & !4095 == refcount_block => "refcount block",
                Operation::Sync => "fdatasync",
                _ => "other",
            });
            true
        }) {}
    }
    simulation.close().expect("closes");
    let unlinked = order
        .iter()
        .position(|name| *name == "L2 table")
        .expect("the table is written");
    let durable = unlinked
        + order[unlinked..]
            .iter()
            .position(|name| *name == "fdatasync")
            .expect("and synced");
    let before = &order[..durable];
    assert!(!before.contains(&"refcount block"), "{order:?}");
}

/// Elsewhere the refcounts that are rebuilt after a kill leave out compressed clusters and snapshots, which are then overwritten.
#[test]
fn compressed_clusters_and_snapshots_survive_a_crash_and_the_next_writes() {
    let workshop = Workshop::new();
    compressed(&workshop);
    workshop.img(&["snapshot", "-c", "s1", "disk.qcow2"]);
    let (mut simulation, mut history) = open(workshop.bytes("disk.qcow2"), 6);
    let mut crashes = Crashes::default();
    history.write(&simulation, 120..136, 0xaa);
    history.write(&simulation, 512..640, 0xbb);
    crashes.step_through(&mut simulation, &history);
    simulation.submit(Command::Flush);
    crashes.step_through(&mut simulation, &history);
    history.write(&simulation, 0..128, 0xcc);
    history.discard(&simulation, 128..256);
    crashes.step_through(&mut simulation, &history);
    qemu_judges(&workshop, &crashes);
    for image in [crashes.recovered.first(), crashes.recovered.last()] {
        workshop.put("recovered.qcow2", image.expect("there are some"));
        workshop.img(&["snapshot", "-a", "s1", "recovered.qcow2"]);
        workshop.check("recovered.qcow2");
        workshop.compare("recovered.qcow2", &workshop.bytes("source.raw"));
    }
}

/// Elsewhere an encrypted image is opened as if it were not, and gets plain text.
#[test]
fn an_encrypted_image_is_refused_by_the_name_of_its_encryption_and_not_touched() {
    let workshop = Workshop::new();
    let secret = ["--object", "secret,id=key,data=open sesame"];
    for (format, name) in [("luks", "LUKS"), ("aes", "AES")] {
        let option = format!("encrypt.format={format},encrypt.key-secret=key");
        let create = ["create", "-q", "-f", "qcow2", "-o", &option, "disk.qcow2", "1M"];
        workshop.img(&[&create[..1], &secret, &create[1..]].concat());
        let before = workshop.bytes("disk.qcow2");
        let refused = Session::try_open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
        let error = refused.err().expect("it cannot be read without its key").to_string();
        assert!(error.contains(name) && error.contains("disk.qcow2"), "{error}");
        assert!(workshop.bytes("disk.qcow2") == before, "{name}: the image changed");
    }
}

/// Elsewhere the active disk's writes go into clusters that a snapshot shares.
#[test]
fn write_to_shared_cluster_keeps_snapshot_content() {
    let seed = 8;
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let workshop = Workshop::new();
    let model = stamps(1, 4096);
    workshop.put("source.raw", &model);
    workshop.img(&["convert", "-f", "raw", "-O", "qcow2", "source.raw", "disk.qcow2"]);
    workshop.img(&["snapshot", "-c", "s1", "disk.qcow2"]);
    let mut now = model.clone();
    let session = Session::open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    for id in 2..40 {
        let start = rng.random_range(0..4000u64);
        let sectors = rng.random_range(1..=(4096 - start).min(300));
        let (offset, length) = (start * SECTOR, sectors * SECTOR);
        let range = offset as usize..(offset + length) as usize;
        if id % 4 == 0 {
            session.run(Command::WriteZeroes { offset, length });
            now[range].fill(0);
        } else {
            session.write(offset, &stamps(id, sectors));
            now[range].copy_from_slice(&stamps(id, sectors));
        }
    }
    session.close();
    workshop.check("disk.qcow2");
    workshop.compare("disk.qcow2", &now);
    workshop.img(&["snapshot", "-a", "s1", "disk.qcow2"]);
    workshop.check("disk.qcow2");
    workshop.compare("disk.qcow2", &model);
}
