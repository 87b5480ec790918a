//! `spindle img map`: where the content of an image is.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use disk::{ImageAtRest, MapEntry};

use crate::options::{OutputFormat, Refused};
use crate::{open, size};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    refused: Refused,
    /// The format of the image: qcow2 or raw
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Where to begin
    #[arg(short, long, value_name = "OFFSET")]
    start_offset: Option<String>,
    /// How many bytes to show
    #[arg(short = 'l', long, value_name = "LENGTH")]
    max_length: Option<String>,
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
    let number = |text: &Option<String>| text.as_deref().map(size::parse).transpose();
    let (start, length) = (number(&arguments.start_offset)?, number(&arguments.max_length)?);
    let image = open::at_rest(&arguments.filename, arguments.format.as_deref(), arguments.force_share)?;
    let start = start.unwrap_or(0).min(image.size());
    let end = length.map_or(image.size(), |length| start.saturating_add(length).min(image.size()));
    let mut printer = Printer::new(&image, arguments.output);
    let mut offset = start;
    let mut pending: Option<(u64, MapEntry)> = None;
    while offset < end {
        let extent = image.extent(offset, end - offset)?;
        match &mut pending {
            Some((begin, last)) if continues(*begin, last, offset, &extent) => last.length += extent.length,
            _ => {
                if let Some((begin, last)) = pending.replace((offset, extent)) {
                    printer.print(begin, &last)?;
                }
            }
        }
        offset += extent.length;
    }
    if let Some((begin, last)) = pending {
        printer.print(begin, &last)?;
    }
    printer.finish();
    Ok(0)
}

/// Whether an extent can be shown together with the one before it.
fn continues(begin: u64, last: &MapEntry, offset: u64, extent: &MapEntry) -> bool {
    let alike = MapEntry {
        length: extent.length,
        host: last.host.map(|host| host + (offset - begin)),
        ..*last
    };
    begin + last.length == offset && alike == *extent
}

struct Printer<'a> {
    image: &'a ImageAtRest,
    format: OutputFormat,
    is_first: bool,
}

impl<'a> Printer<'a> {
    fn new(image: &'a ImageAtRest, format: OutputFormat) -> Self {
        if format == OutputFormat::Human {
            println!("{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to");
        }
        Self {
            image,
            format,
            is_first: true,
        }
    }

    fn print(&mut self, start: u64, extent: &MapEntry) -> Result<()> {
        match self.format {
            OutputFormat::Human => self.print_line(start, extent),
            OutputFormat::Json => {
                self.print_object(start, extent);
                Ok(())
            }
        }
    }

    fn print_line(&self, start: u64, extent: &MapEntry) -> Result<()> {
        if !extent.data || extent.zero {
            return Ok(());
        }
        let Some(host) = extent.host else {
            bail!("File contains external, encrypted or compressed clusters.");
        };
        let file = self.image.chain().nth(extent.depth).map(ImageAtRest::path);
        let file = file.map_or_else(String::new, |path| path.display().to_string());
        let (start, length, host) = (hexadecimal(start), hexadecimal(extent.length), hexadecimal(host));
        println!("{start:<16}{length:<16}{host:<16}{file}");
        Ok(())
    }

    fn print_object(&mut self, start: u64, extent: &MapEntry) {
        let before = if self.is_first { "[" } else { ",\n" };
        self.is_first = false;
        print!(
            "{before}{{ \"start\": {start}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \"compressed\": {}",
            extent.length, extent.depth, extent.present, extent.zero, extent.data, extent.compressed
        );
        if let Some(host) = extent.host {
            print!(", \"offset\": {host}");
        }
        print!("}}");
    }

    fn finish(&self) {
        if self.format == OutputFormat::Json {
            println!("{}", if self.is_first { "[]" } else { "]" });
        }
    }
}

/// As C's `%#x`: 0 has no prefix.
fn hexadecimal(number: u64) -> String {
    if number == 0 {
        "0".to_owned()
    } else {
        format!("{number:#x}")
    }
}
