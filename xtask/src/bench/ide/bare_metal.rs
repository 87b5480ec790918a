//! The bare-metal guest on this machine's KVM: libata's accesses, one command at a time, timed from outside by what the guest
//! prints. It waits for a command by reading the bus master's status, so its exits count the waiting, too.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_images::bare_metal::libata::{self, Channel, Direction};
use guest_images::bare_metal::{BareMetalGuest, Mode, PowerOff};
use guest_images::{find_program, run_tool};
use iced_x86::IcedError;

use super::exit_counter::ExitCounter;
use super::{Kind, LARGE, LOADS, Load, Measured, Row, Vmm};

/// Where the guest puts the bus master: a place that QEMU's firmware gives to nobody.
const BUS_MASTER: u16 = 0xd000;
const BUFFER: u32 = 0x40_0000;
const SECTOR: u32 = 512;
/// The part of the disk that is used, in sectors.
const SPAN: u32 = (64 << 20) / SECTOR;

/// How many requests of a size a round takes.
fn requests(load: Load) -> u32 {
    if load.bytes == LARGE { 150 } else { 2000 }
}

/// The reset control register (PIIX4): both VMMs end by a reset when they are told not to reboot.
const RESET: (u16, u8) = (0xcf9, 0x06);

fn guest() -> Result<Vec<u8>> {
    // It never powers off by ACPI, whose ports differ, unless a check fails; then either value leaves it spinning, and it is killed.
    let mut guest = BareMetalGuest::new(Mode::Pvh, PowerOff::acpi(0x604, 0))?;
    assemble(&mut guest).context("The guest does not assemble")?;
    guest.build().context("The guest does not assemble")
}

fn assemble(guest: &mut BareMetalGuest) -> Result<(), IcedError> {
    let channel = Channel {
        bus_master: BUS_MASTER,
        ..Channel::PRIMARY
    };
    libata::enable(guest, BUS_MASTER)?;
    for load in LOADS {
        let sectors = (load.bytes / SECTOR) as u16;
        guest.store32(channel.lba(), 0)?;
        guest.print(&format!("@begin {}\n", load.name))?;
        libata::repeat(guest, channel, requests(load), |guest| {
            libata::advance(guest, channel, sectors, SPAN)?;
            let direction = if load.kind == Kind::Read {
                Direction::Read
            } else {
                Direction::Write
            };
            libata::transfer(guest, channel, direction, sectors, BUFFER)?;
            if load.kind == Kind::Durable {
                libata::flush(guest, channel)?;
            }
            Ok(())
        })?;
        guest.print(&format!("@end {}\n", load.name))?;
    }
    guest.out8(RESET.0, RESET.1)?;
    guest.stop()
}

/// Measures both VMMs, `rounds` times each.
pub(super) fn measure(spindle: &Path, options: &[String], rounds: u32) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir_in(system_tests::target_folder()).context("Cannot make a folder")?;
    let kernel = folder.path().join("guest.elf");
    std::fs::write(&kernel, guest()?).context("Cannot write the guest")?;
    let disk = folder.path().join("disk.qcow2");
    run_tool(
        "qemu-img",
        [
            "create".as_ref(),
            "-q".as_ref(),
            "-f".as_ref(),
            "qcow2".as_ref(),
            "-o".as_ref(),
            "preallocation=full".as_ref(),
            disk.as_os_str(),
            "128M".as_ref(),
        ],
    )?;
    let counter = ExitCounter::start();
    let mut measured: [[Measured; LOADS.len()]; 2] = Default::default();
    for round in 0..rounds {
        for vmm in Vmm::order(round) {
            let command = command(vmm, spindle, options, &kernel, &disk)?;
            run(command, counter.as_ref(), &mut measured[vmm as usize])
                .with_context(|| format!("The bare-metal guest under {}", vmm.name()))?;
        }
    }
    let [ours, theirs] = &measured;
    Ok(LOADS
        .iter()
        .zip(ours.iter().zip(theirs))
        .map(|(load, (ours, theirs))| Row::new("bare-metal", *load, ours, theirs))
        .collect())
}

fn command(vmm: Vmm, spindle: &Path, options: &[String], kernel: &Path, disk: &Path) -> Result<Command> {
    let program: PathBuf = match vmm {
        Vmm::Spindle => spindle.to_path_buf(),
        Vmm::Qemu => find_program("qemu-system-x86_64").context("qemu-system-x86_64 is not installed")?,
    };
    let mut command = Command::new(program);
    match vmm {
        Vmm::Spindle => {
            command
                .args(["run", "--no-reboot", "--memory", "64M", "--kernel"])
                .arg(kernel);
            command.arg("--disk").arg(disk).args(options);
        }
        Vmm::Qemu => {
            command.args("-machine pc -accel kvm -cpu qemu64 -m 64 -nodefaults -no-user-config".split(' '));
            command
                .args("-display none -serial stdio -no-reboot -kernel".split(' '))
                .arg(kernel);
            command
                .arg("-drive")
                .arg(format!("file={},if=ide,format=qcow2", disk.display()));
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(command)
}

/// Ends the VMM whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(mut command: Command, counter: Option<&ExitCounter>, measured: &mut [Measured; LOADS.len()]) -> Result<()> {
    let mut running = Running(command.spawn().context("It does not start")?);
    let id = running.0.id();
    let output = running.0.stdout.take().context("Its output is not there")?;
    let mut begin: Option<(Instant, Option<u64>)> = None;
    let mut done = 0;
    for line in BufReader::new(output).lines() {
        let line = line.context("Its output cannot be read")?;
        let exits = || counter.and_then(|counter| counter.of_process(id));
        if line.contains("FAILED") {
            bail!("{line}");
        } else if line.contains("@begin") {
            begin = Some((Instant::now(), exits()));
        } else if let Some((_, name)) = line.split_once("@end ") {
            let (start, before) = begin.take().context("An end without a beginning")?;
            let time: Duration = start.elapsed();
            let index = LOADS
                .iter()
                .position(|load| load.name == name.trim())
                .with_context(|| format!("Nobody asked for {name}"))?;
            let count = f64::from(requests(LOADS[index]));
            measured[index].rates.push(count / time.as_secs_f64());
            measured[index].exits = before
                .zip(exits())
                .map(|(before, after)| (after - before) as f64 / count);
            done += 1;
        }
    }
    if done < LOADS.len() {
        bail!("It ended after {done} of {} loads", LOADS.len());
    }
    Ok(())
}
