//! Images that go back and forth between QEMU's tools and this engine; `qemu-img` is the judge.
//!
//! Each row of the matrix is an image of another shape. QEMU makes it and writes to it, we read it and go on writing,
//! QEMU reads it and goes on writing, and once more; after each turn both must read the same, and `qemu-img check` must find neither
//! an error nor a leak. Content and requests are random: `SPINDLE_SEED=n` repeats a run.

mod session;

use std::fmt::Write;
use std::process::Stdio;

use disk::{Aio, Buffer, Command, Format};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use session::{Outcome, Session, Workshop};

const SECTOR: u64 = 512;

/// A seed from the environment, or a new one; printed, so that a failure can be repeated.
fn seed() -> u64 {
    let given = std::env::var("SPINDLE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or_else(|| rand::rng().random_range(0..1 << 32));
    println!("repeat with SPINDLE_SEED={seed}");
    seed
}

/// What lies below an image.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Backing {
    None,
    Raw,
    Qcow2,
    /// Of compressed clusters.
    Compressed,
}

/// The shape of an image: `-o` options of qemu-img, its size in bytes and what is below it.
#[derive(Debug)]
struct Shape {
    options: String,
    size: u64,
    backing: Backing,
    /// In percent of the image's size.
    backing_size: u64,
    /// The image itself begins as one of compressed clusters.
    compressed: bool,
}

/// An image in a workshop, and what it must hold.
struct Matter {
    workshop: Workshop,
    model: Vec<u8>,
    rng: SmallRng,
    shape: Shape,
}

impl Matter {
    /// QEMU makes the image.
    fn new(shape: Shape, seed: u64) -> Self {
        let mut matter = Self {
            workshop: Workshop::new(),
            model: vec![0; shape.size as usize],
            rng: SmallRng::seed_from_u64(seed),
            shape,
        };
        let (size, options) = (matter.shape.size.to_string(), matter.shape.options.clone());
        if matter.shape.backing == Backing::None && !matter.shape.compressed {
            let create = ["create", "-q", "-f", "qcow2", "-o", &options, "disk.qcow2", &size];
            matter.workshop.img(&create);
            return matter;
        }
        let below = matter.backing_content();
        matter.workshop.put("base.raw", &below);
        let common = below.len().min(matter.model.len());
        matter.model[..common].copy_from_slice(&below[..common]);
        let convert = |extra: &[&str], to: &str| {
            let tail = ["-f", "raw", "-O", "qcow2", "base.raw", to];
            matter.workshop.img(&[&["convert"], extra, &tail].concat());
        };
        let format = match matter.shape.backing {
            Backing::None => {
                convert(&["-c", "-o", &options], "disk.qcow2");
                return matter;
            }
            Backing::Raw => "raw",
            Backing::Qcow2 | Backing::Compressed => "qcow2",
        };
        match matter.shape.backing {
            Backing::Raw => matter.workshop.put("base.img", &below),
            Backing::Qcow2 => convert(&[], "base.img"),
            _ => convert(&["-c"], "base.img"),
        }
        let below = ["-b", "base.img", "-F", format, "disk.qcow2", &size];
        matter
            .workshop
            .img(&[&["create", "-q", "-f", "qcow2", "-o", &options], &below[..]].concat());
        matter
    }

    /// Runs of zeros, of one byte, and of what cannot be compressed.
    fn backing_content(&mut self) -> Vec<u8> {
        let sectors = (self.shape.size / SECTOR * self.shape.backing_size / 100).max(1);
        let mut content = Vec::new();
        while content.len() < (sectors * SECTOR) as usize {
            let length = self.rng.random_range(1..200) * SECTOR as usize;
            let start = content.len();
            content.resize(start + length, self.rng.random_range(0..4));
            if self.rng.random_range(0..3) == 0 {
                self.rng.fill(&mut content[start..]);
            }
        }
        content.truncate((sectors * SECTOR) as usize);
        content
    }

    /// A random range of whole sectors: first and count.
    fn range(&mut self) -> (u64, u64) {
        let sectors = self.shape.size / SECTOR;
        let start = self.rng.random_range(0..sectors);
        let longest = (sectors - start).min(1 << self.rng.random_range(0..9));
        (start, self.rng.random_range(1..=longest))
    }

    /// QEMU writes, zeroes, gives up.
    fn qemu_writes(&mut self) {
        let mut commands = Vec::new();
        for _ in 0..12 {
            let (start, sectors) = self.range();
            let (offset, length) = (start * SECTOR, sectors * SECTOR);
            let pattern: u8 = self.rng.random_range(1..=255);
            let mut command = String::new();
            let (text, fill) = match self.rng.random_range(0..7) {
                0 => ("write -z".to_owned(), 0),
                1 => ("write -z -u".to_owned(), 0),
                2 => ("discard".to_owned(), 0),
                _ => (format!("write -P {pattern}"), pattern),
            };
            write!(command, "{text} {offset} {length}").expect("a string");
            commands.push(command);
            if text == "discard" {
                continue;
            }
            self.model[offset as usize..(offset + length) as usize].fill(fill);
        }
        self.workshop.io("disk.qcow2", &commands);
        if commands.iter().any(|command| command.starts_with("discard")) {
            // What a discard leaves is up to QEMU; what it reads from then on is not.
            self.workshop
                .img(&["convert", "-f", "qcow2", "-O", "raw", "disk.qcow2", "now.raw"]);
            self.adopt_discards(&commands);
        }
        self.workshop.check("disk.qcow2");
    }

    /// Where QEMU discarded, the model becomes what QEMU reads; everywhere else that must be the model.
    fn adopt_discards(&mut self, commands: &[String]) {
        let now = self.workshop.bytes("now.raw");
        for command in commands.iter().filter_map(|command| command.strip_prefix("discard ")) {
            let mut numbers = command
                .split(' ')
                .map(|number| number.parse::<usize>().expect("a number"));
            let (Some(start), Some(length)) = (numbers.next(), numbers.next()) else {
                continue;
            };
            self.model[start..start + length].copy_from_slice(&now[start..start + length]);
        }
        assert!(now == self.model, "QEMU reads something else than it wrote");
    }

    /// We read everything and go on writing, up to 8 requests in flight; then we read everything again.
    fn we_write(&mut self, aio: Aio) {
        let session = Session::open(&self.workshop.file("disk.qcow2"), Format::Qcow2, aio);
        assert_eq!(session.capacity(), self.shape.size);
        assert!(session.read(0, self.model.len()) == self.model, "what QEMU wrote");
        let mut in_flight: Vec<(u64, u64, Outcome)> = Vec::new();
        let finish = |outcome: &Outcome| session.wait(outcome).unwrap_or_else(|error| panic!("{error}"));
        for _ in 0..40 {
            let (start, sectors) = self.range();
            let overlaps = |(other, count, _): &(u64, u64, Outcome)| *other < start + sectors && start < other + count;
            while in_flight.len() >= 8 || in_flight.iter().any(overlaps) {
                finish(&in_flight.remove(0).2);
            }
            let (offset, length) = (start * SECTOR, sectors * SECTOR);
            let range = offset as usize..(offset + length) as usize;
            let command = match self.rng.random_range(0..10) {
                0 | 1 => {
                    self.model[range].fill(0);
                    Command::WriteZeroes { offset, length }
                }
                2 => Command::Flush,
                3 => {
                    session.run(Command::Discard { offset, length });
                    // It reads as zeros or as before.
                    let now = session.read(offset, length as usize);
                    let before = &mut self.model[range];
                    let sound = now.iter().zip(&*before).all(|(now, before)| now == before || *now == 0);
                    assert!(sound, "after a discard of {length} bytes at {offset:#x}");
                    before.copy_from_slice(&now);
                    continue;
                }
                _ => {
                    self.rng.fill(&mut self.model[range.clone()]);
                    let buffer = Buffer::from_slice(&self.model[range]);
                    Command::Write { offset, buffer }
                }
            };
            in_flight.push((start, sectors, session.start(command)));
        }
        in_flight.iter().for_each(|(_, _, outcome)| finish(outcome));
        assert!(session.read(0, self.model.len()) == self.model, "what we wrote");
        session.close();
        self.judge();
    }

    fn judge(&self) {
        self.workshop.check("disk.qcow2");
        self.workshop.compare("disk.qcow2", &self.model);
    }

    /// The turns of both sides.
    fn go_back_and_forth(&mut self) {
        let below = std::fs::read(self.workshop.file("base.img")).ok();
        for aio in [Aio::IoUring, Aio::Threads] {
            self.qemu_writes();
            self.we_write(aio);
        }
        self.qemu_writes();
        assert!(
            below == std::fs::read(self.workshop.file("base.img")).ok(),
            "the backing file changed"
        );
    }
}

fn try_shape(shape: Shape, seed: u64) {
    println!("seed {seed}: {shape:?}");
    Matter::new(shape, seed).go_back_and_forth();
}

/// All pairs of version and refcount width with cluster sizes, each with what is below it drawn from the rest of the matrix, so that
/// each pair of two columns is there.
#[test]
fn images_of_every_shape_go_back_and_forth() {
    let seed = seed();
    let widths = ["", "1", "2", "4", "8", "16", "32", "64"];
    let backings = [Backing::None, Backing::Raw, Backing::Qcow2, Backing::Compressed];
    for (row, cluster_size) in [512u64, 4096, 65536, 2 << 20].into_iter().enumerate() {
        for (number, width) in widths.iter().enumerate() {
            // Without a width: version 2.
            let version = if width.is_empty() { 2 } else { 3 };
            let mut options = format!(
                "cluster_size={cluster_size},compat={}",
                if version == 2 { "0.10" } else { "1.1" }
            );
            if version == 3 {
                write!(options, ",refcount_bits={width}").expect("a string");
            }
            // Each width meets each backing, and with zlib and zstd both.
            let backing = backings[(row + number) % 4];
            let compressed = backing == Backing::None && *width != "1";
            if version == 3 && row % 2 == 1 {
                options += ",compression_type=zstd";
            }
            // A whole number of clusters, an odd number of sectors, or smaller than one cluster.
            let size = match (row + number) % 3 {
                0 => (cluster_size * 40).clamp(1 << 20, 4 << 20),
                1 => (2 << 20) + 7 * SECTOR,
                _ => (3 << 20) - SECTOR,
            };
            let backing_size = [60, 100, 140][(number + row) % 3];
            let shape = Shape {
                options,
                size,
                backing,
                backing_size: if compressed { 100 } else { backing_size },
                compressed,
            };
            try_shape(shape, seed + number as u64 + row as u64 * 8);
        }
    }
}

fn plain(options: &str, size: u64) -> Shape {
    Shape {
        options: options.to_owned(),
        size,
        backing: Backing::None,
        backing_size: 100,
        compressed: false,
    }
}

#[test]
fn preallocated_lazy_and_oddly_sized_images_go_back_and_forth() {
    let seed = seed();
    let shapes = [
        plain("preallocation=metadata", 3 << 20),
        plain("preallocation=falloc,cluster_size=4096", 3 << 20),
        plain("preallocation=full,refcount_bits=1", 3 << 20),
        plain("lazy_refcounts=on", 3 << 20),
        // One sector; and 40 L2 tables, more than there are L1 entries in a slice of the smallest clusters.
        plain("cluster_size=65536", SECTOR),
        plain("cluster_size=2M", SECTOR),
        plain("cluster_size=512", 40 * 64 * 512 * 2 + 3 * SECTOR),
    ];
    for (number, shape) in shapes.into_iter().enumerate() {
        try_shape(shape, seed + number as u64);
    }
}

#[test]
fn a_snapshot_that_qemu_made_keeps_its_content_while_both_write() {
    let seed = seed();
    let mut matter = Matter::new(plain("cluster_size=4096", 2 << 20), seed);
    matter.qemu_writes();
    let before = matter.model.clone();
    matter.workshop.img(&["snapshot", "-c", "before", "disk.qcow2"]);
    matter.go_back_and_forth();
    matter.workshop.img(&["snapshot", "-a", "before", "disk.qcow2"]);
    matter.model = before;
    matter.judge();
    matter.we_write(Aio::IoUring);
    matter.workshop.img(&["snapshot", "-d", "before", "disk.qcow2"]);
    matter.judge();
}

#[test]
fn a_chain_of_four_images_reads_as_one_disk() {
    let seed = seed();
    let mut matter = Matter::new(plain("cluster_size=4096", 2 << 20), seed);
    for (below, options) in [
        ("first.qcow2", "cluster_size=65536"),
        ("second.qcow2", "cluster_size=512"),
        ("third.qcow2", "compat=0.10"),
    ] {
        matter.qemu_writes();
        matter.we_write(Aio::IoUring);
        std::fs::rename(matter.workshop.file("disk.qcow2"), matter.workshop.file(below)).expect("renamed");
        matter.workshop.img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            options,
            "-b",
            below,
            "-F",
            "qcow2",
            "disk.qcow2",
        ]);
    }
    matter.go_back_and_forth();
}

/// Puts an extension of an unknown type before those that are there, and sets an unknown compatible and autoclear bit.
fn add_unknown_parts(image: &mut [u8], cluster_size: usize) {
    let header_length = u32::from_be_bytes(image[100..104].try_into().expect("four bytes")) as usize;
    let extension = [
        &0x1234_5678u32.to_be_bytes()[..],
        &11u32.to_be_bytes(),
        b"hello world",
        &[0; 5],
    ]
    .concat();
    let end = cluster_size - extension.len();
    image.copy_within(header_length..end, header_length + extension.len());
    image[header_length..header_length + extension.len()].copy_from_slice(&extension);
    image[80] |= 0x40;
    image[88] |= 0x20;
}

#[test]
fn unknown_header_extensions_and_compatible_features_are_kept_and_unknown_autoclear_bits_cleared() {
    const CLUSTER: usize = 65536;
    let seed = seed();
    let mut matter = Matter::new(plain("cluster_size=65536", 2 << 20), seed);
    matter.qemu_writes();
    let mut image = matter.workshop.bytes("disk.qcow2");
    add_unknown_parts(&mut image, CLUSTER);
    assert!(
        image[..CLUSTER].windows(5).any(|name| name == b"dirty"),
        "QEMU wrote a feature name table"
    );
    matter.workshop.put("disk.qcow2", &image);
    matter.we_write(Aio::IoUring);
    // The dirty bit is clear again, the autoclear bit gone, and the rest of the header as it was, but for an extension of our own
    // behind the others.
    image[88] = 0;
    let found = matter.workshop.bytes("disk.qcow2");
    let own = found.windows(8).position(|bytes| bytes == b"spnd\0\0\0\x10");
    let own = own.expect("there is room for it");
    assert!(image[own..own + 32].iter().all(|byte| *byte == 0), "nothing was there");
    image[own..own + 24].copy_from_slice(&found[own..own + 24]);
    assert!(found[..CLUSTER] == image[..CLUSTER]);
    matter.go_back_and_forth();
}

#[test]
fn a_raw_image_is_the_bytes_of_the_disk() {
    let mut rng = SmallRng::seed_from_u64(seed());
    let workshop = Workshop::new();
    let mut model = vec![0; 1 << 20];
    workshop.put("disk.raw", &model);
    let session = Session::open(&workshop.file("disk.raw"), Format::Raw, Aio::IoUring);
    for _ in 0..50 {
        let start = rng.random_range(0..2000) * SECTOR as usize;
        let end = start + rng.random_range(1..48) * SECTOR as usize;
        rng.fill(&mut model[start..end]);
        session.write(start as u64, &model[start..end]);
    }
    assert!(session.read(0, model.len()) == model);
    session.close();
    assert!(workshop.bytes("disk.raw") == model);
}

#[test]
fn an_image_in_use_is_refused_on_both_sides() {
    let workshop = Workshop::new();
    workshop.img(&["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"]);
    let session = Session::open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    session.write(0, &[1; 512]);

    let refused = workshop.try_qemu("qemu-img", &["check", "disk.qcow2"]);
    assert!(!refused.status.success(), "qemu-img opened an image that we write to");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("lock"), "{refused:?}");
    let second = Session::try_open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    let error = second.err().expect("a second writer is refused");
    assert!(error.to_string().contains("in use"), "{error}");
    session.close();
    workshop.check("disk.qcow2");

    let mut program = std::process::Command::new("qemu-io");
    program.args(["-f", "qcow2"]).arg(workshop.file("disk.qcow2"));
    let mut holder = session::spawn(program.stdin(Stdio::piped()).stdout(Stdio::piped()));
    // The prompt comes when the image is open, and locked.
    std::io::Read::read_exact(holder.stdout.as_mut().expect("piped"), &mut [0; 1]).expect("a prompt");
    let second = Session::try_open(&workshop.file("disk.qcow2"), Format::Qcow2, Aio::IoUring);
    let error = second.err().expect("an image that QEMU writes to is refused");
    assert!(error.to_string().contains("in use"), "{error}");
    drop(holder.stdin.take());
    holder.wait().expect("qemu-io ends");
}
