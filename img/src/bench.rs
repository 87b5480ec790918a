//! `spindle img bench`: a sequence of requests through the engine, and how long it took.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use disk::{Aio, Buffer, Command, DiskError, EngineOptions, OpenOptions, Request};
use rustix::event::{PollFd, PollFlags, poll};

use crate::open::{self, InEngine};
use crate::options::{Refused, refuse};
use crate::size;

/// The largest number that a count may be, as qemu-img has it.
const MAX_NUMBER: u64 = i32::MAX as u64;

/// Set, it keeps the metadata cache to this process, so that the price of sharing it with the next one can be measured.
const PRIVATE_CACHE: &str = "SPINDLE_BENCH_PRIVATE_CACHE";

/// The most requests in flight: what more there are only cost memory.
const MAX_DEPTH: u64 = 4096;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    refused: Refused,
    /// How many requests
    #[arg(short, long, value_name = "COUNT", default_value = "75000")]
    count: String,
    /// How many of them at a time
    #[arg(short, long, value_name = "DEPTH", default_value = "64")]
    depth: String,
    /// The format of the image: qcow2 or raw
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Flush after so many writes
    #[arg(long, value_name = "N")]
    flush_interval: Option<String>,
    /// The way to the host's disk: io_uring or threads
    #[arg(short = 'i', long, value_name = "AIO")]
    aio: Option<String>,
    #[arg(short = 'n', long, hide = true)]
    native: bool,
    /// Flush while writes are in flight
    #[arg(long)]
    no_drain: bool,
    /// Where the first request begins
    #[arg(short, long, value_name = "OFFSET", default_value = "0")]
    offset: String,
    /// The byte that is written
    #[arg(long, value_name = "PATTERN", default_value = "0")]
    pattern: String,
    /// Print errors only
    #[arg(short, long)]
    quiet: bool,
    /// Bytes of a request
    #[arg(short = 's', long, value_name = "BUFFER_SIZE", default_value = "4096")]
    buffer_size: String,
    /// How far the next request is from the one before; the size of a request if it is not said
    #[arg(short = 'S', long, value_name = "STEP_SIZE", default_value = "0")]
    step_size: String,
    /// The cache mode: writeback, none, writethrough, directsync or unsafe
    #[arg(short = 't', long, value_name = "CACHE", default_value = "writeback")]
    cache: String,
    /// Write; else read
    #[arg(short, long)]
    write: bool,
    #[arg(short = 'U', long, hide = true)]
    force_share: bool,
    /// The image
    filename: PathBuf,
}

/// What is sent.
struct Plan {
    count: u64,
    depth: u64,
    /// Bytes of a request.
    length: u64,
    step: u64,
    start: u64,
    write: bool,
    pattern: u8,
    /// 0: never.
    flush_interval: u64,
    drain: bool,
}

impl Plan {
    fn new(arguments: &Arguments) -> Result<Self> {
        let number = |name: &str, text: &str, least: u64, most: u64| -> Result<u64> {
            let number = size::parse(text).map_err(|_| anyhow!("Invalid {name} specified: \"{text}\""))?;
            if !(least..=most).contains(&number) {
                bail!("Invalid {name} specified. Must be between {least} and {most}.");
            }
            Ok(number)
        };
        let sectors = |name: &str, text: &str, least: u64| -> Result<u64> {
            let bytes = number(name, text, least, MAX_NUMBER)?;
            if bytes % 512 != 0 {
                bail!("Invalid {name} specified: spindle img takes multiples of 512");
            }
            Ok(bytes)
        };
        let length = sectors("buffer size", &arguments.buffer_size, 1)?;
        let step = sectors("step size", &arguments.step_size, 0)?;
        let plan = Self {
            count: number("request count", &arguments.count, 1, MAX_NUMBER)?,
            depth: number("queue depth", &arguments.depth, 1, MAX_NUMBER)?.min(MAX_DEPTH),
            length,
            step: if step == 0 { length } else { step },
            start: {
                let offset = number("offset", &arguments.offset, 0, i64::MAX as u64)?;
                if offset % 512 != 0 {
                    bail!("Invalid offset specified: spindle img takes multiples of 512");
                }
                offset
            },
            write: arguments.write,
            pattern: number("pattern byte", &arguments.pattern, 0, 255)? as u8,
            flush_interval: match &arguments.flush_interval {
                Some(text) => number("flush interval", text, 0, MAX_NUMBER)?,
                None => 0,
            },
            drain: !arguments.no_drain,
        };
        if plan.flush_interval > 0 && !plan.write {
            bail!("--flush-interval is only available in write tests");
        }
        if plan.flush_interval > 0 && plan.flush_interval < plan.depth {
            bail!("Flush interval can't be smaller than depth");
        }
        Ok(plan)
    }
}

pub fn run(arguments: &Arguments) -> Result<u8> {
    arguments.refused.check()?;
    refuse("--force-share (-U)", arguments.force_share)?;
    refuse("--native (-n)", arguments.native)?;
    let plan = Plan::new(arguments)?;
    let aio = match arguments.aio.as_deref() {
        None | Some("io_uring") => Aio::IoUring,
        Some("threads") => Aio::Threads,
        Some("native") => bail!("aio=native is not supported by spindle img; there are io_uring and threads"),
        Some(other) => bail!("Invalid aio option: {other}"),
    };
    let path = &arguments.filename;
    let format = open::format_of(path, arguments.format.as_deref())?;
    let image = InEngine::open_with(
        OpenOptions {
            read_only: !arguments.write,
            cache: open::cache_mode(&arguments.cache)?,
            private_cache: std::env::var_os(PRIVATE_CACHE).is_some(),
            ..OpenOptions::new(path, format)
        },
        EngineOptions { aio },
    )?;
    println!(
        "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size {})",
        plan.count,
        if plan.write { "write" } else { "read" },
        plan.length,
        plan.depth,
        plan.start,
        plan.step
    );
    if plan.flush_interval > 0 {
        println!("Sending flush every {} requests", plan.flush_interval);
    }
    let result = Bench::new(&image, &plan).run();
    let closed = image.close();
    println!("Run completed in {:.3} seconds.", result?.as_secs_f64());
    closed?;
    Ok(0)
}

struct Bench<'a> {
    image: &'a InEngine,
    plan: &'a Plan,
    buffers: Vec<Buffer>,
    /// Where the next request begins.
    offset: u64,
    issued: u64,
    flushes: u64,
    completed: Arc<Completed>,
}

#[derive(Default)]
struct Completed {
    count: AtomicU64,
    error: Mutex<Option<DiskError>>,
}

impl<'a> Bench<'a> {
    fn new(image: &'a InEngine, plan: &'a Plan) -> Self {
        let content = vec![plan.pattern; plan.length as usize];
        // Reads may share memory; writes have the same content anyway.
        let count = plan.depth.min((16 << 20) / plan.length).max(1);
        Self {
            image,
            plan,
            buffers: (0..count).map(|_| Buffer::from_slice(&content)).collect(),
            offset: plan.start,
            issued: 0,
            flushes: 0,
            completed: Arc::default(),
        }
    }

    fn run(mut self) -> Result<Duration> {
        let start = Instant::now();
        loop {
            self.issue();
            self.image.engine.poll();
            if let Some(error) = self
                .completed
                .error
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
            {
                return Err(error).with_context(|| "Failed request".to_owned());
            }
            let done = self.completed.count.load(Ordering::Relaxed);
            if done == self.plan.count + self.flushes && self.issued == self.plan.count {
                return Ok(start.elapsed());
            }
            if !self.can_issue() {
                self.wait()?;
            }
        }
    }

    fn in_flight(&self) -> u64 {
        self.issued + self.flushes - self.completed.count.load(Ordering::Relaxed)
    }

    /// Whether the next thing to send is a flush.
    fn flush_is_due(&self) -> bool {
        let interval = self.plan.flush_interval;
        // Counted as qemu-img does: by what remains.
        interval > 0 && self.issued > 0 && self.issued < self.plan.count && {
            let due = self.plan.count.div_ceil(interval) - (self.plan.count - self.issued).div_ceil(interval);
            (self.plan.count - self.issued).is_multiple_of(interval) && self.flushes < due
        }
    }

    fn can_issue(&self) -> bool {
        if self.flush_is_due() {
            return !self.plan.drain || self.in_flight() == 0;
        }
        let draining = self.plan.drain && self.flushes > 0 && self.is_flushing();
        self.issued < self.plan.count && self.in_flight() < self.plan.depth && !draining
    }

    /// With draining, a flush has the disk to itself: it is in flight as long as not all is done that was sent before and with it.
    fn is_flushing(&self) -> bool {
        let sent_at_flush = self.issued_at_last_flush() + self.flushes;
        self.completed.count.load(Ordering::Relaxed) < sent_at_flush
    }

    fn issued_at_last_flush(&self) -> u64 {
        let (interval, count) = (self.plan.flush_interval, self.plan.count);
        let first = match count % interval {
            0 => interval,
            rest => rest,
        };
        first + (self.flushes - 1) * interval
    }

    fn issue(&mut self) {
        while self.can_issue() {
            let command = if self.flush_is_due() {
                self.flushes += 1;
                Command::Flush
            } else {
                let buffer = self.buffers[(self.issued % self.buffers.len() as u64) as usize].clone();
                let offset = self.next_offset();
                self.issued += 1;
                if self.plan.write {
                    Command::Write { offset, buffer }
                } else {
                    Command::Read { offset, buffer }
                }
            };
            let completed = self.completed.clone();
            let done = Box::new(move |result: Result<(), DiskError>| {
                if let Err(error) = result {
                    *completed.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
                completed.count.fetch_add(1, Ordering::Relaxed);
            });
            self.image.disk.submit(Request { command, done });
        }
    }

    fn next_offset(&mut self) -> u64 {
        let capacity = self.image.disk.capacity();
        let offset = self.offset;
        self.offset += self.plan.step;
        // A request does not go over the end: then it begins near the start again.
        self.offset = match capacity.checked_sub(self.plan.length) {
            None | Some(0) => 0,
            Some(last) => self.offset % last,
        };
        offset
    }

    fn wait(&self) -> Result<()> {
        let mut fds = [PollFd::from_borrowed_fd(self.image.engine.event_fd(), PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }
}
