//! Metadata that nobody flushes reaches the image by itself, and an engine with nothing to do is left alone.
//!
//! Alone in its process: it looks at the timers of the process.

mod session;

use std::cell::Cell;
use std::time::Duration;

use disk::{Aio, Buffer, Command, CreateOptions, Discard, Engine, EngineOptions, Format, OpenOptions, Request};
use rustix::event::{PollFd, PollFlags, Timespec};
use session::Workshop;

const MIB: u64 = 1 << 20;
const STANDSTILL: Duration = Duration::from_secs(300);

/// Runs the engine when it asks for it, until `is_done`.
fn run_until(engine: &Engine, is_done: impl Fn() -> bool) {
    let patience = Timespec::try_from(STANDSTILL).expect("fits");
    while !is_done() {
        let mut fds = [PollFd::from_borrowed_fd(engine.event_fd(), PollFlags::IN)];
        let ready = rustix::event::poll(&mut fds, Some(&patience)).expect("can be waited on");
        assert!(ready > 0, "the engine has stopped asking for its turn");
        engine.poll();
    }
}

/// Whether a timer of this process is running (proc_pid_fdinfo(5), "it_value").
fn a_timer_runs() -> bool {
    let descriptors = std::fs::read_dir("/proc/self/fdinfo").expect("procfs");
    let texts = descriptors.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    texts
        .into_iter()
        .any(|text| text.contains("it_value") && !text.contains("it_value: (0, 0)"))
}

#[test]
fn dirty_metadata_is_written_back_by_itself_and_then_the_engine_sleeps() {
    for aio in [Aio::IoUring, Aio::Threads] {
        let workshop = Workshop::new();
        workshop.put("disk.qcow2", &CreateOptions::new(64 << 20).metadata().expect("valid"));
        let path = workshop.file("disk.qcow2");
        let engine = Engine::new(EngineOptions { aio }).expect("an engine");
        let disk = engine.open(&OpenOptions {
            write_back_after: Duration::from_millis(50),
            discard: Discard::Unmap,
            ..OpenOptions::new(&path, Format::Qcow2)
        });
        let disk = disk.unwrap_or_else(|error| panic!("{error}"));
        engine.poll();
        assert!(!a_timer_runs(), "nothing is dirty yet");
        // The second time something goes into quarantine, whose refcounts follow when the unlinking is durable.
        for (discard, write, mapped) in [
            (0..0, MIB / 2..MIB * 3 / 2, MIB),
            (MIB / 2..MIB, MIB..MIB * 5 / 2, MIB * 3 / 2),
        ] {
            let discard = Command::Discard {
                offset: discard.start,
                length: discard.end - discard.start,
            };
            let write = Command::Write {
                offset: write.start,
                buffer: Buffer::from_slice(&vec![1; (write.end - write.start) as usize]),
            };
            let (sender, done) = std::sync::mpsc::channel();
            for command in [discard, write] {
                let sender = sender.clone();
                let done = Box::new(move |result: Result<(), _>| sender.send(result.is_ok()).expect("waits"));
                disk.submit(Request { command, done });
            }
            let answers = Cell::new(0);
            run_until(&engine, || {
                answers.set(answers.get() + done.try_iter().filter(|ok| *ok).count());
                answers.get() == 2
            });
            // No flush, no close: what another program finds in the file is all there is, down to the last refcount.
            let check = ["check", "-U", "-q", "-f", "qcow2", "disk.qcow2"];
            run_until(&engine, || {
                workshop.try_qemu("qemu-img", &check).status.success() && mapped_bytes(&workshop) == mapped
            });
            assert!(!a_timer_runs(), "nothing is dirty any more");
        }
        engine.close().unwrap_or_else(|error| panic!("{error}"));
        workshop.check("disk.qcow2");
    }
}

/// Bytes of data that the tables in the image file lead to.
fn mapped_bytes(workshop: &Workshop) -> u64 {
    let text = workshop.img(&["map", "-U", "--output=json", "-f", "qcow2", "disk.qcow2"]);
    let extents: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let extents = extents.as_array().expect("a list").iter();
    let data = extents.filter(|extent| extent["data"] == true);
    data.map(|extent| extent["length"].as_u64().expect("a number")).sum()
}
