//! Shrinking: the fewest operations that still fail.

use super::machine::{Failure, run};
use super::script::{Op, Script};

/// Runs that shrinking may take.
const MOST_RUNS: usize = 4000;

/// A script that fails as well, with as few and as small operations as can be found.
pub fn shrink(script: &Script, failure: &Failure) -> (Script, Failure) {
    let mut shrinker = Shrinker {
        best: script.clone(),
        failure: failure.clone(),
        runs: 0,
    };
    shrinker.cut_the_end();
    shrinker.focus_on_the_state();
    loop {
        let before = shrinker.best.clone();
        shrinker.leave_out();
        shrinker.simplify();
        if shrinker.best == before || shrinker.runs >= MOST_RUNS {
            return (shrinker.best, shrinker.failure);
        }
    }
}

struct Shrinker {
    best: Script,
    failure: Failure,
    runs: usize,
}

impl Shrinker {
    /// Takes a script if it fails, too.
    fn try_out(&mut self, candidate: Script) -> bool {
        if candidate == self.best || self.runs >= MOST_RUNS {
            return false;
        }
        self.runs += 1;
        match run(&candidate) {
            Ok(_) => false,
            Err(failure) => {
                (self.best, self.failure) = (candidate, failure);
                true
            }
        }
    }

    fn with_ops(&self, ops: Vec<Op>) -> Script {
        Script {
            ops,
            ..self.best.clone()
        }
    }

    fn cut_the_end(&mut self) {
        let ops = self.best.ops.iter().take(self.failure.op + 1).copied().collect();
        let candidate = self.with_ops(ops);
        self.try_out(candidate);
    }

    /// The crash in which it was noticed has just that state.
    fn focus_on_the_state(&mut self) {
        let (op, Some(state)) = (self.failure.op, self.failure.state) else {
            return;
        };
        let mut ops = self.best.ops.clone();
        match ops.get_mut(op) {
            Some(
                Op::Crash { first, count, .. }
                | Op::KillWithin { first, count, .. }
                | Op::LossInRecovery { first, count, .. },
            ) => (*first, *count) = (state, 1),
            _ => return,
        }
        let candidate = self.with_ops(ops);
        self.try_out(candidate);
    }

    /// Leaves out runs of operations, long ones first.
    fn leave_out(&mut self) {
        let mut length = self.best.ops.len().div_ceil(2).max(1);
        loop {
            let mut at = 0;
            while at < self.best.ops.len() {
                let mut ops = self.best.ops.clone();
                ops.drain(at..(at + length).min(ops.len()));
                let candidate = self.with_ops(ops);
                if !self.try_out(candidate) {
                    at += length;
                }
            }
            if length == 1 {
                return;
            }
            length = length.div_ceil(2);
        }
    }

    /// Makes each operation smaller.
    fn simplify(&mut self) {
        for index in 0..self.best.ops.len() {
            for smaller in smaller(self.best.ops[index]) {
                let mut ops = self.best.ops.clone();
                ops[index] = smaller;
                let candidate = self.with_ops(ops);
                self.try_out(candidate);
            }
        }
        let shape = self.best.shape;
        use super::script::{Below, Compressed, Shape};
        for shape in [
            Shape {
                below: Below::Nothing,
                ..shape
            },
            Shape {
                compressed: Compressed::None,
                ..shape
            },
            Shape {
                lazy_refcounts: false,
                ..shape
            },
            Shape {
                refcount_order: 4,
                ..shape
            },
            Shape {
                cache_bytes: 0,
                ..shape
            },
            Shape { filled: 0, ..shape },
        ] {
            let candidate = Script {
                shape,
                ..self.best.clone()
            };
            self.try_out(candidate);
        }
    }
}

fn smaller(op: Op) -> Vec<Op> {
    match op {
        Op::Write { at, sectors } => places(at, sectors, |at, sectors| Op::Write { at, sectors }),
        Op::Zero { at, sectors } => places(at, sectors, |at, sectors| Op::Zero { at, sectors }),
        Op::Discard { at, sectors } => places(at, sectors, |at, sectors| Op::Discard { at, sectors }),
        Op::Read { at, sectors } => places(at, sectors, |at, sectors| Op::Read { at, sectors }),
        Op::Steps { count, order } => {
            let counts = [count / 2, count.saturating_sub(1)].map(|count| Op::Steps { count, order });
            counts
                .into_iter()
                .chain([Op::Steps { count, order: 0 }, Op::Settle])
                .collect()
        }
        Op::ToBarrier { barriers, order } => vec![
            Op::ToBarrier { barriers: 1, order },
            Op::ToBarrier {
                barriers: barriers - 1,
                order,
            },
            Op::ToBarrier { barriers, order: 0 },
            Op::Settle,
        ],
        Op::Crash {
            model,
            first,
            count,
            seed,
        } if count > 1 => {
            let last = first + count - 1;
            vec![
                Op::Crash {
                    model,
                    first: last,
                    count: 1,
                    seed,
                },
                Op::Crash {
                    model,
                    first,
                    count: 1,
                    seed,
                },
            ]
        }
        Op::Crash {
            model,
            first,
            count,
            seed,
        } => vec![
            Op::Crash {
                model,
                first: 0,
                count,
                seed,
            },
            Op::Crash {
                model,
                first: first / 2,
                count,
                seed,
            },
            Op::Crash {
                model,
                first,
                count,
                seed: 0,
            },
            Op::Crash {
                model,
                first,
                count,
                seed: 1,
            },
        ],
        Op::LossInRecovery {
            barriers,
            first,
            count,
            seed,
        } => vec![
            Op::LossInRecovery {
                barriers,
                first: first + count - 1,
                count: 1,
                seed,
            },
            Op::LossInRecovery {
                barriers: 1,
                first,
                count,
                seed,
            },
            Op::LossInRecovery {
                barriers,
                first,
                count,
                seed: 0,
            },
        ],
        Op::KillWithin {
            stores,
            first,
            count,
            seed,
        } => vec![
            Op::KillWithin {
                stores,
                first: first + count - 1,
                count: 1,
                seed,
            },
            Op::KillWithin {
                stores: stores / 2,
                first,
                count,
                seed,
            },
            Op::KillWithin {
                stores,
                first,
                count,
                seed: 0,
            },
        ],
        _ => Vec::new(),
    }
}

fn places(at: u64, sectors: u64, op: impl Fn(u64, u64) -> Op) -> Vec<Op> {
    vec![
        op(at, 1),
        op(at, sectors / 2),
        op(0, sectors),
        op(at / 2, sectors),
        op(at & !7, sectors),
    ]
}
