//! Small images of all kinds, made by QEMU's tools, some of them damaged.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// Whole images.
pub const IMAGES: &[&str] = &[
    "raw.img",
    "odd.raw",
    "empty.qcow2",
    "plain.qcow2",
    "snap.qcow2",
    "zero.qcow2",
    "meta.qcow2",
    "v2.qcow2",
    "small.qcow2",
    "large.qcow2",
    "ref1.qcow2",
    "ref64.qcow2",
    "zstd.qcow2",
    "comp.qcow2",
    "base.qcow2",
    "over.qcow2",
    "top.qcow2",
    "overraw.qcow2",
    "short.qcow2",
];

/// A change of an image: where, how many bytes, and what they become (big-endian).
pub type Patch = (u64, usize, u64);

/// Copies of `victim.qcow2`, each with a patch: where, how many bytes, what. Its tables: refcount table at 0x10000, its block at 0x20000 (16
/// bits each), L1 at 0x30000, the L2 table at 0x40000, data from 0x50000 to 0x90000.
pub const DAMAGED: &[(&str, &[Patch])] = &[
    ("leak.qcow2", &[(0x20000 + 2 * 7, 2, 1), (0x40010, 8, 0)]),
    ("low.qcow2", &[(0x20000 + 2 * 6, 2, 0)]),
    ("high.qcow2", &[(0x20000 + 2 * 6, 2, 2)]),
    ("higher.qcow2", &[(0x20000 + 2 * 6, 2, 9), (0x20000 + 2 * 8, 2, 3)]),
    ("nocopied.qcow2", &[(0x40008, 8, 0x60000)]),
    ("nocopied-l1.qcow2", &[(0x30000, 8, 0x40000)]),
    ("twice.qcow2", &[(0x40008, 8, 0x8000_0000_0005_0000)]),
    ("on-l1.qcow2", &[(0x40008, 8, 0x8000_0000_0003_0000)]),
    ("beyond.qcow2", &[(0x40008, 8, 0x8000_0000_1000_0000)]),
    ("reserved.qcow2", &[(0x40008, 8, 0x8100_0000_0006_0000)]),
    ("unaligned.qcow2", &[(0x40008, 8, 0x8000_0000_0006_0200)]),
    ("no-block.qcow2", &[(0x10000, 8, 0)]),
    ("block-beyond.qcow2", &[(0x10000, 8, 0x2000_0000)]),
    ("l1-beyond.qcow2", &[(0x30000, 8, 0x8000_0001_0000_0000)]),
    ("dirty.qcow2", &[(72, 8, 1)]),
    ("corrupt-bit.qcow2", &[(72, 8, 2)]),
];

fn qemu_img(directory: &Path, arguments: &str) {
    let output = super::qemu_img(directory, arguments);
    assert!(output.status.success(), "qemu-img {arguments}: {output:?}");
}

fn qemu_io(directory: &Path, file: &str, format: &str, commands: &[&str]) {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]).current_dir(directory);
    for text in commands {
        command.args(["-c", text]);
    }
    let output = command.arg(file).output().expect("qemu-io runs");
    assert!(output.status.success(), "{file}: {output:?}");
}

pub fn patch(path: &Path, patches: &[(u64, usize, u64)]) {
    let file = OpenOptions::new().write(true).open(path).expect("there");
    for &(at, length, value) in patches {
        file.write_all_at(&value.to_be_bytes()[8 - length..], at)
            .expect("written");
    }
}

/// All of them, in a directory of their own.
pub fn make() -> TempDir {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path();
    let create =
        |options: &str, file: &str, size: &str| qemu_img(path, &format!("create -q -f qcow2 {options} {file} {size}"));
    fs::write(path.join("odd.raw"), vec![0x5a; 10_000]).expect("written");
    qemu_img(path, "create -q -f raw raw.img 1M");
    qemu_io(path, "raw.img", "raw", &["write -P 1 0 4k", "write -P 2 512k 64k"]);
    create("", "empty.qcow2", "64M");
    let some = [
        "write -P 1 0 256k",
        "write -P 2 1M 4k",
        "write -z 2M 128k",
        "write -P 7 33M 64k",
    ];
    for (options, file) in [
        ("", "plain.qcow2"),
        ("-o lazy_refcounts=on", "snap.qcow2"),
        ("", "zero.qcow2"),
        ("-o compat=0.10", "v2.qcow2"),
        ("-o cluster_size=512", "small.qcow2"),
        ("-o cluster_size=2M", "large.qcow2"),
        ("-o refcount_bits=1", "ref1.qcow2"),
        ("-o refcount_bits=64", "ref64.qcow2"),
        ("", "base.qcow2"),
    ] {
        create(options, file, "36M");
        qemu_io(path, file, "qcow2", &some);
    }
    qemu_img(path, "snapshot -c first snap.qcow2");
    qemu_io(path, "snap.qcow2", "qcow2", &["write -P 9 64k 200k"]);
    qemu_img(path, "snapshot -c second snap.qcow2");
    qemu_io(path, "snap.qcow2", "qcow2", &["write -P 8 5M 64k"]);
    qemu_io(
        path,
        "zero.qcow2",
        "qcow2",
        &["write -z 64k 64k", "write -z -u 1M 64k", "write -z 20M 1M"],
    );
    create("-o preallocation=metadata", "meta.qcow2", "1M");
    qemu_img(path, "convert -c -O qcow2 plain.qcow2 comp.qcow2");
    qemu_img(
        path,
        "convert -c -O qcow2 -o compression_type=zstd plain.qcow2 zstd.qcow2",
    );
    create("-b base.qcow2 -F qcow2", "over.qcow2", "");
    qemu_io(
        path,
        "over.qcow2",
        "qcow2",
        &["write -P 3 64k 64k", "write -z 2M 64k", "write -P 4 4M 300k"],
    );
    create("-b over.qcow2 -F qcow2", "top.qcow2", "40M");
    qemu_io(
        path,
        "top.qcow2",
        "qcow2",
        &["write -P 5 4M 64k", "write -z 0 64k", "write -P 6 39M 1M"],
    );
    create("-b raw.img -F raw", "overraw.qcow2", "2M");
    qemu_io(path, "overraw.qcow2", "qcow2", &["write -P 3 64k 4k"]);
    create("-b base.qcow2 -F qcow2", "short.qcow2", "1152k");
    create("", "victim.qcow2", "1M");
    qemu_io(path, "victim.qcow2", "qcow2", &["write -P 1 0 256k"]);
    for (name, patches) in DAMAGED {
        fs::copy(path.join("victim.qcow2"), path.join(name)).expect("copied");
        patch(&path.join(name), patches);
    }
    directory
}

/// Copies every image, so that a row may write.
pub fn copy_all(from: &Path, to: &Path) {
    // Holes stay holes.
    let status = Command::new("cp")
        .args(["-a", "--sparse=auto"])
        .arg(from.join("."))
        .arg(to)
        .status();
    assert!(status.expect("cp runs").success());
}
