//! What is being done, on the terminal, while it takes long.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use guest_images::{Guest, Image, NestedHost, Store};
use indicatif::ProgressBar;
use system_tests::{HostKind, static_spindle, static_spindle_with_failpoints, target_folder};

/// The store of guest images, telling on the standard error what it builds. On a terminal that is a line with a
/// spinner, elsewhere a line for each step.
pub fn store_with_progress() -> Result<(Store, ProgressBar)> {
    let spinner = ProgressBar::new_spinner();
    let teller = spinner.clone();
    let store = Store::open(&target_folder(), move |step| say(&teller, step))?;
    Ok((store, spinner))
}

/// Says what is being done now.
pub fn say(spinner: &ProgressBar, step: &str) {
    if spinner.is_hidden() {
        eprintln!("{step}");
    } else {
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner.set_message(step.to_owned());
    }
}

/// Builds spindle, and says so.
pub fn spindle_with_progress(spinner: &ProgressBar) -> Result<PathBuf> {
    say(spinner, "building spindle (cargo build --release)");
    static_spindle()
}

/// The static binary `given` on the command line, or one with failpoints that is built now; they are armed by the environment alone.
pub fn crash_spindle(given: Option<&Path>, spinner: &ProgressBar) -> Result<PathBuf> {
    if let Some(given) = given {
        return Ok(given.to_owned());
    }
    say(spinner, "building spindle with failpoints (cargo build --release)");
    static_spindle_with_failpoints()
}

/// Makes what a campaign under a Linux guest runs on, before its clock starts.
pub fn prepare_linux(store: &Store) -> Result<()> {
    Guest::get(store, Image::Debian)?;
    if HostKind::detect() == HostKind::Nested {
        NestedHost::get(store)?;
    }
    Ok(())
}
