//! The way of requests that are the most common: what they cost besides the storage operation.
#![expect(unsafe_code, reason = "an allocator that counts is one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use disk::simulation::Simulation;
use disk::{
    Aio, Buffer, Command, CreateOptions, Disk, DiskError, Done, Engine, EngineOptions, Format, OpenOptions, Request,
};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const SIZE: u64 = 16 << 20;

/// Counts the answers.
fn done(answered: &Arc<AtomicUsize>) -> Done {
    let answered = answered.clone();
    Box::new(move |result: Result<(), DiskError>| {
        assert!(result.is_ok());
        answered.fetch_add(1, Ordering::Relaxed);
    })
}

fn run(engine: &Engine, disk: &dyn Disk, requests: Vec<Request>, answered: &AtomicUsize) {
    let wanted = answered.load(Ordering::Relaxed) + requests.len();
    for request in requests {
        disk.submit(request);
    }
    while answered.load(Ordering::Relaxed) < wanted {
        engine.poll();
    }
}

#[test]
fn mapped_reads_and_writes_allocate_no_memory() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("disk.qcow2");
    std::fs::write(&path, CreateOptions::new(SIZE).metadata().expect("valid")).expect("written");
    let options = EngineOptions { aio: Aio::IoUring };
    let engine = Engine::new(options).expect("an engine");
    let disk = engine
        .open(&OpenOptions {
            // It would be counted, too.
            write_back_after: Duration::from_secs(3600),
            ..OpenOptions::new(&path, Format::Qcow2)
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let answered = Arc::new(AtomicUsize::new(0));
    let whole = Buffer::from_slice(&vec![1; SIZE as usize]);
    let fill = Command::Write {
        offset: 0,
        buffer: whole,
    };
    let fill = Request {
        command: fill,
        done: done(&answered),
    };
    run(&engine, &*disk, vec![fill], &answered);
    let requests = |count: u64| -> Vec<Request> {
        let command = |number: u64| {
            let (offset, buffer) = (number * 12_288 % SIZE, Buffer::zeroed(4096));
            if number.is_multiple_of(2) {
                Command::Read { offset, buffer }
            } else {
                Command::Write { offset, buffer }
            }
        };
        let request = |number| Request {
            command: command(number),
            done: done(&answered),
        };
        (0..count).map(request).collect()
    };
    // Tables grow to their size.
    run(&engine, &*disk, requests(256), &answered);
    run(&engine, &*disk, requests(256), &answered);
    let measured = requests(200);
    let before = ALLOCATIONS.get();
    run(&engine, &*disk, measured, &answered);
    let allocations = ALLOCATIONS.get() - before;
    assert_eq!(allocations, 0, "200 requests");
    engine.close().unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn what_surrounds_a_write_is_read_in_one_go_and_written_with_it() {
    let image = CreateOptions::new(SIZE).metadata().expect("valid");
    let mut simulation = Simulation::open(image, None, None, 1).expect("opens");
    let write = |offset, length, value| Command::Write {
        offset,
        buffer: Buffer::from_slice(&vec![value; length]),
    };
    for start in [
        &(|simulation: &Simulation| simulation.submit(write(0, 1 << 17, 1))) as &dyn Fn(&Simulation) -> _,
        &|simulation: &Simulation| simulation.snapshot_create("before"),
    ] {
        let outcome = start(&simulation);
        simulation.settle();
        assert!(outcome.succeeded(), "{:?}", outcome.error());
    }
    // The L2 table becomes ours, so that what follows is the data alone.
    let outcome = simulation.submit(write(1 << 16, 1 << 16, 2));
    simulation.settle();
    assert!(outcome.succeeded());

    let outcome = simulation.submit(write(8192, 4096, 3));
    assert_eq!(simulation.disk().in_flight(), 2, "what is before and what is after");
    simulation.step();
    assert_eq!(simulation.disk().in_flight(), 1);
    simulation.step();
    assert_eq!(simulation.disk().in_flight(), 1, "one write of the whole cluster");
    simulation.step();
    assert_eq!(simulation.disk().in_flight(), 0);
    assert!(outcome.succeeded());

    let buffer = Buffer::zeroed(1 << 16);
    let outcome = simulation.submit(Command::Read {
        offset: 0,
        buffer: buffer.clone(),
    });
    simulation.settle();
    assert!(outcome.succeeded());
    let expected = [[1; 8192].as_slice(), &[3; 4096], &[1; 53_248]].concat();
    assert!(buffer.to_vec() == expected);
    simulation.close().expect("closes");
}
