//! What is being done, on the terminal, while it takes long.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use guest_images::Store;
use indicatif::ProgressBar;
use system_tests::{static_spindle, target_folder};

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
