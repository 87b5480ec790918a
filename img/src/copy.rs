//! Copying the content of images: several threads read, look for zeros and write; one at a time gives out places.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Error, Result, anyhow};
use disk::{Compression, ImageAtRest, MapEntry, NewImage, compress_cluster, is_zero};

use crate::progress::Progress;
use crate::target::{Target, runs_of_data};

/// What one thread reads at a time, in bytes, unless clusters are larger: little enough to be in the processor's cache still when it
/// is written.
const CHUNK: u64 = 512 << 10;

/// Zeros need no data, so there may be more of them at a time, in bytes.
const ZEROES_AT_ONCE: u64 = 1 << 30;

/// Images behind each other, as one disk.
pub struct Sources {
    images: Vec<ImageAtRest>,
    /// The images of a chain above which content counts; what is only further below is left to the target's own backing file.
    pub layers: usize,
}

impl Sources {
    /// These images; all of their content counts.
    pub fn new(images: Vec<ImageAtRest>) -> Self {
        Self {
            images,
            layers: usize::MAX,
        }
    }

    /// The size of all in bytes.
    pub fn size(&self) -> u64 {
        self.images.iter().map(ImageAtRest::size).sum()
    }

    /// Which image byte `offset` lies in, and where.
    fn find(&self, offset: u64) -> Option<(&ImageAtRest, u64)> {
        let mut start = 0;
        for image in &self.images {
            if offset - start < image.size() {
                return Some((image, offset - start));
            }
            start += image.size();
        }
        None
    }

    fn extent(&self, offset: u64, length: u64) -> Result<MapEntry> {
        let (image, within) = self.find(offset).ok_or_else(|| anyhow!("Read behind the end"))?;
        let length = length.min(image.size() - within);
        image.extent_above(within, length, self.layers).with_context(|| {
            format!(
                "Error while reading block status at offset {offset} of '{}'",
                image.path().display()
            )
        })
    }

    fn read(&self, offset: u64, target: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < target.len() {
            let at = offset + done as u64;
            let (image, within) = self.find(at).ok_or_else(|| anyhow!("Read behind the end"))?;
            let count = (image.size() - within).min((target.len() - done) as u64) as usize;
            image
                .read(within, &mut target[done..done + count])
                .with_context(|| format!("Error while reading at offset {at} of '{}'", image.path().display()))?;
            done += count;
        }
        Ok(())
    }
}

/// A copy to be made.
pub struct Copy<'a> {
    /// From where.
    pub sources: &'a Sources,
    /// From which byte of the sources on. The target begins with it.
    pub start: u64,
    /// Where it ends in the sources.
    pub end: u64,
    /// To where.
    pub target: &'a Target,
    /// Clusters are compressed; only into new qcow2 images.
    pub compression: Option<Compression>,
    /// Zeros of this many bytes, at multiples of it, are not written; 0 writes all.
    pub sparse: u64,
    /// Every cluster gets a place; only in new qcow2 images.
    pub place_all: bool,
    /// Threads.
    pub workers: usize,
    /// How far it is.
    pub progress: &'a Progress,
}

/// What is known of a range before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Left to the target's backing file.
    Skip,
    Zero,
    Data,
}

/// A range that one thread takes.
struct Segment {
    /// Its number; places are given out in this order.
    turn: u64,
    /// Where it begins in the sources.
    offset: u64,
    length: u64,
    /// What is known of its parts, in order: where they end, from the beginning of the segment.
    parts: Vec<(u64, Kind)>,
}

/// What is to be done with a run of clusters of a segment.
enum Run {
    Zero { start: u64, end: u64 },
    Data { start: u64, end: u64 },
    Compressed { start: u64, bytes: Vec<u8> },
}

/// What is to be written, and where in the file.
enum Write<'a> {
    Bytes {
        host: u64,
        bytes: &'a [u8],
    },
    /// This part of the segment's data.
    Part {
        host: u64,
        start: usize,
        end: usize,
    },
}

struct Shared<'a> {
    copy: &'a Copy<'a>,
    cursor: Mutex<(u64, u64)>,
    turn: Mutex<u64>,
    turn_changed: Condvar,
    /// Held by the thread that writes to the file. The kernel lets one write at a time into a file, too, but has the others spin.
    writing: Mutex<()>,
    failed: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl Copy<'_> {
    /// Makes it.
    pub fn run(&self) -> Result<()> {
        let shared = Shared {
            copy: self,
            cursor: Mutex::new((self.start, 0)),
            turn: Mutex::new(0),
            turn_changed: Condvar::new(),
            writing: Mutex::new(()),
            failed: AtomicBool::new(false),
            error: Mutex::new(None),
        };
        thread::scope(|scope| {
            for _ in 0..self.workers.max(1) {
                scope.spawn(|| {
                    if let Err(error) = shared.work() {
                        shared.fail(error);
                    }
                });
            }
        });
        match lock(&shared.error).take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// What one thread takes at a time; a multiple of the target's clusters.
    fn chunk(&self) -> u64 {
        self.target.unit().max(CHUNK)
    }

    fn kind(&self, extent: &MapEntry) -> Kind {
        if self.sources.layers != usize::MAX && !extent.present {
            Kind::Skip
        } else if extent.zero && self.sparse != 0 {
            Kind::Zero
        } else {
            Kind::Data
        }
    }
}

impl Shared<'_> {
    fn work(&self) -> Result<()> {
        let mut buffer = vec![0; self.copy.chunk() as usize];
        while let Some(segment) = self.take()? {
            if self.failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.copy_segment(&segment, &mut buffer)?;
            self.copy.progress.advance(segment.length);
        }
        Ok(())
    }

    /// The next range that needs something done.
    fn take(&self) -> Result<Option<Segment>> {
        let copy = self.copy;
        let mut cursor = lock(&self.cursor);
        loop {
            let (at, turn) = *cursor;
            if at >= copy.end {
                return Ok(None);
            }
            // Chunks of the target, so that no two segments share a cluster.
            let chunk = copy.chunk();
            let chunk_end = copy.end.min(at + chunk - (at - copy.start) % chunk);
            let extent = copy.sources.extent(at, copy.end - at)?;
            let kind = copy.kind(&extent);
            let whole = at + extent.length >= chunk_end;
            if whole && kind != Kind::Data {
                let until = if at + extent.length >= copy.end {
                    copy.end
                } else {
                    at + extent.length - (at + extent.length - copy.start) % chunk
                };
                let length = (until - at).min(ZEROES_AT_ONCE);
                cursor.0 = at + length;
                let nothing_to_do = !copy.place_all && (kind == Kind::Skip || !copy.target.needs_zeroes());
                if nothing_to_do {
                    copy.progress.advance(length);
                    continue;
                }
                cursor.1 += 1;
                return Ok(Some(Segment {
                    turn,
                    offset: at,
                    length,
                    parts: vec![(length, kind)],
                }));
            }
            let mut parts: Vec<(u64, Kind)> = vec![(extent.length.min(chunk_end - at), kind)];
            let mut end = at + parts[0].0;
            while end < chunk_end {
                let extent = copy.sources.extent(end, chunk_end - end)?;
                let kind = copy.kind(&extent);
                end += extent.length;
                match parts.last_mut() {
                    Some(last) if last.1 == kind => last.0 = end - at,
                    _ => parts.push((end - at, kind)),
                }
            }
            *cursor = (chunk_end, turn + 1);
            return Ok(Some(Segment {
                turn,
                offset: at,
                length: chunk_end - at,
                parts,
            }));
        }
    }

    fn copy_segment(&self, segment: &Segment, buffer: &mut [u8]) -> Result<()> {
        let nothing_to_read = matches!(segment.parts[..], [(_, Kind::Zero | Kind::Skip)]);
        let data: &[u8] = if nothing_to_read {
            &[]
        } else {
            self.read(segment, &mut buffer[..segment.length as usize])?;
            &buffer[..segment.length as usize]
        };
        let guest = segment.offset - self.copy.start;
        match &self.copy.target {
            Target::Qcow2(image) => self.write_new(image, segment, guest, data),
            Target::Raw { file, reads_zero } => {
                let block = if *reads_zero { self.copy.sparse } else { 0 };
                if data.is_empty() {
                    let zeroes = vec![0; CHUNK.min(segment.length) as usize];
                    for at in (0..segment.length).step_by(CHUNK as usize) {
                        let count = CHUNK.min(segment.length - at) as usize;
                        file.write_all_at(&zeroes[..count], guest + at)?;
                    }
                } else {
                    self.write_sparsely(file, guest, guest, data, block)?;
                }
                Ok(())
            }
            Target::Existing { .. } => self.write_existing(segment, guest, data),
        }
    }

    fn read(&self, segment: &Segment, buffer: &mut [u8]) -> Result<()> {
        let mut start = 0;
        for &(end, kind) in &segment.parts {
            let part = &mut buffer[start as usize..end as usize];
            // What is left to a backing file counts where only a part of a cluster is left to it.
            if kind == Kind::Zero {
                part.fill(0);
            } else {
                self.copy.sources.read(segment.offset + start, part)?;
            }
            start = end;
        }
        Ok(())
    }

    fn write_existing(&self, segment: &Segment, guest: u64, data: &[u8]) -> Result<()> {
        let Target::Existing { writer, reads_zero } = self.copy.target else {
            return Ok(());
        };
        let zero = |start: u64, end: u64| {
            if *reads_zero || start == end {
                return Ok(());
            }
            writer.write_zeroes(guest + start, end - start)
        };
        let mut start = 0;
        for &(end, kind) in &segment.parts {
            match kind {
                Kind::Skip => {}
                Kind::Zero => zero(start, end)?,
                Kind::Data => {
                    let part = &data[start as usize..end as usize];
                    let mut done = 0;
                    for (from, to) in runs_of_data(guest + start, part, self.copy.sparse) {
                        zero(start + done as u64, start + from as u64)?;
                        writer.write(guest + start + from as u64, &part[from..to])?;
                        done = to;
                    }
                    zero(start + done as u64, end)?;
                }
            }
            start = end;
        }
        Ok(())
    }

    /// Writes to a new qcow2 image, cluster by cluster.
    fn write_new(&self, image: &NewImage, segment: &Segment, guest: u64, data: &[u8]) -> Result<()> {
        let runs = self.runs(image, segment, guest, data)?;
        self.wait_for_turn(segment.turn)?;
        let placed = Self::place(image, guest, &runs);
        self.end_turn();
        for write in placed? {
            match write {
                Write::Bytes { host, bytes } => image.write(host, bytes)?,
                // All zeros: their place reads so.
                Write::Part { .. } if data.is_empty() => {}
                Write::Part { host, start, end } => {
                    let (part, position) = (&data[start..end], guest + start as u64);
                    self.write_sparsely(image.file(), position, host, part, self.copy.sparse)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the blocks of `data` that are not zero; `data` lies at byte `offset` of the disk, and the file has it at byte `host`.
    fn write_sparsely(&self, file: &File, offset: u64, host: u64, data: &[u8], block: u64) -> Result<()> {
        let runs = runs_of_data(offset, data, block);
        let _one = lock(&self.writing);
        for (start, end) in runs {
            file.write_all_at(&data[start..end], host + start as u64)
                .context("Error while writing")?;
        }
        Ok(())
    }

    fn runs(&self, image: &NewImage, segment: &Segment, guest: u64, data: &[u8]) -> Result<Vec<Run>> {
        let cluster_size = self.copy.target.unit();
        // Zeros that hide a backing file need version 3.
        let hides = self.copy.target.needs_zeroes();
        let zeroes_are_data = (hides && image.options().version < 3) || self.copy.place_all;
        if data.is_empty() && !zeroes_are_data {
            let is_zero = segment.parts.iter().all(|(_, kind)| *kind == Kind::Zero);
            let end = segment.length;
            return Ok(if is_zero && hides {
                vec![Run::Zero { start: 0, end }]
            } else {
                Vec::new()
            });
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut parts = segment.parts.iter().peekable();
        debug_assert!(guest.is_multiple_of(cluster_size));
        for start in (0..segment.length).step_by(cluster_size as usize) {
            let end = segment.length.min(start + cluster_size);
            while parts.next_if(|(part_end, _)| *part_end <= start).is_some() {}
            let known = parts
                .peek()
                .filter(|(part_end, _)| *part_end >= end)
                .map(|(_, kind)| *kind);
            let bytes = if data.is_empty() {
                data
            } else {
                &data[start as usize..end as usize]
            };
            let kind = match known {
                Some(Kind::Skip) => Kind::Skip,
                Some(Kind::Zero) => Kind::Zero,
                _ if self.copy.sparse != 0 && is_zero(bytes) => Kind::Zero,
                _ => Kind::Data,
            };
            match kind {
                Kind::Zero if !zeroes_are_data => {
                    if hides {
                        extend_zero(&mut runs, start, end);
                    }
                }
                Kind::Skip => {}
                Kind::Data if self.copy.compression.is_some() => {
                    runs.push(self.compress(start, end, bytes, cluster_size)?);
                }
                Kind::Zero | Kind::Data => extend_data(&mut runs, start, end),
            }
        }
        Ok(runs)
    }

    fn compress(&self, start: u64, end: u64, bytes: &[u8], cluster_size: u64) -> Result<Run> {
        let algorithm = self.copy.compression.unwrap_or(Compression::Deflate);
        let compressed = if bytes.len() as u64 == cluster_size {
            compress_cluster(algorithm, bytes)?
        } else {
            let mut whole = bytes.to_vec();
            whole.resize(cluster_size as usize, 0);
            compress_cluster(algorithm, &whole)?
        };
        Ok(match compressed {
            Some(bytes) => Run::Compressed { start, bytes },
            None => Run::Data { start, end },
        })
    }

    /// Finds places for the runs, and says what is to be written there.
    fn place<'r>(image: &NewImage, guest: u64, runs: &'r [Run]) -> Result<Vec<Write<'r>>> {
        let mut writes = Vec::new();
        for run in runs {
            match run {
                Run::Zero { start, end } => image.place_zeroes(guest + start, end - start)?,
                Run::Compressed { start, bytes } => {
                    let host = image.place_compressed(guest + start, bytes.len() as u64)?;
                    writes.push(Write::Bytes { host, bytes });
                }
                Run::Data { start, end } => {
                    for place in image.place(guest + start, end - start)? {
                        let start = place.guest - guest;
                        writes.push(Write::Part {
                            host: place.host,
                            start: start as usize,
                            end: (start + place.length).min(*end) as usize,
                        });
                    }
                }
            }
        }
        Ok(writes)
    }
}

impl Shared<'_> {
    fn wait_for_turn(&self, turn: u64) -> Result<()> {
        let mut current = lock(&self.turn);
        while *current != turn {
            if self.failed.load(Ordering::Relaxed) {
                return Err(anyhow!("Another thread failed"));
            }
            current = self.turn_changed.wait(current).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn end_turn(&self) {
        *lock(&self.turn) += 1;
        self.turn_changed.notify_all();
    }

    /// The first error counts.
    fn fail(&self, error: Error) {
        lock(&self.error).get_or_insert(error);
        self.failed.store(true, Ordering::Relaxed);
        // Whoever waits must not miss it.
        let _turn = lock(&self.turn);
        self.turn_changed.notify_all();
    }
}

fn extend_zero(runs: &mut Vec<Run>, from: u64, to: u64) {
    match runs.last_mut() {
        Some(Run::Zero { end, .. }) if *end == from => *end = to,
        _ => runs.push(Run::Zero { start: from, end: to }),
    }
}

fn extend_data(runs: &mut Vec<Run>, from: u64, to: u64) {
    match runs.last_mut() {
        Some(Run::Data { end, .. }) if *end == from => *end = to,
        _ => runs.push(Run::Data { start: from, end: to }),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
