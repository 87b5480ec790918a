//! `spindle img measure`: how large a new image will be.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use disk::{Format, ImageAtRest, Measure, RestOptions, measure};
use serde::Serialize;

use crate::creation_options::{CreationOptions, Preallocation, prints_help};
use crate::options::{OutputFormat, Refused, print_json};
use crate::{convert, open, size};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    refused: Refused,
    /// The format of the new image: qcow2 or raw
    #[arg(short = 'O', long, value_name = "OUTPUT_FMT", default_value = "raw")]
    target_format: String,
    /// Options of the new image, as name=value,...
    #[arg(short, long, value_name = "OPTIONS")]
    options: Vec<String>,
    /// The size of a new, empty disk
    #[arg(short, long, value_name = "SIZE", allow_hyphen_values = true)]
    size: Option<String>,
    /// The format of the image: qcow2 or raw
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// The internal snapshot that is measured
    #[arg(short = 'l', long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// Do not lock the image; somebody may be writing to it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// How the result is printed
    #[arg(long, value_name = "OFMT", default_value = "human")]
    output: OutputFormat,
    /// The image that would be converted
    filename: Option<PathBuf>,
}

/// QAPI's BlockMeasureInfo.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct MeasureInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    bitmaps: Option<u64>,
    required: u64,
    fully_allocated: u64,
}

pub fn run(arguments: &Arguments) -> Result<u8> {
    arguments.refused.check()?;
    let target = open::format(&arguments.target_format)?;
    if prints_help(&arguments.options, target) {
        return Ok(0);
    }
    let options = CreationOptions::parse(&arguments.options, target)?;
    let source = match (&arguments.size, &arguments.filename) {
        (Some(_), Some(_)) => bail!("--size N cannot be used together with a filename."),
        (None, None) => bail!("Either --size N or one filename must be specified."),
        (Some(_), None) if arguments.format.is_some() || arguments.snapshot.is_some() || arguments.force_share => {
            bail!("--image-opts, -f, -l or -U can only be used with a filename argument.")
        }
        (Some(_), None) => None,
        (None, Some(path)) => Some(open::at_rest_with(&RestOptions {
            force_share: arguments.force_share,
            snapshot: arguments.snapshot.as_deref().map(convert::snapshot_name).transpose()?,
            ..RestOptions::new(path, open::format_of(path, arguments.format.as_deref())?)
        })?),
    };
    let size = match (&source, &arguments.size) {
        (Some(source), _) => source.size(),
        (None, Some(text)) => size::parse_disk(text)?,
        (None, None) => 0,
    };
    let measured = match target {
        Format::Raw => Measure {
            required: size,
            fully_allocated: size,
        },
        Format::Qcow2 => measure_qcow2(&options, size, source.as_ref())?,
    };
    let knows_bitmaps = target == Format::Qcow2
        && source
            .as_ref()
            .and_then(ImageAtRest::header)
            .is_some_and(|header| header.version >= 3);
    let info = MeasureInfo {
        bitmaps: knows_bitmaps.then_some(0),
        required: measured.required,
        fully_allocated: measured.fully_allocated,
    };
    match arguments.output {
        OutputFormat::Json => print_json(&info)?,
        OutputFormat::Human => {
            println!("required size: {}", info.required);
            println!("fully allocated size: {}", info.fully_allocated);
            if let Some(bitmaps) = info.bitmaps {
                println!("bitmaps size: {bitmaps}");
            }
        }
    }
    Ok(0)
}

fn measure_qcow2(options: &CreationOptions, size: u64, source: Option<&ImageAtRest>) -> Result<Measure> {
    let create = options.for_size(size)?;
    let cluster_size = 1u64 << create.cluster_bits;
    let everything = matches!(options.preallocation, Some(Preallocation::Falloc | Preallocation::Full));
    let clusters = match source {
        _ if everything => u64::MAX,
        None => 0,
        Some(source) => clusters_with_data(source, cluster_size)?,
    };
    Ok(measure(&create, clusters))
}

/// Clusters of this size that hold data, as far as that is known without reading it.
fn clusters_with_data(source: &ImageAtRest, cluster_size: u64) -> Result<u64> {
    let (mut offset, mut clusters, mut counted) = (0, 0, 0);
    while offset < source.size() {
        let extent = source.extent(offset, source.size() - offset)?;
        let end = offset + extent.length;
        if extent.data && !extent.zero {
            let first = (offset / cluster_size).max(counted);
            let behind = end.div_ceil(cluster_size).max(first);
            clusters += behind - first;
            counted = behind;
        }
        offset = end;
    }
    Ok(clusters)
}
