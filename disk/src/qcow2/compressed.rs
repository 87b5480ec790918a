//! Compressed clusters (qcow2 spec, "Compressed Clusters Descriptor"): read here; a write replaces them.

use std::io::Read;
use std::rc::Rc;

use super::Qcow2;
use super::header::Compression;
use crate::DiskError;
use crate::disk::Corruption;
use crate::storage::Piece;

impl Qcow2 {
    /// Fills `target` with the guest's bytes at `offset`, which lie in one cluster that is stored compressed in
    /// `length` bytes at byte `host` of the image file.
    pub(super) async fn read_compressed(
        self: &Rc<Self>,
        offset: u64,
        host: u64,
        length: u64,
        target: Piece,
    ) -> Result<(), DiskError> {
        let stored = self.file.read_bytes(host, length as usize).await?;
        let (algorithm, cluster_size) = (self.header.borrow().compression, self.cluster_size() as usize);
        // It takes a hundred times as long as everything else here, so others do it, and requests that need none of it go on meanwhile. It
        // works on memory of its own, which nobody misses if this request is dropped.
        let decompressed = self.tasks.compute(move || {
            let mut cluster = vec![0; cluster_size];
            decompress(algorithm, &stored, &mut cluster).ok().map(|()| cluster)
        });
        let Some(cluster) = decompressed.await.flatten() else {
            let expected = "a compressed cluster";
            let found = offset >> self.cluster_bits;
            return Err(self.corrupt(Corruption {
                structure: "compressed data of the cluster",
                at: host,
                found,
                expected,
            }));
        };
        let within = self.within_cluster(offset) as usize;
        target
            .buffer
            .copy_from_slice(target.range.start, &cluster[within..within + target.range.len()]);
        Ok(())
    }
}

/// Fills `cluster` from `stored`. What follows the compressed data in `stored` is not part of it.
pub(super) fn decompress(algorithm: Compression, stored: &[u8], cluster: &mut [u8]) -> std::io::Result<()> {
    match algorithm {
        Compression::Deflate => flate2::read::DeflateDecoder::new(stored).read_exact(cluster),
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(stored)?.read_exact(cluster),
    }
}
