//! `spindle img dd`: a part of an image, as a new image.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use crate::convert::{New, write_new};
use crate::copy::Sources;
use crate::creation_options::CreationOptions;
use crate::open;
use crate::options::Refused;
use crate::output::Output;
use crate::progress::Progress;
use crate::size;

/// The largest block and count, as qemu-img has them.
const MAX_NUMBER: u64 = i32::MAX as u64;

#[derive(Debug, Args)]
#[command(after_help = "Operands: if=INPUT of=OUTPUT [bs=BLOCK_SIZE] [count=BLOCKS] [skip=BLOCKS]")]
pub struct Arguments {
    #[command(flatten)]
    refused: Refused,
    /// The format of the input: qcow2 or raw
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// The format of the output: qcow2 or raw
    #[arg(short = 'O', long, value_name = "OUTPUT_FMT", default_value = "raw")]
    output_format: String,
    /// Do not lock the input; somebody may be writing to it
    #[arg(short = 'U', long)]
    force_share: bool,
    /// if=, of=, bs=, count= and skip=
    #[arg(value_name = "OPERAND")]
    operands: Vec<String>,
}

#[derive(Default)]
struct Operands {
    input: Option<PathBuf>,
    output: Option<PathBuf>,
    block: u64,
    count: Option<u64>,
    skip: u64,
}

impl Operands {
    fn parse(operands: &[String]) -> Result<Self> {
        let mut parsed = Self {
            block: 512,
            ..Self::default()
        };
        for operand in operands {
            let (name, value) = operand
                .split_once('=')
                .ok_or_else(|| anyhow!("unrecognized operand {operand}"))?;
            let number = |largest: u64| -> Result<u64> {
                let number = size::parse(value).map_err(|_| anyhow!("Invalid {name} specified: '{value}'."))?;
                if number > largest {
                    bail!("Invalid {name} specified. Must be at most {largest}.");
                }
                Ok(number)
            };
            match name {
                "if" => parsed.input = Some(value.into()),
                "of" => parsed.output = Some(value.into()),
                "bs" => {
                    parsed.block = number(MAX_NUMBER)?;
                    if parsed.block == 0 {
                        bail!("Invalid bs specified. Must be between 1 and {MAX_NUMBER}.");
                    }
                }
                "count" => parsed.count = Some(number(i64::MAX as u64)?),
                "skip" => parsed.skip = number(i64::MAX as u64)?,
                _ => bail!("unrecognized operand {name}"),
            }
        }
        Ok(parsed)
    }
}

pub fn run(arguments: &Arguments) -> Result<u8> {
    arguments.refused.check()?;
    let format = open::format(&arguments.output_format)?;
    let operands = Operands::parse(&arguments.operands)?;
    let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
        bail!("Must specify both input and output files");
    };
    let image = open::at_rest(input, arguments.format.as_deref(), arguments.force_share)?;
    let end = operands.count.map_or(image.size(), |count| {
        // The skipped blocks count, as they do for qemu-img.
        count.saturating_mul(operands.block).min(image.size())
    });
    let start = operands.skip.saturating_mul(operands.block);
    if start > end {
        eprintln!("spindle img: {}: cannot skip to specified offset", input.display());
    }
    let start = start.min(end);
    let size = (end - start).next_multiple_of(512);
    let sources = Sources::new(vec![image]);
    let target = Output::create(output)?;
    let progress = Progress::new(size, false, false);
    let new = New {
        format,
        options: &CreationOptions::default(),
        sources: &sources,
        start,
        length: end - start,
        size,
        // All is written, as dd does.
        sparse: 0,
        compress: false,
        workers: 1,
    };
    write_new(&new, &target, &progress).with_context(|| format!("Could not copy to '{}'", output.display()))?;
    progress.finish();
    target.commit(false)?;
    Ok(0)
}
