//! New images: the metadata of an empty disk, as bytes.

use super::header::{
    BackingReference, COMPATIBLE_LAZY_REFCOUNTS, Compression, Header, HeaderError, INCOMPATIBLE_COMPRESSION_TYPE, MAGIC,
};
use super::refcount::set_refcount;

/// Bytes of the version 3 header that new images have: with the compression type and its padding.
const NEW_HEADER_LENGTH: u32 = 112;

/// What a new image shall be.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size of the virtual disk in bytes.
    pub size: u64,
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size in bytes, 9 to 21.
    pub cluster_bits: u32,
    /// log2 of the width of a refcount in bits, 0 to 6; 4 in version 2.
    pub refcount_order: u32,
    /// The file below, if any.
    pub backing: Option<BackingReference>,
    /// Compatible feature bit 0: refcounts may be brought up to date late. Version 3.
    pub lazy_refcounts: bool,
    /// How compressed clusters will be compressed; only deflate in version 2.
    pub compression: Compression,
}

/// Where the first tables of a new image lie, in clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub table_at: u64,
    pub table_clusters: u64,
    pub blocks_at: u64,
    pub blocks: u64,
    pub l1_at: u64,
    pub l1_entries: u64,
    /// The first cluster behind them.
    pub end: u64,
}

impl CreateOptions {
    /// The defaults of `qemu-img create`: version 3, clusters of 64 KiB, refcounts of 16 bits.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            version: 3,
            cluster_bits: 16,
            refcount_order: 4,
            backing: None,
            lazy_refcounts: false,
            compression: Compression::Deflate,
        }
    }

    pub(crate) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Clusters that one refcount block describes.
    pub(crate) fn clusters_per_block(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// Where the first tables lie, if the refcount table has at least `table_clusters` clusters.
    pub(crate) fn layout(&self, table_clusters: u64) -> Layout {
        let l1_entries = self.size.div_ceil(1 << (2 * self.cluster_bits - 3));
        let l1_clusters = (l1_entries * 8).div_ceil(self.cluster_size());
        let (mut blocks, mut table_clusters) = (1, table_clusters.max(1));
        loop {
            let clusters = 1 + table_clusters + blocks + l1_clusters;
            let needed = clusters.div_ceil(self.clusters_per_block()).max(blocks);
            let table = (needed * 8).div_ceil(self.cluster_size()).max(table_clusters);
            if (needed, table) == (blocks, table_clusters) {
                break;
            }
            (blocks, table_clusters) = (needed, table);
        }
        let blocks_at = 1 + table_clusters;
        Layout {
            table_at: 1,
            table_clusters,
            blocks_at,
            blocks,
            l1_at: blocks_at + blocks,
            l1_entries,
            end: blocks_at + blocks + l1_clusters,
        }
    }

    /// The first clusters of the image file: header, refcount table, refcount blocks, L1 table.
    pub fn metadata(&self) -> Result<Vec<u8>, HeaderError> {
        self.metadata_as(self.layout(1))
    }

    /// As above, laid out like this.
    pub(crate) fn metadata_as(&self, layout: Layout) -> Result<Vec<u8>, HeaderError> {
        let cluster_size = self.cluster_size() as usize;
        self.check_options()?;
        let bytes = |clusters: u64| clusters as usize * cluster_size;
        let (table_at, blocks_at, l1_at) = (bytes(layout.table_at), bytes(layout.blocks_at), bytes(layout.l1_at));
        let mut image = vec![0; bytes(layout.end)];
        self.write_header(
            &mut image[..cluster_size],
            layout.l1_entries as u32,
            l1_at,
            table_at,
            layout.table_clusters as u32,
        );
        for block in 0..layout.blocks as usize {
            let offset = (blocks_at + block * cluster_size) as u64;
            image[table_at + block * 8..][..8].copy_from_slice(&offset.to_be_bytes());
        }
        for cluster in 0..layout.end as usize {
            set_refcount(
                &mut image[blocks_at..l1_at.max(blocks_at)],
                cluster,
                self.refcount_order,
                1,
            );
        }
        Header::parse(&image[..cluster_size])?;
        Ok(image)
    }

    /// What would make no image, or one that says something else.
    fn check_options(&self) -> Result<(), HeaderError> {
        let refuse = |field, offset, found: String, allowed: &str| {
            Err(HeaderError::Field {
                field,
                offset,
                found,
                allowed: allowed.to_owned(),
            })
        };
        if !(9..=21).contains(&self.cluster_bits) {
            return refuse("cluster_bits", 20, self.cluster_bits.to_string(), "9 to 21");
        }
        if self.size > i64::MAX as u64 {
            return refuse("size", 24, self.size.to_string(), "at most 2^63 - 1");
        }
        let l1_entries = super::header::l1_entries_for(self.size, self.cluster_bits);
        if l1_entries * 8 > super::header::MAX_L1_BYTES {
            return refuse(
                "l1_size",
                36,
                l1_entries.to_string(),
                "an L1 table of at most 32 MiB; larger clusters need less",
            );
        }
        if self.version < 3 && self.refcount_order != 4 {
            return refuse(
                "refcount_order",
                96,
                self.refcount_order.to_string(),
                "4 (16 bits) in version 2",
            );
        }
        if self.version < 3 && self.lazy_refcounts {
            return refuse("compatible_features", 80, "lazy refcounts".into(), "none in version 2");
        }
        if self.version < 3 && self.compression != Compression::Deflate {
            return refuse("compression_type", 104, "1 (zstd)".into(), "0 (deflate) in version 2");
        }
        let names = self.backing.as_ref().map_or(0, |backing| {
            backing.name.len() + backing.format.as_ref().map_or(0, String::len).next_multiple_of(8)
        });
        if NEW_HEADER_LENGTH as usize + 16 + names > self.cluster_size() as usize {
            return refuse(
                "backing_file_size",
                16,
                names.to_string(),
                "a name that fits into the first cluster",
            );
        }
        Ok(())
    }

    fn write_header(&self, header: &mut [u8], l1_size: u32, l1_at: usize, table_at: usize, table_clusters: u32) {
        let mut put = |offset: usize, bytes: &[u8]| header[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC.to_be_bytes());
        put(4, &self.version.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &l1_size.to_be_bytes());
        put(40, &(l1_at as u64).to_be_bytes());
        put(48, &(table_at as u64).to_be_bytes());
        put(56, &table_clusters.to_be_bytes());
        let mut extensions = 72;
        if self.version >= 3 {
            put(96, &self.refcount_order.to_be_bytes());
            put(100, &NEW_HEADER_LENGTH.to_be_bytes());
            if self.lazy_refcounts {
                put(80, &COMPATIBLE_LAZY_REFCOUNTS.to_be_bytes());
            }
            if self.compression == Compression::Zstd {
                put(72, &INCOMPATIBLE_COMPRESSION_TYPE.to_be_bytes());
                put(104, &[1]);
            }
            extensions = NEW_HEADER_LENGTH as usize;
        }
        let Some(backing) = &self.backing else { return };
        if let Some(format) = &backing.format {
            put(extensions, &super::header::EXTENSION_BACKING_FORMAT.to_be_bytes());
            put(extensions + 4, &(format.len() as u32).to_be_bytes());
            put(extensions + 8, format.as_bytes());
            extensions += 8 + format.len().next_multiple_of(8);
        }
        // The end marker is eight zero bytes, which are there.
        let name_at = extensions + 8;
        put(8, &(name_at as u64).to_be_bytes());
        put(16, &(backing.name.len() as u32).to_be_bytes());
        put(name_at, backing.name.as_bytes());
    }
}
