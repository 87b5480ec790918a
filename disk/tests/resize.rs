//! Resizing, between QEMU's tools and this engine; `qemu-img` is the judge.

mod session;

use disk::{DiskError, ResizeError};
use session::fixture::Fixture;

const SIZE: usize = 8 << 20;

const SHAPES: [&str; 5] = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M",
    "refcount_bits=1,cluster_size=4096",
];

#[test]
fn a_disk_that_shrinks_and_grows_reads_zeros_where_it_was_cut() {
    for shape in SHAPES {
        let fixture = Fixture::new(shape, SIZE);
        let mut model = vec![0; SIZE];
        let session = fixture.open();
        session.random_writes(&mut model, 1, 80);
        // Within a cluster, within an L2 table, and back.
        for (seed, size) in [
            (2, SIZE / 2 + 512),
            (3, SIZE / 2 + 4096),
            (4, 1536),
            (5, SIZE),
            (6, 5 * SIZE),
        ] {
            session
                .engine
                .resize(&session.disk, size as u64, true)
                .expect("resized");
            model.resize(size, 0);
            assert_eq!(session.disk.capacity(), size as u64);
            assert!(session.read(0, size) == model, "{shape}: {size}");
            let beyond = session.try_write(size as u64, &[1; 512]);
            assert!(matches!(beyond, Err(DiskError::OutOfRange { .. })));
            session.random_writes(&mut model, seed, 30);
        }
        session.close();
        fixture.check();
        fixture.compare(&model);
    }
}

#[test]
fn qemu_goes_on_resizing_where_we_stopped_and_we_where_qemu_did() {
    let fixture = Fixture::new("cluster_size=4096", SIZE);
    let mut model = vec![0; SIZE];
    for (seed, size) in [(1, 3 * SIZE), (2, SIZE / 2 + 512), (3, SIZE + 1024)] {
        let session = fixture.open();
        session.random_writes(&mut model, seed, 40);
        session
            .engine
            .resize(&session.disk, size as u64, true)
            .expect("resized");
        model.resize(size, 0);
        session.close();
        fixture.check();
        fixture.compare(&model);
        let by_qemu = size.next_multiple_of(1 << 20) - (1 << 19);
        let arguments = ["resize", "-f", "qcow2", "--shrink", "disk.qcow2", &by_qemu.to_string()];
        fixture.img(&arguments);
        model.resize(by_qemu, 0);
        fixture.check();
        fixture.compare(&model);
    }
}

#[test]
fn a_snapshot_keeps_its_size() {
    let fixture = Fixture::new("compat=1.1", SIZE);
    let mut model = vec![0; SIZE];
    let session = fixture.open();
    session.random_writes(&mut model, 1, 60);
    session.engine.snapshot_create(&session.disk, "small").expect("taken");
    let small = model.clone();
    session
        .engine
        .resize(&session.disk, 200 * SIZE as u64, false)
        .expect("resized");
    session.write(150 * SIZE as u64, &[7; 4096]);
    session.engine.snapshot_create(&session.disk, "large").expect("taken");
    session.engine.resize(&session.disk, 4096, true).expect("resized");
    session.close();
    fixture.check();
    fixture.compare(&small[..4096]);
    // (QEMU's convert reads a snapshot as if it had the size of the active disk.)
    let snapshot = fixture.open_snapshot("small");
    assert!(snapshot.read(0, SIZE) == small);
    drop(snapshot);
    let snapshot = fixture.open_snapshot("large");
    assert_eq!(snapshot.disk.capacity(), 200 * SIZE as u64);
    assert_eq!(snapshot.read(150 * SIZE as u64, 4096), [7; 4096]);
    drop(snapshot);

    let session = fixture.open();
    session.engine.snapshot_apply(&session.disk, "large").expect("applied");
    assert_eq!(session.disk.capacity(), 200 * SIZE as u64);
    assert_eq!(session.read(150 * SIZE as u64, 4096), [7; 4096]);
    session.engine.snapshot_apply(&session.disk, "small").expect("applied");
    assert!(session.read(0, SIZE) == small);
    session.close();
    fixture.check();
    fixture.compare(&small);
    fixture.img(&["snapshot", "-a", "large", "disk.qcow2"]);
    fixture.check();
}

#[test]
fn what_was_hidden_in_a_longer_backing_file_stays_hidden() {
    for compat in ["0.10", "1.1"] {
        let fixture = Fixture::new("compat=1.1", SIZE);
        let mut model = vec![9; SIZE];
        std::fs::write(fixture.file("base.raw"), &model).expect("written");
        let option = format!("compat={compat},cluster_size=4096");
        let size = (SIZE / 2 + 512).to_string();
        let arguments = [
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            &option,
            "-b",
            "base.raw",
            "-F",
            "raw",
            "disk.qcow2",
            &size,
        ];
        fixture.img(&arguments);
        let session = fixture.open();
        session
            .engine
            .resize(&session.disk, 2 * SIZE as u64, false)
            .expect("resized");
        model.truncate(SIZE / 2 + 512);
        model.resize(2 * SIZE, 0);
        assert!(session.read(0, model.len()) == model, "{compat}");
        session.close();
        fixture.check();
        fixture.compare(&model);
    }
}

#[test]
fn a_resize_that_would_lose_something_is_refused() {
    let fixture = Fixture::new("compat=0.10", SIZE);
    let session = fixture.open();
    let resize = |size: u64, may_shrink| session.engine.resize(&session.disk, size, may_shrink);
    assert!(matches!(resize(512, false), Err(ResizeError::Shrinks { .. })));
    assert!(matches!(resize(513, true), Err(ResizeError::Unaligned(513))));
    assert!(matches!(resize(1 << 62, true), Err(ResizeError::TooLarge(_))));
    session.engine.snapshot_create(&session.disk, "s").expect("taken");
    assert!(matches!(resize(2 * SIZE as u64, false), Err(ResizeError::Snapshots)));
    assert_eq!(session.disk.capacity(), SIZE as u64);
    session.close();
    fixture.check();
}
