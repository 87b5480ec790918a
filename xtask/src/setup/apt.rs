//! Installing Debian packages, with backports where a package that is there came from them.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use guest_images::{AptSource, Kernel, apt_sources, find_program, run_tool};

/// Installs `packages`.
pub fn install(packages: &[&str]) -> Result<()> {
    let by_hand = format!("apt-get install {}", packages.join(" "));
    let Some(apt_get) = AptGet::as_root()? else {
        bail!("Missing programs. As root, run `{by_hand}`, or as it is needed here, `cargo xtask setup`");
    };
    eprintln!("Installing {}", packages.join(", "));
    update_lists(&apt_get, packages)?;
    let backports = qemu_comes_from_backports()?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    let suite;
    if let Some(source) = &backports {
        // qemu-system and qemu-utils share qemu-system-common: they must be of one version.
        add_source(&apt_get, source)?;
        suite = source.suite.clone();
        arguments.extend(["--target-release", &suite]);
    }
    arguments.extend(packages);
    apt_get
        .run(&arguments)
        .with_context(|| format!("`{by_hand}` did not succeed"))
}

/// Fetches apt's lists until they have `packages`. apt-get calls it a success when a mirror did not answer.
fn update_lists(apt_get: &AptGet, packages: &[&str]) -> Result<()> {
    for _ in 0..3 {
        if lists_are_there(packages)? {
            return Ok(());
        }
        apt_get.run(&["update"])?;
    }
    ensure!(
        lists_are_there(packages)?,
        "apt-get update succeeds, and apt knows no {}: does a mirror not answer?",
        packages.join(", ")
    );
    Ok(())
}

/// Fetches apt's lists if they are empty, as they are on a fresh machine or after `apt-get clean`: guests are made of packages that
/// are downloaded without being installed. Where it cannot be done, images that are built already still serve.
pub fn fill_lists() -> Result<()> {
    if find_program("apt-get").is_none() || lists_are_there(&[Kernel::META_PACKAGE])? {
        return Ok(());
    }
    let Some(apt_get) = AptGet::as_root()? else {
        eprintln!("apt's lists are empty; to build guest images, run `apt-get update` as root");
        return Ok(());
    };
    eprintln!("Fetching apt's lists");
    if let Err(error) = update_lists(&apt_get, &[Kernel::META_PACKAGE]) {
        eprintln!("warning: {error:#}");
    }
    Ok(())
}

/// apt-get with the rights to install.
struct AptGet {
    sudo: bool,
}

impl AptGet {
    /// `None` if we are not root and sudo wants a password.
    fn as_root() -> Result<Option<AptGet>> {
        if rustix::process::geteuid().is_root() {
            return Ok(Some(AptGet { sudo: false }));
        }
        if find_program("sudo").is_none() {
            return Ok(None);
        }
        let silent = Command::new("sudo")
            .args(["-n", "true"])
            .stderr(Stdio::null())
            .status()
            .context("Cannot run sudo")?;
        Ok(silent.success().then_some(AptGet { sudo: true }))
    }

    fn command(&self, program: &str) -> Command {
        if self.sudo {
            let mut command = Command::new("sudo");
            command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", program]);
            command
        } else {
            let mut command = Command::new(program);
            command.env("DEBIAN_FRONTEND", "noninteractive");
            command
        }
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let output = self
            .command("apt-get")
            .args(["-q", "-o", "Acquire::Retries=5"])
            .args(arguments)
            .stdin(Stdio::null())
            .output();
        let output = output.context("Cannot run apt-get")?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!(
                "apt-get {} failed ({}): {}",
                arguments.join(" "),
                output.status,
                stderr.trim_end()
            );
        }
        Ok(())
    }
}

/// Whether apt knows the packages: on a fresh machine its lists are empty.
fn lists_are_there(packages: &[&str]) -> Result<bool> {
    let text = run_tool("apt-cache", ["policy"].iter().chain(packages))?;
    let known = String::from_utf8_lossy(&text)
        .lines()
        .filter(|line| line.starts_with("  Candidate: "))
        .count();
    Ok(known == packages.len())
}

/// The backports that an installed qemu-utils came from, if that is so.
fn qemu_comes_from_backports() -> Result<Option<AptSource>> {
    let version = Command::new("dpkg-query")
        .args(["-W", "-f", "${Version}", "qemu-utils"])
        .output();
    let version = version.context("Cannot run dpkg-query")?.stdout;
    // A backport's version ends in "~bpo" and the release that it is for.
    if !String::from_utf8_lossy(&version).contains("~bpo") {
        return Ok(None);
    }
    backports_of(&apt_sources()?)
        .map(Some)
        .context("qemu-utils is a backport, but apt's sources name no Debian release")
}

/// The backports of the release in `sources`, from the mirror that the release itself comes from.
fn backports_of(sources: &[AptSource]) -> Option<AptSource> {
    let is_release = |source: &&AptSource| source.component == "main" && !source.suite.contains('-');
    let known = sources.iter().find(|source| source.suite.ends_with("-backports"));
    known.cloned().or_else(|| {
        let release = sources.iter().find(is_release)?;
        Some(AptSource {
            suite: format!("{}-backports", release.suite),
            ..release.clone()
        })
    })
}

/// Adds `source` to apt's sources unless it is there.
fn add_source(apt_get: &AptGet, source: &AptSource) -> Result<()> {
    if apt_sources()?.iter().any(|known| known.suite == source.suite) {
        return Ok(());
    }
    let path = Path::new("/etc/apt/sources.list.d/spindle-backports.list");
    let line = format!("deb {} {} {}\n", source.uri, source.suite, source.component);
    let file = std::env::temp_dir().join(format!("spindle-backports-{}", std::process::id()));
    fs::write(&file, line).with_context(|| format!("Cannot write {}", file.display()))?;
    let status = apt_get
        .command("install")
        .args(["-m", "644"])
        .arg(&file)
        .arg(path)
        .status();
    let _ = fs::remove_file(&file);
    ensure!(
        status.context("Cannot run install")?.success(),
        "Cannot write {}",
        path.display()
    );
    apt_get.run(&["update"])
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
    fn backports_come_from_the_mirror_of_the_release() {
        let backports = backports_of(&["bookworm-security", "bookworm"].map(source));

        assert_eq!(backports, Some(source("bookworm-backports")));
    }

    #[test]
    fn backports_that_apt_has_are_kept() {
        let sources = ["bookworm", "trixie-backports"].map(source);

        assert_eq!(backports_of(&sources), Some(source("trixie-backports")));
    }

    #[test]
    fn sources_without_a_release_have_no_backports() {
        assert_eq!(backports_of(&[]), None);
    }
}
