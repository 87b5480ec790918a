//! `cargo xtask`: boots guests, runs every test, measures, and sets up what they need.

mod bench;
mod boot;
mod crash;
mod fuzz;
mod nested;
mod power;
mod progress;
mod report;
mod setup;
mod simulate;
mod terminal;
mod test;

use std::process::ExitCode;

use clap::Parser;

/// Chores of the spindle workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Chore {
    Bench(bench::Options),
    Boot(boot::Options),
    Test(test::Options),
    Setup(setup::Options),
    Nested(nested::Options),
    Simulate(simulate::Options),
    Fuzz(fuzz::Options),
    Crash(crash::Options),
    Power(power::Options),
    Report(report::Options),
}

fn main() -> ExitCode {
    let outcome = match Chore::parse() {
        Chore::Bench(options) => bench::bench(&options),
        Chore::Boot(options) => boot::boot(&options),
        Chore::Test(options) => test::test(&options),
        Chore::Setup(options) => setup::setup(&options).map(|()| ExitCode::SUCCESS),
        Chore::Nested(options) => nested::nested(&options),
        Chore::Simulate(options) => simulate::simulate(&options),
        Chore::Fuzz(options) => fuzz::fuzz(&options),
        Chore::Crash(options) => crash::crash(&options),
        Chore::Power(options) => power::power(&options),
        Chore::Report(options) => report::report(&options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
