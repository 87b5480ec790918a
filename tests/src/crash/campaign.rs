//! Many lives from one seed.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use super::guest;
use super::life::{Life, Surroundings};
use super::session::Hypervisor;
use super::tally::{Failure, Spread, Tally};

/// Kills under a bare-metal guest: which binary, how many, and from which seed.
pub struct BareMetalCampaign<'a> {
    /// The binary under test.
    pub spindle: &'a Path,
    /// The names of its failpoints, in their order; empty if it has none.
    pub failpoints: &'a [&'static str],
    /// How many processes to kill.
    pub kills: u64,
    /// Decides images, workloads and the moments of the kills (those from outside as far as the machine allows).
    pub seed: u64,
    /// Gets the images; one that shows a failure is kept here, with its backing file.
    pub folder: &'a Path,
}

/// Runs a campaign. It goes on after a failure, with a new image; `progress` is told of each image that is used up.
///
/// # Errors
/// If the campaign itself cannot go on. What it found is in the tally.
pub fn run_bare_metal(campaign: &BareMetalCampaign<'_>, mut progress: impl FnMut(&Tally)) -> Result<Tally> {
    let begin = Instant::now();
    let folder = campaign.folder;
    std::fs::create_dir_all(folder).with_context(|| format!("Cannot create {}", folder.display()))?;
    let kernel = folder.join("guest.elf");
    std::fs::write(&kernel, guest::image()?)?;
    let hypervisor = Hypervisor::Spindle(campaign.spindle.to_owned());
    let surroundings = Surroundings {
        hypervisor: &hypervisor,
        kernel: &kernel,
        folder,
        failpoints: campaign.failpoints,
    };
    let mut tally = Tally {
        guest: "bare-metal".to_owned(),
        seed: campaign.seed,
        ..Tally::default()
    };
    let (mut recovery, mut clean_open) = (Vec::new(), Vec::new());
    // A session that cannot even start would fail for ever.
    const MOST_FAILURES: usize = 10;
    while tally.kills < campaign.kills && tally.failures.len() < MOST_FAILURES {
        let seed = campaign.seed.wrapping_mul(1 << 20).wrapping_add(tally.images);
        let mut life = Life::begin(&surroundings, seed)?;
        let lived = life.live(campaign.kills - tally.kills, &mut tally);
        if let Err(error) = lived {
            keep(folder, tally.failures.len())?;
            tally.failures.push(Failure {
                seed: campaign.seed,
                place: format!(
                    "image {} after {} kills: {}",
                    tally.images,
                    tally.kills,
                    life.describe()
                ),
                what: format!("{error:#}"),
            });
        }
        let (after_kills, after_ends) = life.times();
        recovery.extend(after_kills);
        clean_open.extend(after_ends);
        tally.images += 1;
        progress(&tally);
    }
    tally.recovery = Spread::of(&recovery);
    tally.clean_open = Spread::of(&clean_open);
    tally.seconds = begin.elapsed().as_secs_f64();
    Ok(tally)
}

/// Puts the image of a failure aside.
fn keep(folder: &Path, number: usize) -> Result<()> {
    let aside = folder.join(format!("failure-{number}"));
    std::fs::create_dir_all(&aside)?;
    for name in ["disk.qcow2", "backing.raw", "backing.qcow2"] {
        let from = folder.join(name);
        if from.exists() {
            std::fs::copy(&from, aside.join(name))?;
        }
    }
    Ok(())
}
