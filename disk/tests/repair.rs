//! `check -r` never makes an image worse: whatever could be read before reads the same after it, and there is no more wrong than before.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use disk::{Format, ImageAtRest, RepairMode, RestOptions, check_image, repair_image};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

/// Images that are damaged at random.
const SEEDS: u64 = 300;

/// Of the images, which is also what is read at a time.
const CLUSTER: u64 = 4096;

/// What can be read of a disk and of its snapshots, cluster by cluster; `None` is an error.
type Content = Vec<Option<Vec<u8>>>;

fn seeds() -> std::ops::Range<u64> {
    match std::env::var("SPINDLE_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("SPINDLE_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..SEEDS,
    }
}

fn run(directory: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("runs");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

/// An image with data, compressed clusters, zeros, and two snapshots.
fn image() -> (TempDir, Vec<u8>) {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path();
    let io = |commands: &[&str]| {
        let mut arguments = vec!["-f", "qcow2"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push("whole.qcow2");
        run(path, "qemu-io", &arguments);
    };
    run(
        path,
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "cluster_size=4k",
            "whole.qcow2",
            "4M",
        ],
    );
    io(&["write -P 1 0 200k", "write -c -P 2 1M 16k", "write -z 300k 64k"]);
    run(path, "qemu-img", &["snapshot", "-c", "one", "whole.qcow2"]);
    io(&["write -P 3 100k 60k", "write -P 4 3M 40k"]);
    run(path, "qemu-img", &["snapshot", "-c", "two", "whole.qcow2"]);
    io(&["write -P 5 3M 8k", "write -c -P 6 2M 8k"]);
    let bytes = fs::read(path.join("whole.qcow2")).expect("read");
    (directory, bytes)
}

fn content(path: &Path) -> Vec<Content> {
    [None, Some("one"), Some("two")]
        .into_iter()
        .map(|snapshot| {
            let image = ImageAtRest::open(&RestOptions {
                snapshot: snapshot.map(str::to_owned),
                ..RestOptions::new(path, Format::Qcow2)
            });
            let Ok(image) = image else { return Vec::new() };
            let read = |offset: u64| {
                let mut cluster = vec![0; CLUSTER as usize];
                image.read(offset, &mut cluster).ok().map(|()| cluster)
            };
            (0..image.size().min(4 << 20))
                .step_by(CLUSTER as usize)
                .map(read)
                .collect()
        })
        .collect()
}

/// Patches a few places, most of them in tables.
fn damage(path: &Path, whole: &[u8], random: &mut SmallRng) {
    let file = OpenOptions::new().write(true).open(path).expect("there");
    let word = |at: usize| u64::from_be_bytes(whole[at..at + 8].try_into().expect("8 bytes"));
    let table = |offset: u64| (offset & 0x00ff_ffff_ffff_fe00) as usize;
    let l1 = table(word(40));
    let (refcounts, block) = (table(word(48)), table(word(table(word(48)))));
    let snapshots = table(word(64));
    for _ in 0..random.random_range(1..4) {
        let l2 = table(word(l1 + 8 * random.random_range(0..2)));
        let (base, entries) = [
            (l1, 2),
            (l2, 512),
            (refcounts, 4),
            (block, 400),
            (snapshots, 12),
            (24, 6),
        ][random.random_range(0..6)];
        let at = base + 8 * random.random_range(0..entries);
        let old = if at + 8 <= whole.len() { word(at) } else { 0 };
        let cluster = random.random_range(0..whole.len() as u64 / CLUSTER + 2) * CLUSTER;
        assert!(base % 8 == 0 && base < whole.len());
        let new = match random.random_range(0..6) {
            0 => 0,
            1 => old ^ 1 << random.random_range(0..64),
            2 => old.wrapping_add(1),
            3 => cluster,
            4 => cluster | 1 << 63,
            _ => random.random(),
        };
        println!("at {at:#x} {old:#x} becomes {new:#x}");
        file.write_all_at(&new.to_be_bytes(), at as u64).expect("written");
    }
}

#[test]
fn repair_never_makes_an_image_worse() {
    let (directory, whole) = image();
    let path = directory.path().join("damaged.qcow2");
    let (mut checked, mut repaired, mut clean) = (0, 0, 0);
    for seed in seeds() {
        let mut random = SmallRng::seed_from_u64(seed);
        fs::write(&path, &whole).expect("written");
        damage(&path, &whole, &mut random);
        let before = content(&path);
        let Ok(found) = check_image(&path, false, &mut |line| println!("seed {seed}: {line}")) else {
            continue;
        };
        checked += 1;
        let mode = if seed % 3 == 0 {
            RepairMode::Leaks
        } else {
            RepairMode::All
        };
        let report = match repair_image(&path, mode, &mut |_| {}) {
            Ok(report) => report,
            Err(error) => panic!("seed {seed}: {error}"),
        };
        repaired += u64::from(report.fixed != disk::Damage::default());
        clean += u64::from(report.damage == disk::Damage::default());
        let after = content(&path);
        for (disk, (before, after)) in before.iter().zip(&after).enumerate() {
            for (cluster, before) in before
                .iter()
                .enumerate()
                .filter_map(|(index, before)| Some((index, before.as_ref()?)))
            {
                let same = after.get(cluster).and_then(Option::as_ref) == Some(before);
                assert!(
                    same,
                    "seed {seed}: cluster {cluster} of disk {disk} reads otherwise after {mode:?}"
                );
            }
        }
        let again = check_image(&path, false, &mut |_| {}).expect("still opens");
        assert_eq!(again.damage, report.damage, "seed {seed}");
        assert!(
            again.damage.corruptions <= found.damage.corruptions,
            "seed {seed}: {:?} became {:?}",
            found.damage,
            again.damage
        );
        // Old refcount blocks may be left as leaks where new ones mended what was corrupt.
        let fewer = again.damage.corruptions < found.damage.corruptions;
        assert!(fewer || again.damage.leaks <= found.damage.leaks, "seed {seed}");
    }
    println!("{checked} checked, {repaired} repaired, {clean} clean afterwards");
    assert!(seeds().count() == 1 || (checked > 100 && repaired > 50 && clean > 30));
}
