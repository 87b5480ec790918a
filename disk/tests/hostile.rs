//! Images made to hurt: each costs an error that names what is wrong, little memory, and no time.

mod session;

use std::fs;

use disk::{Aio, Format, check_image};
use session::{Session, Workshop};

/// What opening or checking one of these images may cost, in MiB.
const MAX_MEMORY: u64 = 64;

/// Offsets in the header (qcow2 spec, "Header").
const CLUSTER_BITS: usize = 20;
const SIZE: usize = 24;
const L1_SIZE: usize = 36;
const L1_TABLE: usize = 40;
const REFCOUNT_TABLE: usize = 48;
const REFCOUNT_TABLE_CLUSTERS: usize = 56;
const SNAPSHOTS: usize = 60;
const SNAPSHOT_TABLE: usize = 64;
const REFCOUNT_ORDER: usize = 96;
const HEADER_LENGTH: usize = 100;
const FIRST_EXTENSION: usize = 112;

/// A field of the header and its new value: 4 or 8 bytes.
enum Edit {
    Word(usize, u32),
    Long(usize, u64),
}

/// The most memory that this process has had, in MiB.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).expect("a number") / 1024
}

#[test]
fn an_image_that_is_made_to_hurt_costs_an_error_and_little_memory() {
    use Edit::{Long, Word};
    let workshop = Workshop::new();
    workshop.img(&["create", "-q", "-f", "qcow2", "good.qcow2", "64M"]);
    workshop.io("good.qcow2", &["write 0 1M".to_owned()]);
    workshop.img(&["snapshot", "-c", "one", "good.qcow2"]);
    let good = workshop.bytes("good.qcow2");
    let far = 1 << 50;
    let cases: [(&str, &[Edit]); 18] = [
        ("a cluster size that overflows", &[Word(CLUSTER_BITS, 63)]),
        ("a cluster size beyond 32 bits", &[Word(CLUSTER_BITS, u32::MAX)]),
        ("a disk that its L1 table cannot map", &[Long(SIZE, u64::MAX / 2)]),
        ("a disk size that overflows", &[Long(SIZE, u64::MAX)]),
        ("an L1 table of 32 GiB", &[Word(L1_SIZE, u32::MAX)]),
        ("an L1 table beyond the file", &[Long(L1_TABLE, far)]),
        ("an L1 table whose end overflows", &[Long(L1_TABLE, !0xffff)]),
        ("an L1 table on the header", &[Long(L1_TABLE, 0)]),
        ("an L1 table between clusters", &[Long(L1_TABLE, 0x3_0001)]),
        ("a refcount table beyond the file", &[Long(REFCOUNT_TABLE, far)]),
        (
            "a refcount table of 256 TiB",
            &[Word(REFCOUNT_TABLE_CLUSTERS, u32::MAX)],
        ),
        ("a refcount table on the L1 table", &[Long(REFCOUNT_TABLE, 0x3_0000)]),
        ("a million snapshots", &[Word(SNAPSHOTS, 1_000_000)]),
        ("65536 snapshots in one", &[Word(SNAPSHOTS, 65536)]),
        ("a snapshot table beyond the file", &[Long(SNAPSHOT_TABLE, far)]),
        ("refcounts of 2^32 bits", &[Word(REFCOUNT_ORDER, 32)]),
        ("a header longer than the file", &[Word(HEADER_LENGTH, u32::MAX)]),
        (
            "an extension of 4 GiB",
            &[Word(FIRST_EXTENSION, 0x1234_5678), Word(FIRST_EXTENSION + 4, u32::MAX)],
        ),
    ];
    let before = peak_memory();
    for (what, edits) in cases {
        let mut image = good.clone();
        for edit in edits {
            match edit {
                Word(at, value) => image[*at..at + 4].copy_from_slice(&value.to_be_bytes()),
                Long(at, value) => image[*at..at + 8].copy_from_slice(&value.to_be_bytes()),
            }
        }
        workshop.put("bad.qcow2", &image);
        let path = workshop.file("bad.qcow2");
        // The check may find the same wrong, or that it cannot be checked; it must come to an end.
        let _ = check_image(&path, false, &mut |_| {});
        let opened = Session::try_open(&path, Format::Qcow2, Aio::IoUring).map(|_| ());
        let error = opened.expect_err(what).to_string();
        println!("{what}: {error}");
        assert!(error.contains("bad.qcow2"), "{what}: {error}");
        assert!(
            workshop.bytes("bad.qcow2") == image,
            "{what}: a refused image is not written to"
        );
    }
    let cost = peak_memory() - before;
    assert!(cost < MAX_MEMORY, "{cost} MiB");
}
