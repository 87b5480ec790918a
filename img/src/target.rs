//! What content is written to: a new image, or one that is there.

use std::fs::File;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use disk::{Buffer, Command, Disk, NewImage, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::open::InEngine;

/// Where content goes.
pub enum Target {
    /// A new qcow2 image.
    Qcow2(Box<NewImage>),
    /// A raw file or device.
    Raw {
        /// The file.
        file: File,
        /// What is not written reads as zeros.
        reads_zero: bool,
    },
    /// An image that is there, through the engine.
    Existing {
        /// The image.
        writer: Writer,
        /// All of it reads as zeros.
        reads_zero: bool,
    },
}

impl Target {
    /// Whether zeros must be written for a range to read as zeros.
    pub fn needs_zeroes(&self) -> bool {
        match self {
            Target::Qcow2(image) => image.options().backing.is_some(),
            Target::Raw { reads_zero, .. } | Target::Existing { reads_zero, .. } => !reads_zero,
        }
    }

    /// The unit of allocation, in bytes.
    pub fn unit(&self) -> u64 {
        match self {
            Target::Qcow2(image) => 1 << image.options().cluster_bits,
            Target::Raw { .. } | Target::Existing { .. } => 512,
        }
    }
}

/// Writes to a disk of an engine that another thread runs. Each call returns when the request is done.
#[derive(Clone)]
pub struct Writer {
    disk: Arc<dyn Disk>,
}

impl Writer {
    /// Writes data.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let buffer = Buffer::from_slice(data);
        self.execute(Command::Write { offset, buffer })
    }

    /// Makes a range read as zeros.
    pub fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.execute(Command::WriteZeroes { offset, length })
    }

    /// Makes what was written durable.
    pub fn flush(&self) -> Result<()> {
        self.execute(Command::Flush)
    }

    fn execute(&self, command: Command) -> Result<()> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let done = Box::new(move |result| {
            // Whoever asked has gone if this fails.
            let _ = sender.send(result);
        });
        self.disk.submit(Request { command, done });
        let result = receiver.recv().map_err(|_| anyhow!("The disk was closed"))?;
        result.context("Error while writing")
    }
}

/// Runs `work` on a thread of its own, with this thread running the engine.
pub fn with_engine<T: Send>(image: &InEngine, work: impl FnOnce(Writer) -> Result<T> + Send) -> Result<T> {
    let writer = Writer {
        disk: image.disk.clone(),
    };
    let waker = writer.disk.clone();
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            // A request wakes the engine's thread, so that it sees that this one has ended.
            let _wake = WakeAtEnd(waker);
            work(writer)
        });
        while !worker.is_finished() {
            image.engine.poll();
            wait(&image.engine)?;
        }
        worker.join().map_err(|_| anyhow!("A thread panicked"))?
    })
}

struct WakeAtEnd(Arc<dyn Disk>);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        let done = Box::new(|_| {});
        self.0.submit(Request {
            command: Command::Flush,
            done,
        });
    }
}

fn wait(engine: &disk::Engine) -> Result<()> {
    // A worker ends a moment after it woke us; then nothing more comes.
    const LAST_MOMENT: Duration = Duration::from_millis(20);
    let mut fds = [PollFd::from_borrowed_fd(engine.event_fd(), PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: LAST_MOMENT.as_nanos() as i64,
    };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// The runs of `data` with blocks that are not zero. Blocks begin at multiples of `block` of the disk, of which `data` lies at byte
/// `offset`. With a block of 0 everything is data.
pub fn runs_of_data(offset: u64, data: &[u8], block: u64) -> Vec<(usize, usize)> {
    if block == 0 {
        return vec![(0, data.len())];
    }
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let position = offset + at as u64;
        let end = data.len().min(at + (block - position % block) as usize);
        if !disk::is_zero(&data[at..end]) {
            match runs.last_mut() {
                Some(last) if last.1 == at => last.1 = end,
                _ => runs.push((at, end)),
            }
        }
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_data_begin_and_end_at_blocks_of_the_disk() {
        let mut data = vec![0; 20 * 512];
        data[512 * 3] = 1;
        data[512 * 4 + 7] = 1;
        data[512 * 19 + 511] = 1;
        assert_eq!(runs_of_data(0, &data, 512), [(512 * 3, 512 * 5), (512 * 19, 512 * 20)]);
        // Blocks of four sectors begin at sectors 2, 6 ... of the data when it begins at sector 2 of the disk.
        assert_eq!(runs_of_data(1024, &data, 2048), [(1024, 3072), (18 * 512, 20 * 512)]);
        assert_eq!(runs_of_data(0, &data, 0), [(0, data.len())]);
        assert!(runs_of_data(0, &[0; 4096], 512).is_empty());
    }
}
