//! A disk that fails or dawdles where it is told to: for testing guests, and the drives in front of it.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::delay::Delay;
use crate::{Command, Disk, DiskError, Request, SECTOR_SIZE};

/// One rule: which requests it meets, and what becomes of them.
///
/// As text: `OPERATION[@FIRST[-LAST]]:ACTION[:skip=N][:times=N]`. OPERATION is `read`, `write` (zero writes and discards included), `flush` or `any`;
/// FIRST and LAST are sectors (a flush has none); ACTION is `eio`, `enospc` or `delay=MILLISECONDS`. The rule passes over the first `skip` requests
/// that it meets, and stops after `times` of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injection {
    operation: Kind,
    sectors: Option<RangeInclusive<u64>>,
    action: Action,
    skip: u64,
    times: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Fail(i32),
    Delay(Duration),
}

/// A rule that does not read as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "inject={text}: {found:?} is not understood; say read|write|flush|any[@FIRST[-LAST]]:eio|enospc|delay=MILLISECONDS[:skip=N][:times=N]"
)]
pub struct InjectionError {
    text: String,
    found: String,
}

impl FromStr for Injection {
    type Err = InjectionError;

    fn from_str(text: &str) -> Result<Self, InjectionError> {
        let refuse = |found: &str| InjectionError {
            text: text.to_owned(),
            found: found.to_owned(),
        };
        let mut fields = text.split(':');
        let target = fields.next().unwrap_or_default();
        let (operation, sectors) = match target.split_once('@') {
            Some((operation, sectors)) => (operation, Some(parse_sectors(sectors).ok_or_else(|| refuse(sectors))?)),
            None => (target, None),
        };
        let operation = match operation {
            "read" => Kind::Read,
            "write" => Kind::Write,
            "flush" if sectors.is_none() => Kind::Flush,
            "any" => Kind::Any,
            _ => return Err(refuse(target)),
        };
        let action = fields.next().unwrap_or_default();
        let mut rule = Self {
            operation,
            sectors,
            action: parse_action(action).ok_or_else(|| refuse(action))?,
            skip: 0,
            times: u64::MAX,
        };
        for field in fields {
            let number = |value: &str| value.parse().map_err(|_| refuse(field));
            match field.split_once('=') {
                Some(("skip", value)) => rule.skip = number(value)?,
                Some(("times", value)) => rule.times = number(value)?,
                _ => return Err(refuse(field)),
            }
        }
        Ok(rule)
    }
}

fn parse_sectors(text: &str) -> Option<RangeInclusive<u64>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let sectors = first.parse().ok()?..=last.parse().ok()?;
    (!sectors.is_empty()).then_some(sectors)
}

fn parse_action(text: &str) -> Option<Action> {
    match text {
        "eio" => Some(Action::Fail(libc::EIO)),
        "enospc" => Some(Action::Fail(libc::ENOSPC)),
        _ => {
            let milliseconds = text.strip_prefix("delay=")?.parse().ok()?;
            Some(Action::Delay(Duration::from_millis(milliseconds)))
        }
    }
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.operation {
            Kind::Read => "read",
            Kind::Write => "write",
            Kind::Flush => "flush",
            Kind::Any => "any",
        })?;
        if let Some(sectors) = &self.sectors {
            write!(f, "@{}-{}", sectors.start(), sectors.end())?;
        }
        match self.action {
            Action::Fail(libc::ENOSPC) => f.write_str(":enospc")?,
            Action::Fail(_) => f.write_str(":eio")?,
            Action::Delay(delay) => write!(f, ":delay={}", delay.as_millis())?,
        }
        if self.skip != 0 {
            write!(f, ":skip={}", self.skip)?;
        }
        if self.times != u64::MAX {
            write!(f, ":times={}", self.times)?;
        }
        Ok(())
    }
}

impl Injection {
    /// Whether the rule is about this command.
    fn meets(&self, command: &Command) -> bool {
        let kind = match command {
            Command::Read { .. } => Kind::Read,
            Command::Flush => Kind::Flush,
            command if command.modifies() => Kind::Write,
            _ => return false,
        };
        let (offset, length) = command.range();
        let within = self.sectors.as_ref().is_none_or(|sectors| {
            length != 0
                && offset / SECTOR_SIZE <= *sectors.end()
                && (offset + (length - 1)) / SECTOR_SIZE >= *sectors.start()
        });
        (self.operation == Kind::Any || self.operation == kind) && within
    }
}

/// A rule, and how often it met a request.
struct Counted {
    rule: Injection,
    met: AtomicU64,
}

/// A disk with rules.
pub struct InjectingDisk {
    disk: Arc<dyn Disk>,
    rules: Vec<Counted>,
    failing: Delay,
    delay: Delay,
}

impl InjectingDisk {
    /// Puts `rules` in front of `disk`; the first that fails a request decides, and delays add up.
    pub fn new(disk: Arc<dyn Disk>, rules: &[Injection]) -> Self {
        let rules = rules.iter().map(|rule| Counted {
            rule: rule.clone(),
            met: AtomicU64::new(0),
        });
        Self {
            disk: disk.clone(),
            rules: rules.collect(),
            failing: Delay::new(Arc::new(Failing)),
            delay: Delay::new(disk),
        }
    }

    /// What the rules say of a command: the error with which it fails, and how long it waits before.
    fn verdict(&self, command: &Command) -> (Option<i32>, Duration) {
        let (mut failure, mut delay) = (None, Duration::ZERO);
        for Counted { rule, met } in &self.rules {
            if !rule.meets(command) {
                continue;
            }
            let before = met.fetch_add(1, Ordering::Relaxed);
            if before < rule.skip || before - rule.skip >= rule.times {
                continue;
            }
            match rule.action {
                Action::Fail(errno) => failure = failure.or(Some(errno)),
                Action::Delay(more) => delay = delay.saturating_add(more),
            }
        }
        (failure, delay)
    }
}

impl Disk for InjectingDisk {
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
        let (failure, delay) = self.verdict(&request.command);
        let Some(errno) = failure else {
            self.delay.submit_after(delay, request);
            return;
        };
        let (offset, _) = request.command.range();
        let error = DiskError::Io {
            operation: "injected error",
            offset,
            error: io::Error::from_raw_os_error(errno),
        };
        let done = request.done;
        let failed = Request {
            command: request.command,
            done: Box::new(move |_| done(Err(error))),
        };
        // Never from within this call, so it takes the way of those that wait.
        self.failing.submit_after(delay.max(Duration::from_nanos(1)), failed);
    }
}

/// Where requests end that do not reach the disk: whoever waits for them has the error already.
struct Failing;

impl Disk for Failing {
    fn capacity(&self) -> u64 {
        0
    }

    fn read_only(&self) -> bool {
        false
    }

    fn submit(&self, request: Request) {
        (request.done)(Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::{Buffer, MemoryDisk};

    fn rule(text: &str) -> Injection {
        text.parse().expect(text)
    }

    fn read(sector: u64, count: u64) -> Command {
        Command::Read {
            offset: sector * SECTOR_SIZE,
            buffer: Buffer::zeroed((count * SECTOR_SIZE) as usize),
        }
    }

    fn verdicts(text: &str, commands: &[Command]) -> Vec<Option<i32>> {
        let disk = InjectingDisk::new(Arc::new(MemoryDisk::new(vec![0; 512], false)), &[rule(text)]);
        commands.iter().map(|command| disk.verdict(command).0).collect()
    }

    #[test]
    fn a_rule_meets_its_operation_and_sectors() {
        let commands = [read(0, 4), read(4, 1), read(8, 8), Command::Flush];
        let eio = Some(libc::EIO);
        assert_eq!(verdicts("read@3-4:eio", &commands), [eio, eio, None, None]);
        assert_eq!(
            verdicts("flush:enospc", &commands),
            [None, None, None, Some(libc::ENOSPC)]
        );
        assert_eq!(verdicts("write:eio", &commands), [None; 4]);
        assert_eq!(verdicts("any:eio:skip=1:times=2", &commands), [None, eio, eio, None]);
    }

    #[test]
    fn rules_are_printed_as_they_are_read() {
        for text in [
            "read@3-4:eio",
            "any:enospc:skip=1:times=2",
            "flush:delay=20",
            "write@7-7:eio",
        ] {
            assert_eq!(rule(text).to_string(), text);
        }
        for text in [
            "",
            "read",
            "read:eperm",
            "flush@1:eio",
            "read@5-3:eio",
            "read@x:eio",
            "any:delay=-1",
            "any:eio:once",
        ] {
            let error = text.parse::<Injection>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("inject={text}: ")), "{error}");
        }
    }

    #[test]
    fn a_failure_comes_later_and_not_from_within_the_call() {
        let inner = Arc::new(MemoryDisk::new(vec![0; 512], false));
        let disk = InjectingDisk::new(inner.clone(), &[rule("read:eio:times=1")]);
        let lock = Arc::new(std::sync::Mutex::new(()));
        let (sender, outcomes) = mpsc::channel();
        for _ in 0..2 {
            let held = lock.lock().expect("nobody panicked");
            let (sender, lock) = (sender.clone(), lock.clone());
            disk.submit(Request {
                command: read(0, 1),
                done: Box::new(move |outcome| {
                    let _held = lock.lock().expect("nobody panicked");
                    sender.send(outcome.is_ok()).expect("a receiver");
                }),
            });
            drop(held);
        }
        assert_eq!(outcomes.recv(), Ok(false));
        assert_eq!(inner.run(), 1);
        assert_eq!(outcomes.recv(), Ok(true));
    }
}
