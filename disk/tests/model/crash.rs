//! Crashes: what is left, recovered, looked at, and gone on with.

use std::ops::Range;

use disk::Command;
use disk::simulation::{CrashModel, CrashPoint, Platter, Setup, Simulation};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::machine::{Machine, look, read_all, rest, sound, write};
use super::oracle::{After, Found};
use super::stamp::{Id, SECTOR, ids_of};
use crate::judge;

/// What was going on when a crash came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Requests of the guest.
    Requests,
    /// A snapshot or a resize.
    Change,
    /// Closing.
    Close,
    /// The middle of what runs between two storage operations.
    Stores,
    /// Recovery from an earlier crash.
    Recovery,
}

/// How many phases there are.
pub const PHASES: usize = 5;

/// Their names, in order.
pub const PHASE_NAMES: [&str; PHASES] = [
    "requests",
    "snapshot or resize",
    "close",
    "between two stores",
    "recovery",
];

/// The id that writes after a recovery have which are not gone on with.
const AFTERWARDS: Id = 1 << 40;

/// One recovered image.
struct Recovered {
    simulation: Simulation,
    found: Found,
    happened: bool,
    after: After,
}

impl Machine {
    /// A crash now.
    pub(super) fn crash(&mut self, model: CrashModel, states: Range<u64>, seed: u64) -> Result<(), String> {
        self.collect(u64::MAX)?;
        let phase = match () {
            () if self.closing => Phase::Close,
            () if self.oracle.is_changing() => Phase::Change,
            () => Phase::Requests,
        };
        let point = self.simulation.disk().crash_point(model);
        let left_behind = self.simulation.left_behind(model);
        self.explore(&point, left_behind.as_deref(), model, phase, states, seed)
    }

    /// A kill after so many stores to the metadata cache more.
    pub(super) fn kill_within(&mut self, stores: u64, states: Range<u64>, seed: u64) -> Result<(), String> {
        self.simulation.reseed(seed);
        self.simulation.watch(stores);
        for _ in 0..1000 {
            if let Some(instant) = self.simulation.seen() {
                self.collect(instant.moment)?;
                let left_behind = instant.left_behind.as_deref();
                return self.explore(
                    &instant.point,
                    left_behind,
                    CrashModel::Kill,
                    Phase::Stores,
                    states,
                    seed,
                );
            }
            if !self.simulation.step() {
                break;
            }
        }
        self.collect(u64::MAX)
    }

    /// A kill now, and a power loss when the next process has begun so many fdatasyncs.
    pub(super) fn lose_power_in_recovery(
        &mut self,
        barriers: u64,
        states: Range<u64>,
        seed: u64,
    ) -> Result<(), String> {
        self.collect(u64::MAX)?;
        let mut rng = SmallRng::seed_from_u64(seed);
        let platter = self.simulation.disk().crash_point(CrashModel::Kill).random(&mut rng);
        let left_behind = self.simulation.left_behind(CrashModel::Kill);
        let mut recovering = self.begin_opening(platter, left_behind, &mut rng)?;
        recovering.step_to_barrier(barriers);
        let model = CrashModel::PowerLoss;
        let point = recovering.disk().crash_point(model);
        self.explore(&point, None, model, Phase::Recovery, states, seed)
    }

    fn explore(
        &mut self,
        point: &CrashPoint,
        left_behind: Option<&[u8]>,
        model: CrashModel,
        phase: Phase,
        states: Range<u64>,
        seed: u64,
    ) -> Result<(), String> {
        let last = states.end - 1;
        for number in states {
            self.state = Some(number);
            let platter = point.state(number, seed);
            let mut rng = SmallRng::seed_from_u64(seed.rotate_left(17) ^ number);
            let recovered = self.recover(platter, left_behind, model, phase, &mut rng);
            let recovered =
                recovered.map_err(|error| format!("{model:?} during {phase:?}, state {number}: {error}"))?;
            if number < last {
                let end = self.end(recovered, &mut rng);
                end.map_err(|error| format!("after {model:?} during {phase:?}, state {number}: {error}"))?;
            } else {
                self.go_on(recovered);
            }
        }
        self.state = None;
        Ok(())
    }

    /// Opens what a crash left, sometimes with further crashes on the way, and looks at everything.
    fn recover(
        &mut self,
        mut platter: Platter,
        left_behind: Option<&[u8]>,
        model: CrashModel,
        mut phase: Phase,
        rng: &mut SmallRng,
    ) -> Result<Recovered, String> {
        let mut left_behind = left_behind.map(<[u8]>::to_vec);
        let mut after = After::Kill;
        let mut model = model;
        let interruptions = [0, 0, 1, 2][rng.random_range(0..4)];
        for interruption in 0..=interruptions {
            after = self.count(model, phase, after);
            sound(platter.current(), "as the crash left it")?;
            if interruption == interruptions {
                break;
            }
            let mut simulation = self.begin_opening(platter.clone(), left_behind.clone(), rng)?;
            phase = Phase::Recovery;
            match rng.random_range(0..4) {
                // Between two changes of the metadata cache.
                0 => {
                    simulation.watch(rng.random_range(1..12));
                    rest(&mut simulation)?;
                    if let Some(instant) = simulation.seen() {
                        model = CrashModel::Kill;
                        platter = instant.point.random(rng);
                        left_behind = instant.left_behind;
                        continue;
                    }
                }
                // At a barrier, when the most is uncertain. Recovery has no more than these.
                1 => simulation.step_to_barrier(rng.random_range(1..=8)),
                _ => {
                    for _ in 0..rng.random_range(0..30) {
                        simulation.step();
                    }
                }
            }
            model = if rng.random() {
                CrashModel::Kill
            } else {
                CrashModel::PowerLoss
            };
            platter = simulation.disk().crash_point(model).random(rng);
            left_behind = simulation.left_behind(model);
        }
        self.open_and_look(platter, left_behind, after, rng)
    }

    /// The same, without further crashes on the way.
    pub(super) fn recover_at_once(
        &mut self,
        platter: Platter,
        left_behind: Option<&[u8]>,
        model: CrashModel,
        phase: Phase,
        rng: &mut SmallRng,
    ) -> Result<(), String> {
        let after = self.count(model, phase, After::Kill);
        sound(platter.current(), "as the crash left it")?;
        let recovered = self.open_and_look(platter, left_behind.map(<[u8]>::to_vec), after, rng)?;
        self.end(recovered, rng)
    }

    /// One more state was looked at. Returns what it may have lost, if that was so far what `before` says.
    fn count(&mut self, model: CrashModel, phase: Phase, before: After) -> After {
        match model {
            CrashModel::Kill => {
                self.tally.killed[phase as usize] += 1;
                before
            }
            CrashModel::PowerLoss => {
                self.tally.power_lost[phase as usize] += 1;
                After::PowerLoss
            }
        }
    }

    fn open_and_look(
        &self,
        platter: Platter,
        left_behind: Option<Vec<u8>>,
        after: After,
        rng: &mut SmallRng,
    ) -> Result<Recovered, String> {
        let mut simulation = self.begin_opening(platter, left_behind, rng)?;
        rest(&mut simulation)?;
        match simulation.opened() {
            Ok(true) => {}
            Ok(false) => return Err("opening never ends".into()),
            Err(error) => return Err(format!("opening: {error}")),
        }
        let image = simulation.disk().contents();
        let report = judge::check(&image);
        // What an interrupted shrink left behind the end is given up, and leaves by the way of everything that is given up.
        if !report.corruptions.is_empty() || (report.leaks > 0 && report.flags.is_empty()) {
            return Err(format!("the recovered image: {report:?}"));
        }
        let found = look(&mut simulation, &image, &self.fixture.flat)?;
        let happened = self.oracle.judge(&found, after)?;
        Ok(Recovered {
            simulation,
            found,
            happened,
            after,
        })
    }

    pub(super) fn begin_opening(
        &self,
        platter: Platter,
        left_behind: Option<Vec<u8>>,
        rng: &mut SmallRng,
    ) -> Result<Simulation, String> {
        let setup = Setup {
            below: self.fixture.below.clone(),
            left_behind,
            cache_bytes: self.shape.cache_bytes,
            ..Setup::new(platter, rng.random())
        };
        Simulation::begin(setup).map_err(|error| format!("opening: {error}"))
    }

    /// What is free must be free: a write disturbs nobody. And the image can be closed.
    fn end(&self, recovered: Recovered, rng: &mut SmallRng) -> Result<(), String> {
        let Recovered {
            mut simulation,
            mut found,
            ..
        } = recovered;
        let sectors = found.sectors.len() as u64;
        let start = rng.random_range(0..sectors);
        let range = start..(start + rng.random_range(1..64)).min(sectors);
        let outcome = simulation.submit(write(&range, AFTERWARDS));
        let start = rng.random_range(0..sectors);
        let zeroes = simulation.submit(Command::WriteZeroes {
            offset: start * SECTOR,
            length: SECTOR,
        });
        rest(&mut simulation)?;
        if !outcome.succeeded() || !zeroes.succeeded() {
            return Err(format!("a write: {:?} {:?}", outcome.error(), zeroes.error()));
        }
        let now = ids_of(&read_all(&mut simulation)?)?;
        found.sectors[range.start as usize..range.end as usize].fill(AFTERWARDS);
        let differs = (0..sectors).find(|sector| {
            let (expected, found) = (found.sectors[*sector as usize], now[*sector as usize]);
            let is_zeroed = *sector == start && found == 0;
            expected != found && !is_zeroed
        });
        if let Some(sector) = differs {
            return Err(format!("a write of {range:?} changed sector {sector}"));
        }
        simulation.begin_close();
        rest(&mut simulation)?;
        if !matches!(simulation.closed(), Some(Ok(()))) {
            return Err(format!("closing: {:?}", simulation.closed()));
        }
        simulation.disk().with_contents(|image| {
            let report = judge::check(image);
            if !report.is_clean() {
                return Err(format!("the closed image: {report:?}"));
            }
            if ids_of(&judge::read::disk(image, &self.fixture.flat))? != now {
                return Err("the closed image holds something else".into());
            }
            let snapshots = judge::read::snapshots(image, &self.fixture.flat).into_iter();
            let snapshots = snapshots.map(|(name, content)| Ok((name, ids_of(&content)?)));
            if snapshots.collect::<Result<Vec<_>, String>>()? == found.snapshots {
                Ok(())
            } else {
                Err("a write changed a snapshot".into())
            }
        })
    }

    /// The recovered image is the one from now on.
    fn go_on(&mut self, recovered: Recovered) {
        self.tally.operations += self.simulation.disk().completed_operations();
        self.forget_in_flight();
        self.oracle
            .settle(&recovered.found, recovered.after, recovered.happened);
        self.simulation = recovered.simulation;
    }
}
