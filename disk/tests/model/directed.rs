//! Scripts that lead to moments which random operations seldom come to: a transfer that takes longer than everything around it, new
//! refcount blocks, a recovery that power is lost in, the end of the refcount table, a metadata cache that is full.

use disk::simulation::CrashModel;
use rand::RngExt;
use rand::rngs::SmallRng;

use super::script::{Below, Compressed, Op, Script, Shape};

/// Enough storage operations for what is in flight in these scripts, but for what is delayed.
const PLENTY: u32 = 150;

/// The clusters that a refcount table of one cluster describes, if clusters are as small and refcounts as wide as can be.
const DESCRIBED: u64 = 64 * 64;

/// Every which request of a script can be given up: see the machine.
const CANCELLABLE: usize = 3;

/// The smallest clusters and the widest refcounts: a block of refcounts is soon full.
fn small(sectors: u64, largest: u64) -> Shape {
    Shape {
        version: 3,
        cluster_bits: 9,
        refcount_order: 6,
        lazy_refcounts: false,
        sectors,
        largest,
        below: Below::Nothing,
        compressed: Compressed::None,
        filled: 0,
        cache_bytes: 0,
    }
}

fn steps(most: u32, rng: &mut SmallRng) -> Op {
    Op::Steps {
        count: rng.random_range(0..=most),
        order: rng.random(),
    }
}

fn plenty(rng: &mut SmallRng) -> Op {
    Op::Steps {
        count: PLENTY,
        order: rng.random(),
    }
}

fn to_barrier(most: u64, rng: &mut SmallRng) -> Op {
    Op::ToBarrier {
        barriers: rng.random_range(1..=most),
        order: rng.random(),
    }
}

fn crash(model: CrashModel, most: u64, rng: &mut SmallRng) -> Op {
    Op::Crash {
        model,
        first: rng.random_range(0..64),
        count: rng.random_range(1..=most),
        seed: rng.random(),
    }
}

/// A transfer takes so long that meanwhile its clusters could be given up, and another request could get them.
pub fn late_transfer(rng: &mut SmallRng) -> Script {
    let cluster_bits = rng.random_range(9..=12);
    let per_cluster = 1 << (cluster_bits - 9);
    let sectors = rng.random_range(24..=48) * per_cluster;
    let mut shape = Shape {
        version: if rng.random_range(0..6) == 0 { 2 } else { 3 },
        cluster_bits,
        refcount_order: 4,
        cache_bytes: if rng.random() { 0 } else { 1 << 20 },
        ..small(sectors, 2 * sectors)
    };
    // In a cluster of those that are compressed, if any are.
    let first = rng.random_range(1..4) * 3 * per_cluster;
    let within = rng.random_range(0..per_cluster);
    let (at, length) = (first + within, rng.random_range(1..=per_cluster - within));
    let write = Op::Write {
        at: first,
        sectors: rng.random_range(1..=6) * per_cluster,
    };
    let mut ops = Vec::new();
    match rng.random_range(0..4) {
        // A write that was given up, and its cluster is, too.
        0 => {
            ops.extend([write, Op::Settle]);
            while ops.iter().filter(|op| op.is_request()).count() % CANCELLABLE != CANCELLABLE - 1 {
                ops.push(Op::Flush);
            }
            ops.extend([Op::Settle, Op::Write { at, sectors: length }, Op::Delay, Op::Cancel(0)]);
            let (at, sectors) = (first, per_cluster);
            ops.push(match rng.random_range(0..3) {
                0 => Op::Zero { at, sectors },
                1 => Op::Resize(rng.random_range(0..first)),
                _ => Op::Discard { at, sectors },
            });
        }
        // A reader of what a snapshot that is being applied gives up.
        1 => {
            ops.extend([Op::Create, Op::Settle, write, Op::Settle, Op::Apply(0)]);
            ops.push(steps(12, rng));
            ops.extend([Op::Read { at, sectors: length }, Op::Delay]);
        }
        // A request for what is being cut off.
        2 => {
            ops.extend([write, Op::Settle, Op::Resize(rng.random_range(0..first))]);
            ops.push(steps(8, rng));
            let sectors = length;
            ops.extend([
                if rng.random() {
                    Op::Read { at, sectors }
                } else {
                    Op::Write { at, sectors }
                },
                Op::Delay,
            ]);
        }
        // A reader of a compressed cluster that is being overwritten.
        _ => {
            shape.compressed = Compressed::Deflate;
            ops.extend([Op::Write { at: first, sectors: 1 }, steps(4, rng)]);
            ops.extend([Op::Read { at, sectors: length }, Op::Delay]);
        }
    }
    // What was unlinked is given up behind a flush, and what is written then takes its place.
    ops.extend([plenty(rng), Op::Flush, plenty(rng)]);
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..sectors);
        let sectors = rng.random_range(1..=8 * per_cluster);
        ops.extend([Op::Write { at, sectors }, plenty(rng)]);
    }
    ops.push(Op::Settle);
    Script { shape, ops }
}

/// Refcount blocks come into being, and power is lost while the table does not durably name them.
pub fn new_refcount_blocks(rng: &mut SmallRng) -> Script {
    let largest = rng.random_range(200..700);
    let shape = Shape {
        cache_bytes: if rng.random() { 0 } else { 1 << 20 },
        ..small(largest, largest)
    };
    let mut ops = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        for _ in 0..rng.random_range(1..4) {
            let (at, sectors) = (rng.random_range(0..largest), rng.random_range(1..140));
            ops.extend([Op::Write { at, sectors }, Op::Settle]);
            if rng.random_range(0..3) == 0 {
                ops.extend([Op::Flush, Op::Settle]);
            }
        }
        ops.push([Op::Flush, Op::Age, Op::Create][rng.random_range(0..3)]);
        ops.extend([to_barrier(3, rng), crash(CrashModel::PowerLoss, 6, rng)]);
    }
    Script { shape, ops }
}

/// What a killed process unlinked last is in the page cache alone when the next one counts the references.
pub fn counted_in_the_page_cache(rng: &mut SmallRng) -> Script {
    let cluster_bits = rng.random_range(9..=12);
    let per_cluster = 1 << (cluster_bits - 9);
    let sectors = rng.random_range(8..=32) * per_cluster;
    let shape = Shape {
        version: rng.random_range(2..=3),
        cluster_bits,
        refcount_order: 4,
        ..small(sectors, 2 * sectors)
    };
    let place = |rng: &mut SmallRng| {
        let at = rng.random_range(0..sectors / per_cluster) * per_cluster;
        (at, rng.random_range(1..=8) * per_cluster)
    };
    let mut ops = Vec::new();
    for before in [Op::Settle, Op::Create, Op::Create]
        .into_iter()
        .take(rng.random_range(1..=3))
    {
        let (at, sectors) = place(rng);
        ops.extend([before, Op::Settle, Op::Write { at, sectors }, Op::Settle]);
    }
    let (at, sectors) = place(rng);
    ops.push(match rng.random_range(0..5) {
        0 => Op::Write { at, sectors },
        1 => Op::Apply(0),
        2 => Op::Delete(0),
        3 => Op::Resize(rng.random_range(0..shape.sectors)),
        _ => Op::Discard { at, sectors },
    });
    ops.push(to_barrier(3, rng));
    ops.push(Op::LossInRecovery {
        barriers: rng.random_range(1..=2),
        first: if rng.random() { 0 } else { rng.random_range(0..64) },
        count: rng.random_range(1..=8),
        seed: rng.random(),
    });
    Script { shape, ops }
}

/// An image that all but fills its refcount table. Its metadata fills the smallest cache, too.
pub fn full_image(rng: &mut SmallRng) -> Script {
    // Data, one L2 table and one refcount block for 64 clusters each, the header, the refcount table and the L1 table.
    let filled = DESCRIBED - DESCRIBED / 32 - 4 - rng.random_range(0..64);
    let largest = DESCRIBED + 128;
    let shape = Shape {
        filled,
        ..small(largest, largest)
    };
    let ops = if rng.random() {
        grow_the_table(filled, rng)
    } else {
        fill_the_cache(filled, rng)
    };
    Script { shape, ops }
}

/// The table moves to a larger place, and that is not durable when there is a crash.
fn grow_the_table(filled: u64, rng: &mut SmallRng) -> Vec<Op> {
    let write = Op::Write {
        at: filled,
        sectors: rng.random_range(80..120),
    };
    let moment = if rng.random_range(0..4) == 0 {
        steps(12, rng)
    } else {
        to_barrier(3, rng)
    };
    let model = if rng.random_range(0..4) == 0 {
        CrashModel::Kill
    } else {
        CrashModel::PowerLoss
    };
    vec![write, moment, crash(model, 4, rng)]
}

/// Slots of the cache that were written back hold something else when the process is killed.
fn fill_the_cache(filled: u64, rng: &mut SmallRng) -> Vec<Op> {
    let mut ops = Vec::new();
    for _ in 0..rng.random_range(8..16) {
        let (at, sectors) = (rng.random_range(0..filled), rng.random_range(1..4));
        ops.push(Op::Discard { at, sectors });
    }
    // Settling reads everything.
    ops.extend([plenty(rng), Op::Flush, Op::Settle]);
    ops.push(crash(CrashModel::Kill, 2, rng));
    ops
}
