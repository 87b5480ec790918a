//! Scripts from seeds.

use disk::simulation::CrashModel;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::directed;
use super::script::{Below, Compressed, Op, Script, Shape};

/// What a script is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Everything but crashes.
    Life,
    /// Crashes, too.
    Crashes,
    /// As a life, and short: it is repeated for each of its storage operations.
    Faults,
}

/// The script of a seed.
pub fn generate(seed: u64, kind: Kind) -> Script {
    let mut rng = SmallRng::seed_from_u64(seed);
    if let Some(script) = directed(kind, &mut rng) {
        return script;
    }
    let shape = shape(&mut rng);
    let mut ops = Vec::new();
    match kind {
        Kind::Life => {
            let count = rng.random_range(30..120);
            let habits = Habits::new(kind, &mut rng);
            ops.extend((0..count).map(|_| op(&shape, &habits, &mut rng)));
        }
        Kind::Faults => {
            let habits = Habits::new(kind, &mut rng);
            ops.extend((0..16).map(|_| op(&shape, &habits, &mut rng)));
            // A snapshot, and what is copied because of it.
            ops.push(Op::Create);
            ops.extend((0..8).map(|_| op(&shape, &habits, &mut rng)));
            ops.extend([Op::Settle, Op::Delete(0), Op::Flush]);
        }
        Kind::Crashes => {
            for _ in 0..rng.random_range(2..5) {
                let habits = Habits::new(kind, &mut rng);
                let count = rng.random_range(2..60);
                ops.extend((0..count).map(|_| op(&shape, &habits, &mut rng)));
                crash(&mut ops, &mut rng);
            }
        }
    }
    Script { shape, ops }
}

/// Some scripts go straight to where it matters.
fn directed(kind: Kind, rng: &mut SmallRng) -> Option<Script> {
    if kind == Kind::Faults {
        return None;
    }
    match (kind, rng.random_range(0..48)) {
        (Kind::Life | Kind::Crashes, 0..2) => Some(directed::late_transfer(rng)),
        (Kind::Crashes, 2..4) => Some(directed::new_refcount_blocks(rng)),
        (Kind::Crashes, 4..6) => Some(directed::counted_in_the_page_cache(rng)),
        (Kind::Crashes, 6..8) => Some(directed::full_image(rng)),
        _ => None,
    }
}

fn shape(rng: &mut SmallRng) -> Shape {
    let version = if rng.random_range(0..6) == 0 { 2 } else { 3 };
    // Small ones make the most metadata of the least data.
    let cluster_bits = match rng.random_range(0..8) {
        0..3 => rng.random_range(9..=10),
        3..6 => rng.random_range(11..=13),
        _ => rng.random_range(14..=16),
    };
    // A block of few refcounts is soon full, and so is the table of few blocks; and the smallest cache does not hold all slices.
    let grows = version == 3 && rng.random_range(0..5) == 0;
    let cluster_bits = if grows { 9 } else { cluster_bits };
    let most = match () {
        () if grows => 3000,
        () if cluster_bits < 12 => 512,
        () => 1024,
    };
    let largest = rng.random_range(16..=most);
    let sectors = rng.random_range(8..=largest);
    let below = match rng.random_range(0..8) {
        0 => Below::Raw(rng.random_range(1..=largest)),
        1 => Below::Qcow2(rng.random_range(1..=largest)),
        2 => Below::Chain(rng.random_range(1..=largest), rng.random_range(1..=largest)),
        _ => Below::Nothing,
    };
    let compressed = match rng.random_range(0..8) {
        0 | 1 => Compressed::Deflate,
        2 if version == 3 => Compressed::Zstd,
        _ => Compressed::None,
    };
    Shape {
        version,
        cluster_bits,
        refcount_order: match () {
            () if grows => 6,
            () if version == 2 => 4,
            () => [4, 4, 0, 1, 2, 3, 5, 6][rng.random_range(0..8)],
        },
        lazy_refcounts: version == 3 && rng.random_range(0..4) == 0,
        sectors,
        largest,
        below,
        compressed,
        filled: 0,
        cache_bytes: if grows || rng.random() { 0 } else { 1 << 20 },
    }
}

/// What a stretch of a script prefers.
struct Habits {
    /// Storage operations may take longer than all others.
    delays: bool,
    whole_clusters: bool,
    longest_bits: u32,
    most_steps: u32,
    /// Requests keep to the beginning of the disk, and so meet each other.
    within: u64,
}

impl Habits {
    fn new(kind: Kind, rng: &mut SmallRng) -> Self {
        Self {
            delays: kind != Kind::Faults,
            whole_clusters: rng.random_range(0..3) == 0,
            longest_bits: rng.random_range(0..=8),
            most_steps: [3, 8, 40][rng.random_range(0..3)],
            within: if rng.random() {
                u64::MAX
            } else {
                rng.random_range(1..=64)
            },
        }
    }
}

fn op(shape: &Shape, habits: &Habits, rng: &mut SmallRng) -> Op {
    let (at, sectors) = place(shape, habits, rng);
    match rng.random_range(0..100) {
        0..30 => Op::Write { at, sectors },
        30..36 => Op::Zero { at, sectors },
        36..42 => Op::Discard { at, sectors },
        42..49 => Op::Read { at, sectors },
        49..54 => Op::Flush,
        54..57 => Op::Cancel(rng.random_range(0..32)),
        57..60 => Op::Create,
        60..62 => Op::Apply(rng.random_range(0..4)),
        62..64 => Op::Delete(rng.random_range(0..4)),
        64..67 => Op::Resize(rng.random_range(0..shape.largest)),
        67..68 if rng.random() => Op::Age,
        67..68 => Op::Settle,
        68..69 if rng.random_range(0..3) == 0 => Op::Reopen,
        69..71 if habits.delays => Op::Delay,
        _ => Op::Steps {
            count: rng.random_range(1..=habits.most_steps),
            order: rng.random(),
        },
    }
}

fn place(shape: &Shape, habits: &Habits, rng: &mut SmallRng) -> (u64, u64) {
    let at = rng.random_range(0..shape.largest.min(habits.within));
    let longest = 1u64 << rng.random_range(0..=habits.longest_bits);
    let sectors = rng.random_range(1..=longest);
    if habits.whole_clusters && rng.random_range(0..4) > 0 {
        let per_cluster = 1 << (shape.cluster_bits - 9);
        (at / per_cluster * per_cluster, sectors.next_multiple_of(per_cluster))
    } else {
        (at, sectors)
    }
}

fn crash(ops: &mut Vec<Op>, rng: &mut SmallRng) {
    if rng.random_range(0..6) == 0 {
        let (count, order) = (rng.random_range(0..30), rng.random());
        ops.extend([Op::BeginClose, Op::Steps { count, order }]);
    }
    let first = if rng.random() { 0 } else { rng.random_range(0..64) };
    // The barriers are where it matters, and there are few among so many operations.
    if rng.random_range(0..3) == 0 {
        let most = if rng.random() { 12 } else { 48 };
        let (count, order) = (rng.random_range(0..most), rng.random());
        let moment = if rng.random() {
            Op::Steps { count, order }
        } else {
            let barriers = rng.random_range(1..=4);
            Op::ToBarrier { barriers, order }
        };
        let change = [
            Op::Flush,
            Op::Flush,
            Op::Create,
            Op::Apply(0),
            Op::Delete(0),
            Op::Resize(rng.random_range(0..1024)),
        ];
        ops.extend([change[rng.random_range(0..change.len())], moment]);
    }
    let (count, seed) = (rng.random_range(1..=10), rng.random());
    ops.push(match rng.random_range(0..10) {
        0 | 1 => {
            let stores = rng.random_range(1..40);
            Op::KillWithin {
                stores,
                first,
                count,
                seed,
            }
        }
        2 => {
            let barriers = rng.random_range(1..=6);
            Op::LossInRecovery {
                barriers,
                first,
                count,
                seed,
            }
        }
        _ => {
            let model = if rng.random() {
                CrashModel::Kill
            } else {
                CrashModel::PowerLoss
            };
            Op::Crash {
                model,
                first,
                count,
                seed,
            }
        }
    });
}
