//! `spindle nbd`: a disk image for NBD clients.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::CommandFactory;
use clap::error::ErrorKind;
use disk::{Aio, Disk, Engine, EngineOptions, Format, OpenOptions, SECTOR_SIZE};
use nbd::{BlockSizes, Export, TransmissionFlags};

use super::Cli;
use super::disk_argument::DiskArgument;
use crate::nbd::job::{Capabilities, MAX_PAYLOAD};
use crate::nbd::listener::{Listener, check_is_loopback};
use crate::nbd::server::{self, Service};
use crate::signals::Signals;

/// What requests had better be multiples of, in bytes: a page, and the block of most file systems.
const PREFERRED_BLOCK: u32 = 4096;

/// Offer a disk image to NBD clients
///
/// Listens on a Unix socket that only this user can use, or on a TCP port of this machine. Ends when the last client has left, unless
/// it is persistent, and on SIGTERM, SIGINT and SIGHUP: requests in flight are finished then, and everything is made durable.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("address").required(true))]
#[command(after_help = "\
Exit codes of `spindle nbd`:
  0     the last client has left, or a signal said to stop; everything is durable
  1     spindle failed; standard error says why
  2     wrong usage")]
pub struct Arguments {
    /// Listen on this Unix socket, which is made with mode 0600
    #[arg(long, value_name = "PATH", group = "address")]
    pub socket: Option<PathBuf>,

    /// Listen on this TCP address, for example 127.0.0.1:10809; port 0 is any free one
    #[arg(long, value_name = "ADDR:PORT", group = "address")]
    pub bind: Option<SocketAddr>,

    /// Let --bind be an address that other machines can reach; there are neither passwords nor encryption
    #[arg(long, requires = "bind")]
    pub allow_remote: bool,

    /// Name that clients ask for; the empty name is the default one
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub export: String,

    /// Refuse writes, and share the image with other readers
    #[arg(long)]
    pub read_only: bool,

    /// Offer an internal snapshot, by id or name, read-only
    #[arg(long, value_name = "NAME")]
    pub snapshot: Option<String>,

    /// Go on when the last client has left
    #[arg(long)]
    pub persistent: bool,

    /// The most clients at a time; others wait
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub max_clients: u16,

    /// Print "ready" on standard output when clients can come, and on a second line the NBD URI
    #[arg(long)]
    pub ready: bool,

    /// How disk operations reach the host: io_uring or threads
    #[arg(long, value_name = "AIO", default_value_t)]
    pub aio: Aio,

    /// Image: PATH[,format=qcow2|raw][,readonly][,OPTION=VALUE]..., with the options of `spindle run --disk`
    ///
    /// The format is qcow2 unless it is said; it is never guessed. Trims give space back with discard=unmap. A comma in the
    /// path is written twice.
    #[arg(value_name = "IMAGE")]
    pub image: DiskArgument,
}

/// Serves until there is nothing more to do.
pub fn serve(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.image.slot.is_some() || arguments.image.root {
        Cli::command()
            .error(ErrorKind::ValueValidation, "IMAGE: slot= and root are for machines")
            .exit()
    }
    if let Some(address) = arguments.bind.filter(|_| !arguments.allow_remote) {
        check_is_loopback(address.ip())?;
    }
    let signals = Signals::block()?;
    let engine = Engine::new(EngineOptions { aio: arguments.aio }).context("Cannot start the disk engine")?;
    let outcome = serve_with(arguments, &engine, &signals);
    let closed = engine.close().context("Cannot close the image");
    match (outcome, closed) {
        (Err(error), Err(also)) => Err(error.context(format!("{also:#}, and before that"))),
        (outcome, closed) => outcome.and(closed),
    }
}

fn serve_with(arguments: &Arguments, engine: &Engine, signals: &Signals) -> anyhow::Result<()> {
    let listener = match (&arguments.socket, arguments.bind) {
        (Some(path), _) => Listener::unix(path)?,
        (None, Some(address)) => Listener::tcp(address)?,
        (None, None) => unreachable_without_address(),
    };
    let image = &arguments.image;
    let disk = engine.open(&OpenOptions {
        read_only: image.read_only || arguments.read_only || arguments.snapshot.is_some(),
        snapshot: arguments.snapshot.clone(),
        ..image.open_options()
    })?;
    let disk: Arc<dyn Disk> = image.decorated(disk)?;
    let service = Service {
        export: export(arguments, &disk),
        capabilities: Capabilities {
            size: disk.capacity(),
            read_only: disk.read_only(),
            fast_zero: can_zero_fast(image.format),
        },
        max_clients: usize::from(arguments.max_clients),
        persistent: arguments.persistent,
    };
    if arguments.ready {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "ready\n{}", listener.uri(&arguments.export))
            .and_then(|()| stdout.flush())
            .context("Cannot write to standard output")?;
    }
    server::serve(engine, disk, listener, signals, service)
}

/// The command line asks for one of the two.
fn unreachable_without_address() -> ! {
    Cli::command()
        .error(
            ErrorKind::MissingRequiredArgument,
            "say --socket PATH or --bind ADDR:PORT",
        )
        .exit()
}

/// A raw image has no other way to hold zeros than to write them.
fn can_zero_fast(format: Format) -> bool {
    format == Format::Qcow2
}

fn export(arguments: &Arguments, disk: &Arc<dyn Disk>) -> Export {
    let mut flags = TransmissionFlags::HAS_FLAGS
        | TransmissionFlags::SEND_FLUSH
        | TransmissionFlags::SEND_FUA
        | TransmissionFlags::SEND_DF
        | TransmissionFlags::SEND_CACHE
        | TransmissionFlags::CAN_MULTI_CONN;
    if disk.read_only() {
        flags |= TransmissionFlags::READ_ONLY;
    } else {
        flags |= TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_WRITE_ZEROES;
        flags.set(TransmissionFlags::SEND_FAST_ZERO, can_zero_fast(arguments.image.format));
    }
    Export {
        name: arguments.export.clone(),
        description: String::new(),
        size: disk.capacity(),
        flags,
        block_sizes: BlockSizes {
            minimum: SECTOR_SIZE as u32,
            preferred: PREFERRED_BLOCK,
            maximum: MAX_PAYLOAD,
        },
    }
}
