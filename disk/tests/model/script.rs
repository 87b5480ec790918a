//! What happens to a disk, written down: the same script does the same, always.

use disk::simulation::CrashModel;

/// An image, and what happens to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub shape: Shape,
    pub ops: Vec<Op>,
}

/// What an image is like at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub version: u32,
    pub cluster_bits: u32,
    pub refcount_order: u32,
    pub lazy_refcounts: bool,
    /// Of the disk.
    pub sectors: u64,
    /// The disk may grow to so many.
    pub largest: u64,
    pub below: Below,
    pub compressed: Compressed,
    /// So many sectors hold something from the beginning, compressed or not.
    pub filled: u64,
    /// Of the metadata cache; 0 is as small as can be.
    pub cache_bytes: usize,
}

/// The backing files, each with its size in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    Nothing,
    Raw(u64),
    Qcow2(u64),
    /// A qcow2 image above a raw one.
    Chain(u64, u64),
}

/// Which clusters of the image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compressed {
    None,
    /// Every third, by deflate.
    Deflate,
    /// Every third, by Zstandard.
    Zstd,
}

/// One thing that happens. Places and numbers that do not exist at that time mean others that do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Write {
        at: u64,
        sectors: u64,
    },
    Zero {
        at: u64,
        sectors: u64,
    },
    Discard {
        at: u64,
        sectors: u64,
    },
    Read {
        at: u64,
        sectors: u64,
    },
    Flush,
    /// One of the requests in flight is given up.
    Cancel(usize),
    /// What is dirty in the metadata cache becomes old, and is written back.
    Age,
    Create,
    Apply(usize),
    Delete(usize),
    /// To so many sectors.
    Resize(u64),
    /// So many storage operations complete, in an order drawn from a seed.
    Steps {
        count: u32,
        order: u64,
    },
    /// The storage operation that was started last takes longer than all others: only what waits for everything waits for it.
    Delay,
    /// Storage operations complete, in an order drawn from a seed, until so many fdatasyncs more have begun: what was written is complete,
    /// and not durable.
    ToBarrier {
        barriers: u64,
        order: u64,
    },
    /// Everything in flight comes to its end, and everything is compared.
    Settle,
    /// The image is closed and opened.
    Reopen,
    /// Everything comes to its end, and closing begins.
    BeginClose,
    /// A crash, looked at in `count` states from number `first` on; the last of them is gone on with.
    Crash {
        model: CrashModel,
        first: u64,
        count: u64,
        seed: u64,
    },
    /// A kill, and in the recovery from it a power loss, when so many fdatasyncs have begun; else as before.
    LossInRecovery {
        barriers: u64,
        first: u64,
        count: u64,
        seed: u64,
    },
    /// A kill between two stores to the metadata cache: after so many of them; else as before.
    KillWithin {
        stores: u64,
        first: u64,
        count: u64,
        seed: u64,
    },
}

impl Op {
    /// Whether it is a request of the guest.
    pub fn is_request(&self) -> bool {
        matches!(
            self,
            Op::Write { .. } | Op::Zero { .. } | Op::Discard { .. } | Op::Read { .. } | Op::Flush
        )
    }
}

impl Script {
    /// The script as a test to paste into tests/simulation.rs.
    pub fn as_test(&self, name: &str) -> String {
        let ops: String = self.ops.iter().map(|op| format!("            {op:?},\n")).collect();
        let shape = format!("{:?}", self.shape);
        format!(
            "#[test]\nfn {name}() {{\n    replay(&Script {{\n        shape: {shape},\n        ops: vec![\n{ops}        ],\n    }});\n}}\n"
        )
    }
}
