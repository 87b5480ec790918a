//! Compressed clusters are decompressed by other threads: many at once, in every order, and also when nobody waits for them any more.

mod session;

use disk::{Aio, Buffer, Command, Format};
use session::{Session, Workshop};

const CLUSTER: usize = 65536;
const CLUSTERS: usize = 96;

/// What cluster `index` holds: text that compresses, and differs from cluster to cluster.
fn content(index: usize) -> Vec<u8> {
    let line = format!("cluster {index} of {CLUSTERS}; ");
    line.bytes().cycle().take(CLUSTER).collect()
}

fn compressed(workshop: &Workshop, kind: &str) {
    let whole: Vec<u8> = (0..CLUSTERS).flat_map(content).collect();
    workshop.put("plain.raw", &whole);
    let kind = format!("compression_type={kind}");
    workshop.img(&[
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        &kind,
        "plain.raw",
        "disk.qcow2",
    ]);
}

fn read(session: &Session, offset: usize, length: usize) -> (session::Outcome, Buffer) {
    let buffer = Buffer::zeroed(length);
    let command = Command::Read {
        offset: offset as u64,
        buffer: buffer.clone(),
    };
    (session.start(command), buffer)
}

#[test]
fn many_compressed_clusters_are_read_at_once() {
    for (kind, aio) in [("zlib", Aio::IoUring), ("zstd", Aio::Threads)] {
        let workshop = Workshop::new();
        compressed(&workshop, kind);
        let session = Session::open(&workshop.file("disk.qcow2"), Format::Qcow2, aio);
        // More than are worked on at once; a part of each, and one that spans all of them.
        let reads: Vec<_> = (0..CLUSTERS)
            .map(|index| read(&session, index * CLUSTER + 512, 4096))
            .collect();
        let (all, whole) = read(&session, 0, CLUSTERS * CLUSTER);
        for (index, (outcome, buffer)) in reads.iter().enumerate() {
            session.wait(outcome).unwrap_or_else(|error| panic!("{error}"));
            assert!(
                buffer.to_vec() == content(index)[512..512 + 4096],
                "{kind}, cluster {index}"
            );
        }
        session.wait(&all).unwrap_or_else(|error| panic!("{error}"));
        assert!(whole.to_vec() == workshop.bytes("plain.raw"), "{kind}");
        session.close();
        workshop.check("disk.qcow2");
    }
}

#[test]
fn an_engine_that_is_dropped_in_the_middle_of_decompressing_ends() {
    let workshop = Workshop::new();
    compressed(&workshop, "zlib");
    for polls in 0..6 {
        let session = Session::open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
        let reads: Vec<_> = (0..CLUSTERS)
            .map(|index| read(&session, index * CLUSTER, CLUSTER))
            .collect();
        for (outcome, _) in reads.iter().take(polls) {
            session.wait(outcome).unwrap_or_else(|error| panic!("{error}"));
        }
        drop(session);
        let kept = reads
            .iter()
            .filter(|(outcome, _)| std::sync::Arc::strong_count(outcome) > 1);
        assert_eq!(kept.count(), 0, "requests live on");
    }
    let session = Session::open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    assert!(session.read(7 * CLUSTER as u64, CLUSTER) == content(7));
    session.close();
    workshop.check("disk.qcow2");
}

#[test]
fn a_cluster_that_does_not_decompress_fails_its_request_and_no_other() {
    let workshop = Workshop::new();
    compressed(&workshop, "zstd");
    let map = workshop.img(&["map", "--output=json", "-f", "qcow2", "disk.qcow2"]);
    assert!(map.contains("compressed"), "{map}");
    let mut bytes = workshop.bytes("disk.qcow2");
    let frame = [0x28, 0xb5, 0x2f, 0xfd];
    let found = bytes.windows(4).enumerate().filter(|(_, window)| *window == frame);
    let second = found.map(|(at, _)| at).nth(1).expect("a second frame");
    // Every block of it is of the reserved type (RFC 8878, 3.1.1.2).
    bytes[second + 4..second + 24].fill(0xff);
    workshop.put("disk.qcow2", &bytes);
    let session = Session::open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    let reads: Vec<_> = (0..4).map(|index| read(&session, index * CLUSTER, CLUSTER)).collect();
    let failed: Vec<bool> = reads
        .iter()
        .map(|(outcome, _)| session.wait(outcome).is_err())
        .collect();
    assert_eq!(failed, [false, true, false, false]);
    drop(session);
}
