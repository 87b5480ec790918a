//! `cargo xtask nested`: any command in the nested host.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use guest_images::{Guest, Image};
use system_tests::{End, Host, HostKind, Input, Run};

use crate::progress::{spindle_with_progress, store_with_progress};
use crate::setup::install_missing;
use crate::terminal::RawMode;

/// Run a shell command where a stock kernel runs under KVM: in the nested host, or here if this machine can.
///
/// The work folder has `spindle`, `base/` (vmlinux, vmlinuz, initrd.img, disk.qcow2 of the guest) and the files named by --file.
/// On a terminal, the command gets it, in raw mode.
#[derive(clap::Args)]
pub struct Options {
    /// A file to put into the work folder, under its own name
    #[arg(long = "file", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// A file to bring back from the work folder into this folder
    #[arg(long = "fetch", value_name = "NAME")]
    fetch: Vec<String>,
    /// The guest whose files are in base/
    #[arg(long, default_value = "tiny")]
    image: crate::boot::ImageName,
    /// The shell command
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// Runs the command and exits as it does.
pub fn nested(options: &Options) -> Result<ExitCode> {
    install_missing(HostKind::detect())?;
    let (store, progress) = store_with_progress()?;
    let guest = Guest::get(&store, Image::from(options.image))?;
    let host = Host::new(&store, &spindle_with_progress(&progress)?, Some(&guest))?;
    progress.finish_and_clear();
    for file in &options.files {
        let name = file
            .file_name()
            .with_context(|| format!("{} is no file", file.display()))?;
        host.add_file(&name.to_string_lossy(), file)?;
    }
    let mut run = Run::new(["sh", "-c", &options.command.join(" ")].map(str::to_owned).into());
    run.timeout = std::time::Duration::from_secs(24 * 3600);
    run.on_console = Box::new(|bytes| {
        let mut output = std::io::stdout();
        let _ = output.write_all(bytes).and_then(|()| output.flush());
    });
    let raw = if host.kind() == HostKind::Nested {
        RawMode::enter()?
    } else {
        None
    };
    if raw.is_some() {
        run.input = Input::Terminal;
    }
    let outcome = host.run(run)?;
    drop(raw);
    eprint!("{}", outcome.stderr);
    for name in &options.fetch {
        let fetched = host.fetch(name)?;
        let to = PathBuf::from(fetched.file_name().unwrap_or_default());
        std::fs::copy(&fetched, &to).with_context(|| format!("Cannot write {}", to.display()))?;
    }
    Ok(match outcome.end {
        End::Exited(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        End::Signalled(signal) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(1)),
    })
}
