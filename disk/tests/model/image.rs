//! Images to begin with: empty, above others, with compressed clusters. Made without the engine.

use std::io::Write;

use disk::simulation::Layer;
use disk::{BackingReference, CreateOptions};

use super::script::{Below, Compressed, Shape};
use super::stamp::{Id, SECTOR, stamps};
use crate::judge;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// The ids of what is there from the beginning: in the raw image at the bottom, the qcow2 image above it, the image itself.
const IDS: [Id; 3] = [1 << 30, 2 << 30, 3 << 30];

/// An image, and those below it.
pub struct Fixture {
    pub image: Vec<u8>,
    pub below: Vec<Layer>,
    /// What the images below it hold.
    pub flat: Vec<u8>,
    /// What its disk holds.
    pub content: Vec<Id>,
}

impl Fixture {
    pub fn new(shape: &Shape) -> Self {
        let (raw, qcow2) = match shape.below {
            Below::Nothing => (None, None),
            Below::Raw(sectors) => (Some(sectors), None),
            Below::Qcow2(sectors) => (None, Some(sectors)),
            Below::Chain(sectors, raw) => (Some(raw), Some(sectors)),
        };
        let mut below = Vec::new();
        let mut flat = Vec::new();
        if let Some(sectors) = raw {
            flat = stamps(IDS[0], 0..sectors);
            below.push(Layer::Raw(flat.clone()));
        }
        if let Some(sectors) = qcow2 {
            let mut options = CreateOptions::new(sectors * SECTOR);
            options.cluster_bits = 9 + (shape.cluster_bits + 1) % 4;
            options.backing = raw.map(|_| reference("raw"));
            let image = build(&options, IDS[1], Compressed::Deflate, 0);
            flat = judge::read::disk(&image, &flat);
            below.insert(0, Layer::Qcow2(image));
        }
        let mut options = CreateOptions::new(shape.sectors * SECTOR);
        options.version = shape.version;
        options.cluster_bits = shape.cluster_bits;
        options.refcount_order = shape.refcount_order;
        options.backing = below.first().map(|layer| match layer {
            Layer::Raw(_) => reference("raw"),
            Layer::Qcow2(_) => reference("qcow2"),
        });
        let mut image = build(&options, IDS[2], shape.compressed, shape.filled);
        if shape.lazy_refcounts {
            // Compatible feature bit 0.
            image[87] |= 1;
        }
        let content = judge::read::disk(&image, &flat);
        Self {
            content: super::stamp::ids_of(&content).expect("stamps"),
            image,
            below,
            flat,
        }
    }
}

fn reference(format: &str) -> BackingReference {
    BackingReference {
        name: "below".into(),
        format: Some(format.into()),
    }
}

/// An image that holds something in its first `filled` sectors; and in some clusters behind them, unless nothing of it is to be compressed.
fn build(options: &CreateOptions, id: Id, compressed: Compressed, filled: u64) -> Vec<u8> {
    let mut builder = Builder {
        image: options.metadata().expect("valid options"),
        bits: options.cluster_bits,
        packed_until: 0,
    };
    if compressed == Compressed::None && filled == 0 {
        return builder.image;
    }
    if compressed == Compressed::Zstd {
        // Incompatible feature bit 3, and the compression type.
        builder.image[79] |= 8;
        builder.image[104] = 1;
    }
    let sectors = options.size / SECTOR;
    let per_cluster = 1 << (options.cluster_bits - 9);
    for cluster in 0..sectors.div_ceil(per_cluster) {
        let start = cluster * per_cluster;
        // The disk's last cluster may end beyond it: zeros.
        let mut bytes = stamps(id, start..(start + per_cluster).min(sectors));
        bytes.resize(builder.cluster_size(), 0);
        match (compressed, cluster % 3) {
            (Compressed::Deflate | Compressed::Zstd, 0) => {
                builder.put_compressed(cluster, &bytes, compressed, options.refcount_order >= 3);
            }
            (Compressed::Deflate | Compressed::Zstd, 1) => builder.put(cluster, &bytes),
            _ if start < filled => builder.put(cluster, &bytes),
            _ => {}
        }
    }
    builder.count_references(options.refcount_order);
    builder.image
}

struct Builder {
    image: Vec<u8>,
    bits: u32,
    /// Where compressed data ends that has a part of its cluster left, or 0.
    packed_until: usize,
}

impl Builder {
    fn cluster_size(&self) -> usize {
        1 << self.bits
    }

    fn number(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.image[at..at + 8].try_into().expect("eight bytes"))
    }

    fn set(&mut self, at: usize, value: u64) {
        self.image[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// A cluster at the end of the file.
    fn append(&mut self, bytes: &[u8]) -> usize {
        let at = self.image.len();
        self.image.extend_from_slice(bytes);
        self.image
            .resize(at + bytes.len().next_multiple_of(self.cluster_size()), 0);
        at
    }

    /// Where the L2 entry of a cluster lies.
    fn entry(&mut self, cluster: u64) -> usize {
        let per_table = self.cluster_size() as u64 / 8;
        let l1_entry = (self.number(40) + cluster / per_table * 8) as usize;
        if self.number(l1_entry) == 0 {
            let table = self.append(&vec![0; self.cluster_size()]);
            self.set(l1_entry, table as u64 | COPIED);
            self.packed_until = 0;
        }
        ((self.number(l1_entry) & !COPIED) + cluster % per_table * 8) as usize
    }

    fn put(&mut self, cluster: u64, bytes: &[u8]) {
        let entry = self.entry(cluster);
        let at = self.append(bytes);
        self.set(entry, at as u64 | COPIED);
        self.packed_until = 0;
    }

    /// Stores a cluster compressed; behind the one before, if they may share host clusters.
    fn put_compressed(&mut self, cluster: u64, bytes: &[u8], by: Compressed, may_share: bool) {
        let stored = if by == Compressed::Zstd {
            zstd::bulk::compress(bytes, 1).expect("compressed")
        } else {
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).expect("compressed");
            encoder.finish().expect("compressed")
        };
        if stored.len() >= bytes.len() {
            return self.put(cluster, bytes);
        }
        let entry = self.entry(cluster);
        if self.packed_until == 0 || !may_share {
            self.packed_until = self.image.len();
        }
        let at = self.packed_until;
        self.packed_until += stored.len();
        let end = self
            .image
            .len()
            .max(self.packed_until.next_multiple_of(self.cluster_size()));
        self.image.resize(end, 0);
        self.image[at..at + stored.len()].copy_from_slice(&stored);
        let further_sectors = (at % 512 + stored.len() - 1) / 512;
        let offset_bits = 62 - (self.bits - 8);
        self.set(entry, COMPRESSED | (further_sectors as u64) << offset_bits | at as u64);
        if self.packed_until.is_multiple_of(self.cluster_size()) {
            self.packed_until = 0;
        }
    }

    /// Makes the refcounts say what the tables say.
    fn count_references(&mut self, order: u32) {
        let per_block = (self.cluster_size() * 8) >> order;
        let table = self.number(48) as usize;
        // Each new block is one more cluster to describe.
        let mut block = 0;
        while block * per_block < self.image.len() >> self.bits {
            if self.number(table + block * 8) == 0 {
                let at = self.append(&vec![0; self.cluster_size()]);
                self.set(table + block * 8, at as u64);
            }
            block += 1;
        }
        for (cluster, count) in judge::references(&self.image).into_iter().enumerate() {
            let block = self.number(table + cluster / per_block * 8) as usize;
            let bit = (cluster % per_block) << order;
            if order < 3 {
                self.image[block + bit / 8] &= !(((1 << (1 << order)) - 1) << (bit % 8));
                self.image[block + bit / 8] |= (count as u8) << (bit % 8);
            } else {
                let width = 1 << (order - 3);
                let bytes = u64::from(count).to_be_bytes();
                self.image[block + bit / 8..][..width].copy_from_slice(&bytes[8 - width..]);
            }
        }
    }
}
