//! Images that were made to do harm, through `spindle img`: bounded memory and time, no panic, an error that says what is wrong.

mod img;

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use img::images::{DAMAGED, Patch, patch};

/// What a command may use of address space.
const MEMORY: &str = "--as=536870912";

/// Only to catch what would never end.
const PATIENCE: Duration = Duration::from_secs(240);

/// What is patched into a copy of `victim.qcow2` (see `img::images`): where, how many bytes, what.
const CASES: &[(&str, &[Patch])] = &[
    ("version 0", &[(4, 4, 0)]),
    ("version 4 billion", &[(4, 4, u32::MAX as u64)]),
    ("cluster_bits 0", &[(20, 4, 0)]),
    ("cluster_bits 63", &[(20, 4, 63)]),
    ("size of 2^64 - 1", &[(24, 8, u64::MAX)]),
    ("size of 2^63 - 1", &[(24, 8, i64::MAX as u64)]),
    ("size of 2^62 that the L1 table does not map", &[(24, 8, 1 << 62)]),
    (
        "size of 4 TiB and an L1 table over other tables",
        &[(24, 8, 4 << 40), (36, 4, 8192)],
    ),
    ("encryption", &[(32, 4, 1)]),
    ("encryption of an unknown kind", &[(32, 4, 77)]),
    ("L1 table with 2^32 - 1 entries", &[(36, 4, u32::MAX as u64)]),
    ("L1 table of 32 MiB beyond the file", &[(36, 4, 4 << 20)]),
    ("L1 table at 0", &[(40, 8, 0)]),
    ("L1 table not aligned", &[(40, 8, 0x30001)]),
    ("L1 table at 2^63", &[(40, 8, 1 << 63)]),
    ("L1 table at the end of 64 bits", &[(40, 8, 0xffff_ffff_ffff_0000)]),
    ("L1 table beyond the file", &[(40, 8, 0x100_0000_0000)]),
    ("L1 table on the refcount table", &[(40, 8, 0x10000)]),
    ("L1 table that is the L2 table", &[(40, 8, 0x40000)]),
    ("L1 entry that is its own table", &[(0x30000, 8, 0x8000_0000_0003_0000)]),
    ("L1 entry at the header", &[(0x30000, 8, 0x8000_0000_0000_0000)]),
    ("refcount table at 0", &[(48, 8, 0)]),
    ("refcount table beyond the file", &[(48, 8, 0x100_0000_0000)]),
    ("refcount table of 2^32 - 1 clusters", &[(56, 4, u32::MAX as u64)]),
    ("refcount table of 128 clusters over all else", &[(56, 4, 128)]),
    ("refcount block that is the refcount table", &[(0x10000, 8, 0x10000)]),
    (
        "refcount block that is the header",
        &[(0x10008, 8, 0x20000), (0x10010, 8, 0x20000)],
    ),
    ("refcount_order 63", &[(96, 4, 63)]),
    ("refcount_order 6", &[(96, 4, 6)]),
    ("refcount_order 0", &[(96, 4, 0)]),
    ("a million snapshots", &[(60, 4, 1_000_000), (64, 8, 0x50000)]),
    ("65536 snapshots of nothing", &[(60, 4, 65536), (64, 8, 0x50000)]),
    (
        "65536 snapshots beyond the file",
        &[(60, 4, 65536), (64, 8, 0x100_0000_0000)],
    ),
    ("a snapshot table that is the L1 table", &[(60, 4, 3), (64, 8, 0x30000)]),
    ("a backing file name of 4 GiB", &[(8, 8, 200), (16, 4, u32::MAX as u64)]),
    (
        "a backing file name beyond the cluster",
        &[(8, 8, 0xffff_ffff_ffff_fff0), (16, 4, 100)],
    ),
    ("header_length 0", &[(100, 4, 0)]),
    ("header_length of 4 GiB", &[(100, 4, 0xffff_fff8)]),
    (
        "an extension of 4 GiB",
        &[(112, 4, 0x1234_5678), (116, 4, u32::MAX as u64)],
    ),
    ("all incompatible features", &[(72, 8, u64::MAX)]),
    ("an unknown compression type", &[(72, 8, 8), (104, 1, 200)]),
    ("a compressed cluster of noise", &[(0x40008, 8, 0x7fff_ffff_ffff_ffff)]),
    ("a compressed cluster at the header", &[(0x40008, 8, 1 << 62 | 1)]),
    (
        "a compressed cluster at the end of the file",
        &[(0x40008, 8, 1 << 62 | 0xff << 54 | 0x8fe00)],
    ),
    ("zeros with a cluster far away", &[(0x40008, 8, 0x00ff_ffff_ffff_0001)]),
];

/// Runs on a copy, so each may write.
const COMMANDS: &[&str] = &[
    "info --backing-chain victim.qcow2",
    "check victim.qcow2",
    "check -r all victim.qcow2",
    "map --output=json victim.qcow2",
    "measure -O qcow2 victim.qcow2",
    "snapshot -l victim.qcow2",
    "compare victim.qcow2 victim.qcow2",
    "convert -O qcow2 victim.qcow2 copy.qcow2",
    "convert -c -O qcow2 victim.qcow2 copy.qcow2",
    "snapshot -c name victim.qcow2",
    "resize victim.qcow2 +1M",
    "rebase -u -b '' victim.qcow2",
];

#[test]
fn a_hostile_image_costs_little_and_breaks_nothing() {
    let whole = victim();
    for (name, patches) in CASES {
        let make = |path: &Path| {
            fs::write(path, &whole).expect("written");
            patch(path, patches);
        };
        for command in COMMANDS {
            run(name, command, &make);
        }
    }
}

#[test]
fn a_damaged_image_breaks_nothing_either() {
    let whole = victim();
    for (name, patches) in DAMAGED {
        let make = |path: &Path| {
            fs::write(path, &whole).expect("written");
            patch(path, patches);
        };
        for command in COMMANDS {
            run(name, command, &make);
        }
    }
}

#[test]
fn tables_that_point_at_one_another_a_million_times_are_read_once() {
    // An L1 table of 32 MiB whose entries all are one L2 table, which is full of one cluster.
    run("one L2 table four million times", "check victim.qcow2", &|path| {
        let file = huge(path, 4 << 20);
        let entries: Vec<u8> = 0x8000_0000_0004_0000_u64.to_be_bytes().repeat(4 << 20);
        file.write_all_at(&entries, 1 << 30).expect("written");
        file.write_all_at(&0x8000_0000_0005_0000_u64.to_be_bytes().repeat(8192), 0x40000)
            .expect("written");
    });
    // Each entry another L2 table in a file that is one large hole.
    run("four million L2 tables of nothing", "check victim.qcow2", &|path| {
        let file = huge(path, 4 << 20);
        let entries: Vec<u8> = (0..4u64 << 20)
            .flat_map(|index| ((index + 0x10000) << 16).to_be_bytes())
            .collect();
        file.write_all_at(&entries, 1 << 30).expect("written");
        file.set_len(1 << 43).expect("sparse");
    });
    // A refcount table of 8 MiB whose entries all are one block.
    run("one refcount block a million times", "check victim.qcow2", &|path| {
        let file = huge(path, 16);
        file.write_all_at(&0x20000_u64.to_be_bytes().repeat(1 << 20), 2 << 30)
            .expect("written");
        patch(path, &[(48, 8, 2 << 30), (56, 4, 128)]);
    });
    // Many snapshots with L1 tables on top of each other.
    run(
        "65536 snapshots with one L1 table of 32 MiB, each a cluster further",
        "check victim.qcow2",
        &|path| {
            let file = huge(path, 16);
            file.set_len(1 << 40).expect("sparse");
            let mut table = Vec::new();
            for index in 0..65536_u64 {
                table.extend(((4u64 << 30) + (index << 16)).to_be_bytes());
                table.extend((4u32 << 20).to_be_bytes());
                table.extend([0; 28]);
            }
            file.write_all_at(&table, 2 << 30).expect("written");
            patch(path, &[(60, 4, 65536), (64, 8, 2 << 30)]);
        },
    );
}

/// The victim with an L1 table of so many entries at 1 GiB.
fn huge(path: &Path, entries: u64) -> fs::File {
    fs::write(path, victim()).expect("written");
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("there");
    file.set_len(3 << 30).expect("sparse");
    patch(path, &[(24, 8, 1 << 20), (36, 4, entries), (40, 8, 1 << 30)]);
    file
}

fn victim() -> Vec<u8> {
    let directory = tempfile::tempdir().expect("directory");
    let output = img::qemu_img(directory.path(), "create -q -f qcow2 victim.qcow2 1M");
    assert!(output.status.success(), "{output:?}");
    let written = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c", "write -P 1 0 256k", "victim.qcow2"])
        .current_dir(directory.path())
        .output()
        .expect("qemu-io runs");
    assert!(written.status.success(), "{written:?}");
    fs::read(directory.path().join("victim.qcow2")).expect("there")
}

fn run(case: &str, command: &str, make: &dyn Fn(&Path)) {
    let directory = tempfile::tempdir().expect("directory");
    make(&directory.path().join("victim.qcow2"));
    let arguments = command
        .split_whitespace()
        .map(|word| if word == "''" { "" } else { word });
    let output = fs::File::create(directory.path().join("output")).expect("created");
    let errors = fs::File::create(directory.path().join("errors")).expect("created");
    let mut child = Command::new("prlimit")
        .args([MEMORY, env!("CARGO_BIN_EXE_spindle"), "img"])
        .args(arguments)
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        .spawn()
        .expect("prlimit runs");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("waited") {
            break status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().expect("killed");
            panic!("{case}: `{command}` does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let errors = fs::read_to_string(directory.path().join("errors")).expect("text");
    let told = fs::metadata(directory.path().join("output")).expect("there").len() + errors.len() as u64;
    assert!(
        status.signal().is_none(),
        "{case}: `{command}` ends by {status}: {errors}"
    );
    assert!(!errors.contains("panicked"), "{case}: `{command}`: {errors}");
    assert!(told < 1 << 20, "{case}: `{command}` says {told} bytes");
    // Whoever fails says why.
    let fails = !status.success();
    let says = !errors.trim().is_empty() || command.contains("compare");
    assert!(
        !fails || says,
        "{case}: `{command}` fails with {status} and says nothing"
    );
}
