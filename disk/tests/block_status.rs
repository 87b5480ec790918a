//! Block status, with `qemu-img map` as the judge.

mod session;

use disk::{Aio, Buffer, Command, Extent, ExtentKind, Extents, Format};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use session::{Session, Workshop};

const SECTOR: u64 = 512;

fn seed() -> u64 {
    let given = std::env::var("SPINDLE_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(rand::random)
}

/// What QEMU says of an image.
fn judged(workshop: &Workshop, image: &str, format: &str) -> Vec<Extent> {
    let text = workshop.img(&["map", "--output=json", "-f", format, image]);
    let list: Value = serde_json::from_str(&text).expect("JSON");
    let extent = |entry: &Value| {
        let number = |name: &str| entry[name].as_u64();
        let flag = |name: &str| entry[name].as_bool().expect("a flag");
        let kind = match (flag("present"), flag("data")) {
            (false, _) => ExtentKind::Unallocated,
            (true, false) => ExtentKind::Zero,
            (true, true) => ExtentKind::Data,
        };
        Extent {
            offset: number("start").expect("a start"),
            length: number("length").expect("a length"),
            kind,
            depth: number("depth").expect("a depth") as u32,
            host_offset: number("offset"),
            compressed: flag("compressed"),
        }
    };
    list.as_array().expect("a list").iter().map(extent).collect()
}

/// What we say of a range, asked for until all of it is answered.
fn mapped(session: &Session, mut offset: u64, end: u64) -> Vec<Extent> {
    let mut all = Vec::new();
    while offset < end {
        let extents = Extents::default();
        session.run(Command::Map {
            offset,
            length: end - offset,
            extents: extents.clone(),
        });
        let answer = extents.take();
        assert_eq!(answer.first().expect("at least one byte").offset, offset);
        for extent in answer {
            assert_eq!(extent.offset, offset, "without gaps");
            offset += extent.length;
            all.push(extent);
        }
    }
    assert_eq!(offset, end, "not beyond the range");
    all
}

/// The part of `extents` that lies within a range.
fn clipped(extents: &[Extent], start: u64, end: u64) -> Vec<Extent> {
    let within = |extent: &Extent| {
        let first = extent.offset.max(start);
        let last = (extent.offset + extent.length).min(end);
        (first < last).then(|| Extent {
            offset: first,
            length: last - first,
            host_offset: extent.host_offset.map(|host| host + (first - extent.offset)),
            ..*extent
        })
    };
    extents.iter().filter_map(within).collect()
}

fn agree(workshop: &Workshop, image: &str, format: Format, rng: &mut SmallRng) {
    let judgement = judged(workshop, image, if format == Format::Raw { "raw" } else { "qcow2" });
    let session = Session::open(&workshop.file(image), format, Aio::IoUring);
    let capacity = session.capacity();
    assert_eq!(mapped(&session, 0, capacity), judgement, "{image}");
    for _ in 0..20 {
        let start = rng.random_range(0..capacity / SECTOR);
        let end = rng.random_range(start + 1..=capacity / SECTOR);
        let (start, end) = (start * SECTOR, end * SECTOR);
        assert_eq!(
            mapped(&session, start, end),
            clipped(&judgement, start, end),
            "{image} {start}..{end}"
        );
    }
    session.close();
}

/// Writes, zeros with and without a place kept for them, and discards, by QEMU.
fn scribble(workshop: &Workshop, image: &str, size: u64, rng: &mut SmallRng) {
    let mut commands = Vec::new();
    for _ in 0..15 {
        let start = rng.random_range(0..size / SECTOR);
        let longest = (size / SECTOR - start).min(1 << rng.random_range(0..9));
        let verb = match rng.random_range(0..6) {
            0 => "write -z",
            1 => "write -z -u",
            2 => "discard",
            _ => "write -P 7",
        };
        let sectors = rng.random_range(1..=longest);
        commands.push(format!("{verb} {} {}", start * SECTOR, sectors * SECTOR));
    }
    workshop.io(image, &commands);
}

fn create(workshop: &Workshop, image: &str, options: &str, size: u64, backing: Option<(&str, &str)>) {
    let size = size.to_string();
    let mut arguments = vec!["create", "-q", "-f", "qcow2", "-o", options];
    if let Some((name, format)) = backing {
        arguments.extend(["-b", name, "-F", format]);
    }
    arguments.extend([image, &size]);
    workshop.img(&arguments);
}

#[test]
fn a_chain_of_images_is_mapped_as_qemu_maps_it() {
    let seed = seed();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    for cluster_size in [512, 4096, 65536] {
        let workshop = Workshop::new();
        // Holes, data, and a length that is no multiple of anything.
        let mut bytes = vec![0; (1 << 20) + 1000];
        rng.fill(&mut bytes[300_000..500_000]);
        rng.fill(&mut bytes[1 << 20..]);
        workshop.put("base.raw", &[]);
        let file = std::fs::File::options().write(true).open(workshop.file("base.raw"));
        let file = file.expect("there");
        file.set_len(bytes.len() as u64).expect("longer");
        for range in [299_008..503_808, 1 << 20..bytes.len()] {
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes[range.clone()], range.start as u64)
                .expect("written");
        }
        agree(&workshop, "base.raw", Format::Raw, &mut rng);

        let options = format!("cluster_size={cluster_size}");
        create(&workshop, "middle.qcow2", &options, 2 << 20, Some(("base.raw", "raw")));
        scribble(&workshop, "middle.qcow2", 2 << 20, &mut rng);
        agree(&workshop, "middle.qcow2", Format::Qcow2, &mut rng);

        create(
            &workshop,
            "top.qcow2",
            "cluster_size=4096",
            3 << 20,
            Some(("middle.qcow2", "qcow2")),
        );
        scribble(&workshop, "top.qcow2", 3 << 20, &mut rng);
        agree(&workshop, "top.qcow2", Format::Qcow2, &mut rng);

        workshop.img(&[
            "convert",
            "-c",
            "-O",
            "qcow2",
            "-o",
            &options,
            "top.qcow2",
            "small.qcow2",
        ]);
        agree(&workshop, "small.qcow2", Format::Qcow2, &mut rng);
    }
}

#[test]
fn a_write_that_completed_is_mapped() {
    let workshop = Workshop::new();
    create(&workshop, "disk.qcow2", "cluster_size=4096", 1 << 20, None);
    let session = Session::open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    session.write(8192, &[1; 4096]);
    session.run(Command::WriteZeroes {
        offset: 8192 + 512,
        length: 512,
    });
    let found: Vec<_> = mapped(&session, 0, 1 << 20)
        .iter()
        .map(|extent| (extent.offset, extent.kind))
        .collect();
    let expected = [
        (0, ExtentKind::Unallocated),
        (8192, ExtentKind::Data),
        (12288, ExtentKind::Unallocated),
    ];
    assert_eq!(found, expected);
    session.close();
}

#[test]
fn a_fragmented_disk_is_mapped_in_several_requests() {
    // Each second cluster of the smallest size, which is far more pieces than one request looks at.
    const CLUSTERS: u64 = 16384;
    let workshop = Workshop::new();
    create(&workshop, "disk.qcow2", "cluster_size=512", CLUSTERS * 512, None);
    let session = Session::open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    for cluster in (0..CLUSTERS).step_by(2) {
        let buffer = Buffer::from_slice(&[1; 512]);
        session.run(Command::Write {
            offset: cluster * 512,
            buffer,
        });
    }
    let extents = Extents::default();
    session.run(Command::Map {
        offset: 0,
        length: CLUSTERS * 512,
        extents: extents.clone(),
    });
    let first = extents.take();
    assert!(!first.is_empty() && (first.len() as u64) < CLUSTERS, "{}", first.len());

    let all = mapped(&session, 0, CLUSTERS * 512);

    session.close();
    assert_eq!(all.len() as u64, CLUSTERS);
    assert_eq!(all, judged(&workshop, "disk.qcow2", "qcow2"));
}
