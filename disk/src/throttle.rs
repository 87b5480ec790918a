//! A disk that is no faster than it may be: bytes and operations a second, as QEMU's `-drive bps=,iops=,...` limit them
//! (qemu-system-x86_64(1); docs/throttle.txt of QEMU describes bursts).
//!
//! Each limit is a leaky bucket. A request pours its bytes or operations into the buckets that count it, and they leak at the
//! allowed rate. A request that finds a bucket fuller than a burst may be waits until it has leaked that far; those that come after it wait behind it,
//! since it has poured in its share already. So nobody starves, and a request larger than a bucket passes, too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::delay::Delay;
use crate::{Command, Disk, Request};

/// Limits of one disk. Zero is none, as with QEMU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes a second, reads and writes together, by reads, and by writes.
    pub bytes: Directions,
    /// The same for operations a second.
    pub operations: Directions,
    /// An operation counts once for each so many bytes that it has begun; 0: once.
    pub operation_size: u64,
}

/// A limit for each direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directions {
    /// Reads and writes together.
    pub total: Limit,
    /// Reads.
    pub read: Limit,
    /// Writes, zero writes and discards.
    pub write: Limit,
}

/// One limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Per second, in the long run. 0: unlimited.
    pub rate: u64,
    /// Per second, for one second. 0: a tenth of what the rate allows in a second may come at once.
    pub burst: u64,
}

/// A limit that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Not a number, or too large a one.
    #[error("{option}={found} is not a number from 0 to {MAX_RATE} (K, M, G and T may follow it)")]
    Value {
        /// The option.
        option: String,
        /// What was said.
        found: String,
    },
    /// A burst below the rate, or without one.
    #[error("{option}_max={burst} must not be below {option}={rate}, which must be there")]
    Burst {
        /// The option, without `_max`.
        option: &'static str,
        /// The rate.
        rate: u64,
        /// The burst.
        burst: u64,
    },
    /// A total and one of its parts.
    #[error("{option} and {option}_rd or {option}_wr exclude each other")]
    TotalAndPart {
        /// The option for the total.
        option: &'static str,
    },
}

/// The largest rate, per second; it keeps all arithmetic exact enough.
pub const MAX_RATE: u64 = 1_000_000_000_000_000;

impl Limits {
    /// Sets the option `name` (`bps`, `bps_rd`, `bps_wr`, `iops`, `iops_rd`, `iops_wr`, each also with `_max`, and `iops_size`). Returns false
    /// if there is none of this name.
    pub fn set(&mut self, name: &str, value: &str) -> Result<bool, LimitError> {
        if name == "iops_size" {
            self.operation_size = parse(name, value)?;
            return Ok(true);
        }
        let (base, is_burst) = name.strip_suffix("_max").map_or((name, false), |base| (base, true));
        let Some(limit) = self.by_name(base) else {
            return Ok(false);
        };
        let value = parse(name, value)?;
        if is_burst {
            limit.burst = value;
        } else {
            limit.rate = value;
        }
        Ok(true)
    }

    fn by_name(&mut self, name: &str) -> Option<&mut Limit> {
        Some(match name {
            "bps" => &mut self.bytes.total,
            "bps_rd" => &mut self.bytes.read,
            "bps_wr" => &mut self.bytes.write,
            "iops" => &mut self.operations.total,
            "iops_rd" => &mut self.operations.read,
            "iops_wr" => &mut self.operations.write,
            _ => return None,
        })
    }

    /// Whether there is none.
    pub fn is_unlimited(&self) -> bool {
        self.bytes.is_unlimited() && self.operations.is_unlimited()
    }

    /// Checks that the limits go together.
    pub fn check(&self) -> Result<(), LimitError> {
        self.bytes.check(["bps", "bps_rd", "bps_wr"])?;
        self.operations.check(["iops", "iops_rd", "iops_wr"])
    }
}

impl Directions {
    fn is_unlimited(&self) -> bool {
        [self.total, self.read, self.write].iter().all(|limit| limit.rate == 0)
    }

    fn check(&self, names: [&'static str; 3]) -> Result<(), LimitError> {
        for (option, limit) in names.into_iter().zip([self.total, self.read, self.write]) {
            let reachable = limit.rate != 0 && limit.burst >= limit.rate;
            if limit.burst != 0 && !reachable {
                let Limit { rate, burst } = limit;
                return Err(LimitError::Burst { option, rate, burst });
            }
        }
        if self.total.rate != 0 && (self.read.rate != 0 || self.write.rate != 0) {
            return Err(LimitError::TotalAndPart { option: names[0] });
        }
        Ok(())
    }
}

fn parse(option: &str, text: &str) -> Result<u64, LimitError> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        Some((at, 't' | 'T')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number = digits.parse::<u64>().ok().filter(|_| !digits.starts_with('+'));
    number
        .and_then(|number| number.checked_mul(1 << shift))
        .filter(|&number| number <= MAX_RATE)
        .ok_or_else(|| LimitError::Value {
            option: option.to_owned(),
            found: text.to_owned(),
        })
}

/// How full one bucket is.
struct Bucket {
    rate: f64,
    /// What may be in it when a request passes.
    burst: f64,
    level: f64,
    looked_at: Duration,
}

impl Bucket {
    fn new(limit: Limit) -> Option<Self> {
        (limit.rate != 0).then(|| Self {
            rate: limit.rate as f64,
            burst: if limit.burst == 0 {
                limit.rate as f64 / 10.0
            } else {
                limit.burst as f64
            },
            level: 0.0,
            looked_at: Duration::ZERO,
        })
    }

    /// Pours `amount` in at the time `now`, and says how long whoever does so has to wait.
    fn pour(&mut self, now: Duration, amount: u64) -> Duration {
        let leaked = now.saturating_sub(self.looked_at).as_secs_f64() * self.rate;
        self.looked_at = now;
        self.level = (self.level - leaked).max(0.0);
        let excess = (self.level - self.burst).max(0.0);
        self.level += amount as f64;
        Duration::try_from_secs_f64(excess / self.rate).unwrap_or(Duration::MAX)
    }
}

/// The buckets of one disk.
struct Buckets {
    bytes: [Option<Bucket>; 3],
    operations: [Option<Bucket>; 3],
    operation_size: u64,
}

impl Buckets {
    fn new(limits: &Limits) -> Self {
        let of = |directions: &Directions| [directions.total, directions.read, directions.write].map(Bucket::new);
        Self {
            bytes: of(&limits.bytes),
            operations: of(&limits.operations),
            operation_size: limits.operation_size,
        }
    }

    /// How long `command`, which comes at `now`, has to wait.
    fn take(&mut self, now: Duration, command: &Command) -> Duration {
        let (_, length) = command.range();
        let (is_read, bytes) = match command {
            Command::Read { .. } => (true, length),
            Command::Write { .. } => (false, length),
            // They move no data, but they are operations.
            Command::Discard { .. } | Command::WriteZeroes { .. } => (false, 0),
            // What else there is waits for nobody: it is not I/O that a guest could flood a host with.
            _ => return Duration::ZERO,
        };
        let operations = match self.operation_size {
            0 => 1,
            size => bytes.div_ceil(size).max(1),
        };
        let counted = [true, is_read, !is_read];
        let mut wait = Duration::ZERO;
        for (buckets, amount) in [(&mut self.bytes, bytes), (&mut self.operations, operations)] {
            for (bucket, _) in buckets.iter_mut().zip(counted).filter(|(_, counted)| *counted) {
                if let Some(bucket) = bucket {
                    wait = wait.max(bucket.pour(now, amount));
                }
            }
        }
        wait
    }
}

/// A disk whose requests wait where the limits say so.
pub struct ThrottledDisk {
    disk: Arc<dyn Disk>,
    /// Whether there are limits: a disk without any costs nothing.
    limited: AtomicBool,
    buckets: Mutex<Buckets>,
    start: Instant,
    delay: Delay,
}

impl ThrottledDisk {
    /// Limits `disk`.
    pub fn new(disk: Arc<dyn Disk>, limits: &Limits) -> Result<Self, LimitError> {
        limits.check()?;
        Ok(Self {
            disk: disk.clone(),
            limited: AtomicBool::new(!limits.is_unlimited()),
            buckets: Mutex::new(Buckets::new(limits)),
            start: Instant::now(),
            delay: Delay::new(disk),
        })
    }

    /// Limits the disk so from now on. What waits already waits as long as it was to.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), LimitError> {
        limits.check()?;
        *self.lock() = Buckets::new(limits);
        self.limited.store(!limits.is_unlimited(), Ordering::Release);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for ThrottledDisk {
    fn capacity(&self) -> u64 {
        self.disk.capacity()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn discarded_reads_as_zeros(&self) -> bool {
        self.disk.discarded_reads_as_zeros()
    }

    fn submit(&self, request: Request) {
        if !self.limited.load(Ordering::Acquire) {
            self.disk.submit(request);
            return;
        }
        let now = self.start.elapsed();
        let wait = self.lock().take(now, &request.command);
        self.delay.submit_after(wait, request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Buffer, MemoryDisk};

    fn limits(options: &[(&str, &str)]) -> Limits {
        let mut limits = Limits::default();
        for (name, value) in options {
            assert!(limits.set(name, value).expect("a number"), "{name}");
        }
        limits
    }

    fn read(bytes: usize) -> Command {
        Command::Read {
            offset: 0,
            buffer: Buffer::zeroed(bytes),
        }
    }

    /// Lets `count` commands come at once, and says when the last may go, in milliseconds.
    fn last_of(limits: &Limits, count: usize, command: &Command) -> u128 {
        let mut buckets = Buckets::new(limits);
        let waits = (0..count).map(|_| buckets.take(Duration::from_secs(1), command));
        waits.last().expect("one").as_millis()
    }

    #[test]
    fn the_long_run_keeps_to_the_rate() {
        // A tenth of a second's worth is a burst: 10 of 100. The last of 1,011 finds 1,010, which is 1,000 too many.
        assert_eq!(last_of(&limits(&[("iops", "100")]), 1011, &read(512)), 10_000);
        assert_eq!(last_of(&limits(&[("bps_rd", "1M")]), 101, &read(1 << 16)), 6_150);
        // Writes are not reads.
        assert_eq!(last_of(&limits(&[("bps_wr", "1")]), 100, &read(1 << 16)), 0);
    }

    #[test]
    fn bursts_pass_and_large_operations_count_more() {
        assert_eq!(
            last_of(&limits(&[("iops", "10"), ("iops_max", "100")]), 100, &read(512)),
            0
        );
        assert_eq!(
            last_of(&limits(&[("iops", "10"), ("iops_max", "100")]), 111, &read(512)),
            1000
        );
        // 64 KiB in pieces of 4 KiB are 16 operations.
        let sized = limits(&[("iops", "160"), ("iops_size", "4096")]);
        assert_eq!(last_of(&sized, 12, &read(1 << 16)), 1000);
    }

    #[test]
    fn flushes_are_not_limited() {
        assert_eq!(last_of(&limits(&[("iops", "1")]), 1000, &Command::Flush), 0);
    }

    #[test]
    fn limits_can_be_changed_and_taken_away() {
        let inner = Arc::new(MemoryDisk::new(vec![0; 1024], false));
        let disk = ThrottledDisk::new(inner.clone(), &Limits::default()).expect("no limits");
        let submit = || {
            disk.submit(Request {
                command: read(512),
                done: Box::new(|_| {}),
            });
        };
        submit();
        submit();
        assert_eq!(inner.waiting(), 2);
        disk.set_limits(&limits(&[("bps", "1")])).expect("a limit");
        submit();
        submit();
        assert_eq!(inner.waiting(), 3, "the second is to wait for minutes");
        disk.set_limits(&Limits::default()).expect("no limits");
        submit();
        assert_eq!(inner.waiting(), 4);
    }

    #[test]
    fn limits_that_cannot_be_are_named() {
        let value = Limits::default().set("bps", "fast").expect_err("not a number");
        assert!(value.to_string().starts_with("bps=fast is not a number"), "{value}");
        assert!(Limits::default().set("bps", "2000000G").is_err());
        assert_eq!(Limits::default().set("bpm", "1"), Ok(false));
        let burst = limits(&[("iops_max", "5"), ("iops", "10")])
            .check()
            .expect_err("too low");
        assert_eq!(
            burst.to_string(),
            "iops_max=5 must not be below iops=10, which must be there"
        );
        let parts = limits(&[("bps", "5"), ("bps_rd", "10")]).check().expect_err("both");
        assert_eq!(parts.to_string(), "bps and bps_rd or bps_wr exclude each other");
    }

    #[test]
    fn what_waits_is_answered_and_what_is_left_at_the_end_goes_on_at_once() {
        let inner = Arc::new(MemoryDisk::new(vec![0; 1024], false));
        let slow = ThrottledDisk::new(inner.clone(), &limits(&[("bps", "1")])).expect("limits");
        assert_eq!(slow.capacity(), 1024);
        let (sender, outcomes) = std::sync::mpsc::channel();
        // The second waits 511 seconds, the others longer: the disk goes away before.
        for _ in 0..60 {
            let sender = sender.clone();
            slow.submit(Request {
                command: read(512),
                done: Box::new(move |outcome| sender.send(outcome.is_ok()).expect("a receiver")),
            });
        }
        assert_eq!(
            inner.waiting(),
            1,
            "the first did not have to wait, or a later one did not"
        );
        drop(slow);
        assert_eq!(inner.run(), 60);
        drop(sender);
        assert_eq!(outcomes.iter().filter(|ok| *ok).count(), 60);
    }
}
