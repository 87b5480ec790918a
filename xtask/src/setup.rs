//! `cargo xtask setup`: Debian packages and guest images.

use anyhow::{Result, bail};
use guest_images::{Guest, Image, Kernel, NestedHost, REQUIREMENTS, find_program};
use system_tests::HostKind;

use crate::progress::store_with_progress;

mod apt;

/// Install what the other chores need, and build every guest image. They call it by themselves.
#[derive(clap::Args)]
pub struct Options {
    /// Take the newest stock kernel that apt offers, even if one is there
    #[arg(long)]
    refresh: bool,
}

/// Does it all ahead of time.
pub fn setup(options: &Options) -> Result<()> {
    let kind = HostKind::detect();
    install_for_tests(kind)?;
    let (store, progress) = store_with_progress()?;
    if options.refresh {
        Kernel::forget(&store)?;
    }
    for image in [Image::Tiny, Image::Debian] {
        let guest = Guest::get(&store, image)?;
        progress.println(format!(
            "{}: {}, kernel {}",
            image.name(),
            guest.folder().display(),
            guest.release
        ));
    }
    if kind == HostKind::Nested {
        NestedHost::get(&store)?;
    }
    progress.finish_and_clear();
    eprintln!("Guests run on: {}", kind.describe());
    Ok(())
}

const QEMU: (&str, &str) = ("qemu-system-x86_64", "qemu-system-x86");

/// Programs of others that tests compare ours with, or use as its clients.
const PEERS: [(&str, &str); 5] = [
    ("fio", "fio"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    FUSE,
    SQLITE,
];

/// Mounts for who is not root.
const FUSE: (&str, &str) = ("fusermount3", "fuse3");

/// Looks at a guest's database in a crash state of its disk.
const SQLITE: (&str, &str) = ("sqlite3", "sqlite3");

/// Installs the Debian packages of programs that are missing, and sees to it that apt knows those that guests are made of.
pub fn install_missing(kind: HostKind) -> Result<()> {
    install(kind == HostKind::Nested, &[])
}

/// The same, with what the tests need beyond.
pub fn install_for_tests(kind: HostKind) -> Result<()> {
    install(kind == HostKind::Nested, &PEERS)
}

/// The same for recordings of an image on a file system of our own, with QEMU beside spindle.
pub fn install_for_power() -> Result<()> {
    install(true, &[FUSE, SQLITE])
}

/// The same for benchmarks, where QEMU is the peer whatever the host is.
pub fn install_for_bench() -> Result<()> {
    install(true, &[])
}

fn install(with_qemu: bool, more: &[(&'static str, &'static str)]) -> Result<()> {
    let mut packages: Vec<&str> = Vec::new();
    let required = REQUIREMENTS.iter().map(|known| (known.program, known.package));
    let qemu = with_qemu.then_some(QEMU);
    for (program, package) in required.chain(qemu).chain(more.iter().copied()) {
        if find_program(program).is_none() && !packages.contains(&package) {
            packages.push(package);
        }
    }
    if packages.is_empty() {
        return apt::fill_lists();
    }
    if find_program("apt-get").is_none() {
        bail!(
            "Missing programs, and this is no Debian: install what Debian has in {}",
            packages.join(", ")
        );
    }
    apt::install(&packages)?;
    apt::fill_lists()
}
