//! The `spindle` binary that the tests run, and where builds go.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The workspace's top folder.
pub fn workspace_folder() -> PathBuf {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_folder.parent().unwrap_or(crate_folder).to_path_buf()
}

/// Where images, kept disks and work folders are: the same for all who build, also those with a `CARGO_TARGET_DIR` of their own.
pub fn target_folder() -> PathBuf {
    workspace_folder().join("target")
}

/// Builds `spindle` as a static release binary, which the nested host can run, and returns its path.
/// `SPINDLE_BINARY` in the environment names one to use instead.
///
/// # Errors
/// If the build fails; cargo has said why.
pub fn static_spindle() -> Result<PathBuf> {
    if let Some(binary) = env::var_os("SPINDLE_BINARY") {
        return Ok(PathBuf::from(binary));
    }
    build_static(&[])
}

/// The same with `disk`'s failpoints, under a name of its own.
///
/// # Errors
/// If the build fails; cargo has said why.
pub fn static_spindle_with_failpoints() -> Result<PathBuf> {
    let built = build_static(&["--features", "failpoints"])?;
    let folder = target_folder().join("system-tests");
    fs::create_dir_all(&folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let (unfinished, kept) = (folder.join("spindle-failpoints.new"), folder.join("spindle-failpoints"));
    fs::copy(&built, &unfinished).with_context(|| format!("Cannot copy {}", built.display()))?;
    fs::rename(&unfinished, &kept)?;
    Ok(kept)
}

fn build_static(features: &[&str]) -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // With --target, cargo keeps these flags away from build scripts and in a folder of their own: nothing is rebuilt
    // because of them elsewhere.
    command
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .current_dir(workspace_folder());
    command.args(["build", "--quiet", "--release", "--package", "vmm", "--target", TARGET]);
    command.args(features);
    let status = command.status().context("Cannot run cargo")?;
    ensure!(status.success(), "Building the static spindle binary failed ({status})");
    let built = env::var_os("CARGO_TARGET_DIR").map_or_else(target_folder, PathBuf::from);
    Ok(built.join(TARGET).join("release/spindle"))
}
