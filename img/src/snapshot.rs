//! `spindle img snapshot`: internal snapshots, listed, created, applied, deleted.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use disk::{Format, RestOptions};

use crate::human;
use crate::open::{self, InEngine};
use crate::options::{Refused, refuse};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    refused: Refused,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// The format of the image: qcow2 or raw
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Do not lock the image when listing; somebody may be writing to it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// List the snapshots; what is done if nothing else is said
    #[arg(short, long)]
    list: bool,
    /// Create a snapshot
    #[arg(short, long, value_name = "SNAPSHOT")]
    create: Option<String>,
    /// Make the disk what it was when the snapshot was taken
    #[arg(short, long, value_name = "SNAPSHOT")]
    apply: Option<String>,
    /// Delete a snapshot
    #[arg(short, long, value_name = "SNAPSHOT")]
    delete: Option<String>,
    /// The image
    filename: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<u8> {
    arguments.refused.check()?;
    let changes = [&arguments.create, &arguments.apply, &arguments.delete];
    let wanted = changes.into_iter().flatten().count();
    if wanted + usize::from(arguments.list) > 1 {
        bail!("Cannot mix '-l', '-a', '-c', '-d'");
    }
    if wanted == 0 {
        return list(arguments);
    }
    refuse("--force-share (-U) with a change", arguments.force_share)?;
    let path = &arguments.filename;
    let format = open::format_of(path, arguments.format.as_deref())?;
    if format != Format::Qcow2 {
        bail!("'{}': the raw format does not support snapshots", path.display());
    }
    // Snapshots refer to this image alone; but what is opened is the whole chain, so that writers are kept out of it, too.
    let image = InEngine::open(path, format)?;
    let (engine, disk) = (&image.engine, &image.disk);
    let result = match changes {
        [Some(name), ..] => engine
            .snapshot_create(disk, name)
            .map(|_| ())
            .map_err(|error| anyhow!(error).context(format!("Could not create snapshot '{name}'"))),
        [_, Some(name), _] => engine
            .snapshot_apply(disk, name)
            .map_err(|error| anyhow!(error).context(format!("Could not apply snapshot '{name}'"))),
        [.., Some(name)] => delete(&image, name).with_context(|| format!("Could not delete snapshot '{name}'")),
        _ => Ok(()),
    };
    let closed = image.close();
    result?;
    closed.context("The snapshots may be as they were")?;
    Ok(0)
}

/// Deletes by name only, as qemu-img does: an id that is taken for a name would be the loss of another snapshot.
fn delete(image: &InEngine, name: &str) -> Result<()> {
    let snapshots = image.engine.snapshots(&image.disk)?;
    let found = snapshots.iter().find(|snapshot| snapshot.name == name);
    let found = found.ok_or_else(|| anyhow!("snapshot not found"))?;
    Ok(image.engine.snapshot_delete(&image.disk, &found.id)?)
}

fn list(arguments: &Arguments) -> Result<u8> {
    let path = &arguments.filename;
    let image = open::at_rest_with(&RestOptions {
        force_share: arguments.force_share,
        with_backing: false,
        ..RestOptions::new(path, open::format_of(path, arguments.format.as_deref())?)
    })?;
    let snapshots = image.snapshots();
    if !snapshots.is_empty() {
        print!("Snapshot list:\n{}", human::snapshots(&snapshots));
    }
    Ok(0)
}
