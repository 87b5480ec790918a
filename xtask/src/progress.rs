//! What is being done, on the terminal, while it takes long.

use std::time::Duration;

use anyhow::Result;
use guest_images::Store;
use indicatif::ProgressBar;
use system_tests::target_folder;

/// The store of guest images, telling on the standard error what it builds. On a terminal that is a line with a
/// spinner, elsewhere a line for each step.
pub fn store_with_progress() -> Result<(Store, ProgressBar)> {
    let spinner = ProgressBar::new_spinner();
    let teller = spinner.clone();
    let store = Store::open(&target_folder(), move |step| {
        if teller.is_hidden() {
            eprintln!("{step}");
        } else {
            teller.enable_steady_tick(Duration::from_millis(100));
            teller.set_message(step.to_owned());
        }
    })?;
    Ok((store, spinner))
}
