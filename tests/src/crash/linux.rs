//! A stock Linux guest on ext4, killed with its VMM: what it acknowledged on its console is there after the next boot.
//!
//! The guest's root is the Debian guest's disk, attached read-only, so that it stays the same; it works on a small disk of its own.
//! The place where guests run stays up, and only spindle and its guest start anew for each kill. There is one such place for each
//! CPU of this machine, and each disk is killed in one of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use guest_images::{Guest, Image, Store, check_ext4, ext4_from_directory, find_program, run_tool};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::acknowledged::{Acknowledged, Boot};
use super::guest;
use super::tally::{Failure, Spread, Tally};
use crate::run::End;
use crate::{Happening, Host, StandingHost, check_image, target_folder};

/// Says what is there of the workload's files.
pub(super) const LOOK: &str = include_str!("linux-look.sh");
const WORKLOAD: &str = include_str!("linux-workload.sh");

/// Bytes of the file system under test.
pub(super) const DISK_BYTES: u64 = 64 << 20;

/// Kills on one disk at most.
const KILLS_A_DISK: u64 = 25;
/// So that there is something to do for more than one host, even where kills are few.
const DISKS_AT_LEAST: u64 = 2;

/// A guest that says nothing new for so long hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);

/// Where the failpoints of a process in the host leave their trace, in the work folder.
const TRACE: &str = "trace";

/// Kills under a Linux guest: which binary, how many, and from which seed.
pub struct LinuxCampaign<'a> {
    /// The binary under test, static.
    pub spindle: &'a Path,
    /// The names of its failpoints, in their order; empty if it has none.
    pub failpoints: &'a [&'static str],
    /// How many processes to kill.
    pub kills: u64,
    /// Decides disks, workloads and when to kill, counted in lines of the guest's console.
    pub seed: u64,
}

/// Runs a campaign to its end or to its first failure; `progress` is told of each kill.
///
/// # Errors
/// If guests cannot be run at all. What the campaign found is in the tally.
pub fn run_linux(campaign: &LinuxCampaign<'_>, progress: impl FnMut(&Tally) + Send) -> Result<Tally> {
    let begin = Instant::now();
    let store = Store::open(&target_folder(), |step| eprintln!("{step}"))?;
    let guest = Guest::get(&store, Image::Debian)?;
    let folder = tempfile::tempdir()?;
    let disks = make_disks(folder.path(), campaign)?;
    let account = Account {
        tally: Mutex::new(Tally {
            guest: "linux".to_owned(),
            seed: campaign.seed,
            ..Tally::default()
        }),
        recovery: Mutex::default(),
        failed: AtomicBool::new(false),
        progress: Mutex::new(Box::new(progress)),
    };
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let shares: Vec<&[Disk]> = disks.chunks(disks.len().div_ceil(cpus)).collect();
    thread::scope(|scope| {
        let wards: Vec<_> = shares
            .iter()
            .map(|share| scope.spawn(|| run_share(campaign, &store, &guest, folder.path(), share, &account)))
            .collect();
        let ends = wards.into_iter().map(|ward| match ward.join() {
            Ok(end) => end,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ends.collect::<Result<Vec<()>>>()
    })?;
    let recovery = Spread::of(&lock(&account.recovery));
    let mut tally = lock(&account.tally).clone();
    tally.recovery = recovery;
    tally.seconds = begin.elapsed().as_secs_f64();
    if !tally.failures.is_empty() {
        keep(folder.path())?;
    }
    Ok(tally)
}

/// Kills under one guest after the other, in a host of their own.
fn run_share(
    campaign: &LinuxCampaign<'_>,
    store: &Store,
    guest: &Guest,
    folder: &Path,
    disks: &[Disk],
    account: &Account<'_>,
) -> Result<()> {
    let mut host = Host::new(store, campaign.spindle, Some(guest))?;
    host.guest_memory = 256;
    host.add_file("disks/power-off.elf", &folder.join("power-off.elf"))?;
    for file in disks.iter().flat_map(|disk| disk.backing.iter().chain([&disk.name])) {
        host.add_file(&format!("disks/{file}"), &folder.join(file))?;
    }
    let mut standing = host.stand()?;
    for disk in disks {
        let mut ward = Ward {
            host: &mut standing,
            folder,
            failpoints: campaign.failpoints,
            disk,
            random: StdRng::seed_from_u64(disk.seed),
            acknowledged: Acknowledged::default(),
            kills: 0,
            passed: vec![0; campaign.failpoints.len()],
            account,
        };
        let lived = ward.live();
        let mut tally = lock(&account.tally);
        tally.acknowledged += ward.acknowledged.verified;
        tally.images += 1;
        if let Err(error) = lived {
            let what = format!("{error:#}");
            let place = format!("{} after {} kills", disk.describe, ward.kills);
            let seed = campaign.seed;
            tally.failures.push(Failure { seed, place, what });
            account.failed.store(true, Ordering::Relaxed);
        }
        if account.failed.load(Ordering::Relaxed) {
            break;
        }
    }
    standing.finish()
}

/// Is told of each kill.
type Progress<'p> = Box<dyn FnMut(&Tally) + Send + 'p>;

/// What all hosts report to.
struct Account<'p> {
    tally: Mutex<Tally>,
    recovery: Mutex<Vec<Duration>>,
    /// The others end at their next kill.
    failed: AtomicBool,
    progress: Mutex<Progress<'p>>,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk under test.
pub(super) struct Disk {
    /// Its name in the work folder.
    pub(super) name: String,
    /// Its backing file's.
    pub(super) backing: Option<String>,
    pub(super) options: &'static str,
    pub(super) describe: String,
    /// How many processes to kill on it.
    kills: u64,
    /// Decides when.
    seed: u64,
}

/// What a disk is above.
pub(super) const SHAPES: [&str; 3] = ["plain", "under a snapshot", "above a backing file"];

fn make_disks(folder: &Path, campaign: &LinuxCampaign<'_>) -> Result<Vec<Disk>> {
    let mut random = StdRng::seed_from_u64(campaign.seed);
    let content = make_content(folder)?;
    let raw = folder.join("empty.raw");
    ext4_from_directory(&content, &raw, DISK_BYTES)?;
    let power_off = folder.join("power-off.elf");
    std::fs::write(&power_off, guest::power_off_image()?)?;
    let mut disks = Vec::new();
    let kills_a_disk = KILLS_A_DISK.min(campaign.kills.div_ceil(DISKS_AT_LEAST)).max(1);
    for number in 0..campaign.kills.div_ceil(kills_a_disk) {
        let shape = SHAPES[random.random_range(0..3)];
        let mut disk = make_disk(folder, &raw, number, shape, &mut random)?;
        disk.kills = kills_a_disk.min(campaign.kills - number * kills_a_disk);
        disks.push(disk);
    }
    Ok(disks)
}

/// What the file system under test holds at first: the workload.
pub(super) fn make_content(folder: &Path) -> Result<PathBuf> {
    let content = folder.join("content");
    std::fs::create_dir(&content)?;
    std::fs::write(content.join("workload.sh"), [LOOK, WORKLOAD].concat())?;
    Ok(content)
}

/// Makes disk `number` of the content of `raw`, as an image in `folder`. Nothing is to be killed on it yet.
pub(super) fn make_disk(folder: &Path, raw: &Path, number: u64, shape: &str, random: &mut StdRng) -> Result<Disk> {
    let clusters = [4096, 65536, 65536, 512][random.random_range(0..4)];
    let options = [
        "discard=unmap",
        "discard=unmap",
        "discard=ignore",
        "discard=unmap,detect-zeroes=unmap",
    ];
    let options = options[random.random_range(0..4)];
    let name = format!("disk-{number}.qcow2");
    let image = folder.join(&name);
    let cluster_option = format!("cluster_size={clusters}");
    let convert = |to: &Path| {
        let arguments = ["convert", "-f", "raw", "-O", "qcow2", "-o", &cluster_option].map(AsRef::as_ref);
        run_tool(
            "qemu-img",
            arguments.into_iter().chain([raw.as_os_str(), to.as_os_str()]),
        )
    };
    let mut backing = None;
    if shape == "above a backing file" {
        let below = format!("below-{number}.qcow2");
        convert(&folder.join(&below))?;
        crate::create_overlay(&image, &below)?;
        backing = Some(below);
    } else {
        convert(&image)?;
    }
    if shape == "under a snapshot" {
        run_tool(
            "qemu-img",
            ["snapshot", "-c", "before"]
                .map(AsRef::as_ref)
                .into_iter()
                .chain([image.as_os_str()]),
        )?;
    }
    Ok(Disk {
        name,
        backing,
        options,
        describe: format!("disk {number} ({shape}, clusters of {clusters}, {options})"),
        kills: 0,
        seed: random.random(),
    })
}

/// Where the guests of one disk live and die.
struct Ward<'a, 'p> {
    host: &'a mut StandingHost,
    folder: &'a Path,
    failpoints: &'a [&'static str],
    disk: &'a Disk,
    random: StdRng,
    acknowledged: Acknowledged,
    kills: u64,
    /// How often one process passed each failpoint, at most.
    passed: Vec<u64>,
    account: &'a Account<'p>,
}

/// When a process is to be killed.
enum Plan {
    /// After so many lines of the guest's account, and this long after that.
    After { events: usize, delay: Duration },
    /// By itself, at a failpoint.
    Failpoint(String),
    /// Not at all: the guest looks at what is there, and powers off.
    Look,
}

impl Ward<'_, '_> {
    fn live(&mut self) -> Result<()> {
        while self.kills < self.disk.kills {
            let plan = self.plan();
            self.boot(&plan)?;
            self.recover()?;
            self.judge()?;
            let mut tally = lock(&self.account.tally);
            tally.checks += 1;
            lock(&self.account.progress)(&tally);
            if self.account.failed.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
        self.boot(&Plan::Look)?;
        self.judge()?;
        let mut tally = lock(&self.account.tally);
        tally.clean_ends += 1;
        tally.checks += 1;
        Ok(())
    }

    fn plan(&mut self) -> Plan {
        if !self.failpoints.is_empty() && self.random.random_ratio(2, 5) {
            let (point, passed) = self.failpoint();
            let bits = self.random.random_range(0..10);
            let time = self.random.random_range(1..=passed.min(1 << bits));
            return Plan::Failpoint(format!("{point}:{time}"));
        }
        Plan::After {
            // 0 is before the guest has looked at its disk: it may be replaying its journal.
            events: self.random.random_range(0..10),
            delay: Duration::from_millis(self.random.random_range(0..1500)),
        }
    }

    /// A failpoint, and how often a process on this disk may pass it: mostly one that was passed before.
    fn failpoint(&mut self) -> (&'static str, u64) {
        let known: Vec<_> = self
            .failpoints
            .iter()
            .zip(&self.passed)
            .filter(|(_, passed)| **passed > 0)
            .collect();
        if known.is_empty() || self.random.random_ratio(1, 8) {
            return (self.failpoints[self.random.random_range(0..self.failpoints.len())], 4);
        }
        let (name, passed) = known[self.random.random_range(0..known.len())];
        (name, *passed)
    }

    fn boot(&mut self, plan: &Plan) -> Result<()> {
        self.host
            .shell(&format!("rm -f {TRACE}; dd if=/dev/zero of={TRACE} bs=2048 count=1"))?;
        let rounds = if matches!(plan, Plan::Look) { 0 } else { 10_000 };
        let seed = self.random.random_range(1..1 << 30);
        let failpoint = if let Plan::Failpoint(failpoint) = plan {
            Some(failpoint.as_str())
        } else {
            None
        };
        let mut command = environment(failpoint);
        command.extend(boot_command(&self.disk.name, self.disk.options, seed, rounds));
        self.host.launch(&command)?;
        let mut boot = Boot::default();
        let mut console = String::new();
        let end = self.follow(plan, &mut boot, &mut console);
        let end = end.with_context(|| format!("console:\n{}\n{}", tail(&console), self.host.stderr()))?;
        if matches!(plan, Plan::Look) {
            let fine = end.signal.is_none() && boot.worked && end.end == End::Exited(0);
            ensure!(
                fine,
                "the last boot ended with {:?}\nconsole:\n{}\n{}",
                end.end,
                tail(&console),
                self.host.stderr()
            );
            return Ok(());
        }
        ensure!(
            end.end == End::Signalled(9),
            "spindle ended by itself: {:?}\nconsole:\n{}\n{}",
            end.end,
            tail(&console),
            self.host.stderr()
        );
        self.note_kill(end.signal.is_none(), console.is_empty())
    }

    /// Follows the guest until it was killed.
    fn follow(&mut self, plan: &Plan, boot: &mut Boot, console: &mut String) -> Result<Followed> {
        let mut line = Vec::new();
        let mut kill_at = None;
        let mut killed = None;
        let mut last = Instant::now();
        // A failpoint that is never passed is no reason to wait for ever.
        let most = match plan {
            Plan::After { events, .. } => *events,
            Plan::Failpoint(_) => 15,
            Plan::Look => usize::MAX,
        };
        loop {
            if kill_at.is_none() && boot.events >= most && !console.is_empty() {
                let delay = if let Plan::After { delay, .. } = plan {
                    *delay
                } else {
                    Duration::ZERO
                };
                kill_at = Some(Instant::now() + delay);
            }
            if kill_at.is_some_and(|at| Instant::now() >= at) && killed.is_none() {
                self.host.kill()?;
                killed = Some(9);
            }
            let wait = kill_at
                .filter(|_| killed.is_none())
                .map_or(Duration::from_secs(5), |at| {
                    at.saturating_duration_since(Instant::now())
                });
            match self.host.next(wait)? {
                Happening::Console(bytes) => {
                    last = Instant::now();
                    console.push_str(&String::from_utf8_lossy(&bytes));
                    for byte in bytes {
                        if byte == b'\n' {
                            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                            line.clear();
                            self.acknowledged
                                .take(&text, boot)
                                .map_err(anyhow::Error::msg)
                                .context("a promise is broken")?;
                        } else {
                            line.push(byte);
                        }
                    }
                }
                Happening::Ended(end) => return Ok(Followed { end, signal: killed }),
                Happening::Nothing if last.elapsed() > PATIENCE => {
                    self.host.kill()?;
                    bail!("the guest has said nothing for {} s", PATIENCE.as_secs());
                }
                Happening::Nothing => {}
            }
        }
    }

    /// Opens the disk once more and closes it: that recovers it. Every fifth time that is killed, too.
    fn recover(&mut self) -> Result<()> {
        let points: Vec<&str> = self
            .failpoints
            .iter()
            .copied()
            .filter(|name| is_passed_by_recovery(name))
            .collect();
        if !points.is_empty() && self.random.random_ratio(1, 5) {
            let point = points[self.random.random_range(0..points.len())];
            let failpoint = format!("{point}:{}", self.random.random_range(1..=3));
            self.host
                .shell(&format!("rm -f {TRACE}; dd if=/dev/zero of={TRACE} bs=2048 count=1"))?;
            if self.power_off(Some(&failpoint))? == End::Signalled(9) {
                self.note_kill(true, true)?;
            }
        }
        let begin = Instant::now();
        let end = self.power_off(None)?;
        lock(&self.account.recovery).push(begin.elapsed());
        ensure!(
            end == End::Exited(0),
            "recovery ended with {end:?}\n{}",
            self.host.stderr()
        );
        Ok(())
    }

    /// Runs a guest that powers off at once.
    fn power_off(&mut self, failpoint: Option<&str>) -> Result<End> {
        let mut command = environment(failpoint);
        let words = [
            "./spindle",
            "--log",
            "info",
            "run",
            "--console",
            "null",
            "--memory",
            "16M",
            "--kernel",
        ];
        command.extend(words.map(str::to_owned));
        command.extend(["disks/power-off.elf", "--disk"].map(str::to_owned));
        command.push(format!("disks/{},{}", self.disk.name, self.disk.options));
        self.host.launch(&command)?;
        let begin = Instant::now();
        loop {
            match self.host.next(Duration::from_secs(5))? {
                Happening::Ended(end) => {
                    let errors = self.host.stderr();
                    let mut tally = lock(&self.account.tally);
                    tally.leaks_reclaimed += logged(&errors, "reclaimed");
                    tally.slices_recovered += logged(&errors, "slices");
                    return Ok(end);
                }
                _ if begin.elapsed() > PATIENCE => bail!("recovery does not end\n{}", self.host.stderr()),
                _ => {}
            }
        }
    }

    /// Takes account of a kill, and of the points of the write path that the process passed.
    fn note_kill(&mut self, at_failpoint: bool, during_open: bool) -> Result<()> {
        let bytes = 8 * (1 + self.failpoints.len());
        let said = self.host.shell(&format!("od -An -v -tu8 -N{bytes} {TRACE}"))?;
        let mut words = said.split(['|', ' ']).filter_map(|word| word.parse::<u64>().ok());
        let last = words.next().and_then(|word| usize::try_from(word).ok()?.checked_sub(1));
        let name = last.and_then(|point| self.failpoints.get(point)).unwrap_or(&"start");
        self.kills += 1;
        let mut tally = lock(&self.account.tally);
        for ((name, most), passed) in self.failpoints.iter().zip(&mut self.passed).zip(words) {
            *most = passed.max(*most);
            tally.points.entry((*name).to_owned()).or_default().passed += passed;
        }
        tally.kills += 1;
        tally.kills_during_open += u64::from(during_open);
        let kills = tally.points.entry((*name).to_owned()).or_default();
        if at_failpoint {
            kills.failpoint += 1;
            tally.failpoint_kills += 1;
        } else {
            kills.random += 1;
            tally.random_kills += 1;
        }
        Ok(())
    }

    /// The image has neither corruption nor leaks, and the file system on it is whole once its journal is replayed.
    fn judge(&mut self) -> Result<()> {
        let disk = self.disk;
        let image = self.folder.join(&disk.name);
        self.host.fetch(&format!("disks/{}", disk.name), &image)?;
        ensure!(disk.backing.as_ref().is_none_or(|name| self.folder.join(name).exists()));
        check_image(&image).context("qemu-img check finds fault with the image")?;
        let raw = image.with_extension("raw");
        crate::convert_to_raw(&image, &raw)?;
        mend_filesystem(&raw)
    }
}

/// Replays the journal of the file system on `raw` and clears orphaned inodes. There is nothing else to mend.
pub(super) fn mend_filesystem(raw: &Path) -> Result<()> {
    let program = find_program("e2fsck").context("`e2fsck` is not installed; `cargo xtask setup` installs it")?;
    let preened = Command::new(program)
        .arg("-p")
        .arg(raw)
        .output()
        .context("Cannot run e2fsck")?;
    let said = String::from_utf8_lossy(&preened.stdout);
    // e2fsck(8): 1 is "file system errors corrected", which files that were deleted while open are, too.
    let fine = matches!(preened.status.code(), Some(0 | 1)) && said.lines().all(is_expected_after_a_kill);
    ensure!(fine, "e2fsck -p: {said}");
    check_ext4(raw).context("e2fsck -fn finds fault with the file system")
}

/// What e2fsck says of a file system that was not unmounted and is whole.
fn is_expected_after_a_kill(line: &str) -> bool {
    const EXPECTED: [&str; 4] = [
        ": recovering journal",
        ": Clearing orphaned inode ",
        ": Truncating orphaned inode ",
        ": clean, ",
    ];
    EXPECTED.iter().any(|words| line.contains(words))
}

/// How a followed process ended.
struct Followed {
    end: End,
    /// The signal that we sent.
    signal: Option<i32>,
}

fn environment(failpoint: Option<&str>) -> Vec<String> {
    let mut command = vec![
        "env".to_owned(),
        "NO_COLOR=1".to_owned(),
        format!("SPINDLE_FAILPOINT_TRACE={TRACE}"),
    ];
    command.extend(failpoint.map(|failpoint| format!("SPINDLE_FAILPOINT={failpoint}")));
    command
}

/// Boots the guest with the image `disks/NAME` as its disk under test; it looks, and then works for so many rounds.
pub(super) fn boot_command(name: &str, options: &str, seed: u32, rounds: u32) -> Vec<String> {
    // By its place: the kernel names disks in the order in which it finds them.
    let script = format!(
        "until d=$(ls /sys/bus/scsi/devices/0:0:0:0/block); do sleep .1; done; mount -o noatime /dev/$d /mnt || echo FAILED: mount
cp /mnt/workload.sh /run && cd /mnt && SEED={seed} ROUNDS={rounds} && . /run/workload.sh"
    );
    let append = format!(
        "console=ttyS0 nokaslr root=hdb ro quiet {} spindle.exec={}",
        crate::Boot::LEAN,
        BASE64_STANDARD.encode(script)
    );
    let (kernel, initrd) = (format!("base/{}", Guest::KERNEL), format!("base/{}", Guest::INITRAMFS));
    let words = [
        "./spindle",
        "run",
        "--kernel",
        &kernel,
        "--initrd",
        &initrd,
        "--append",
        &append,
    ];
    let mut command = words.map(str::to_owned).to_vec();
    command.push("--disk".to_owned());
    command.push(format!("disks/{name},slot=hda,{options}"));
    command.push("--disk".to_owned());
    command.push(format!("base/{},slot=hdb,readonly", Guest::DISK));
    command.extend(["--memory", "256M", "--console", "stdio", "--no-reboot"].map(str::to_owned));
    command
}

fn is_passed_by_recovery(name: &str) -> bool {
    name.starts_with("recover_") || name.starts_with("cache_file_") || name.starts_with("dirty_bit_")
}

fn logged(errors: &str, name: &str) -> u64 {
    let values = errors
        .split_whitespace()
        .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    values.filter_map(|value| value.parse::<u64>().ok()).sum()
}

pub(super) fn tail(console: &str) -> &str {
    let start = console.len().saturating_sub(4000);
    let start = (start..console.len())
        .find(|at| console.is_char_boundary(*at))
        .unwrap_or(console.len());
    &console[start..]
}

/// Puts the disks of a failure aside.
fn keep(folder: &Path) -> Result<()> {
    let aside: PathBuf = target_folder().join("crash-failure-linux");
    let _ = std::fs::remove_dir_all(&aside);
    std::fs::create_dir_all(&aside)?;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), aside.join(entry.file_name()))?;
        }
    }
    Ok(())
}
