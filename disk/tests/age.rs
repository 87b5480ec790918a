//! Metadata that nobody flushes reaches the image by itself, and an engine with nothing to do is left alone.
//!
//! Alone in its process: it looks at the timers of the process.

mod session;

use std::time::Duration;

use disk::{Aio, Buffer, Command, CreateOptions, Engine, EngineOptions, Format, OpenOptions, Request};
use rustix::event::{PollFd, PollFlags, Timespec};
use session::Workshop;

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
        let engine = Engine::new(EngineOptions {
            aio,
            ..EngineOptions::default()
        })
        .expect("an engine");
        let disk = engine.open(&OpenOptions {
            write_back_after: Duration::from_millis(50),
            ..OpenOptions::new(&path, Format::Qcow2)
        });
        let disk = disk.unwrap_or_else(|error| panic!("{error}"));
        engine.poll();
        assert!(!a_timer_runs(), "nothing is dirty yet");
        for value in [1, 2] {
            let buffer = Buffer::from_slice(&vec![value; 1 << 20]);
            let (sender, done) = std::sync::mpsc::channel();
            // The second time there is something in quarantine, too, whose refcounts come after.
            for command in [
                Command::Discard {
                    offset: 0,
                    length: 1 << 19,
                },
                Command::Write {
                    offset: u64::from(value) << 19,
                    buffer,
                },
            ] {
                let sender = sender.clone();
                disk.submit(Request {
                    command,
                    done: Box::new(move |result| sender.send(result.is_ok()).expect("waits")),
                });
            }
            let answers = std::cell::Cell::new(0);
            run_until(&engine, || {
                answers.set(answers.get() + done.try_iter().filter(|ok| *ok).count());
                answers.get() == 2
            });
            // No flush, no close: what another program finds in the file is all there is, down to the last refcount.
            let check = ["check", "-U", "-q", "-f", "qcow2", "disk.qcow2"];
            run_until(&engine, || workshop.try_qemu("qemu-img", &check).status.success());
            assert!(!a_timer_runs(), "nothing is dirty any more");
            let map = workshop.img(&["map", "-U", "--output=json", "-f", "qcow2", "disk.qcow2"]);
            assert!(map.contains("\"data\": true"), "{map}");
        }
        engine.close().unwrap_or_else(|error| panic!("{error}"));
        workshop.check("disk.qcow2");
    }
}
