//! A guest on an IDE disk whose qcow2 image may be damaged: for fuzzing, and for tests that replay what a fuzzer kept.
//!
//! A sequence of bytes chooses an image, damages some of its header and tables, and then says what the guest does. Nothing panics, nothing
//! runs for ever, and what the engine cannot do the guest sees as an ATA error. An image that the check still finds whole holds what the
//! guest wrote, and is whole when it is closed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use devices::bus::PortBus;
use devices::chipset::{Chipset, ChipsetConfig, DriveConfig, Plugged};
use devices::clock::ManualClock;
use devices::ide::controller::IdeOptions;
use devices::ide::error_policy::ErrorPolicy;
use devices::interrupt::CountingLine;
use devices::power::PowerControl;
use devices::serial::Serial;
use disk::simulation::{Outcome, Simulation};
use disk::{Buffer, Command, CreateOptions, Disk, Request, fuzzing};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of guest memory.
const MEMORY: usize = 0x40000;
/// Where the PRD table is.
const TABLE: u32 = 0x1000;
/// Where data is, room for 256 sectors.
const DATA: u32 = 0x10000;
/// Sectors of the disk, at first.
const SECTORS: u64 = 160;
/// Disks up to so many bytes are compared with a model.
const MODELLED: u64 = 1 << 20;
/// Storage operations after which everything in flight has come to its end, unless it never will.
const PATIENCE: u32 = 100_000;

const BSY: u8 = 0x80;
const DRQ: u8 = 0x08;
const ERR: u8 = 0x01;

struct Nobody;

impl PowerControl for Nobody {
    fn power_off(&self) {}

    fn reset(&self) {}
}

/// Bytes that say what to do; zeros when they are used up.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn below(&mut self, end: u8) -> u8 {
        self.u8() % end
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }
}

/// The disk that the drive holds: requests wait until the guest takes its hands off.
struct Queue {
    capacity: AtomicU64,
    waiting: Mutex<VecDeque<Request>>,
    /// Requests that failed.
    failed: Arc<AtomicUsize>,
}

impl Disk for Queue {
    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        false
    }

    fn submit(&self, request: Request) {
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back(request);
    }
}

impl Queue {
    fn next(&self) -> Option<Request> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// Images that are whole: version, log2 of the cluster size, log2 of the bits of a refcount; each with data, a snapshot, and more data.
fn images() -> &'static [Vec<u8>] {
    static IMAGES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let shapes = [(3, 9, 4), (3, 12, 4), (3, 9, 6), (3, 10, 1), (2, 11, 4)];
    IMAGES.get_or_init(|| shapes.map(image).to_vec())
}

fn image((version, cluster_bits, refcount_order): (u32, u32, u32)) -> Vec<u8> {
    let mut options = CreateOptions::new(SECTORS * 512);
    options.version = version;
    options.cluster_bits = cluster_bits;
    options.refcount_order = refcount_order;
    let empty = options.metadata().expect("valid options");
    let mut simulation = fuzzing::open(&empty, 0).expect("a valid image");
    for (index, sectors) in [20, 5, 40, 9].into_iter().enumerate() {
        let offset = index as u64 * 37 * 512;
        let buffer = Buffer::from_slice(&vec![index as u8 + 1; sectors * 512]);
        let written = simulation.submit(Command::Write { offset, buffer });
        simulation.settle();
        assert!(written.succeeded());
        if index == 1 {
            let taken = simulation.snapshot_create("base");
            simulation.settle();
            assert!(taken.succeeded());
        }
    }
    simulation.close().expect("nothing fails")
}

/// Changes some bytes of the header, the tables, or anywhere.
fn damage(image: &mut [u8], script: &mut Script<'_>) {
    let word = |at: usize| {
        let bytes = image[at..at + 8].try_into().expect("eight bytes");
        (u64::from_be_bytes(bytes) & 0x00ff_ffff_ffff_fe00) as usize
    };
    let cluster_bits = image[23];
    let cluster = 1 << cluster_bits;
    let (l1, table, snapshots) = (word(40), word(48), word(64));
    let areas = [
        0..120,
        0..120,
        table..table + 64,
        word(table)..word(table) + cluster,
        l1..l1 + 64,
        word(l1)..word(l1) + cluster,
        snapshots..snapshots + 80,
        0..image.len(),
    ];
    for _ in 0..script.below(10) {
        let area = areas[usize::from(script.below(8))].clone();
        let at = area.start + usize::from(script.u16()) % area.len();
        let entry = at & !7;
        match script.below(4) {
            0 => image[at] ^= 1 << script.below(8),
            1 => image[at] = script.u8(),
            2 => {
                // An entry that points at some cluster.
                let flags = u64::from(script.u8());
                let place = u64::from(script.u8()) << cluster_bits;
                let value = place | (flags & 3) << 62 | flags >> 7;
                image[entry..entry + 8].copy_from_slice(&value.to_be_bytes());
            }
            _ => {
                let from = area.start + usize::from(script.u16()) % area.len();
                image.copy_within((from & !7)..(from & !7) + 8, entry);
            }
        }
    }
}

struct Guest {
    simulation: Simulation,
    queue: Arc<Queue>,
    bus: Arc<PortBus>,
    memory: GuestMemoryMmap,
    _chipset: Chipset,
    /// What the disk holds, if that is known.
    model: Option<Vec<u8>>,
    /// The image was whole.
    whole: bool,
}

impl Guest {
    /// A machine with this disk, unless that has a size that no drive has.
    fn new(simulation: Simulation, whole: bool) -> Option<Self> {
        let queue = Arc::new(Queue {
            capacity: AtomicU64::new(simulation.capacity()),
            waiting: Mutex::default(),
            failed: Arc::default(),
        });
        let bus = Arc::new(PortBus::default());
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("anonymous memory");
        let line = || Arc::new(CountingLine::default());
        let mut config = DriveConfig::new(queue.clone(), 0);
        config.clock = Arc::new(ManualClock::default());
        // An allocation beyond the largest offset counts as no space; it shall not stop the machine.
        config.error_policy = ErrorPolicy {
            write: "report".parse().expect("a policy"),
            read: "report".parse().expect("a policy"),
        };
        let chipset = Chipset::new(ChipsetConfig {
            memory: memory.clone(),
            bus: bus.clone(),
            ide_lines: [line(), line()],
            ide: IdeOptions::default(),
            drives: [Some(Plugged::Disk(config)), None, None, None],
            serial: Serial::new(line(), Box::new(std::io::sink()), Box::new(|| {})),
            power: Arc::new(Nobody),
        })
        .ok()?;
        let mut guest = Self {
            simulation,
            queue,
            bus,
            memory,
            _chipset: chipset,
            model: None,
            whole,
        };
        guest.model = guest.contents();
        Some(guest)
    }

    fn failed(&self) -> usize {
        self.queue.failed.load(Ordering::Relaxed)
    }

    /// Hands the engine what the drive asks for.
    fn take_requests(&self) {
        while let Some(Request { command, done }) = self.queue.next() {
            let failed = self.queue.failed.clone();
            let done = Box::new(move |result: Result<(), disk::DiskError>| {
                failed.fetch_add(usize::from(result.is_err()), Ordering::Relaxed);
                done(result);
            });
            self.simulation.serve(Request { command, done });
        }
    }

    /// Lets everything come to its end.
    fn settle(&mut self) {
        for _ in 0..PATIENCE {
            self.take_requests();
            if !self.simulation.step() {
                // What has just completed may have led to more.
                self.take_requests();
                if !self.simulation.step() {
                    return;
                }
            }
        }
        panic!("the drive or the engine never comes to an end");
    }

    /// Everything on the disk, if the image is whole and the disk small.
    fn contents(&mut self) -> Option<Vec<u8>> {
        let capacity = self.simulation.capacity();
        if !self.whole || capacity > MODELLED {
            return None;
        }
        let buffer = Buffer::zeroed(capacity as usize);
        let read = self.simulation.submit(Command::Read {
            offset: 0,
            buffer: buffer.clone(),
        });
        self.settle();
        assert!(read.is_done(), "a request hangs");
        read.succeeded().then(|| buffer.to_vec())
    }

    fn out(&self, port: u16, value: u8) {
        self.bus.write(port, 1, &[value]);
    }

    fn register(&self, port: u16) -> u8 {
        let mut byte = [0];
        self.bus.read(port, 1, &mut byte);
        byte[0]
    }

    /// Loads the task file of a command with a 28-bit address, and starts it.
    fn issue(&self, opcode: u8, features: u8, lba: u64, count: u8) {
        self.out(0x1f6, 0xe0 | (lba >> 24 & 0x0f) as u8);
        let low = [features, count, lba as u8, (lba >> 8) as u8, (lba >> 16) as u8];
        for (port, value) in (0x1f1..).zip(low) {
            self.out(port, value);
        }
        self.out(0x1f7, opcode);
    }

    /// A PRD table of one region, mostly of just the right length.
    fn put_table(&self, length: u32, script: &mut Script<'_>) {
        let (at, length) = match script.below(16) {
            0 => (MEMORY as u32 - 0x200, length),
            1 => (u32::from(script.u16()) << 16, length),
            2 => (DATA, u32::from(script.u16()) & 0xfffe),
            _ => (DATA, length),
        };
        // The longest region is 64 KiB.
        let first = length.min(0x10000);
        let mut entries = vec![(at, first)];
        if length > first {
            entries.push((at.wrapping_add(first), length - first));
        }
        let last = entries.len() - 1;
        for (index, (at, length)) in entries.into_iter().enumerate() {
            let end = if index == last { 1 << 31 } else { 0 };
            let place = TABLE + 8 * index as u32;
            self.put(place, &at.to_le_bytes());
            self.put(place + 4, &(length & 0xfffe | end).to_le_bytes());
        }
    }

    fn put(&self, at: u32, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(u64::from(at)))
            .expect("in memory");
    }

    fn start_dma(&self, to_memory: bool) {
        self.bus.write(0xc004, 4, &TABLE.to_le_bytes());
        let direction = if to_memory { 8 } else { 0 };
        self.out(0xc000, direction);
        self.out(0xc000, direction | 1);
    }

    /// The end of a command that is not waiting for data: what failed at the disk since there were `failed` failures is seen. Returns
    /// whether the guest takes it for done.
    fn end(&mut self, failed: usize) -> bool {
        self.settle();
        let bus_master = self.register(0xc002);
        self.out(0xc000, 0);
        self.out(0xc002, 6);
        // A table that is too short leaves the drive waiting; a reset ends that.
        let status = self.register(0x1f7);
        if self.failed() > failed {
            assert_ne!(status & ERR, 0, "a request failed, and the guest does not see it");
        }
        if status & (BSY | DRQ) != 0 {
            self.reset();
            return false;
        }
        status & ERR == 0 && bus_master & 2 == 0
    }

    fn reset(&mut self) {
        self.out(0x3f6, 4);
        self.out(0x3f6, 0);
        self.settle();
        self.out(0xc000, 0);
        self.out(0xc002, 6);
        self.out(0x1f6, 0xe0);
        assert_eq!(self.register(0x1f7) & (BSY | DRQ | ERR), 0, "a reset ends everything");
    }

    fn dma(&mut self, opcode: u8, features: u8, lba: u64, count: u8, script: &mut Script<'_>) -> bool {
        let failed = self.failed();
        let sectors = if count == 0 { 256 } else { u32::from(count) };
        self.put_table(sectors * 512, script);
        self.issue(opcode, features, lba, count);
        self.start_dma(opcode == 0xc8);
        self.end(failed)
    }

    fn read_by_pio(&mut self, lba: u64, count: u8) -> Option<Vec<u8>> {
        let failed = self.failed();
        self.issue(0x20, 0, lba, count);
        let mut data = Vec::new();
        for _ in 0..=256 {
            self.settle();
            if self.register(0x3f6) & DRQ == 0 {
                break;
            }
            let mut sector = [0; 512];
            self.bus.read(0x1f0, 4, &mut sector);
            data.extend(sector);
        }
        self.end(failed).then_some(data)
    }

    fn write_by_pio(&mut self, lba: u64, data: &[u8]) -> bool {
        let failed = self.failed();
        self.issue(0x30, 0, lba, (data.len() / 512) as u8);
        for sector in data.chunks(512) {
            if self.register(0x3f6) & DRQ == 0 {
                break;
            }
            self.bus.write(0x1f0, 4, sector);
            self.settle();
        }
        self.end(failed)
    }

    /// The disk holds what the model does in these sectors.
    fn compare(&self, lba: u64, data: &[u8]) {
        if let Some(model) = &self.model {
            let at = lba as usize * 512;
            assert!(
                model[at..at + data.len()] == *data,
                "the disk holds something else than was written"
            );
        }
    }

    /// The disk holds this from now on; or, if the command failed, what is found there.
    fn wrote(&mut self, done: bool, lba: u64, data: &[u8]) {
        if !done {
            self.model = self.contents();
        } else if let Some(model) = &mut self.model {
            model[lba as usize * 512..][..data.len()].copy_from_slice(data);
        }
    }

    /// TRIM of some ranges: each of their sectors reads as zeros or as before, and no other changes.
    fn trim(&mut self, script: &mut Script<'_>) {
        let mut block = [0; 512];
        let mut trimmed = Vec::new();
        for entry in block.chunks_exact_mut(8).take(usize::from(script.below(4))) {
            let (lba, count) = (u64::from(script.u16()), u64::from(script.u8()));
            let lba = if script.below(8) > 0 { lba % SECTORS } else { lba };
            entry.copy_from_slice(&(count << 48 | lba).to_le_bytes());
            trimmed.push(lba..lba + count);
        }
        self.put(DATA, &block);
        let before = self.model.take();
        self.dma(0x06, 1, 0, 1, script);
        if let Some(before) = before
            && let Some(now) = self.contents()
        {
            for (index, (old, new)) in before.chunks(512).zip(now.chunks(512)).enumerate() {
                let zeroed = new.iter().all(|byte| *byte == 0);
                let allowed = zeroed && trimmed.iter().any(|range| range.contains(&(index as u64)));
                assert!(old == new || allowed, "a discard changed sector {index}");
            }
            self.model = Some(now);
        }
    }

    /// A snapshot or a resize beside the guest, which has nothing in flight. It may be refused.
    fn change(&mut self, start: impl FnOnce(&Simulation) -> Outcome) {
        let outcome = start(&self.simulation);
        self.settle();
        assert!(outcome.is_done(), "a change hangs");
        let capacity = self.simulation.capacity();
        self.queue.capacity.store(capacity, Ordering::Relaxed);
        self.model = self.contents();
    }

    /// The next action.
    fn act(&mut self, script: &mut Script<'_>) {
        let action = script.u8();
        let lba = u64::from(script.u16());
        // Mostly on the disk.
        let lba = if action & 0x70 == 0 { lba << 12 } else { lba % SECTORS };
        let count = if action & 0x80 == 0 {
            1 + script.below(24)
        } else {
            script.u8()
        };
        let sectors = if count == 0 { 256 } else { u64::from(count) };
        let data: Vec<u8> = (0..sectors * 512)
            .map(|at| (at >> 7) as u8 ^ action ^ lba as u8)
            .collect();
        match action % 16 {
            0..3 => {
                self.put(DATA, &data);
                let done = self.dma(0xca, 0, lba, count, script);
                // With another table the data came from elsewhere.
                let mut there = vec![0; data.len()];
                let table = self
                    .memory
                    .read_obj::<u32>(GuestAddress(u64::from(TABLE)))
                    .expect("in memory");
                self.memory
                    .read_slice(&mut there, GuestAddress(u64::from(DATA)))
                    .expect("in memory");
                self.wrote(done && table == DATA && there == data, lba, &data);
            }
            3..5 => {
                self.put(DATA, &vec![0xee; data.len()]);
                let done = self.dma(0xc8, 0, lba, count, script);
                let table = self
                    .memory
                    .read_obj::<u32>(GuestAddress(u64::from(TABLE)))
                    .expect("in memory");
                if done && table == DATA {
                    let mut there = vec![0; data.len()];
                    self.memory
                        .read_slice(&mut there, GuestAddress(u64::from(DATA)))
                        .expect("in memory");
                    self.compare(lba, &there);
                }
            }
            5..7 => {
                let done = self.write_by_pio(lba, &data);
                self.wrote(done, lba, &data);
            }
            7..9 => {
                if let Some(read) = self.read_by_pio(lba, count) {
                    assert_eq!(read.len(), data.len());
                    self.compare(lba, &read);
                }
            }
            9 => {
                let failed = self.failed();
                self.issue(0xe7, 0, 0, 0);
                self.end(failed);
            }
            10 => self.trim(script),
            11 => {
                let failed = self.failed();
                self.issue(0x40, 0, lba, count);
                self.end(failed);
            }
            12 => {
                // Something half-way, and then a reset or not.
                self.model = None;
                self.issue(script.u8(), script.u8(), lba, count);
                self.start_dma(script.below(2) == 0);
                for _ in 0..script.below(16) {
                    self.take_requests();
                    self.simulation.step();
                }
                self.reset_wholly();
            }
            13 => {
                let port = 0x1f0 + u16::from(script.below(8));
                self.model = None;
                self.out(port, script.u8());
                self.reset_wholly();
            }
            14 => {
                let choice = script.below(3);
                self.change(|simulation| match choice {
                    0 => simulation.snapshot_create("fuzz"),
                    1 => simulation.snapshot_delete("fuzz"),
                    _ => simulation.snapshot_apply("fuzz"),
                });
            }
            _ => {
                let sectors = 1 + u64::from(script.u8()) * 2;
                self.change(|simulation| simulation.resize(sectors * 512, true));
            }
        }
    }

    /// After what may have been any command.
    fn reset_wholly(&mut self) {
        self.settle();
        self.reset();
        self.model = self.contents();
    }
}

/// Everything that the bytes say.
pub fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    let images = images();
    let mut image = images[usize::from(script.u8()) % images.len()].clone();
    damage(&mut image, &mut script);
    let seed = u64::from(script.u8());
    let whole = fuzzing::is_whole(&image);
    let Some(simulation) = fuzzing::open(&image, seed) else {
        return;
    };
    let Some(mut guest) = Guest::new(simulation, whole) else {
        return;
    };
    for _ in 0..64 {
        if script.0.is_empty() {
            break;
        }
        guest.act(&mut script);
    }
    let now = guest.contents();
    if let (Some(model), Some(now)) = (&guest.model, &now) {
        assert!(model == now, "the disk holds something else than was written");
    }
    let sound = guest.whole && guest.failed() == 0;
    // Closing may fail where the image is damaged.
    if let (true, Ok(closed)) = (sound, guest.simulation.close()) {
        assert!(fuzzing::is_whole(&closed), "an image that was whole is not any more");
    }
}
