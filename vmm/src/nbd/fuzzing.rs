//! What a fuzzer feeds, and the test that replays its corpus: a client that sends any bytes.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use disk::{Disk, MemoryDisk, Request};
use nbd::{BlockSizes, Export, TransmissionFlags};

use super::connection::{Connection, Next};
use super::job::{Capabilities, Job, MAX_PAYLOAD};

/// Size of the disk in bytes.
const SIZE: u64 = 64 << 10;

/// Bytes that are sent at a time.
const SENT_AT_ONCE: usize = 1000;

/// A connection from its first byte to its last, on a disk in memory. Panics if anything but a broken protocol ends it before every
/// request is answered.
pub fn stream(bytes: &[u8]) {
    let Ok((socket, client)) = UnixStream::pair() else {
        return;
    };
    if socket.set_nonblocking(true).is_err() || client.set_nonblocking(true).is_err() {
        return;
    }
    let (export, capabilities) = export();
    let disk = MemoryDisk::new(vec![0; SIZE as usize], false);
    let mut connection = Connection::new(socket.into(), String::new());
    let mut unsent = bytes;
    // Each turn sends something, or takes something from what is in flight.
    for _ in 0..bytes.len() + 1000 {
        let sent = unsent.len().min(SENT_AT_ONCE);
        if let Ok(count) = (&client).write(&unsent[..sent]) {
            unsent = &unsent[count..];
        }
        if unsent.is_empty() {
            let _ = client.shutdown(Shutdown::Write);
        }
        connection.set_readable();
        loop {
            match connection.next(&export, capabilities) {
                Next::Job(job) => run(&disk, &mut connection, *job),
                Next::Wait => break,
                Next::Gone(_) => return,
            }
        }
        if connection.flush().is_err() {
            return;
        }
        let mut answers = [0; 64 << 10];
        while (&client).read(&mut answers).is_ok_and(|count| count > 0) {}
        if connection.is_over() {
            return;
        }
    }
    panic!("a client has left, and its connection goes on");
}

fn export() -> (Export, Capabilities) {
    let export = Export {
        name: "x".to_owned(),
        description: String::new(),
        size: SIZE,
        flags: TransmissionFlags::all(),
        block_sizes: BlockSizes {
            minimum: 512,
            preferred: 4096,
            maximum: MAX_PAYLOAD,
        },
    };
    let capabilities = Capabilities {
        size: SIZE,
        read_only: false,
        fast_zero: true,
    };
    (export, capabilities)
}

/// Runs a request to its end.
fn run(disk: &MemoryDisk, connection: &mut Connection, mut job: Job) {
    while let Some(command) = job.next_command() {
        let outcome = Arc::new(Mutex::new(None));
        let slot = outcome.clone();
        disk.submit(Request {
            command,
            done: Box::new(move |result| *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result)),
        });
        disk.run();
        let result = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The disk in memory fails only where a command cannot be, and those are refused before.
        assert!(matches!(result, Some(Ok(()))), "{result:?}");
    }
    connection.answer(job.succeed());
}
