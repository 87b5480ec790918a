//! Root disks: an ext4 filesystem on the whole disk, as qcow2.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::busybox::Busybox;
use crate::tool::{find_program, run, run_tool, tool};
use crate::{AptSource, Error, Store, apt_sources, ext4_from_directory};

const GUEST_INIT: &str = include_str!("../scripts/guest-init");

/// What is on the Debian disk beside the minimal system: what storage is tested and looked at with.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "e2fsprogs",
    "eject",
    "fio",
    "hdparm",
    "sg3-utils",
    "smartmontools",
    "sqlite3",
    "util-linux",
];

/// The size that the guest sees, in bytes. The image files are as large as what is on them.
const DEBIAN_SIZE: u64 = 4 << 30;
const TINY_SIZE: u64 = 256 << 20;

/// A Debian minbase with tools for storage, as qcow2.
pub(crate) fn debian(store: &Store) -> Result<PathBuf, Error> {
    let recipe = [
        "minbase, mke2fs, qcow2: 1",
        &PACKAGES.join(","),
        &DEBIAN_SIZE.to_string(),
        GUEST_INIT,
    ];
    let folder = store.artefact("debian", &recipe, |folder| {
        store.progress("installing Debian into a root disk (mmdebstrap)");
        let raw = folder.join("root.ext4");
        install_debian(folder, &raw)?;
        store.progress("converting the Debian root disk to qcow2");
        raw_to_qcow2(&raw, &folder.join("disk.qcow2"))
    })?;
    Ok(folder.join("disk.qcow2"))
}

/// A disk with nothing but busybox, as qcow2.
pub(crate) fn tiny(store: &Store) -> Result<PathBuf, Error> {
    let recipe = ["busybox, mke2fs, qcow2: 1", &TINY_SIZE.to_string(), GUEST_INIT];
    let folder = store.artefact("tiny", &recipe, |folder| {
        store.progress("making the tiny root disk");
        let tree = tempfile::tempdir_in(folder).map_err(Error::io("create a folder in", folder))?;
        busybox_tree(&Busybox::get(store)?, tree.path()).map_err(Error::io("fill", tree.path()))?;
        let raw = folder.join("root.ext4");
        ext4_from_directory(tree.path(), &raw, TINY_SIZE)?;
        raw_to_qcow2(&raw, &folder.join("disk.qcow2"))
    })?;
    Ok(folder.join("disk.qcow2"))
}

/// Runs mmdebstrap and has it write `raw` while it still is whoever owns the files, root or root of a user namespace.
fn install_debian(folder: &Path, raw: &Path) -> Result<(), Error> {
    let init = folder.join("init");
    fs::write(&init, GUEST_INIT).map_err(Error::io("write", &init))?;
    make_executable(&init)?;
    // In a user namespace, the hooks run as an identity that may not write where we may.
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).map_err(Error::io("open up", folder))?;
    let mke2fs = find_program("mke2fs").ok_or_else(|| Error::Missing {
        program: "mke2fs".to_owned(),
        package: "e2fsprogs".to_owned(),
    })?;
    let (mke2fs, raw, tree) = (quoted(&mke2fs), quoted(raw), quoted(&folder.join("tree")));

    let mut command = tool("mmdebstrap")?;
    command.args(["--quiet", "--variant=minbase", "--format=null"]);
    command.arg(format!("--include={}", PACKAGES.join(",")));
    command.arg("--aptopt=Acquire::Retries \"5\"");
    // Documentation has no reader here, and each file costs time on the way into the image.
    command
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/man/*");
    command.arg("--dpkgopt=path-exclude=/usr/share/locale/*");
    for hook in [
        format!("cp {} \"$1/usr/sbin/init\"", quoted(&init)),
        "rm -rf \"$1\"/var/lib/apt/lists/* \"$1\"/var/cache/apt/* \"$1\"/tmp/*".to_owned(),
        "rm -f \"$1/etc/resolv.conf\" \"$1/etc/hostname\"".to_owned(),
        // mmdebstrap has /proc and /sys mounted in the tree at this time: take a copy of the tree's own filesystem.
        format!("mkdir {tree} && tar -C \"$1\" -c --one-file-system . | tar -C {tree} -x -p --numeric-owner"),
        format!(
            "{mke2fs} -q -F -t ext4 -E root_owner=0:0 -d {tree} {raw} {}k",
            DEBIAN_SIZE / 1024
        ),
        format!("rm -rf {tree}"),
    ] {
        command.arg(format!("--customize-hook={hook}"));
    }
    let sources = debian_sources()?;
    // The SUITE, no target since the format is null, and apt's own sources as mirrors.
    command.arg(&sources.suite).arg("-").args(&sources.lines);
    run(&mut command)?;
    fs::remove_file(&init).map_err(Error::io("remove", &init))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(Error::io("close", folder))
}

struct DebianSources {
    suite: String,
    lines: Vec<String>,
}

/// The release that this machine's apt is set to, with its updates and without backports, as lines of a sources.list.
fn debian_sources() -> Result<DebianSources, Error> {
    let sources = apt_sources()?;
    let suite = base_suite(&sources).ok_or_else(|| Error::NoPackage {
        package: "e2fsprogs".to_owned(),
        hint: "apt's sources name no Debian release; guests are made of Debian packages",
    })?;
    let wanted = sources.iter().filter(|source| {
        let extension = source.suite.strip_prefix(suite.as_str());
        source.component == "main" && matches!(extension, Some("" | "-updates" | "-security"))
    });
    let lines = wanted.map(|source| format!("deb {} {} {}", source.uri, source.suite, source.component));
    let lines = lines.collect();
    Ok(DebianSources { suite, lines })
}

/// The suite that another one extends (`bookworm` of `bookworm-security`), or else the first one.
fn base_suite(sources: &[AptSource]) -> Option<String> {
    let extended = |suite: &str| {
        sources.iter().any(|other| {
            other
                .suite
                .strip_prefix(suite)
                .is_some_and(|rest| rest.starts_with('-'))
        })
    };
    let base = sources.iter().find(|source| extended(&source.suite));
    base.or(sources.iter().find(|source| !source.suite.contains('-')))
        .map(|source| source.suite.clone())
}

fn busybox_tree(busybox: &Busybox, tree: &Path) -> std::io::Result<()> {
    for folder in ["bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp"] {
        fs::create_dir(tree.join(folder))?;
    }
    fs::set_permissions(tree, fs::Permissions::from_mode(0o755))?;
    fs::copy(&busybox.program, tree.join("bin/busybox"))?;
    for applet in busybox
        .applets
        .iter()
        .filter(|applet| !matches!(applet.as_str(), "busybox" | "init"))
    {
        symlink("busybox", tree.join("bin").join(applet))?;
    }
    fs::write(tree.join("etc/passwd"), "root::0:0:root:/root:/bin/sh\n")?;
    fs::write(tree.join("etc/group"), "root:x:0:\n")?;
    let init = tree.join("sbin/init");
    fs::write(&init, GUEST_INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))
}

fn raw_to_qcow2(raw: &Path, qcow2: &Path) -> Result<(), Error> {
    let arguments = ["convert", "-f", "raw", "-O", "qcow2"].map(AsRef::as_ref);
    run_tool(
        "qemu-img",
        arguments.into_iter().chain([raw.as_os_str(), qcow2.as_os_str()]),
    )?;
    fs::remove_file(raw).map_err(Error::io("remove", raw))
}

fn make_executable(path: &Path) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(Error::io("make executable", path))
}

/// `path` as one word of a shell command.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(suite: &str) -> AptSource {
        AptSource {
            uri: "http://mirror/debian/".to_owned(),
            suite: suite.to_owned(),
            component: "main".to_owned(),
        }
    }

    #[test]
    fn base_suite_is_the_one_that_others_extend() {
        let sources = ["bookworm-backports", "bookworm", "bookworm-security"].map(source);

        assert_eq!(base_suite(&sources).as_deref(), Some("bookworm"));
    }

    #[test]
    fn lone_suite_is_the_base_suite() {
        assert_eq!(base_suite(&[source("sid")]).as_deref(), Some("sid"));
        assert_eq!(base_suite(&[]), None);
    }
}
