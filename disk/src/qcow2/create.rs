//! New images: the metadata of an empty disk, as bytes.

use super::header::{BackingReference, Header, HeaderError, MAGIC};
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
        }
    }

    /// The first clusters of the image file: header, refcount table, refcount blocks, L1 table.
    pub fn metadata(&self) -> Result<Vec<u8>, HeaderError> {
        let cluster_size = 1usize << self.cluster_bits;
        let l1_entries = self.size.div_ceil(1 << (2 * self.cluster_bits - 3)) as usize;
        let l1_clusters = (l1_entries * 8).div_ceil(cluster_size);
        let refcounts_per_block = (cluster_size * 8) >> self.refcount_order;
        let (mut blocks, mut table_clusters) = (1, 1);
        loop {
            let clusters = 1 + table_clusters + blocks + l1_clusters;
            let needed = (
                clusters.div_ceil(refcounts_per_block),
                (blocks * 8).div_ceil(cluster_size),
            );
            if needed == (blocks, table_clusters) {
                break;
            }
            (blocks, table_clusters) = (needed.0.max(blocks), needed.1.max(table_clusters));
        }
        let table_at = cluster_size;
        let blocks_at = table_at + table_clusters * cluster_size;
        let l1_at = blocks_at + blocks * cluster_size;
        let end = l1_at + l1_clusters * cluster_size;

        let mut image = vec![0; end];
        self.write_header(
            &mut image[..cluster_size],
            l1_entries as u32,
            l1_at,
            table_at,
            table_clusters as u32,
        );
        for block in 0..blocks {
            let offset = (blocks_at + block * cluster_size) as u64;
            image[table_at + block * 8..][..8].copy_from_slice(&offset.to_be_bytes());
        }
        for cluster in 0..end / cluster_size {
            set_refcount(&mut image[blocks_at..l1_at], cluster, self.refcount_order, 1);
        }
        Header::parse(&image[..cluster_size])?;
        Ok(image)
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
