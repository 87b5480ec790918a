//! What is measured, against what, and how much better it should be.

use std::fmt;

use super::images::{Image, PLACES};

const CLUSTER: u64 = 64 << 10;

/// A distance between requests that visits cluster after cluster, none twice, and none next to the one before.
const SCATTERED: u64 = 11 * CLUSTER;

/// A distance that goes through all places of 1 TiB, each in a slice of tables of its own (32 MiB), and then begins again.
const FAR: u64 = (1 << 40) / PLACES;

/// The same of 1 GiB.
const NEAR: u64 = (1 << 30) / PLACES;

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `spindle img`.
    Spindle,
    /// `spindle img bench` with a metadata cache that ends with the process.
    SpindlePrivateCache,
    /// `qemu-img`.
    QemuImg,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// So many requests, by the time that `bench` itself says they took.
    Requests(u32),
    /// The time of the whole program.
    Time,
    /// That, and its memory.
    TimeAndMemory,
}

/// One side of a comparison.
#[derive(Clone, Debug)]
pub struct Side {
    /// Which program.
    pub program: Program,
    /// The sub-command and its arguments, before the image.
    pub arguments: Vec<String>,
    /// The image that it works on.
    pub image: Image,
    /// Whether that is changed.
    pub writes: bool,
    /// The image is copied to a file of this format, which is the last argument.
    pub copies_to: Option<&'static str>,
    /// What is counted.
    pub count: Count,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} on {:?}", self.program, self.arguments.join(" "), self.image)
    }
}

/// A comparison.
pub struct Row {
    /// What it is.
    pub name: &'static str,
    /// Ours.
    pub spindle: Side,
    /// The other one.
    pub peer: Side,
    /// The ratio that we want, above 1 if we are to be better.
    pub goal: Option<f64>,
}

/// Requests of a benchmark.
#[derive(Clone, Copy)]
struct Load {
    count: u32,
    depth: u32,
    size: u64,
    step: u64,
    write: bool,
    more: &'static [&'static str],
}

const READS: Load = Load {
    count: 100_000,
    depth: 32,
    size: 4096,
    step: SCATTERED + 4096,
    write: false,
    more: &[],
};

const WRITES: Load = Load { write: true, ..READS };

const ALLOCATING: Load = Load {
    count: 20_000,
    step: SCATTERED,
    ..WRITES
};

impl Load {
    fn with(self, program: Program, image: Image) -> Side {
        let mut arguments: Vec<String> = ["bench", "-f", image.format()].map(str::to_owned).into();
        for (option, number) in [
            ("-c", u64::from(self.count)),
            ("-d", u64::from(self.depth)),
            ("-s", self.size),
            ("-S", self.step),
        ] {
            arguments.extend([option.to_owned(), number.to_string()]);
        }
        if self.write {
            arguments.push("-w".to_owned());
        }
        arguments.extend(self.more.iter().map(|word| (*word).to_owned()));
        Side {
            program,
            arguments,
            image,
            writes: self.write,
            copies_to: None,
            count: Count::Requests(self.count),
        }
    }

    fn against_qemu(self, name: &'static str, image: Image, goal: Option<f64>) -> Row {
        Row {
            name,
            spindle: self.with(Program::Spindle, image),
            peer: self.with(Program::QemuImg, image),
            goal,
        }
    }

    fn against_itself(self, name: &'static str, ours: Image, other: (Program, Image), goal: f64) -> Row {
        Row {
            name,
            spindle: self.with(Program::Spindle, ours),
            peer: self.with(other.0, other.1),
            goal: Some(goal),
        }
    }
}

/// Everything that is measured.
pub fn all() -> Vec<Row> {
    use Image::{Empty, Filled, FilledRaw, Overlay, Sparse1G, Sparse1T};
    let depth_1 = |load: Load| Load { depth: 1, ..load };
    let sequential = Load {
        count: 16_384,
        size: CLUSTER,
        step: CLUSTER,
        ..WRITES
    };
    let flushed = Load {
        count: 5000,
        more: &["--flush-interval=32"],
        ..ALLOCATING
    };
    let over_backing = Load {
        count: 10_000,
        ..ALLOCATING
    };
    // Two sides that differ so little need a longer look.
    let many_allocating = Load {
        count: 100_000,
        ..ALLOCATING
    };
    let direct = Load {
        count: 20_000,
        more: &["-t", "none"],
        ..READS
    };
    let far = Load {
        count: 400_000,
        step: FAR,
        ..READS
    };
    let near = Load { step: NEAR, ..far };
    let raw = (Program::Spindle, FilledRaw);
    let mut rows = vec![
        depth_1(READS).against_qemu("4 KiB reads, mapped, depth 1", Filled, Some(1.3)),
        READS.against_qemu("4 KiB reads, mapped, depth 32", Filled, Some(1.3)),
        depth_1(READS).against_itself("the same as raw, depth 1", Filled, raw, 0.9),
        READS.against_itself("the same as raw, depth 32", Filled, raw, 0.9),
        direct.against_qemu("4 KiB reads, mapped, depth 32, cache=none", Filled, None),
        depth_1(WRITES).against_qemu("4 KiB writes, mapped, depth 1", Filled, None),
        WRITES.against_qemu("4 KiB writes, mapped, depth 32", Filled, None),
        depth_1(ALLOCATING).against_qemu("4 KiB scattered allocating writes, depth 1", Empty, Some(1.3)),
        ALLOCATING.against_qemu("4 KiB scattered allocating writes, depth 32", Empty, Some(1.3)),
        sequential.against_qemu("64 KiB sequential allocating writes, depth 32", Empty, Some(1.3)),
        flushed.against_qemu("4 KiB allocating writes, a flush every 32", Empty, Some(1.3)),
        over_backing.against_qemu("4 KiB writes over a backing file, depth 32", Overlay, Some(1.3)),
        Row {
            name: "scattered reads of 1 TiB as of 1 GiB",
            spindle: far.with(Program::Spindle, Sparse1T),
            peer: near.with(Program::Spindle, Sparse1G),
            goal: Some(0.9),
        },
        many_allocating.against_itself(
            "allocating writes as with a private metadata cache",
            Empty,
            (Program::SpindlePrivateCache, Empty),
            0.95,
        ),
    ];
    rows.push(whole(
        "check of 64 GiB mapped",
        &["check", "-f", "qcow2"],
        Image::Mapped64G,
        None,
        Some(3.0),
    ));
    rows.push(Row {
        name: "open of 100 GiB mapped after a kill, and a write",
        spindle: recovery(Program::Spindle),
        peer: recovery(Program::QemuImg),
        goal: None,
    });
    rows.push(whole(
        "convert of 4 GiB, half of it data",
        &["convert", "-W", "-f", "qcow2", "-O", "qcow2"],
        Image::HalfFull,
        Some("qcow2"),
        Some(1.0),
    ));
    rows
}

/// An image that was not closed is opened for writing; who does that repairs it first.
fn recovery(program: Program) -> Side {
    let arguments = ["bench", "-f", "qcow2", "-w", "-c", "1", "-d", "1", "-s", "65536"];
    Side {
        program,
        arguments: arguments.map(str::to_owned).into(),
        image: Image::Dirty100G,
        writes: true,
        copies_to: None,
        count: Count::Time,
    }
}

/// A whole run of a tool.
fn whole(
    name: &'static str,
    arguments: &[&str],
    image: Image,
    copies_to: Option<&'static str>,
    goal: Option<f64>,
) -> Row {
    let side = |program| Side {
        program,
        arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        image,
        writes: false,
        copies_to,
        count: if copies_to.is_some() {
            Count::Time
        } else {
            Count::TimeAndMemory
        },
    };
    Row {
        name,
        spindle: side(Program::Spindle),
        peer: side(Program::QemuImg),
        goal,
    }
}
