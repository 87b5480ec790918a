//! Options that several sub-commands share, and those that are refused.

use std::fmt::Display;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Human,
    /// For programs.
    Json,
}

/// Options of qemu-img for images that are not plain files, which spindle does not do.
#[derive(Clone, Debug, Default, Args)]
pub struct Refused {
    #[arg(long, hide = true)]
    image_opts: bool,
    #[arg(long, value_name = "OBJDEF", hide = true)]
    object: Vec<String>,
}

impl Refused {
    /// Fails if one was given.
    pub fn check(&self) -> Result<()> {
        refuse("--image-opts", self.image_opts)?;
        refuse("--object", !self.object.is_empty())
    }
}

/// Fails if an option that is not supported was given.
pub fn refuse(option: impl Display, given: bool) -> Result<()> {
    if given {
        bail!("{option} is not supported by spindle img");
    }
    Ok(())
}

/// Prints JSON as qemu-img does, indented by four.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    println!("{}", String::from_utf8(text)?);
    Ok(())
}
