//! Storage calls that fail: each call of a script in turn, in each way, once or until the device is mended.

use disk::Command;
use disk::simulation::{CrashModel, FaultKind};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::crash::Phase;
use super::machine::{Machine, Tally, guarded, look, rest, sound};
use super::oracle::After;
use super::script::{Op, Script};
use crate::judge;

const EINTR: i32 = 4;
const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const EOPNOTSUPP: i32 = 95;

/// One storage call fails, or all from it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The name of the call.
    pub name: &'static str,
    pub kind: FaultKind,
    /// Until the device is mended, not once.
    pub lasts: bool,
    /// So many calls of that name succeed before.
    pub skip: usize,
}

/// The ways in which calls fail.
pub const KINDS: [(&str, FaultKind); 13] = [
    ("read", FaultKind::Errno(EIO)),
    ("read", FaultKind::Errno(EINTR)),
    ("read", FaultKind::Short),
    ("write", FaultKind::Errno(EIO)),
    ("write", FaultKind::Errno(ENOSPC)),
    ("write", FaultKind::Errno(EINTR)),
    ("write", FaultKind::Short),
    ("fdatasync", FaultKind::Errno(EIO)),
    ("fdatasync", FaultKind::Errno(ENOSPC)),
    ("fdatasync", FaultKind::Errno(EINTR)),
    ("punch hole", FaultKind::Errno(EIO)),
    ("punch hole", FaultKind::Errno(EOPNOTSUPP)),
    ("punch hole", FaultKind::Errno(EINTR)),
];

impl Fault {
    /// Nobody is to notice it: the call is made again, or goes on where it stopped.
    fn is_harmless(&self) -> bool {
        matches!(self.kind, FaultKind::Short | FaultKind::Errno(EINTR)) || self.name == "punch hole"
    }
}

/// How a run with a fault ended.
pub enum Ended {
    /// The script makes fewer calls of that name.
    NotMet,
    /// The promises held.
    Held(Tally),
}

/// Runs a script in which a fault strikes.
pub fn run_with(script: &Script, fault: Fault) -> Result<Ended, String> {
    guarded(|| {
        let mut machine = Machine::new(script.shape)?;
        machine.failures_are_expected = !fault.is_harmless();
        // A call that is interrupted for ever is made for ever.
        let lasts = fault.lasts && fault.kind != FaultKind::Errno(EINTR);
        let times = if lasts { usize::MAX / 2 } else { 1 };
        machine
            .simulation
            .disk()
            .inject_kind(fault.name, fault.skip, times, fault.kind);
        for op in &script.ops {
            machine.execute_beside_faults(*op)?;
        }
        machine.settle()?;
        if machine.simulation.disk().faults_left() == times {
            return Ok(Ended::NotMet);
        }
        machine.simulation.disk().mend();
        machine.judge_after(fault)?;
        Ok(Ended::Held(machine.tally))
    })
}

impl Machine {
    /// What is looked at only when all is over is left out.
    fn execute_beside_faults(&mut self, op: Op) -> Result<(), String> {
        match op {
            Op::Settle => self.settle(),
            Op::Reopen | Op::BeginClose => self.execute(Op::Flush),
            Op::Crash { .. } | Op::KillWithin { .. } => Ok(()),
            other => self.execute(other),
        }
    }

    fn judge_after(&mut self, fault: Fault) -> Result<(), String> {
        let image = self.simulation.disk().contents();
        sound(&image, "after the fault")?;
        let found = self.look(&image)?;
        self.oracle.judge(&found, After::Kill)?;
        self.crash_after(fault)?;

        let flush = self.simulation.submit(Command::Flush);
        rest(&mut self.simulation)?;
        let is_lost = flush
            .error()
            .is_some_and(|error| error.contains("An earlier fdatasync failed"));
        let sync_failed = fault.name == "fdatasync" && !fault.is_harmless();
        // What a header holds whose writing failed twice, nobody knows either.
        let may_be_lost = sync_failed || (self.change_failed && fault.name == "write");
        if sync_failed && flush.succeeded() {
            return Err("a flush claims that all is durable, after an fdatasync that failed".into());
        }
        if !(flush.succeeded() || is_lost && may_be_lost) {
            return Err(format!("a flush after the fault: {:?}", flush.error()));
        }
        self.simulation.begin_close();
        rest(&mut self.simulation)?;
        match self.simulation.closed() {
            Some(Ok(())) if is_lost => return Err("closing claims that all is durable".into()),
            Some(Err(_)) if is_lost => return Ok(()),
            Some(Ok(())) => {}
            other => return Err(format!("closing after the fault: {other:?}")),
        }
        let closed = self.simulation.disk().contents();
        sound(&closed, "closed after the fault")?;
        // What leaked because of the fault, the next open reclaims.
        let mut again = self.begin_opening(closed.into(), None, &mut SmallRng::seed_from_u64(1))?;
        rest(&mut again)?;
        again
            .opened()
            .map_err(|error| format!("opening after the fault: {error}"))?;
        let image = again.disk().contents();
        if look(&mut again, &image, &self.fixture.flat)? != found {
            return Err("the closed image holds something else".into());
        }
        again.begin_close();
        rest(&mut again)?;
        let report = again.disk().with_contents(judge::check);
        if report.is_clean() {
            Ok(())
        } else {
            Err(format!("opened and closed again after the fault: {report:?}"))
        }
    }

    /// Some of the crash states that there could be at this moment.
    fn crash_after(&mut self, fault: Fault) -> Result<(), String> {
        for model in [CrashModel::Kill, CrashModel::PowerLoss] {
            let point = self.simulation.disk().crash_point(model);
            let left_behind = self.simulation.left_behind(model);
            for number in [0, 64] {
                let platter = point.state(number, fault.skip as u64);
                let mut rng = SmallRng::seed_from_u64(number);
                self.recover_at_once(platter, left_behind.as_deref(), model, Phase::Requests, &mut rng)
                    .map_err(|error| format!("{model:?} after the fault, state {number}: {error}"))?;
            }
        }
        Ok(())
    }
}
