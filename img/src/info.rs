//! `spindle img info`: what an image is.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use disk::{Compression, Header, ImageAtRest, RestOptions, Snapshot};
use serde::Serialize;

use crate::options::{OutputFormat, Refused, print_json};
use crate::{human, open};

/// The longest chain that is listed.
const MAX_CHAIN: usize = 64;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    refused: Refused,
    /// The format of the image: qcow2 or raw
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Show all images of the chain, the uppermost first
    #[arg(short, long)]
    backing_chain: bool,
    /// Do not lock the image; somebody may be writing to it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// How the result is printed
    #[arg(long, value_name = "OFMT", default_value = "human")]
    output: OutputFormat,
    /// The image
    filename: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<u8> {
    arguments.refused.check()?;
    let images = chain(arguments)?;
    let infos: Vec<ImageInfo> = images.iter().map(ImageInfo::of).collect();
    match (arguments.output, arguments.backing_chain) {
        (OutputFormat::Json, true) => print_json(&infos)?,
        (OutputFormat::Json, false) => print_json(&infos[0])?,
        (OutputFormat::Human, _) => {
            let texts: Vec<String> = infos.iter().map(ImageInfo::text).collect();
            print!("{}", texts.join("\n"));
        }
    }
    Ok(0)
}

/// The image, or the images of its chain.
fn chain(arguments: &Arguments) -> Result<Vec<ImageAtRest>> {
    let mut images = Vec::new();
    let mut path = arguments.filename.clone();
    let mut format = open::format_of(&path, arguments.format.as_deref())?;
    loop {
        let image = open::at_rest_with(&RestOptions {
            force_share: arguments.force_share,
            with_backing: false,
            ..RestOptions::new(&path, format)
        })?;
        let next = image.backing_path()?;
        images.push(image);
        let Some((below, below_format)) = next.filter(|_| arguments.backing_chain) else {
            return Ok(images);
        };
        if images.iter().any(|image| image.is_same_file(&below)) {
            bail!("Backing file '{}' creates an infinite loop.", below.display());
        }
        if images.len() == MAX_CHAIN {
            bail!("The chain of backing files is longer than {MAX_CHAIN}");
        }
        (path, format) = (below, below_format);
    }
}

/// QAPI's ImageInfo.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct ImageInfo {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    children: Vec<Child>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    snapshots: Vec<SnapshotInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename_format: Option<String>,
    virtual_size: u64,
    filename: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_size: Option<u64>,
    format: &'static str,
    actual_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    format_specific: Option<FormatSpecific>,
    #[serde(skip_serializing_if = "Option::is_none")]
    full_backing_filename: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backing_filename: Option<String>,
    dirty_flag: bool,
    #[serde(skip)]
    snapshot_table: String,
}

#[derive(Debug, Serialize)]
struct Child {
    name: &'static str,
    info: FileInfo,
}

/// The file that an image lies in.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct FileInfo {
    children: [(); 0],
    virtual_size: u64,
    filename: String,
    format: &'static str,
    actual_size: u64,
    format_specific: FileSpecific,
    dirty_flag: bool,
}

#[derive(Debug, Serialize)]
struct FileSpecific {
    #[serde(rename = "type")]
    kind: &'static str,
    data: Nothing,
}

#[derive(Debug, Serialize)]
struct Nothing {}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct SnapshotInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    icount: Option<u64>,
    vm_clock_nsec: u64,
    name: String,
    date_sec: u32,
    date_nsec: u32,
    vm_clock_sec: u64,
    id: String,
    vm_state_size: u64,
}

#[derive(Debug, Serialize)]
struct FormatSpecific {
    #[serde(rename = "type")]
    kind: &'static str,
    data: Qcow2Info,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Qcow2Info {
    compat: &'static str,
    compression_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    lazy_refcounts: Option<bool>,
    refcount_bits: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    corrupt: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extended_l2: Option<bool>,
}

impl ImageInfo {
    fn of(image: &ImageAtRest) -> Self {
        let (length, space) = image.file_size();
        let filename = image.path().display().to_string();
        let header = image.header();
        let backing = header.and_then(|header| header.backing.as_ref());
        let full = image.backing_path().ok().flatten();
        let snapshots = image.snapshots();
        Self {
            children: vec![Child {
                name: "file",
                info: FileInfo {
                    children: [],
                    virtual_size: length.next_multiple_of(512),
                    filename: filename.clone(),
                    format: "file",
                    actual_size: space,
                    format_specific: FileSpecific {
                        kind: "file",
                        data: Nothing {},
                    },
                    dirty_flag: false,
                },
            }],
            snapshot_table: human::snapshots(&snapshots),
            snapshots: snapshots.iter().map(SnapshotInfo::of).collect(),
            backing_filename_format: backing.and_then(|backing| backing.format.clone()),
            virtual_size: image.size(),
            filename,
            cluster_size: header.map(Header::cluster_size),
            format: if header.is_some() { "qcow2" } else { "raw" },
            actual_size: space,
            format_specific: header.map(|header| FormatSpecific {
                kind: "qcow2",
                data: Qcow2Info::of(header),
            }),
            full_backing_filename: full.map(|(path, _)| path.display().to_string()),
            backing_filename: backing.map(|backing| backing.name.clone()),
            dirty_flag: header.is_some_and(Header::is_dirty),
        }
    }

    fn text(&self) -> String {
        let mut lines = vec![
            format!("image: {}", self.filename),
            format!("file format: {}", self.format),
            format!(
                "virtual size: {} ({} bytes)",
                human::bytes(self.virtual_size),
                self.virtual_size
            ),
            format!("disk size: {}", human::bytes(self.actual_size)),
        ];
        lines.extend(self.cluster_size.map(|size| format!("cluster_size: {size}")));
        if self.dirty_flag {
            lines.push("cleanly shut down: no".to_owned());
        }
        if let Some(name) = &self.backing_filename {
            let full = self.full_backing_filename.as_ref().filter(|full| *full != name);
            let actual = full.map_or_else(String::new, |full| format!(" (actual path: {full})"));
            lines.push(format!("backing file: {name}{actual}"));
        }
        lines.extend(
            self.backing_filename_format
                .as_ref()
                .map(|format| format!("backing file format: {format}")),
        );
        if !self.snapshots.is_empty() {
            lines.push("Snapshot list:".to_owned());
            lines.push(self.snapshot_table.trim_end().to_owned());
        }
        if let Some(specific) = &self.format_specific {
            lines.push("Format specific information:".to_owned());
            lines.extend(specific.data.lines());
        }
        for child in &self.children {
            let file = &child.info;
            lines.push(format!("Child node '/{}':", child.name));
            lines.push(format!("    filename: {}", file.filename));
            lines.push("    protocol type: file".to_owned());
            lines.push(format!(
                "    file length: {} ({} bytes)",
                human::bytes(file.virtual_size),
                file.virtual_size
            ));
            lines.push(format!("    disk size: {}", human::bytes(file.actual_size)));
        }
        lines.join("\n") + "\n"
    }
}

impl SnapshotInfo {
    fn of(snapshot: &Snapshot) -> Self {
        Self {
            icount: snapshot.icount,
            vm_clock_nsec: snapshot.vm_clock % 1_000_000_000,
            name: snapshot.name.clone(),
            date_sec: snapshot.date.0,
            date_nsec: snapshot.date.1,
            vm_clock_sec: snapshot.vm_clock / 1_000_000_000,
            id: snapshot.id.clone(),
            vm_state_size: snapshot.vm_state_bytes,
        }
    }
}

impl Qcow2Info {
    fn of(header: &Header) -> Self {
        let version_3 = header.version >= 3;
        Self {
            compat: if version_3 { "1.1" } else { "0.10" },
            compression_type: match header.compression {
                Compression::Deflate => "zlib",
                Compression::Zstd => "zstd",
            },
            lazy_refcounts: version_3.then(|| header.has_lazy_refcounts()),
            refcount_bits: 1 << header.refcount_order,
            corrupt: version_3.then(|| header.is_corrupt()),
            extended_l2: version_3.then_some(false),
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("    compat: {}", self.compat),
            format!("    compression type: {}", self.compression_type),
        ];
        lines.extend(self.lazy_refcounts.map(|lazy| format!("    lazy refcounts: {lazy}")));
        lines.push(format!("    refcount bits: {}", self.refcount_bits));
        lines.extend(self.corrupt.map(|corrupt| format!("    corrupt: {corrupt}")));
        lines.extend(self.extended_l2.map(|extended| format!("    extended l2: {extended}")));
        lines
    }
}
