//! How far something that takes long has come.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shown on a terminal, and with -p: a bar on a terminal, else percentages as qemu-img prints them. Threads may share it.
pub struct Progress {
    total: u64,
    done: AtomicU64,
    shown: Shown,
}

enum Shown {
    Nothing,
    Bar(ProgressBar),
    Percentages(AtomicU64),
}

impl Progress {
    /// Of `total` units nothing is done. `wanted` is -p, `quiet` -q.
    pub fn new(total: u64, wanted: bool, quiet: bool) -> Self {
        let shown = if quiet {
            Shown::Nothing
        } else if io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
            let template = "{bar:40} {percent:>3} %  {bytes}/{total_bytes}  {bytes_per_sec}  {eta}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            Shown::Bar(bar)
        } else if wanted {
            Shown::Percentages(AtomicU64::new(u64::MAX))
        } else {
            Shown::Nothing
        };
        let progress = Self {
            total,
            done: AtomicU64::new(0),
            shown,
        };
        progress.advance(0);
        progress
    }

    /// So much more is done.
    pub fn advance(&self, units: u64) {
        let done = self.done.fetch_add(units, Ordering::Relaxed) + units;
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.set_position(done),
            Shown::Percentages(last) => {
                let percent = done.min(self.total) as f64 * 100.0 / self.total.max(1) as f64;
                // Two a percent at most.
                let step = (percent * 2.0) as u64;
                if last.swap(step, Ordering::Relaxed) != step {
                    self.print(percent);
                }
            }
        }
    }

    /// All of it is done.
    pub fn finish(&self) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.finish_and_clear(),
            Shown::Percentages(_) => {
                self.print(100.0);
                println!();
            }
        }
    }

    fn print(&self, percent: f64) {
        print!("    ({percent:.2}/100%)\r");
        // Progress that cannot be shown is no reason to stop.
        let _ = io::stdout().flush();
    }
}
