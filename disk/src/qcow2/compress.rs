//! Compressing clusters (qcow2 spec, "Compressed Clusters Descriptor"), as every reader of qcow2 understands it.

use std::io;

use flate2::{Compress, Compression as Level, FlushCompress, Status};

use super::header::Compression;

/// Deflate's window: 4 KiB. Readers need no more memory than that, and some have none.
const WINDOW_BITS: u8 = 12;

/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// Compresses one cluster. `None` if that would not make it smaller.
pub fn compress_cluster(algorithm: Compression, cluster: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let compressed = match algorithm {
        Compression::Deflate => deflate(cluster)?,
        Compression::Zstd => Some(zstd::bulk::compress(cluster, ZSTD_LEVEL)?),
    };
    Ok(compressed.filter(|bytes| bytes.len() < cluster.len()))
}

fn deflate(cluster: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut stream = Compress::new_with_window_bits(Level::default(), false, WINDOW_BITS);
    let mut compressed = Vec::with_capacity(cluster.len());
    let status = stream.compress_vec(cluster, &mut compressed, FlushCompress::Finish)?;
    // What did not fit did not shrink.
    Ok((status == Status::StreamEnd).then_some(compressed))
}

#[cfg(test)]
mod tests {
    use super::super::compressed::decompress;
    use super::*;

    #[test]
    fn what_was_compressed_comes_back_and_noise_is_left_alone() {
        let text: Vec<u8> = (0..65536u32).map(|index| (index / 50 % 251) as u8).collect();
        let noise: Vec<u8> = (0..65536u32)
            .map(|index| (index.wrapping_mul(2_654_435_761).rotate_left(index % 31) >> 13) as u8)
            .collect();
        for algorithm in [Compression::Deflate, Compression::Zstd] {
            let mut compressed = compress_cluster(algorithm, &text).expect("works").expect("shrinks");
            compressed.extend([0xaa; 300]);
            let mut back = vec![0; text.len()];
            decompress(algorithm, &compressed, &mut back).expect("valid");
            assert!(back == text, "{algorithm:?}");
            if let Some(compressed) = compress_cluster(algorithm, &noise).expect("works") {
                assert!(compressed.len() < noise.len());
            }
        }
    }
}
