//! What a fuzzer feeds, and the tests that replay its corpora: hostile bytes to everything that takes bytes.
//!
//! Each function takes any bytes and panics when a promise is broken; that it ends, in bounded memory, is for the fuzzer to see.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rustix::fs::MemfdFlags;

use crate::qcow2::cache::Class;
use crate::qcow2::cache_memory::{self, CacheMemory, Identity, Shape};
use crate::qcow2::header::Header;
use crate::simulation::Simulation;
use crate::{Buffer, Command, CreateOptions, Extents, Format, ImageAtRest, RestOptions, SECTOR_SIZE, check_image};

/// Larger clusters make an execution slow, and are handled by the same code.
const MAX_CLUSTER_BITS: u32 = 16;

/// The part of the disk that is compared with a model, in bytes.
const MODELLED: u64 = 64 << 10;

/// A header and its extensions.
pub fn header(bytes: &[u8]) {
    if let Ok(header) = Header::parse(bytes) {
        assert!(header.cluster_size().is_power_of_two());
        assert!((512..=2 << 20).contains(&header.cluster_size()));
        assert!(header.l1_entries_needed() <= u64::from(header.l1_size));
    }
}

/// A whole image, checked, opened for writing, read, written, closed and checked again.
///
/// Where the check found nothing wrong, what was written is read back, what was not written stays, and the check must find nothing
/// wrong afterwards. In an image whose clusters have two owners, a write to one is a write to the other.
pub fn image(bytes: &[u8]) {
    if has_large_clusters(bytes) {
        return;
    }
    let was_clean = is_whole(bytes);
    read_at_rest(bytes);
    let seed = bytes
        .iter()
        .fold(0, |seed: u64, byte| seed.rotate_left(5) ^ u64::from(*byte));
    let Ok(simulation) = Simulation::open(bytes.to_vec(), None, None, seed) else {
        return;
    };
    let mut session = Session {
        simulation,
        rng: SmallRng::seed_from_u64(seed),
    };
    let sound = session.work(was_clean);
    let closed = session.simulation.close();
    if let (true, true, Ok(bytes)) = (was_clean, sound, closed) {
        assert!(is_whole(&bytes), "a clean image was spoilt");
    }
}

/// The metadata cache that a killed process left, as bytes; and one whose checksums are right, whose slices the bytes say.
pub fn cache_file(bytes: &[u8]) {
    // An error is as good as an answer.
    let _ = cache_memory::survivors(bytes, Identity::default());
    let mut image = CreateOptions {
        cluster_bits: 9,
        ..CreateOptions::new(MODELLED)
    }
    .metadata()
    .unwrap_or_default();
    // Incompatible feature bit 0: it was not closed.
    if let Some(byte) = image.get_mut(79) {
        *byte |= 1;
    }
    // Some room for clusters that the slices may refer to.
    image.resize(image.len() + (16 << 10), 0);
    let left_behind = plausible_cache(bytes);
    if let Ok(simulation) = Simulation::open(image, None, Some(left_behind), 0) {
        let mut session = Session {
            simulation,
            rng: SmallRng::seed_from_u64(0),
        };
        session.work(false);
        // Closing may fail where a slice has spoilt the image.
        let _ = session.simulation.close();
    }
}

/// A cache of slices of 512 bytes: for each two bytes their class and cluster, and then what they hold.
fn plausible_cache(bytes: &[u8]) -> Vec<u8> {
    const SLICE: usize = 512;
    let shape = Shape::new(0, SLICE as u64);
    let memory = CacheMemory::format(Buffer::zeroed(shape.length()), shape, Identity::default());
    for (slot, slice) in bytes.chunks(2 + SLICE).take(memory.slots()).enumerate() {
        let [class, cluster, content @ ..] = slice else { break };
        let class = match class % 4 {
            0 => Class::RefcountBlock,
            1 => Class::RefcountTable,
            2 => Class::L2Table,
            _ => Class::L1Table,
        };
        memory.announce_dirty(slot, u64::from(*cluster) * SLICE as u64, class);
        memory.store(memory.content(slot).start, content);
    }
    memory.buffer().to_vec()
}

/// A file in memory, and a path that leads to it.
fn in_memory(bytes: &[u8]) -> Option<(File, PathBuf)> {
    let mut file = File::from(rustix::fs::memfd_create("image", MemfdFlags::CLOEXEC).ok()?);
    file.write_all(bytes).ok()?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Some((file, path))
}

/// Opens an image that is not too large for a fuzzer, if that can be opened.
pub fn open(bytes: &[u8], seed: u64) -> Option<Simulation> {
    if has_large_clusters(bytes) {
        return None;
    }
    Simulation::open(bytes.to_vec(), None, None, seed).ok()
}

fn has_large_clusters(bytes: &[u8]) -> bool {
    Header::parse(bytes).is_ok_and(|header| header.cluster_bits > MAX_CLUSTER_BITS)
}

/// Whether the check finds nothing wrong with an image.
pub fn is_whole(bytes: &[u8]) -> bool {
    let Some((_file, path)) = in_memory(bytes) else {
        return false;
    };
    let report = check_image(&path, true, &mut |_| {});
    report.is_ok_and(|report| report.damage.corruptions == 0 && report.damage.leaks == 0)
}

/// Reads the beginning and the end by the code for images that nobody uses.
fn read_at_rest(bytes: &[u8]) {
    let Some((_file, path)) = in_memory(bytes) else { return };
    let options = RestOptions {
        with_backing: false,
        ..RestOptions::new(path, Format::Qcow2)
    };
    let Ok(image) = ImageAtRest::open(&options) else {
        return;
    };
    let length = image.size().min(MODELLED);
    let mut target = vec![0; length as usize];
    for offset in [0, image.size() - length] {
        // An error names what is wrong; that is all that can be asked.
        let _ = image.read(offset, &mut target);
        let _ = image.extent(offset, length.max(1).min(image.size() - offset));
    }
}

/// An image in use.
struct Session {
    simulation: Simulation,
    rng: SmallRng,
}

impl Session {
    /// Runs a command to its end. Returns whether it succeeded.
    fn run(&mut self, command: Command) -> bool {
        let outcome = self.simulation.submit(command);
        self.simulation.settle();
        assert!(outcome.is_done(), "a request hangs");
        outcome.succeeded()
    }

    fn read(&mut self, offset: u64, length: u64) -> Option<Vec<u8>> {
        let buffer = Buffer::zeroed(length as usize);
        let command = Command::Read {
            offset,
            buffer: buffer.clone(),
        };
        self.run(command).then(|| buffer.to_vec())
    }

    /// Commands of all kinds at the beginning and the end of the disk, with a model beside them if the image `is_clean`. Returns whether
    /// all succeeded.
    fn work(&mut self, is_clean: bool) -> bool {
        let capacity = self.simulation.capacity() / SECTOR_SIZE * SECTOR_SIZE;
        let length = capacity.min(MODELLED);
        let mut sound = true;
        for start in [0, capacity - length] {
            let Some(mut model) = self.read(start, length) else {
                sound = false;
                continue;
            };
            for step in 0..12 {
                let done = self.change(start, &mut model, step);
                sound &= done;
                let Some(now) = self.read(start, length) else {
                    sound = false;
                    break;
                };
                if !done || !is_clean {
                    // What a failed request leaves of its own range is open.
                    model.clone_from(&now);
                }
                assert!(now == model, "the disk holds something else than was written");
            }
        }
        let extents = Extents::default();
        sound &= self.run(Command::Map {
            offset: 0,
            length: capacity,
            extents: extents.clone(),
        });
        let end = extents.take().last().map_or(0, |last| last.offset + last.length);
        assert!(end <= capacity);
        let taken = self.simulation.snapshot_create("s");
        self.simulation.settle();
        sound &= taken.succeeded() && self.run(Command::Flush);
        let deleted = self.simulation.snapshot_delete("s");
        self.simulation.settle();
        sound & deleted.succeeded()
    }

    /// One change of the disk, and of the model of the part that begins at `start`. Returns whether it succeeded.
    fn change(&mut self, start: u64, model: &mut [u8], step: u64) -> bool {
        let sectors = model.len() as u64 / SECTOR_SIZE;
        if sectors == 0 {
            return self.run(Command::Flush);
        }
        let first = self.rng.random_range(0..sectors);
        let count = self.rng.random_range(1..=(sectors - first).min(9));
        let (offset, length) = (start + first * SECTOR_SIZE, count * SECTOR_SIZE);
        let range = (first * SECTOR_SIZE) as usize..((first + count) * SECTOR_SIZE) as usize;
        match step % 4 {
            0 | 1 => {
                let bytes: Vec<u8> = range.clone().map(|at| (at as u64 + step * 7) as u8).collect();
                let buffer = Buffer::from_slice(&bytes);
                let done = self.run(Command::Write { offset, buffer });
                model[range].copy_from_slice(&bytes);
                done
            }
            2 => {
                let done = self.run(Command::WriteZeroes { offset, length });
                model[range].fill(0);
                done
            }
            _ => {
                let done = self.run(Command::Discard { offset, length });
                // It reads as zeros or as before.
                if let Some(now) = self.read(offset, length) {
                    let before = &mut model[range];
                    let allowed = now.iter().zip(&*before).all(|(now, before)| now == before || *now == 0);
                    assert!(allowed || !done, "a discard left something else");
                    before.copy_from_slice(&now);
                }
                done
            }
        }
    }
}
