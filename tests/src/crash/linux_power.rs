//! Power loss under a stock Linux guest: the image lies on a recorded disk while the guest works, and crash states are made of the recording.
//!
//! Where guests run in the nested host, that has the recorded file as a disk, so its page cache and its block layer are between
//! spindle and the recording, as a host's are: the image is that block device, or a file on an ext4 of the nested host's on it. On a machine with
//! KVM of its own the image is the recorded file.
//!
//! The guest is that of [`super::linux`], and what it has acknowledged when a change is recorded is promised at any crash from then on. A
//! state is judged on this machine, without a boot: recovery by the engine, `qemu-img check`, e2fsck as after a kill, and the script that the guest
//! looks at its files with.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use disk::{Engine, EngineOptions, Format, OpenOptions};
use guest_images::{Guest, Image, Store, dump_from_ext4, find_program, folder_from_ext4, run_tool};
use power::{CrashState, Mark, RecordedFile, Recording, Tear};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::acknowledged::{Acknowledged, Boot};
use super::linux::{
    DISK_BYTES, Disk, LOOK, PATIENCE, SHAPES, boot_command, make_content, make_disk, mend_filesystem, tail,
};
use super::power_loss::{Column, MOST_EXAMPLES, forget_cache};
use super::tally::Failure;
use crate::run::End;
use crate::{Happening, Host, HostKind, check_image, convert_to_raw, target_folder};

/// Crash states that are made of one recording.
const STATES_A_RECORDING: u64 = 60;

/// Bytes of the recorded disk: for the guest's disk written once over, the snapshot of an empty one, and metadata.
const RECORDED_BYTES: u64 = 112 << 20;

/// The image in the host's work folder.
const IMAGE: &str = "recorded.qcow2";
/// The image on a host's file system of its own.
const IMAGE_ON_EXT4: &str = "image.qcow2";

/// How many crash states, of which binary, and from which seed.
pub struct LinuxPowerCampaign<'a> {
    /// The binary under test, static.
    pub spindle: &'a Path,
    /// How many crash states.
    pub states: u64,
    /// Decides disks, workloads and crash states.
    pub seed: u64,
    /// For images of failures.
    pub folder: &'a Path,
}

/// Runs a campaign; `progress` is told of each state, and which disk it is of.
///
/// # Errors
/// If the campaign itself cannot go on. What it found is in the column.
pub fn run_linux_power(campaign: &LinuxPowerCampaign<'_>, mut progress: impl FnMut(&Column, &str)) -> Result<Column> {
    find_program("sqlite3").context("`sqlite3` is not installed; `cargo xtask setup` installs it")?;
    std::fs::create_dir_all(campaign.folder).with_context(|| format!("Cannot create {}", campaign.folder.display()))?;
    let store = Store::open(&target_folder(), |step| eprintln!("{step}"))?;
    let guest = Guest::get(&store, Image::Debian)?;
    let begin = Instant::now();
    let mut column = Column {
        hypervisor: "spindle".to_owned(),
        guest: "linux".to_owned(),
        model: "power loss".to_owned(),
        ..Column::default()
    };
    while column.states < campaign.states {
        let number = column.recordings;
        let mut random = StdRng::seed_from_u64(campaign.seed.wrapping_mul(1 << 20).wrapping_add(number));
        let scene = Scene::set(campaign.seed.wrapping_add(number), &mut random)?;
        let recorded = scene.record(&store, &guest, campaign.spindle, &mut random)?;
        column.recordings += 1;
        column.events += recorded.recording.events.len() as u64;
        column.syncs += recorded.recording.syncs() as u64;
        for _ in 0..STATES_A_RECORDING.min(campaign.states - column.states) {
            let tear = [Tear::Torn, Tear::Torn, Tear::Some, Tear::Everything][random.random_range(0..4)];
            let at = recorded.moment(&mut random);
            let state = recorded.recording.crash(at, tear, &mut random);
            column.states += 1;
            if let Some((violation, what)) = scene.judge(&state, &recorded.acknowledged, &mut column.acknowledged)? {
                match violation {
                    Violation::Lost => column.lost += 1,
                    Violation::Corrupt => column.corrupt += 1,
                    Violation::Refused => column.refused += 1,
                }
                if column.failures.len() < MOST_EXAMPLES {
                    let name = format!("linux-failure-{}-{}", campaign.seed, column.states);
                    scene.keep(&state, &campaign.folder.join(name))?;
                    let place = format!(
                        "{}, crash before event {at} of {}, {tear:?}: {} of {} changes kept whole",
                        scene.describe(),
                        recorded.recording.events.len(),
                        state.kept,
                        state.pending
                    );
                    let seed = campaign.seed;
                    column.failures.push(Failure { seed, place, what });
                }
            }
            column.seconds = begin.elapsed().as_secs_f64();
            progress(&column, &scene.describe());
        }
    }
    Ok(column)
}

/// Where the image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It is the recorded file.
    File,
    /// It is a disk of the nested host, the recorded one.
    Device,
    /// It is a file on a file system of the nested host, on its recorded disk.
    Ext4,
}

impl Place {
    fn describe(self) -> &'static str {
        match self {
            Place::File => "a file",
            Place::Device => "a block device",
            Place::Ext4 => "a file on ext4",
        }
    }
}

/// What a crash state must not be.
enum Violation {
    Lost,
    Corrupt,
    Refused,
}

/// One boot, recorded.
struct Recorded {
    recording: Recording,
    /// The lines of the guest's acknowledgements. A mark says how many of them had come.
    acknowledged: Vec<String>,
}

impl Recorded {
    /// When to crash: half of the times with the first change that came after an acknowledgement, when nothing but the syncs before keeps it.
    fn moment(&self, random: &mut StdRng) -> usize {
        let events = &self.recording.events;
        let promised: Vec<usize> = (1..events.len())
            .filter(|at| events[*at].mark.completed > events[at - 1].mark.completed)
            .collect();
        if promised.is_empty() || random.random() {
            random.random_range(0..=events.len())
        } else {
            promised[random.random_range(0..promised.len())]
        }
    }
}

/// A disk, and where it is.
struct Scene {
    folder: tempfile::TempDir,
    disk: Disk,
    place: Place,
    cache: &'static str,
}

impl Scene {
    /// Makes a disk. Shapes and places take turns.
    fn set(number: u64, random: &mut StdRng) -> Result<Self> {
        let parent = target_folder().join("system-tests");
        std::fs::create_dir_all(&parent).with_context(|| format!("Cannot create {}", parent.display()))?;
        let folder = tempfile::tempdir_in(&parent)?;
        let raw = folder.path().join("empty.raw");
        plain_ext4(&make_content(folder.path())?, &raw, DISK_BYTES)?;
        let shape = SHAPES[number as usize % SHAPES.len()];
        let disk = make_disk(folder.path(), &raw, number, shape, random)?;
        let nested = [Place::Device, Place::Ext4][number as usize % 2];
        let place = match HostKind::detect() {
            HostKind::Hardware => Place::File,
            HostKind::Nested => nested,
        };
        let cache = ["writeback", "none"][random.random_range(0..2)];
        Ok(Self {
            folder,
            disk,
            place,
            cache,
        })
    }

    fn describe(&self) -> String {
        format!(
            "{}, cache={}, on {}",
            self.disk.describe,
            self.cache,
            self.place.describe()
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the recorded file holds at first.
    fn content(&self) -> Result<Vec<u8>> {
        let image = self.path(&self.disk.name);
        if self.place == Place::Ext4 {
            let (folder, raw) = (self.path("host-content"), self.path("host.raw"));
            std::fs::create_dir(&folder)?;
            std::fs::copy(&image, folder.join(IMAGE_ON_EXT4))?;
            plain_ext4(&folder, &raw, RECORDED_BYTES)?;
            return Ok(std::fs::read(&raw)?);
        }
        let mut content = std::fs::read(&image)?;
        if self.place == Place::Device {
            content.resize(RECORDED_BYTES as usize, 0);
        }
        Ok(content)
    }

    /// Boots a guest on the recorded disk, and ends all that runs when the guest has done enough.
    fn record(&self, store: &Store, guest: &Guest, spindle: &Path, random: &mut StdRng) -> Result<Recorded> {
        let mount = tempfile::tempdir()?;
        let count = Arc::new(AtomicU64::new(0));
        let counted = count.clone();
        let recorded = RecordedFile::mount(mount.path(), "disk", self.content()?, move || {
            let completed = counted.load(Ordering::SeqCst);
            Mark {
                issued: completed,
                completed,
            }
        })?;
        let acknowledged = self.run(store, guest, spindle, recorded.path(), &count, random);
        forget_cache(recorded.path())?;
        let recording = recorded.finish()?;
        let acknowledged = acknowledged.with_context(|| self.describe())?;
        ensure!(recording.syncs() > 0, "{}: nothing was synced", self.describe());
        Ok(Recorded {
            recording,
            acknowledged,
        })
    }

    fn run(
        &self,
        store: &Store,
        guest: &Guest,
        spindle: &Path,
        recorded: &Path,
        count: &AtomicU64,
        random: &mut StdRng,
    ) -> Result<Vec<String>> {
        let mut host = Host::new(store, spindle, Some(guest))?;
        host.guest_memory = 256;
        if let Some(backing) = &self.disk.backing {
            host.add_file(&format!("disks/{backing}"), &self.path(backing))?;
        }
        let mut standing = host.stand_on(recorded)?;
        let recorded = standing.recorded().context("The host has no recorded disk")?;
        let recorded = recorded.display();
        // The image finds its backing file beside the name that it was opened by.
        let said = standing.shell(&match self.place {
            Place::File | Place::Device => format!("ln -s {recorded} disks/{IMAGE}"),
            Place::Ext4 => format!(
                "mkdir recorded && mount -t ext4 {recorded} recorded && ln -s ../recorded/{IMAGE_ON_EXT4} disks/{IMAGE}"
            ),
        })?;
        ensure!(said.is_empty(), "Cannot prepare the recorded disk: {said}");
        let options = format!("{},cache={}", self.disk.options, self.cache);
        standing.launch(&boot_command(IMAGE, &options, random.random_range(1..1 << 30), 10_000))?;
        // The guest finds nothing yet, and nothing of what it does may fail.
        let (mut account, mut boot) = (Acknowledged::default(), Boot::default());
        let mut lines = Vec::new();
        let mut console = String::new();
        let enough = random.random_range(12..25);
        let delay = Duration::from_millis(random.random_range(0..1500));
        let followed = follow(&mut standing, enough, &mut console, |line| {
            account.take(line, &mut boot).map_err(anyhow::Error::msg)?;
            if line.starts_with("ACK ") {
                lines.push(line.to_owned());
                count.store(lines.len() as u64, Ordering::SeqCst);
            }
            Ok(boot.events)
        });
        followed.with_context(|| format!("console:\n{}\n{}", tail(&console), standing.stderr()))?;
        // What the guest does now is nobody's promise, and it is recorded.
        let until = Instant::now() + delay;
        while Instant::now() < until {
            standing.next(until.saturating_duration_since(Instant::now()))?;
        }
        standing.kill()?;
        let killed = Instant::now();
        loop {
            match standing.next(Duration::from_secs(5))? {
                Happening::Ended(End::Signalled(9)) => break,
                Happening::Ended(end) => bail!("spindle ended by itself: {end:?}\n{}", standing.stderr()),
                _ => ensure!(killed.elapsed() < PATIENCE, "spindle does not end"),
            }
        }
        // The nested host goes without a last word.
        drop(standing);
        Ok(lines)
    }

    /// What is wrong with a crash state, if anything is.
    fn judge(&self, state: &CrashState, lines: &[String], looked_for: &mut u64) -> Result<Option<(Violation, String)>> {
        let image = self.path("state.qcow2");
        let _ = std::fs::remove_file(&image);
        if self.place == Place::Ext4 {
            let host = self.path("state.ext4");
            write_sparse(&host, &state.bytes)?;
            if let Err(error) = mend_filesystem(&host) {
                return Ok(Some((Violation::Refused, format!("the host's file system: {error:#}"))));
            }
            dump_from_ext4(&host, &format!("/{IMAGE_ON_EXT4}"), &image)?;
        } else {
            write_sparse(&image, &state.bytes)?;
        }
        let engine = Engine::new(EngineOptions::default())?;
        match engine.open(&OpenOptions::new(&image, Format::Qcow2)) {
            Ok(disk) => drop(disk),
            Err(error) => return Ok(Some((Violation::Refused, error.to_string()))),
        }
        engine.close().context("Cannot close the recovered image")?;
        if let Err(error) = check_image(&image) {
            return Ok(Some((Violation::Corrupt, error.to_string())));
        }
        let raw = self.path("state.raw");
        convert_to_raw(&image, &raw)?;
        if let Err(error) = mend_filesystem(&raw) {
            return Ok(Some((Violation::Lost, format!("{error:#}"))));
        }
        let files = self.path("files");
        let _ = std::fs::remove_dir_all(&files);
        std::fs::create_dir(&files)?;
        folder_from_ext4(&raw, &files)?;
        let promised = &lines[..state.mark.completed as usize];
        Ok(match compare(promised, &look(&files)?) {
            Ok(verified) => {
                *looked_for += verified;
                None
            }
            Err(what) => Some((Violation::Lost, what)),
        })
    }

    /// Puts a state aside.
    fn keep(&self, state: &CrashState, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let name = if self.place == Place::Ext4 {
            "state.ext4"
        } else {
            "state.qcow2"
        };
        write_sparse(&folder.join(name), &state.bytes)?;
        if let Some(backing) = &self.disk.backing {
            std::fs::copy(self.path(backing), folder.join(backing))?;
        }
        Ok(())
    }
}

/// Follows the guest's console until `take` has counted `enough`.
fn follow(
    standing: &mut crate::StandingHost,
    enough: usize,
    console: &mut String,
    mut take: impl FnMut(&str) -> Result<usize>,
) -> Result<()> {
    let mut line = Vec::new();
    let mut last = Instant::now();
    loop {
        match standing.next(Duration::from_secs(5))? {
            Happening::Console(bytes) => {
                last = Instant::now();
                console.push_str(&String::from_utf8_lossy(&bytes));
                for byte in bytes {
                    if byte != b'\n' {
                        line.push(byte);
                        continue;
                    }
                    let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                    line.clear();
                    if take(&text)? >= enough {
                        return Ok(());
                    }
                }
            }
            Happening::Ended(end) => bail!("spindle ended by itself: {end:?}"),
            Happening::Nothing if last.elapsed() > PATIENCE => {
                bail!("the guest has said nothing for {} s", PATIENCE.as_secs());
            }
            Happening::Nothing => {}
        }
    }
}

/// What the guest would say of its files, line by line.
fn look(files: &Path) -> Result<Vec<String>> {
    let output = Command::new("sh")
        .args(["-c", LOOK])
        .current_dir(files)
        .output()
        .context("Cannot run sh")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect())
}

/// Compares what was acknowledged with what is found; returns how many acknowledgements were looked for.
fn compare(promised: &[String], found: &[String]) -> Result<u64, String> {
    let mut acknowledged = Acknowledged::default();
    let mut boot = Boot::default();
    for line in promised {
        acknowledged.take(line, &mut boot)?;
    }
    let mut boot = Boot::default();
    for line in found {
        acknowledged.take(line, &mut boot)?;
    }
    acknowledged.take("WORK", &mut boot)?;
    Ok(acknowledged.verified)
}

/// Makes an ext4 that bears torn writes: with checksums in its metadata, half a superblock would be none.
fn plain_ext4(folder: &Path, image: &Path, size: u64) -> Result<()> {
    let options = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        "^metadata_csum",
        "-E",
        "root_owner=0:0",
        "-d",
    ];
    let size = format!("{}k", size / 1024);
    let arguments = options.iter().map(AsRef::as_ref);
    run_tool(
        "mke2fs",
        arguments.chain([folder.as_os_str(), image.as_os_str(), size.as_ref()]),
    )?;
    Ok(())
}

/// Writes `bytes` to the file `path`, with holes where they are zeros.
fn write_sparse(path: &Path, bytes: &[u8]) -> Result<()> {
    const BLOCK: usize = 64 << 10;
    let mut file = File::create(path).with_context(|| format!("Cannot create {}", path.display()))?;
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start((index * BLOCK) as u64))?;
            file.write_all(block)?;
        }
    }
    file.set_len(bytes.len() as u64)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_before_the_crash_is_looked_for() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let promised = lines("ACK db 4\nACK f1 1\nACK trim 0\nACK f1 2");
        for (found, verdict) in [
            ("FOUND f1 2 ok\nDB ok 4|4|0", Some(2)),
            ("FOUND f1 3 ok\nDB ok 8|8|0", Some(2)),
            ("FOUND f1 1 ok\nDB ok 4|4|0", None),
            ("FOUND f1 2 damaged\nDB ok 4|4|0", None),
            ("FOUND f1 2 ok", None),
        ] {
            assert_eq!(compare(&promised, &lines(found)).ok(), verdict, "{found}");
        }
        assert_eq!(compare(&[], &[]).ok(), Some(0));
    }

    #[test]
    fn files_in_a_copy_are_looked_at_as_in_the_guest() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("tree")).unwrap();
        std::fs::write(folder.path().join("data.f1.2"), "hello").unwrap();
        let sum = "5d41402abc4b2a76b9719d911017c592";
        std::fs::write(folder.path().join("tree/f1"), format!("2 {sum}\n")).unwrap();
        std::fs::write(folder.path().join("tree/f2"), format!("2 {sum}\n")).unwrap();

        assert_eq!(look(folder.path()).unwrap(), ["FOUND f1 2 ok", "FOUND f2 2 damaged"]);
    }
}
