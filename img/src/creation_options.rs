//! The options of new images: `-o name=value,...`, by qemu-img's names.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Error, Result, anyhow, bail};
use disk::{BackingReference, Compression, CreateOptions, Format};

use crate::{open, size};

/// Which space a new image has from the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// None.
    #[default]
    Off,
    /// Clusters, but not their space.
    Metadata,
    /// Space, which reads as zeros.
    Falloc,
    /// Space, with zeros written to it.
    Full,
}

impl FromStr for Preallocation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "off" => Preallocation::Off,
            "metadata" => Preallocation::Metadata,
            "falloc" => Preallocation::Falloc,
            "full" => Preallocation::Full,
            _ => bail!(
                "Parameter 'preallocation' does not accept value '{text}'; there are off, metadata, falloc and full"
            ),
        })
    }
}

/// The values of a new image's options, as far as they were said.
#[derive(Clone, Debug, Default)]
pub struct CreationOptions {
    /// Size of the disk in bytes.
    pub size: Option<u64>,
    /// The file below, and its format.
    pub backing_file: Option<String>,
    pub backing_format: Option<String>,
    /// What gets space at once.
    pub preallocation: Option<Preallocation>,
    cluster_size: Option<u64>,
    version: Option<u32>,
    compression: Option<Compression>,
    lazy_refcounts: Option<bool>,
    refcount_bits: Option<u64>,
}

/// What `-o help` says.
const QCOW2_HELP: &str = "\
Supported options:
  backing_file=<str>     - File name of a base image
  backing_fmt=<str>      - Image format of the base image
  cluster_size=<size>    - qcow2 cluster size
  compat=<str>           - Compatibility level (v2 [0.10] or v3 [1.1])
  compression_type=<str> - Compression method used for image cluster compression (zlib or zstd)
  lazy_refcounts=<bool (on/off)> - Postpone refcount updates
  preallocation=<str>    - Preallocation mode (allowed values: off, metadata, falloc, full)
  refcount_bits=<num>    - Width of a reference count entry in bits
  size=<size>            - Virtual disk size";

const RAW_HELP: &str = "\
Supported options:
  preallocation=<str>    - Preallocation mode (allowed values: off, falloc, full)
  size=<size>            - Virtual disk size";

/// Whether a list of options asks for help; then it is printed.
pub fn prints_help(lists: &[String], format: Format) -> bool {
    let wanted = lists
        .iter()
        .any(|list| list.split(',').any(|word| word == "help" || word == "?"));
    if wanted {
        println!("{}", if format == Format::Qcow2 { QCOW2_HELP } else { RAW_HELP });
    }
    wanted
}

impl CreationOptions {
    /// Reads all `-o`; what comes later counts.
    pub fn parse(lists: &[String], format: Format) -> Result<Self> {
        let mut options = Self::default();
        for field in lists
            .iter()
            .flat_map(|list| split(list))
            .filter(|field| !field.is_empty())
        {
            let (name, value) = field
                .split_once('=')
                .ok_or_else(|| anyhow!("Option \"{field}\" has no value"))?;
            options.set(name, value, format)?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &str, format: Format) -> Result<()> {
        let is_qcow2 = format == Format::Qcow2;
        match name {
            "size" => self.size = Some(size::parse_disk(value)?),
            "preallocation" => {
                let mode: Preallocation = value.parse()?;
                if !is_qcow2 && mode == Preallocation::Metadata {
                    bail!("Unsupported preallocation mode 'metadata'; raw images have off, falloc and full");
                }
                self.preallocation = Some(mode);
            }
            "backing_file" if is_qcow2 => self.backing_file = Some(value.to_owned()),
            "backing_fmt" if is_qcow2 => self.backing_format = Some(value.to_owned()),
            "cluster_size" if is_qcow2 => self.cluster_size = Some(size::parse(value)?),
            "compat" if is_qcow2 => {
                self.version = Some(match value {
                    "0.10" | "v2" => 2,
                    "1.1" | "v3" => 3,
                    _ => bail!("Parameter 'compat' does not accept value '{value}'; there are 0.10 (v2) and 1.1 (v3)"),
                });
            }
            "compression_type" if is_qcow2 => {
                self.compression = Some(match value {
                    "zlib" => Compression::Deflate,
                    "zstd" => Compression::Zstd,
                    _ => bail!("Parameter 'compression-type' does not accept value '{value}'; there are zlib and zstd"),
                });
            }
            "lazy_refcounts" if is_qcow2 => self.lazy_refcounts = Some(on_or_off(name, value)?),
            "refcount_bits" if is_qcow2 => self.refcount_bits = Some(size::parse(value)?),
            "extended_l2" | "encryption" | "data_file_raw" if is_qcow2 => refuse_if_on(name, value)?,
            "nocow" => refuse_if_on(name, value)?,
            "extent_size_hint" => {
                size::parse(value)?;
            }
            "data_file" if is_qcow2 => bail!("Option data_file is not supported by spindle img"),
            _ if is_qcow2 && name.starts_with("encrypt.") => bail!("Option {name} is not supported by spindle img"),
            _ => bail!("Invalid parameter '{name}'"),
        }
        Ok(())
    }

    /// What the disk crate is to make, of `size` bytes.
    pub fn for_size(&self, size: u64) -> Result<CreateOptions> {
        let cluster_size = self.cluster_size.unwrap_or(65536);
        if !cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&cluster_size) {
            bail!("Cluster size must be a power of two between 512 and 2048k");
        }
        let refcount_bits = self.refcount_bits.unwrap_or(16);
        if !refcount_bits.is_power_of_two() || refcount_bits > 64 {
            bail!("Refcount width must be a power of two and may not exceed 64 bits");
        }
        let version = self.version.unwrap_or(3);
        if version < 3 && refcount_bits != 16 {
            bail!("Different refcount widths than 16 bits require compatibility level 1.1 or above (use compat=v3)");
        }
        if version < 3 && self.lazy_refcounts == Some(true) {
            bail!("Lazy refcounts only supported with compatibility level 1.1 and above (use compat=v3)");
        }
        if version < 3 && self.compression == Some(Compression::Zstd) {
            bail!("Non-zlib compression type is only supported with compatibility level 1.1 and above (use compat=v3)");
        }
        let backing = self.backing_file.as_ref().filter(|name| !name.is_empty());
        let preallocates = self.preallocation.is_some_and(|mode| mode != Preallocation::Off);
        if backing.is_some() && preallocates {
            bail!("Backing file and preallocation cannot be used at the same time");
        }
        Ok(CreateOptions {
            version,
            cluster_bits: cluster_size.ilog2(),
            refcount_order: refcount_bits.ilog2(),
            backing: backing.map(|name| BackingReference {
                name: name.clone(),
                format: self.backing_format.clone(),
            }),
            lazy_refcounts: self.lazy_refcounts.unwrap_or(false),
            compression: self.compression.unwrap_or(Compression::Deflate),
            ..CreateOptions::new(size)
        })
    }

    /// The line that `create` prints.
    pub fn banner(&self, path: &Path, format: Format, size: u64) -> String {
        let mut text = format!("Formatting '{}', fmt={}", path.display(), open::format_name(format));
        let mut add = |name: &str, value: &dyn fmt::Display| text += &format!(" {name}={value}");
        let preallocation = self.preallocation.map(|mode| format!("{mode:?}").to_lowercase());
        if format == Format::Raw {
            add("size", &size);
            if let Some(mode) = preallocation {
                add("preallocation", &mode);
            }
            return text;
        }
        add("cluster_size", &self.cluster_size.unwrap_or(65536));
        add("extended_l2", &"off");
        if let Some(mode) = preallocation {
            add("preallocation", &mode);
        }
        let zstd = self.compression == Some(Compression::Zstd);
        add("compression_type", &if zstd { "zstd" } else { "zlib" });
        add("size", &size);
        match self.version {
            Some(2) => add("compat", &"0.10"),
            Some(_) => add("compat", &"1.1"),
            None => {}
        }
        if let Some(name) = &self.backing_file {
            add("backing_file", name);
        }
        if let Some(format) = &self.backing_format {
            add("backing_fmt", format);
        }
        let lazy = self.lazy_refcounts.unwrap_or(false);
        add("lazy_refcounts", &if lazy { "on" } else { "off" });
        add("refcount_bits", &self.refcount_bits.unwrap_or(16));
        text
    }
}

fn on_or_off(name: &str, value: &str) -> Result<bool> {
    match value {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => bail!("Parameter '{name}' expects 'on' or 'off'"),
    }
}

fn refuse_if_on(name: &str, value: &str) -> Result<()> {
    if on_or_off(name, value)? {
        bail!("Option {name} is not supported by spindle img");
    }
    Ok(())
}

/// Splits at single commas; a double comma is a comma.
fn split(list: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = list.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            fields.push(String::new());
        } else if let Some(field) = fields.last_mut() {
            field.push(character);
        }
    }
    fields
}
