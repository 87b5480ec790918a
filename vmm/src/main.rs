//! The `spindle` binary: the command line, and nothing else.

use std::io::{self, IsTerminal};
use std::panic;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tracing::level_filters::LevelFilter;
use vmm::cli::{Cli, Command, img, nbd, run};
use vmm::console;
use vmm::exit_code::Ending;

fn main() -> ExitCode {
    let start = Instant::now();
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_max_level(LevelFilter::from(cli.log))
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .init();
    restore_terminal_on_panic();
    match cli.command {
        Command::Run(arguments) => finish(&run::run(&arguments, start)),
        Command::Img(arguments) => img::run(arguments),
        Command::Nbd(arguments) => match nbd::serve(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => finish(&Ending::Failure(error)),
        },
    }
}

/// Says how it ended, if there is anything to say.
fn finish(ending: &Ending) -> ExitCode {
    match ending {
        Ending::PowerOff => {}
        Ending::Failure(error) => eprintln!("spindle: error: {}", one_line(error)),
        other => eprintln!("spindle: {other}"),
    }
    ExitCode::from(ending)
}

/// A panic message belongs on a terminal that can show it.
fn restore_terminal_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        console::restore_terminal();
        report(panic);
    }));
}

/// The error and its causes, whatever they contain.
fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace('\n', " ")
}
