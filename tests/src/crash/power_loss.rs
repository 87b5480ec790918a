//! Power loss: the image lies on a recording file system while a guest writes, and crash states are made of the recording.
//!
//! The same bare-metal guest with the same script runs under spindle and under QEMU (TCG, IDE, qcow2 with the default cache mode), so what
//! the two leave can be compared. A state of spindle's is opened and recovered by spindle's engine, one of QEMU's by `qemu-img`,
//! which is QEMU's own driver; `qemu-img check` judges both.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use disk::{Buffer, Engine, EngineOptions, Format, OpenOptions, Request};
use guest_images::find_program;
use power::{CrashState, Mark, RecordedFile, Recording, Tear};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use super::guest;
use super::oracle::{Oracle, SECTOR, SECTORS};
use super::script::{Action, GuestMemory};
use super::session::{Hypervisor, Session, Start};
use super::tally::Failure;
use super::workload::{Mix, Workload};

/// Crash states that are made of one recording.
const STATES_A_RECORDING: u64 = 50;

/// Failures that are told of, and whose images are kept.
pub(super) const MOST_EXAMPLES: usize = 5;

/// Commands of one guest.
const COMMANDS: usize = 40;

/// Which hypervisors, how many states of each, and from which seed.
pub struct PowerCampaign<'a> {
    /// The binary under test.
    pub spindle: &'a Path,
    /// How many crash states.
    pub states: u64,
    /// How many of QEMU's, as a second column. QEMU's states are half kills and half power losses.
    pub qemu_states: u64,
    /// Decides workloads and crash states.
    pub seed: u64,
    /// For images.
    pub folder: &'a Path,
}

/// Whether this machine lets us mount a recording file system.
///
/// # Errors
/// Why not.
pub fn can_record() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let recorded = RecordedFile::mount(folder.path(), "empty", Vec::new(), Mark::default)?;
    recorded.finish()?;
    Ok(())
}

/// What came of the crash states of one hypervisor under one model.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Column {
    /// Whose image it was.
    pub hypervisor: String,
    /// What ran on it: "bare-metal" or "linux".
    pub guest: String,
    /// "power loss", or "kill" for states in which nothing is lost but what the process had in its memory.
    pub model: String,
    /// Workloads that were recorded.
    pub recordings: u64,
    /// Writes, holes and syncs in them.
    pub events: u64,
    /// Of these, syncs.
    pub syncs: u64,
    /// Crash states that were looked at.
    pub states: u64,
    /// States in which a sector holds what it must not, or a file: what was promised is gone, or something foreign shows.
    pub lost: u64,
    /// States whose image `qemu-img check` calls corrupt.
    pub corrupt: u64,
    /// States that do not open.
    pub refused: u64,
    /// States with leaked clusters: for spindle after its recovery, for QEMU as the crash left them.
    pub leaky: u64,
    /// Sectors that were compared, under the bare-metal guest.
    pub sectors: u64,
    /// What the Linux guest had acknowledged before the crash and was looked for.
    pub acknowledged: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Examples of what went wrong, a few.
    pub failures: Vec<Failure>,
}

impl Column {
    /// States in which a promise did not hold.
    pub fn violations(&self) -> u64 {
        self.lost + self.corrupt + self.refused
    }
}

/// Runs a campaign: a column for spindle, and two for QEMU if states of its are wanted.
///
/// # Errors
/// If the campaign itself cannot go on.
pub fn run_power(campaign: &PowerCampaign<'_>, mut progress: impl FnMut(&[Column])) -> Result<Vec<Column>> {
    let column = |hypervisor: &str, model: &str| Column {
        hypervisor: hypervisor.to_owned(),
        guest: "bare-metal".to_owned(),
        model: model.to_owned(),
        ..Column::default()
    };
    let mut columns = vec![column("spindle", "power loss")];
    let mut wanted = vec![(
        Hypervisor::Spindle(campaign.spindle.to_owned()),
        Tear::Torn,
        campaign.states,
    )];
    if campaign.qemu_states > 0 {
        let qemu = find_program("qemu-system-x86_64")
            .context("`qemu-system-x86_64` is not installed; `cargo xtask setup` installs it")?;
        columns.push(column("QEMU", "power loss"));
        wanted.push((
            Hypervisor::Qemu(qemu.clone()),
            Tear::Torn,
            campaign.qemu_states.div_ceil(2),
        ));
        columns.push(column("QEMU", "kill"));
        wanted.push((Hypervisor::Qemu(qemu), Tear::Nothing, campaign.qemu_states / 2));
    }
    std::fs::create_dir_all(campaign.folder).with_context(|| format!("Cannot create {}", campaign.folder.display()))?;
    let kernel = campaign.folder.join("guest.elf");
    std::fs::write(&kernel, guest::image()?)?;
    for (index, (hypervisor, tear, states)) in wanted.iter().enumerate() {
        let begin = Instant::now();
        while columns[index].states < *states {
            let seed = campaign
                .seed
                .wrapping_mul(1 << 20)
                .wrapping_add(columns[index].recordings);
            let laboratory = Laboratory {
                folder: campaign.folder,
                kernel: &kernel,
                hypervisor,
                seed,
            };
            let missing = states - columns[index].states;
            laboratory.run(*tear, missing.min(STATES_A_RECORDING), &mut columns[index])?;
            columns[index].seconds = begin.elapsed().as_secs_f64();
            progress(&columns);
        }
    }
    Ok(columns)
}

/// One recording, and its crash states.
struct Laboratory<'a> {
    folder: &'a Path,
    kernel: &'a Path,
    hypervisor: &'a Hypervisor,
    seed: u64,
}

impl Laboratory<'_> {
    fn run(&self, tear: Tear, states: u64, column: &mut Column) -> Result<()> {
        let mut random = StdRng::seed_from_u64(self.seed);
        let cluster_size: u64 = [512, 4096, 4096, 65536, 65536][random.random_range(0..5)];
        let (commands, recording) = self.record(cluster_size, &mut random)?;
        column.recordings += 1;
        column.events += recording.events.len() as u64;
        column.syncs += recording.syncs() as u64;
        for _ in 0..states {
            let at = random.random_range(0..=recording.events.len());
            let tear = if tear == Tear::Torn {
                [Tear::Torn, Tear::Torn, Tear::Some, Tear::Everything][random.random_range(0..4)]
            } else {
                tear
            };
            let state = recording.crash(at, tear, &mut random);
            let oracle = allowed(&commands, state.mark, tear);
            column.states += 1;
            column.sectors += SECTORS;
            let (kind, what) = match self.judge(&state, oracle)? {
                Verdict::Fine { leaky } => {
                    column.leaky += u64::from(leaky);
                    continue;
                }
                Verdict::Lost(what) => (&mut column.lost, what),
                Verdict::Corrupt(what) => (&mut column.corrupt, what),
                Verdict::Refused(what) => (&mut column.refused, what),
            };
            *kind += 1;
            if column.failures.len() < MOST_EXAMPLES {
                let (pending, kept) = (state.pending, state.kept);
                let place = format!(
                    "clusters of {cluster_size}, crash before event {at} of {}, {tear:?}: {kept} of {pending} changes kept whole",
                    recording.events.len()
                );
                std::fs::write(
                    self.folder
                        .join(format!("failure-{}-{}.qcow2", self.seed, column.states)),
                    &state.bytes,
                )?;
                column.failures.push(Failure {
                    seed: self.seed,
                    place,
                    what,
                });
            }
        }
        Ok(())
    }

    /// Runs a guest on an image on the recording file system, and ends its hypervisor without a close.
    fn record(&self, cluster_size: u64, random: &mut StdRng) -> Result<(Vec<Action>, Recording)> {
        let image = self.folder.join("new.qcow2");
        let options = format!("cluster_size={cluster_size}");
        let size = (SECTORS * SECTOR).to_string();
        let image_name = image.to_str().context("The folder's name is not UTF-8")?;
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, image_name, &size])?;
        let content = std::fs::read(&image)?;
        let mut workload = Workload::new(cluster_size, Mix::ManyFlushes);
        let commands = workload.commands(COMMANDS, random);
        let mut memory = GuestMemory::new()?;
        for command in &commands {
            memory.command(command)?;
        }
        memory.finish(false)?;
        let memory = Arc::new(memory);
        let mount = tempfile::tempdir()?;
        let watched = memory.clone();
        // The hypervisor waits for the file system that asks this; it does not wait for the hypervisor.
        let recorded = RecordedFile::mount(mount.path(), "disk.qcow2", content, move || {
            let progress = watched.progress().unwrap_or_default();
            Mark {
                issued: progress.issued as u64,
                completed: progress.completed as u64,
            }
        })?;
        let ended = self.drive(&memory, recorded.path());
        forget_cache(recorded.path())?;
        let recording = recorded.finish()?;
        ended?;
        ensure!(!recording.events.is_empty(), "nothing was written to the recorded file");
        Ok((commands, recording))
    }

    fn drive(&self, memory: &Arc<GuestMemory>, disk: &Path) -> Result<()> {
        let start = Start {
            hypervisor: self.hypervisor,
            kernel: self.kernel,
            disk,
            options: ",discard=unmap",
            failpoint: None,
        };
        let mut session = Session::start(memory.clone(), &start)?;
        let read = session.wait_for(|progress| progress.read)?;
        if read {
            memory.go()?;
            session.wait_for(|progress| progress.done)?;
            session.kill()?;
        }
        let end = session.end()?;
        ensure!(end.progress.done, "the guest did not come to its end\n{}", end.errors);
        Ok(())
    }

    fn judge(&self, state: &CrashState, oracle: Oracle) -> Result<Verdict> {
        let image = self.folder.join("state.qcow2");
        let _ = std::fs::remove_file(&image);
        std::fs::write(&image, &state.bytes)?;
        match self.hypervisor {
            Hypervisor::Spindle(_) => judge_with_spindle(&image, oracle),
            Hypervisor::Qemu(_) => judge_with_qemu(self.folder, &image, oracle),
        }
    }
}

/// A kill leaves a metadata cache on tmpfs; a power loss does not.
pub(super) fn forget_cache(disk: &Path) -> Result<()> {
    let file = std::fs::metadata(disk)?;
    let cache = format!("/dev/shm/spindle-{:x}-{:x}.cache", file.dev(), file.ino());
    match std::fs::remove_file(cache) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

enum Verdict {
    Fine { leaky: bool },
    Lost(String),
    Corrupt(String),
    Refused(String),
}

/// What each sector may hold after a crash at `mark`: under the power-loss model what was flushed, and whatever was issued since;
/// under the kill model all that was completed.
fn allowed(commands: &[Action], mark: Mark, tear: Tear) -> Oracle {
    let mut oracle = Oracle::new(&vec![0; SECTORS as usize]);
    let completed = mark.completed as usize;
    let certain = if tear == Tear::Nothing {
        completed
    } else {
        commands[..completed]
            .iter()
            .rposition(|command| *command == Action::Flush)
            .unwrap_or(0)
    };
    for (index, command) in commands.iter().enumerate().take(mark.issued as usize) {
        oracle.issued(command);
        if index < certain {
            oracle.completed(command);
        }
    }
    oracle
}

/// Recovers the image with the engine, reads all of it, and closes it.
fn judge_with_spindle(image: &Path, mut oracle: Oracle) -> Result<Verdict> {
    let engine = Engine::new(EngineOptions::default())?;
    let disk = match engine.open(&OpenOptions::new(image, Format::Qcow2)) {
        Ok(disk) => disk,
        Err(error) => return Ok(Verdict::Refused(error.to_string())),
    };
    let buffer = Buffer::zeroed((SECTORS * SECTOR) as usize);
    let outcome = Arc::new(Mutex::new(None));
    let slot = outcome.clone();
    disk.submit(Request {
        command: disk::Command::Read {
            offset: 0,
            buffer: buffer.clone(),
        },
        done: Box::new(move |result| {
            if let Ok(mut slot) = slot.lock() {
                *slot = Some(result);
            }
        }),
    });
    let begin = Instant::now();
    let read = loop {
        engine.poll();
        if let Some(result) = outcome.lock().ok().and_then(|mut slot| slot.take()) {
            break result;
        }
        ensure!(
            begin.elapsed().as_secs() < 120,
            "reading {} does not end",
            image.display()
        );
    };
    drop(disk);
    engine.close().context("Cannot close the recovered image")?;
    if let Err(error) = read {
        return Ok(Verdict::Refused(error.to_string()));
    }
    // As strict as after any close: neither corruption nor leaks.
    let checked = check(image)?;
    if checked != 0 {
        return Ok(Verdict::Corrupt(format!(
            "qemu-img check gives {checked} after the recovery"
        )));
    }
    Ok(match oracle.compare(&buffer.to_vec()) {
        Ok(()) => Verdict::Fine { leaky: false },
        Err(what) => Verdict::Lost(what),
    })
}

/// QEMU has no recovery: what its crash left is what its driver reads.
fn judge_with_qemu(folder: &Path, image: &Path, mut oracle: Oracle) -> Result<Verdict> {
    const LEAKS: i32 = 3;
    let checked = check(image)?;
    if checked != 0 && checked != LEAKS {
        return Ok(Verdict::Corrupt(format!("qemu-img check gives {checked}")));
    }
    let raw = folder.join("state.raw");
    let name = |path: &PathBuf| path.to_string_lossy().into_owned();
    let arguments = [
        "convert",
        "-f",
        "qcow2",
        "-O",
        "raw",
        &name(&image.to_owned()),
        &name(&raw),
    ];
    if let Err(error) = qemu_img(&arguments) {
        return Ok(Verdict::Refused(error.to_string()));
    }
    Ok(match oracle.compare(&std::fs::read(&raw)?) {
        Ok(()) => Verdict::Fine {
            leaky: checked == LEAKS,
        },
        Err(what) => Verdict::Lost(what),
    })
}

/// qemu-img check's exit code: 0, 3 for leaks, 2 for corruption, 1 for an image that it cannot check.
fn check(image: &Path) -> Result<i32> {
    let program = find_program("qemu-img").context("`qemu-img` is not installed; `cargo xtask setup` installs it")?;
    let output = Command::new(program)
        .args(["check", "-q", "-f", "qcow2"])
        .arg(image)
        .output()?;
    output.status.code().context("qemu-img check was killed")
}

fn qemu_img(arguments: &[&str]) -> Result<()> {
    let program = find_program("qemu-img").context("`qemu-img` is not installed; `cargo xtask setup` installs it")?;
    let output = Command::new(program)
        .args(arguments)
        .output()
        .context("Cannot run qemu-img")?;
    if !output.status.success() {
        bail!(
            "qemu-img {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::oracle::stamp;
    use super::*;

    #[test]
    fn a_power_loss_may_take_what_was_not_flushed_and_a_kill_may_not() {
        let commands = [
            Action::Write {
                first: 0,
                count: 1,
                id: 1,
            },
            Action::Flush,
            Action::Write {
                first: 0,
                count: 1,
                id: 2,
            },
        ];
        let mark = Mark {
            issued: 3,
            completed: 3,
        };
        let holds = |id: u32, tear| {
            let mut disk = vec![0; (SECTORS * SECTOR) as usize];
            disk[..SECTOR as usize].copy_from_slice(&stamp(id, 0));
            allowed(&commands, mark, tear).compare(&disk).is_ok()
        };
        assert_eq!([0, 1, 2].map(|id| holds(id, Tear::Torn)), [false, true, true]);
        assert_eq!([0, 1, 2].map(|id| holds(id, Tear::Nothing)), [false, false, true]);
    }
}
