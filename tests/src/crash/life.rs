//! One image, from its making to its end: sessions that are killed, each found again by the next.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::oracle::{Oracle, SECTOR, SECTORS, stamp};
use super::script::{Action, GuestMemory};
use super::session::{End, Hypervisor, Session, Start};
use super::tally::Tally;
use super::workload::{Mix, Workload, up_to_a_power_of_two};

/// Kills on one image at most, before the next one with other parameters.
const MOST_KILLS: u64 = 40;

/// The longest workload of a session: the data of all its commands fits into the guest's memory.
const MOST_COMMANDS: usize = 40;

/// What all lives have in common.
pub(super) struct Surroundings<'a> {
    pub(super) hypervisor: &'a Hypervisor,
    pub(super) kernel: &'a Path,
    pub(super) folder: &'a Path,
    /// Whether spindle has failpoints, and their names.
    pub(super) failpoints: &'a [&'static str],
}

/// Parameters of an image.
struct Parameters {
    cluster_size: u64,
    refcount_bits: u32,
    version2: bool,
    /// None, a raw or a qcow2 file.
    backing: Option<&'static str>,
    snapshots: bool,
    options: String,
}

/// An image in use.
pub(super) struct Life<'a> {
    surroundings: &'a Surroundings<'a>,
    random: StdRng,
    parameters: Parameters,
    image: PathBuf,
    oracle: Oracle,
    workload: Workload,
    snapshots: Vec<(String, Vec<u32>)>,
    /// The last process was killed.
    unclean: bool,
    recovery: Vec<Duration>,
    clean_open: Vec<Duration>,
}

/// How a session is to end.
enum Plan {
    /// Killed after so many completions, and so many turns of a loop.
    Random { completions: usize, spin: u32 },
    /// By its own hand, at the N-th passing of a point; or, if that never comes, when all commands are done.
    Failpoint { point: usize, passing: u64 },
    /// By the guest's power-off.
    Clean,
}

impl<'a> Life<'a> {
    /// A new image, whose parameters and workload `seed` decides.
    pub(super) fn begin(surroundings: &'a Surroundings<'a>, seed: u64) -> Result<Self> {
        let mut random = StdRng::seed_from_u64(seed);
        let version2 = random.random_ratio(1, 12);
        let parameters = Parameters {
            cluster_size: [512, 4096, 4096, 65536, 65536][random.random_range(0..5)],
            refcount_bits: if version2 {
                16
            } else {
                [16, 16, 16, 1, 8, 64][random.random_range(0..6)]
            },
            version2,
            backing: [None, None, Some("raw"), Some("qcow2")][random.random_range(0..4)],
            snapshots: random.random_ratio(1, 2),
            options: some_options(&mut random),
        };
        let workload = Workload::new(parameters.cluster_size, Mix::FewFlushes);
        let mut life = Self {
            surroundings,
            random,
            parameters,
            image: surroundings.folder.join("disk.qcow2"),
            oracle: Oracle::new(&[]),
            workload,
            snapshots: Vec::new(),
            unclean: false,
            recovery: Vec::new(),
            clean_open: Vec::new(),
        };
        life.make_image()?;
        Ok(life)
    }

    /// What the image is like, for a report of a failure.
    pub(super) fn describe(&self) -> String {
        let Parameters {
            cluster_size,
            refcount_bits,
            version2,
            backing,
            snapshots,
            options,
        } = &self.parameters;
        format!(
            "clusters of {cluster_size}, refcount_bits={refcount_bits}, version {}, backing {backing:?}, snapshots {snapshots}, options \"{options}\"",
            if *version2 { 2 } else { 3 }
        )
    }

    /// Sessions until `kills` are done or the image has had its share, and then a clean end.
    pub(super) fn live(&mut self, kills: u64, tally: &mut Tally) -> Result<()> {
        let until = tally.kills + kills.min(self.random.random_range(MOST_KILLS / 2..=MOST_KILLS));
        while tally.kills < until {
            let plan = self.plan(tally);
            self.session(&plan, tally)?;
            if matches!(plan, Plan::Clean) && self.parameters.snapshots && self.parameters.refcount_bits > 1 {
                self.take_snapshot()?;
            }
        }
        self.session(&Plan::Clean, tally)?;
        self.compare_snapshots()
    }

    /// Times from start to the guest's first instruction: after a kill, and after a clean end.
    pub(super) fn times(self) -> (Vec<Duration>, Vec<Duration>) {
        (self.recovery, self.clean_open)
    }

    fn make_image(&mut self) -> Result<()> {
        let folder = self.surroundings.folder;
        let _ = std::fs::remove_file(&self.image);
        let mut ids = vec![0; SECTORS as usize];
        let mut options = format!(
            "cluster_size={},compat={},refcount_bits={}",
            self.parameters.cluster_size,
            if self.parameters.version2 { "0.10" } else { "1.1" },
            self.parameters.refcount_bits
        );
        if let Some(format) = self.parameters.backing {
            // A few runs of data, from a source that has ids of its own.
            for _ in 0..8 {
                let (first, count) = self.workload.some_sectors(&mut self.random);
                let id = self.workload.id();
                ids[first as usize..(first + count) as usize].fill(id);
            }
            let bytes: Vec<u8> = (0..).zip(&ids).flat_map(|(sector, id)| stamp(*id, sector)).collect();
            let raw = folder.join("backing.raw");
            std::fs::write(&raw, bytes)?;
            if format == "qcow2" {
                qemu_img(
                    folder,
                    &[
                        "convert",
                        "-f",
                        "raw",
                        "-O",
                        "qcow2",
                        "-c",
                        "backing.raw",
                        "backing.qcow2",
                    ],
                )?;
            }
            options.push_str(&format!(",backing_file=backing.{format},backing_fmt={format}"));
        }
        let size = (SECTORS * SECTOR).to_string();
        qemu_img(
            folder,
            &["create", "-q", "-f", "qcow2", "-o", &options, "disk.qcow2", &size],
        )?;
        self.oracle = Oracle::new(&ids);
        Ok(())
    }

    fn plan(&mut self, tally: &Tally) -> Plan {
        match self.random.random_range(0..20) {
            0 => Plan::Clean,
            1..=9 if !self.surroundings.failpoints.is_empty() => self.plan_failpoint(tally),
            _ => Plan::Random {
                completions: self.random.random_range(0..MOST_COMMANDS / 2),
                spin: up_to_a_power_of_two(&mut self.random, 18) as u32,
            },
        }
    }

    /// Each point as often as any other, those that nobody has passed yet seldom, and a passing that most sessions get to.
    fn plan_failpoint(&mut self, tally: &Tally) -> Plan {
        let names = self.surroundings.failpoints;
        let passed = |point: &usize| tally.points.get(names[*point]).map_or(0, |kills| kills.passed);
        let known: Vec<usize> = (0..names.len()).filter(|point| passed(point) > 0).collect();
        let point = if known.is_empty() || self.random.random_ratio(1, 10) {
            self.random.random_range(0..names.len())
        } else {
            known[self.random.random_range(0..known.len())]
        };
        let usual = passed(&point) / (tally.kills + tally.clean_ends).max(1);
        let bits = (usual + 1).ilog2();
        let passing = 1 + up_to_a_power_of_two(&mut self.random, bits);
        Plan::Failpoint { point, passing }
    }

    fn session(&mut self, plan: &Plan, tally: &mut Tally) -> Result<()> {
        let mut memory = GuestMemory::new()?;
        let commands = match plan {
            Plan::Clean => Vec::new(),
            Plan::Random { completions, .. } => self.workload.commands(completions + 4, &mut self.random),
            Plan::Failpoint { .. } => self.workload.commands(MOST_COMMANDS, &mut self.random),
        };
        for command in &commands {
            memory.command(command)?;
        }
        memory.finish(matches!(plan, Plan::Clean))?;
        let names = self.surroundings.failpoints;
        let failpoint = match plan {
            Plan::Failpoint { point, passing } => Some(format!("{}:{passing}", names[*point])),
            _ => None,
        };
        let start = Start {
            hypervisor: self.surroundings.hypervisor,
            kernel: self.surroundings.kernel,
            disk: &self.image,
            options: &self.parameters.options,
            failpoint: failpoint.clone(),
        };
        let mut session = Session::start(Arc::new(memory), &start)?;
        let read = session.wait_for(|progress| progress.read)?;
        if read {
            // Stopped, the guest's waiting costs nothing.
            session.stop()?;
            self.judge(&session, tally)?;
            session.memory.go()?;
            session.go_on()?;
        }
        match plan {
            Plan::Clean => {}
            Plan::Random { completions, spin } => {
                session.wait_for_completions(*completions, *spin)?;
                session.kill()?;
            }
            Plan::Failpoint { .. } => {
                session.wait_for(|progress| progress.done)?;
                session.kill()?;
            }
        }
        if let Some(time) = session.opened_after {
            if self.unclean {
                &mut self.recovery
            } else {
                &mut self.clean_open
            }
            .push(time);
        }
        let end = session.end()?;
        self.account(&end, &commands, tally);
        self.unclean = !matches!(plan, Plan::Clean);
        if !self.unclean {
            ensure!(
                end.code == Some(0),
                "the clean end failed: {:?}\n{}",
                end.code,
                end.errors
            );
            self.check(&[])?;
            tally.clean_ends += 1;
            tally.checks += 1;
            return Ok(());
        }
        end.expect_killed()?;
        self.tally_kill(&end, failpoint.is_some(), tally);
        Ok(())
    }

    /// The guest has read the disk of an image that was recovered, and waits.
    fn judge(&mut self, session: &Session, tally: &mut Tally) -> Result<()> {
        let compared = self.oracle.compare(&session.memory.disk()?);
        compared.map_err(anyhow::Error::msg).context("sectors are lost")?;
        if self.unclean {
            self.check(&["-U"])?;
            tally.checks += 1;
        }
        Ok(())
    }

    /// What the log says of the workload.
    fn account(&mut self, end: &End, commands: &[Action], tally: &mut Tally) {
        let progress = end.progress;
        for (index, command) in commands.iter().enumerate().take(progress.issued) {
            self.oracle.issued(command);
            if index < progress.completed {
                self.oracle.completed(command);
                if let Action::Write { count, .. } = command {
                    tally.acknowledged += count;
                }
            }
        }
        tally.in_flight += (progress.issued - progress.completed) as u64;
        tally.leaks_reclaimed += end.logged("reclaimed");
        tally.slices_recovered += end.logged("slices");
    }

    fn tally_kill(&self, end: &End, wanted_failpoint: bool, tally: &mut Tally) {
        tally.kills += 1;
        // One that was never reached was killed from outside, with everything done.
        let at_failpoint = wanted_failpoint && !end.progress.done;
        *if at_failpoint {
            &mut tally.failpoint_kills
        } else {
            &mut tally.random_kills
        } += 1;
        tally.kills_during_open += u64::from(!end.progress.started);
        let names = self.surroundings.failpoints;
        let name = end
            .last_point
            .and_then(|point| names.get(point))
            .copied()
            .unwrap_or("start");
        let kills = tally.points.entry(name.to_owned()).or_default();
        *if at_failpoint {
            &mut kills.failpoint
        } else {
            &mut kills.random
        } += 1;
        for (name, hits) in names.iter().zip(&end.hits).filter(|(_, hits)| **hits > 0) {
            tally.points.entry((*name).to_owned()).or_default().passed += hits;
        }
    }

    /// # Errors
    /// If `qemu-img check` finds corruption or leaks.
    fn check(&self, options: &[&str]) -> Result<()> {
        let mut arguments = vec!["check", "-q", "-f", "qcow2"];
        arguments.extend(options);
        arguments.push("disk.qcow2");
        qemu_img(self.surroundings.folder, &arguments).context("qemu-img check finds fault with the image")
    }

    fn take_snapshot(&mut self) -> Result<()> {
        if self.snapshots.len() >= 4 {
            return Ok(());
        }
        let name = format!("s{}", self.snapshots.len());
        qemu_img(self.surroundings.folder, &["snapshot", "-c", &name, "disk.qcow2"])?;
        self.snapshots.push((name, self.oracle.ids()));
        Ok(())
    }

    fn compare_snapshots(&self) -> Result<()> {
        let folder = self.surroundings.folder;
        for (name, ids) in &self.snapshots {
            let arguments = [
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                "-l",
                name,
                "disk.qcow2",
                "snapshot.raw",
            ];
            qemu_img(folder, &arguments)?;
            let found = std::fs::read(folder.join("snapshot.raw"))?;
            let compared = Oracle::new(ids).compare(&found);
            compared
                .map_err(anyhow::Error::msg)
                .with_context(|| format!("snapshot {name} has changed"))?;
        }
        Ok(())
    }
}

/// Options of the disk. A small metadata cache is made faster, and has slices come and go.
fn some_options(random: &mut StdRng) -> String {
    let mut one_of = |choices: &[&'static str]| choices[random.random_range(0..choices.len())];
    [
        one_of(&["", ",cache-size=256K", ",cache-size=1M"]),
        one_of(&[
            "",
            ",discard=unmap",
            ",discard=unmap",
            ",discard=unmap,detect-zeroes=unmap",
        ]),
        one_of(&["", "", "", ",cache=none"]),
    ]
    .concat()
}

fn qemu_img(folder: &Path, arguments: &[&str]) -> Result<()> {
    let mut command = std::process::Command::new(
        guest_images::find_program("qemu-img")
            .context("`qemu-img` is not installed; `cargo xtask setup` installs it")?,
    );
    let output = command
        .args(arguments)
        .current_dir(folder)
        .output()
        .context("Cannot run qemu-img")?;
    if !output.status.success() {
        bail!(
            "qemu-img {}: {}\n{}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
