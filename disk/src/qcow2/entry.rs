//! L1 and L2 table entries (qcow2 spec, "Cluster mapping"): 64 bits in, a checked meaning out.

use crate::disk::Corruption;

/// Refcount is exactly one: the cluster may be written in place.
pub(crate) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Version 3: the cluster reads as zeros, whatever it holds.
pub(crate) const ZERO: u64 = 1;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// The 64-bit big-endian entries of a table.
pub(crate) fn words(bytes: &[u8]) -> Vec<u64> {
    let word = |bytes: &[u8]| bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    bytes.chunks_exact(8).map(word).collect()
}

/// What an L1 entry points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct L1Entry {
    /// Where the L2 table lies in the image file, in bytes.
    pub table: u64,
    /// Whether only the active L1 table refers to it.
    pub copied: bool,
}

impl L1Entry {
    /// Decodes `entry`, found at byte `at` of the image. `None` is an absent L2 table.
    pub(crate) fn decode(entry: u64, at: u64, cluster_bits: u32) -> Result<Option<Self>, Corruption> {
        if entry == 0 {
            return Ok(None);
        }
        let table = entry & OFFSET_MASK;
        if entry & !(OFFSET_MASK | COPIED) != 0 || table == 0 || table & ((1 << cluster_bits) - 1) != 0 {
            let expected = "a cluster-aligned L2 table offset without reserved bits";
            return Err(Corruption {
                structure: "L1 entry",
                at,
                found: entry,
                expected,
            });
        }
        Ok(Some(Self {
            table,
            copied: entry & COPIED != 0,
        }))
    }
}

/// What one guest cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum L2Entry {
    /// Read from the backing file, or zeros.
    Unallocated,
    /// Reads as zeros; a host cluster may be reserved for it.
    Zero { host: Option<u64> },
    /// Stored at byte `host` of the image file; `copied` allows to write in place.
    Data { host: u64, copied: bool },
    /// Compressed: `length` bytes at most, from byte `host` on.
    Compressed { host: u64, length: u64 },
}

impl L2Entry {
    /// Decodes `entry`, found at byte `at` of an image of `version` whose clusters end before byte `image_end`.
    pub(crate) fn decode(
        entry: u64,
        at: u64,
        version: u32,
        cluster_bits: u32,
        image_end: u64,
    ) -> Result<Self, Corruption> {
        let corrupt = |expected| Corruption {
            structure: "L2 entry",
            at,
            found: entry,
            expected,
        };
        if entry & COMPRESSED != 0 {
            return Self::decode_compressed(entry, cluster_bits, image_end)
                .ok_or_else(|| corrupt("a compressed cluster within the image, without the copied flag"));
        }
        let host = entry & OFFSET_MASK;
        let zero_flag = if version >= 3 { ZERO } else { 0 };
        if entry & !(OFFSET_MASK | COPIED | zero_flag) != 0 {
            return Err(corrupt("no reserved bits"));
        }
        if host & ((1 << cluster_bits) - 1) != 0 {
            return Err(corrupt("a cluster-aligned offset"));
        }
        if host >= image_end {
            return Err(corrupt("an offset within the image file"));
        }
        Ok(match (entry & zero_flag != 0, host) {
            (true, 0) => L2Entry::Zero { host: None },
            (true, host) => L2Entry::Zero { host: Some(host) },
            (false, 0) => L2Entry::Unallocated,
            (false, host) => L2Entry::Data {
                host,
                copied: entry & COPIED != 0,
            },
        })
    }

    fn decode_compressed(entry: u64, cluster_bits: u32, image_end: u64) -> Option<Self> {
        let offset_bits = 62 - (cluster_bits - 8);
        let host = entry & ((1 << offset_bits) - 1);
        let extra_sectors = (entry & !(COPIED | COMPRESSED)) >> offset_bits;
        let end = (host & !511) + (extra_sectors + 1) * 512;
        let valid = entry & COPIED == 0 && host != 0 && host < image_end;
        valid.then_some(L2Entry::Compressed {
            host,
            length: end - host,
        })
    }

    /// Where the cluster lies that the entry has for itself or shares, in bytes, unless it is compressed. The copied flag is about it.
    pub(crate) fn standard_host(self) -> Option<u64> {
        match self {
            L2Entry::Data { host, .. } | L2Entry::Zero { host: Some(host) } => Some(host),
            L2Entry::Unallocated | L2Entry::Zero { host: None } | L2Entry::Compressed { .. } => None,
        }
    }

    /// The host clusters that the entry holds a reference to: first and count.
    pub(crate) fn references(self, cluster_bits: u32) -> Option<(u64, u64)> {
        let clusters = |host: u64, length: u64| {
            let first = host >> cluster_bits;
            (first, ((host + length - 1) >> cluster_bits) - first + 1)
        };
        match self {
            L2Entry::Unallocated | L2Entry::Zero { host: None } => None,
            L2Entry::Zero { host: Some(host) } | L2Entry::Data { host, .. } => Some(clusters(host, 1)),
            L2Entry::Compressed { host, length } => Some(clusters(host, length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressed_entry_names_its_bytes_and_clusters() {
        // 64 KiB clusters: 54 offset bits, then the number of additional sectors.
        let entry = COMPRESSED | 3 << 54 | 0x5fe10;
        let decoded = L2Entry::decode(entry, 0, 3, 16, 1 << 30).expect("valid");
        assert_eq!(
            decoded,
            L2Entry::Compressed {
                host: 0x5fe10,
                length: 0x60600 - 0x5fe10
            }
        );
        assert_eq!(decoded.references(16), Some((5, 2)));
    }

    #[test]
    fn entries_that_the_format_forbids_are_refused() {
        let decode = |entry, version| L2Entry::decode(entry, 8, version, 16, 0x100_0000);
        assert_eq!(
            decode(COPIED | 0x5_0000, 3),
            Ok(L2Entry::Data {
                host: 0x5_0000,
                copied: true
            })
        );
        assert_eq!(decode(ZERO, 3), Ok(L2Entry::Zero { host: None }));
        for (entry, version) in [(ZERO, 2), (1 << 57, 3), (2, 3), (0x5_0200, 3), (0x100_0000, 3)] {
            let error = decode(entry, version).expect_err("forbidden");
            assert_eq!((error.found, error.at), (entry, 8), "{error}");
        }
    }
}
