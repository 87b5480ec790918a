//! Internal snapshots that go back and forth between QEMU's tools and this engine; `qemu-img` is the judge.

mod session;

use disk::{DiskError, SnapshotError};
use session::fixture::{Fixture, open_error};

const SIZE: usize = 8 << 20;

/// Shapes of images: the arguments of `qemu-img create -o`.
const SHAPES: [&str; 6] = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M",
    "refcount_bits=4,cluster_size=4096",
    "refcount_bits=64,lazy_refcounts=on",
];

#[test]
fn qemu_applies_and_deletes_the_snapshots_that_we_take() {
    for shape in SHAPES {
        let fixture = Fixture::new(shape, SIZE);
        let mut model = vec![0; SIZE];
        let session = fixture.open();
        session.random_writes(&mut model, 1, 60);
        let first = session.engine.snapshot_create(&session.disk, "first").expect("taken");
        assert_eq!((first.id.as_str(), first.disk_size), ("1", SIZE as u64));
        let at_first = model.clone();
        session.random_writes(&mut model, 2, 60);
        session.engine.snapshot_create(&session.disk, "second").expect("taken");
        let at_second = model.clone();
        session.random_writes(&mut model, 3, 60);
        session.close();

        fixture.check();
        let list = fixture.img(&["snapshot", "-l", "disk.qcow2"]);
        assert!(list.contains("first") && list.contains("second"), "{list}");
        fixture.compare(&model);
        fixture.compare_snapshot("first", &at_first);
        fixture.compare_snapshot("second", &at_second);
        fixture.img(&["snapshot", "-a", "first", "disk.qcow2"]);
        fixture.check();
        fixture.compare(&at_first);
        fixture.img(&["snapshot", "-d", "first", "disk.qcow2"]);
        fixture.check();
        fixture.compare_snapshot("second", &at_second);
    }
}

#[test]
fn we_list_read_apply_and_delete_the_snapshots_that_qemu_takes() {
    for shape in SHAPES {
        let fixture = Fixture::new(shape, SIZE);
        let mut model = vec![0; SIZE];
        let mut at_snapshot = Vec::new();
        for (seed, name) in [(1, "one"), (2, "two")] {
            let session = fixture.open();
            session.random_writes(&mut model, seed, 60);
            session.close();
            fixture.img(&["snapshot", "-c", name, "disk.qcow2"]);
            at_snapshot.push(model.clone());
        }
        let session = fixture.open();
        session.random_writes(&mut model, 3, 60);
        let names: Vec<String> = session
            .engine
            .snapshots(&session.disk)
            .expect("listed")
            .into_iter()
            .map(|snapshot| snapshot.name)
            .collect();
        assert_eq!(names, ["one", "two"]);
        session
            .engine
            .snapshot_apply(&session.disk, "1")
            .expect("applied, by id");
        assert!(session.read(0, SIZE) == at_snapshot[0], "{shape}: what was applied");
        model.clone_from(&at_snapshot[0]);
        session.random_writes(&mut model, 4, 60);
        session
            .engine
            .snapshot_delete(&session.disk, "one")
            .expect("deleted, by name");
        session.random_writes(&mut model, 5, 60);
        session.close();

        fixture.check();
        fixture.compare(&model);
        fixture.compare_snapshot("two", &at_snapshot[1]);
        let snapshot = fixture.open_snapshot("two");
        assert!(
            snapshot.read(0, SIZE) == at_snapshot[1],
            "{shape}: a snapshot as a disk"
        );
        drop(snapshot);

        let session = fixture.open();
        session.engine.snapshot_delete(&session.disk, "two").expect("deleted");
        session.close();
        fixture.check();
        fixture.compare(&model);
        let list = fixture.img(&["snapshot", "-l", "disk.qcow2"]);
        assert!(!list.contains("two"), "{list}");
    }
}

#[test]
fn an_overlay_on_a_compressed_image_keeps_its_snapshots() {
    let fixture = Fixture::new("compat=1.1", SIZE);
    let mut model: Vec<u8> = (0..SIZE).map(|index| (index / 700 % 253) as u8).collect();
    std::fs::write(fixture.file("source.raw"), &model).expect("written");
    fixture.img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "source.raw", "disk.qcow2"]);
    let session = fixture.open();
    session.random_writes(&mut model, 1, 20);
    session
        .engine
        .snapshot_create(&session.disk, "compressed")
        .expect("taken");
    let at_snapshot = model.clone();
    session.random_writes(&mut model, 2, 60);
    session.close();
    fixture.check();
    fixture.compare(&model);
    fixture.compare_snapshot("compressed", &at_snapshot);
    let session = fixture.open();
    session
        .engine
        .snapshot_apply(&session.disk, "compressed")
        .expect("applied");
    session
        .engine
        .snapshot_delete(&session.disk, "compressed")
        .expect("deleted");
    session.close();
    fixture.check();
    fixture.compare(&at_snapshot);
}

#[test]
fn what_others_recorded_of_their_snapshots_is_kept_byte_for_byte() {
    let fixture = Fixture::new("compat=1.1", SIZE);
    fixture.img(&["snapshot", "-c", "theirs", "disk.qcow2"]);
    // The record grows by extra data that no specification knows: 24 bytes become 32.
    let mut image = std::fs::read(fixture.file("disk.qcow2")).expect("readable");
    let table = u64::from_be_bytes(image[64..72].try_into().expect("eight bytes")) as usize;
    let old = image[table..table + 40 + 24 + 1 + 6].to_vec();
    let mut record = [&old[..64], b"a clock?", &old[64..]].concat();
    record[39] = 32;
    image.resize(image.len().next_multiple_of(65536), 0);
    image[table..table + record.len()].copy_from_slice(&record);
    // And the header has an extension that nobody knows, before its end marker.
    let header = image[..512].to_vec();
    let end = extensions_end(&header);
    image[end..end + 16].copy_from_slice(&[
        0x12, 0x34, 0x56, 0x78, 0, 0, 0, 5, b'h', b'e', b'l', b'l', b'o', 0, 0, 0,
    ]);
    image[end + 16..end + 24].fill(0);
    let extension = image[end..end + 16].to_vec();
    std::fs::write(fixture.file("disk.qcow2"), &image).expect("written");
    fixture.check();

    let session = fixture.open();
    session.engine.snapshot_create(&session.disk, "ours").expect("taken");
    session
        .engine
        .resize(&session.disk, 2 * SIZE as u64, false)
        .expect("resized");
    session.engine.snapshot_delete(&session.disk, "ours").expect("deleted");
    session.close();
    fixture.check();
    let image = std::fs::read(fixture.file("disk.qcow2")).expect("readable");
    let table = u64::from_be_bytes(image[64..72].try_into().expect("eight bytes")) as usize;
    assert_eq!(&image[table..table + record.len()], record);
    assert_eq!(image[end..end + 16], extension);
}

/// Where the end marker of the header extensions is.
fn extensions_end(header: &[u8]) -> usize {
    let be32 = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes")) as usize;
    let mut at = be32(100);
    while be32(at) != 0 {
        at += 8 + be32(at + 4).next_multiple_of(8);
    }
    at
}

/// Zeroes the token by which an image and its metadata cache know each other (docs/disk.md).
fn forget_token(image: &mut [u8]) {
    let header = &mut image[..1024];
    let at = header.windows(8).position(|extension| extension == b"spnd\0\0\0\x10");
    let at = at.expect("an extension with the token");
    header[at + 8..at + 24].fill(0);
}

#[test]
fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let fixture = Fixture::new("refcount_bits=1", SIZE);
    let mut model = vec![0; SIZE];
    let session = fixture.open();
    session.random_writes(&mut model, 1, 30);
    let create = |name: &str| session.engine.snapshot_create(&session.disk, name);
    let error = create("no room").expect_err("a refcount of one bit counts to one");
    assert!(
        matches!(error, SnapshotError::Disk(DiskError::Unsupported(_))),
        "{error}"
    );
    assert!(matches!(create(""), Err(SnapshotError::Name(0))));
    assert!(matches!(create(&"x".repeat(256)), Err(SnapshotError::Name(256))));
    let missing = session.engine.snapshot_apply(&session.disk, "nobody");
    assert!(matches!(missing, Err(SnapshotError::NotFound(_))));
    assert!(session.engine.snapshot_delete(&session.disk, "nobody").is_err());
    session.random_writes(&mut model, 2, 30);
    session.close();
    fixture.check();
    fixture.compare(&model);

    let fixture = Fixture::new("compat=1.1", SIZE);
    fixture.img(&["snapshot", "-c", "there", "disk.qcow2"]);
    let session = fixture.open();
    let twice = session.engine.snapshot_create(&session.disk, "there");
    assert!(matches!(twice, Err(SnapshotError::Exists(_))));
    session.close();
    let error = open_error(&fixture.file("disk.qcow2"), true, Some("nobody"));
    assert!(error.contains("no snapshot"), "{error}");
    let error = open_error(&fixture.file("disk.qcow2"), false, Some("there"));
    assert!(error.contains("read-only"), "{error}");
}

#[test]
fn a_write_that_would_hit_metadata_is_refused_and_marks_the_image_corrupt() {
    // The L2 table says that guest cluster 0 lies where this is, and may be written in place.
    for target in ["refcount table", "refcount block", "L1", "L2", "snapshot"] {
        let fixture = Fixture::new("compat=1.1", SIZE);
        let session = fixture.open();
        session.write(0, &[1; 65536]);
        session.engine.snapshot_create(&session.disk, "s").expect("taken");
        session.write(0, &[2; 65536]);
        session.close();
        let mut image = std::fs::read(fixture.file("disk.qcow2")).expect("readable");
        let be64 = |at: usize| u64::from_be_bytes(image[at..at + 8].try_into().expect("eight bytes"));
        let (l1, table, snapshots) = (be64(40), be64(48), be64(64));
        let l2 = be64(l1 as usize) & !(1 << 63);
        let host = match target {
            "refcount table" => table,
            "refcount block" => be64(table as usize),
            "L1" => l1,
            "L2" => l2,
            _ => be64(snapshots as usize),
        };
        image[l2 as usize..l2 as usize + 8].copy_from_slice(&(host | 1 << 63).to_be_bytes());
        std::fs::write(fixture.file("disk.qcow2"), &image).expect("written");

        let session = fixture.open();
        let error = session
            .try_write(512, &[3; 512])
            .expect_err("it would overwrite metadata");
        assert!(matches!(error, DiskError::Corrupt(_)), "{target}: {error}");
        let error = session
            .try_write(1 << 20, &[3; 512])
            .expect_err("nothing is written any more");
        assert!(matches!(error, DiskError::Corrupt(_)), "{target}: {error}");
        session.close();
        let mut after = std::fs::read(fixture.file("disk.qcow2")).expect("readable");
        assert_eq!(after[79] & 2, 2, "{target}: the corrupt bit");
        after[79] = image[79];
        // Each open for writing renews its token.
        forget_token(&mut after);
        forget_token(&mut image);
        assert!(after == image, "{target}: nothing else was written");
        let error = open_error(&fixture.file("disk.qcow2"), false, None);
        assert!(error.contains("corrupt"), "{error}");
    }
}

#[test]
fn a_lazy_image_whose_writer_was_killed_is_recovered() {
    for shape in [
        "lazy_refcounts=on",
        "lazy_refcounts=on,cluster_size=512,refcount_bits=64",
    ] {
        let fixture = Fixture::new(shape, SIZE);
        fixture.crash_qemu(&["write -P 7 0 1M", "write -P 8 5M 64k", "flush"]);
        let mut model = vec![0; SIZE];
        model[..1 << 20].fill(7);
        model[5 << 20..(5 << 20) + 65536].fill(8);
        let session = fixture.open();
        assert!(session.read(0, SIZE) == model);
        session.random_writes(&mut model, 3, 40);
        session.close();
        fixture.check();
        fixture.compare(&model);
        let image = std::fs::read(fixture.file("disk.qcow2")).expect("readable");
        assert_eq!(image[87] & 1, 1, "lazy refcounts are still allowed");
    }
}

#[test]
fn guests_go_on_while_snapshots_come_and_go() {
    let fixture = Fixture::new("compat=1.1", SIZE);
    let mut model = vec![0; SIZE];
    let session = fixture.open();
    session.random_writes(&mut model, 1, 60);
    for round in 0..6 {
        // In flight when the snapshot is asked for, and different in each round.
        let fill = vec![round as u8 + 1; 256 << 10];
        let at = (round << 20) + 512 * round;
        let pending = session.start_write(at as u64, &fill);
        model[at..at + fill.len()].copy_from_slice(&fill);
        session
            .engine
            .snapshot_create(&session.disk, &format!("round {round}"))
            .expect("taken");
        session.wait(&pending).expect("written");
        if round >= 2 {
            let name = format!("round {}", round - 2);
            session.engine.snapshot_delete(&session.disk, &name).expect("deleted");
        }
    }
    assert!(session.read(0, SIZE) == model);
    session.close();
    fixture.check();
    fixture.compare(&model);
}
