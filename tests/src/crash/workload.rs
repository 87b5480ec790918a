//! Commands drawn at random: writes of 1 to 256 sectors and of whole clusters, flushes, discards.

use rand::RngExt;
use rand::rngs::StdRng;

use super::oracle::{SECTOR, SECTORS};
use super::script::Action;

/// How often a flush comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mix {
    /// One command in ten: for kills, after which what was not flushed must be there, too.
    FewFlushes,
    /// One command in five: for power losses, after which it need not.
    ManyFlushes,
}

/// A source of commands for one disk.
pub(super) struct Workload {
    cluster_size: u64,
    mix: Mix,
    next_id: u32,
}

/// All data of one script fits into the guest's memory.
const MOST_SECTORS: u64 = 18 << 11;

impl Workload {
    pub(super) fn new(cluster_size: u64, mix: Mix) -> Self {
        Self {
            cluster_size,
            mix,
            next_id: 1,
        }
    }

    /// Up to `count` commands.
    pub(super) fn commands(&mut self, count: usize, random: &mut StdRng) -> Vec<Action> {
        let mut sectors = 0;
        let mut commands = Vec::with_capacity(count);
        for _ in 0..count {
            let command = self.some_command(random);
            if let Action::Write { count, .. } = command {
                // In the guest's memory each begins at 64 KiB.
                sectors += count.next_multiple_of(128);
            }
            if sectors > MOST_SECTORS {
                break;
            }
            commands.push(command);
        }
        commands
    }

    fn some_command(&mut self, random: &mut StdRng) -> Action {
        let per_cluster = self.cluster_size / SECTOR;
        let flushes = if self.mix == Mix::ManyFlushes { 4 } else { 2 };
        match random.random_range(0..20) {
            kind if kind < flushes => Action::Flush,
            kind if kind < flushes + 3 => {
                let (first, count) = self.some_sectors(random);
                // Mostly whole clusters: others are left as they are.
                if random.random_ratio(3, 4) {
                    let first = first - first % per_cluster;
                    let count = count.next_multiple_of(per_cluster).min(SECTORS - first);
                    return Action::Trim { first, count };
                }
                Action::Trim { first, count }
            }
            kind => {
                let (mut first, mut count) = self.some_sectors(random);
                if kind < flushes + 7 {
                    first -= first % per_cluster;
                    count = count.next_multiple_of(per_cluster).min(256).min(SECTORS - first);
                }
                let id = if random.random_ratio(1, 16) { 0 } else { self.id() };
                Action::Write { first, count, id }
            }
        }
    }

    /// 1 to 256 sectors, short runs as often as long ones, half of them in the disk's first eighth.
    pub(super) fn some_sectors(&self, random: &mut StdRng) -> (u64, u64) {
        let count = 1 + up_to_a_power_of_two(random, 8);
        let space = if random.random_ratio(1, 2) {
            SECTORS
        } else {
            SECTORS / 8
        };
        (random.random_range(0..=space - count), count)
    }

    /// The number of a write; no two have the same.
    pub(super) fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id - 1
    }
}

/// A number below 2 to the power of `most`, small ones as often as large ones.
pub(super) fn up_to_a_power_of_two(random: &mut StdRng, most: u32) -> u64 {
    let bits = random.random_range(0..=most);
    random.random_range(0..1 << bits)
}
