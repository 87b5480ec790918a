//! Promise K on the real thing: five hundred kills under a bare-metal guest, each sector compared after each, and ten under a stock
//! Linux, which looks for all that it had made durable. Promise P on the real thing: power losses under both.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use system_tests::crash::{
    BareMetalCampaign, LinuxCampaign, LinuxPowerCampaign, PowerCampaign, can_record, run_bare_metal, run_linux,
    run_linux_power, run_power,
};
use system_tests::{static_spindle, workspace_folder};

const KILLS: u64 = 500;
const LINUX_KILLS: u64 = 10;

/// Decides what a test does; drawn, and printed.
fn seed() -> u64 {
    let seed =
        std::env::var("SPINDLE_SEED").map_or_else(|_| rand::random::<u32>().into(), |seed| seed.parse().unwrap());
    println!("SPINDLE_SEED={seed}");
    seed
}

/// The `spindle` of the profile that this test is built with; a debug build has failpoints.
fn spindle() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(workspace_folder())
        .args(["build", "--quiet", "--package", "vmm", "--bin", "spindle"])
        .status()
        .expect("cargo runs");
    assert!(status.success(), "spindle does not build");
    let here = std::env::current_exe().expect("this test");
    let target = here
        .ancestors()
        .find(|folder| folder.join("deps").is_dir())
        .expect("a target folder");
    target.parent().expect("its parent").join("debug/spindle")
}

#[test]
fn nothing_that_completed_is_lost_in_five_hundred_kills() {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("left out: this machine has no /dev/kvm that we may open");
        return;
    }
    let seed = seed();
    let kills = std::env::var("SPINDLE_KILLS").map_or(KILLS, |kills| kills.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let campaign = BareMetalCampaign {
        spindle: &spindle(),
        failpoints: disk::failpoint::NAMES,
        kills,
        seed,
        folder: folder.path(),
    };

    let tally = run_bare_metal(&campaign, |_| {}).unwrap();

    println!("{tally:#?}");
    if !tally.failures.is_empty() {
        println!("the images are kept in {}", folder.keep().display());
    }
    assert!(tally.failures.is_empty(), "{:#?}", tally.failures);
    assert_eq!(tally.kills, kills);
    assert!(
        tally.acknowledged > kills && tally.failpoint_kills > kills / 10,
        "the kills came too early to prove anything"
    );
}

#[test]
fn a_power_loss_takes_nothing_that_was_flushed() {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        eprintln!("left out: this machine has no /dev/kvm that we may open");
        return;
    }
    if let Err(error) = can_record() {
        eprintln!("left out: {error:#}");
        return;
    }
    let seed = seed();
    let folder = tempfile::tempdir().unwrap();
    let campaign = PowerCampaign {
        spindle: &spindle(),
        states: 60,
        qemu_states: 0,
        seed,
        folder: folder.path(),
    };

    let columns = run_power(&campaign, |_| {}).unwrap();

    println!("{columns:#?}");
    assert!(
        columns
            .iter()
            .all(|column| column.violations() == 0 && column.syncs > 0),
        "{columns:#?}"
    );
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn nothing_that_linux_made_durable_is_lost_in_ten_kills() {
    let campaign = LinuxCampaign {
        spindle: &static_spindle().unwrap(),
        failpoints: &[],
        kills: LINUX_KILLS,
        seed: seed(),
    };

    let tally = run_linux(&campaign, |tally| println!("{} kills", tally.kills)).unwrap();

    println!("{tally:#?}");
    assert!(tally.failures.is_empty(), "{:#?}", tally.failures);
    assert_eq!(tally.kills, LINUX_KILLS);
    assert!(tally.acknowledged > 0, "the kills came too early to prove anything");
}

#[test]
#[ignore = "boots a guest: `cargo xtask test` runs it"]
fn a_power_loss_takes_nothing_that_linux_made_durable() {
    if let Err(error) = can_record() {
        eprintln!("left out: {error:#}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let campaign = LinuxPowerCampaign {
        spindle: &static_spindle().unwrap(),
        states: 30,
        seed: seed(),
        folder: folder.path(),
    };

    let column = run_linux_power(&campaign, |_, _| {}).unwrap();

    println!("{column:#?}");
    if column.violations() > 0 {
        println!("the images are kept in {}", folder.keep().display());
    }
    assert!(column.failures.is_empty(), "{:#?}", column.failures);
    assert!(column.acknowledged > 0, "the crashes came too early to prove anything");
}
