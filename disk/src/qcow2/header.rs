//! The header of a qcow2 image (qcow2 spec, "Header" and "Header extensions"): bytes in, a checked structure out.

use std::fmt;

use super::token::{self, Token, TokenPlace};
use crate::DiskError;
use crate::storage::ImageFile;

/// "QFI\xfb", the first four bytes.
pub const MAGIC: u32 = 0x5146_49fb;

/// Bytes of a version 2 header.
pub const V2_LENGTH: usize = 72;

/// Bytes of the version 3 header's fixed part.
pub const V3_LENGTH: usize = 104;

/// The most that is read to parse a header: the largest cluster.
pub const MAX_LENGTH: usize = 2 << 20;

/// The largest L1 table that is loaded, in bytes (QEMU's limit, too).
pub const MAX_L1_BYTES: u64 = 32 << 20;

/// The largest refcount table that is loaded, in bytes (QEMU's limit, too).
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

/// The most snapshots that are accepted (QEMU's limit, too).
pub const MAX_SNAPSHOTS: u32 = 65536;

/// The longest name of a backing file, in bytes.
pub const MAX_BACKING_NAME: u32 = 1023;

/// Bit 0 of the incompatible features: refcounts may be inconsistent.
pub const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
/// Bit 1: the image is damaged and must not be written.
pub const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_EXTERNAL_DATA: u64 = 1 << 2;
pub(super) const INCOMPATIBLE_COMPRESSION_TYPE: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;

/// Bit 0 of the compatible features: refcounts may be brought up to date late.
pub(super) const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1 << 0;

/// Where the size of the disk lies, followed by crypt_method and the places of the tables.
const TABLES_AT: u64 = 24;

/// Where the incompatible, compatible and autoclear feature bits lie.
const FEATURES_AT: u64 = 72;

const EXTENSION_END: u32 = 0;
pub(super) const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_CRYPTO: u32 = 0x0537_be77;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;

/// What an image says of itself, checked against the format's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// log2 of the cluster size in bytes, 9 to 21.
    pub cluster_bits: u32,
    /// The size of the virtual disk in bytes.
    pub size: u64,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// Where the active L1 table lies, in bytes.
    pub l1_table_offset: u64,
    /// Where the refcount table lies, in bytes.
    pub refcount_table_offset: u64,
    /// Size of the refcount table in clusters.
    pub refcount_table_clusters: u32,
    /// Number of internal snapshots.
    pub snapshot_count: u32,
    /// Where the snapshot table lies, in bytes.
    pub snapshot_table_offset: u64,
    /// Incompatible feature bits; only those that are understood.
    pub incompatible_features: u64,
    /// Compatible feature bits, as found.
    pub compatible_features: u64,
    /// Autoclear feature bits, as found.
    pub autoclear_features: u64,
    /// log2 of the width of a refcount in bits, 0 to 6.
    pub refcount_order: u32,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// The file below this one, if any.
    pub backing: Option<BackingReference>,
    /// The token by which this image knows its metadata cache.
    pub token: TokenPlace,
}

/// The algorithm of compressed clusters (qcow2 spec, "compression_type").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate streams, with a window of 4 KiB.
    Deflate,
    /// Zstandard frames.
    Zstd,
}

/// How an image names the file that its unallocated clusters are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingReference {
    /// The name as stored; relative names start at the directory of the image.
    pub name: String,
    /// The format as stored, for example "qcow2" or "raw".
    pub format: Option<String>,
}

/// Why a header is refused: the field, where it lies, what it holds and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file does not begin with the magic number.
    #[error("Not a qcow2 image (it begins with {0:#010x}, not {MAGIC:#010x}); for a raw disk say format=raw")]
    NotQcow2(u32),
    /// The file ends within the header.
    #[error("The file ends after {found} bytes, within the qcow2 header of {needed} bytes")]
    TooShort {
        /// Bytes that are there.
        found: usize,
        /// Bytes that the header needs.
        needed: usize,
    },
    /// A field holds a value that the format does not allow.
    #[error("Header field {field} at offset {offset} is {found}; allowed is {allowed}")]
    Field {
        /// The name in the specification.
        field: &'static str,
        /// Where it lies in the file, in bytes.
        offset: usize,
        /// What it holds.
        found: String,
        /// What it may hold.
        allowed: String,
    },
    /// The image needs a feature that spindle does not implement.
    #[error("The image uses {0}, which is not supported")]
    Unsupported(String),
}

/// Reads fields of the header by their specification offset.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl Fields<'_> {
    fn u32(&self, offset: usize) -> Result<u32, HeaderError> {
        let end = offset + 4;
        let short = HeaderError::TooShort {
            found: self.bytes.len(),
            needed: end,
        };
        let bytes = self
            .bytes
            .get(offset..end)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(short)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&self, offset: usize) -> Result<u64, HeaderError> {
        Ok(u64::from(self.u32(offset)?) << 32 | u64::from(self.u32(offset + 4)?))
    }
}

fn refuse<T>(
    field: &'static str,
    offset: usize,
    found: impl fmt::Display,
    allowed: impl fmt::Display,
) -> Result<T, HeaderError> {
    Err(HeaderError::Field {
        field,
        offset,
        found: found.to_string(),
        allowed: allowed.to_string(),
    })
}

impl Header {
    /// Parses the header from the first bytes of an image. `bytes` holds the first cluster, or the whole file if that is shorter.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let fields = Fields { bytes };
        let magic = fields.u32(0)?;
        if magic != MAGIC {
            return Err(HeaderError::NotQcow2(magic));
        }
        let version = fields.u32(4)?;
        if !(2..=3).contains(&version) {
            return refuse("version", 4, version, "2 or 3");
        }
        let cluster_bits = fields.u32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return refuse("cluster_bits", 20, cluster_bits, "9 to 21");
        }
        let (incompatible_features, compatible_features, autoclear_features, refcount_order, header_length) =
            if version == 2 {
                (0, 0, 0, 4, V2_LENGTH as u32)
            } else {
                (
                    fields.u64(72)?,
                    fields.u64(80)?,
                    fields.u64(88)?,
                    fields.u32(96)?,
                    fields.u32(100)?,
                )
            };
        let mut header = Self {
            version,
            cluster_bits,
            size: fields.u64(24)?,
            l1_size: fields.u32(36)?,
            l1_table_offset: fields.u64(40)?,
            refcount_table_offset: fields.u64(48)?,
            refcount_table_clusters: fields.u32(56)?,
            snapshot_count: fields.u32(60)?,
            snapshot_table_offset: fields.u64(64)?,
            incompatible_features,
            compatible_features,
            autoclear_features,
            refcount_order,
            compression: parse_compression(&fields, version, incompatible_features, header_length)?,
            backing: None,
            token: TokenPlace::Nowhere,
        };
        header.check_length(header_length)?;
        let extensions = Extensions::parse(bytes, header_length as usize, header.cluster_size())?;
        header.check_features(&fields, &extensions)?;
        header.check_tables()?;
        header.token = TokenPlace::find(bytes, &extensions, &fields, header.cluster_size())?;
        header.backing = header.parse_backing(&fields, header_length, extensions.backing_format)?;
        Ok(header)
    }

    /// The cluster size in bytes.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Writes the incompatible, compatible and autoclear feature bits: 24 bytes within one sector.
    pub(super) async fn write_features(&self, file: &ImageFile) -> Result<(), DiskError> {
        let words = [
            self.incompatible_features,
            self.compatible_features,
            self.autoclear_features,
        ];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        file.write_bytes(FEATURES_AT, &bytes).await
    }

    /// Writes the size, and where the tables are: 48 bytes within one sector. (crypt_method, among them, is 0 in all
    /// images that are opened.)
    pub(super) async fn write_tables(&self, file: &ImageFile) -> Result<(), DiskError> {
        let mut bytes = self.size.to_be_bytes().to_vec();
        bytes.extend(0u32.to_be_bytes());
        bytes.extend(self.l1_size.to_be_bytes());
        bytes.extend(self.l1_table_offset.to_be_bytes());
        bytes.extend(self.refcount_table_offset.to_be_bytes());
        bytes.extend(self.refcount_table_clusters.to_be_bytes());
        bytes.extend(self.snapshot_count.to_be_bytes());
        bytes.extend(self.snapshot_table_offset.to_be_bytes());
        file.write_bytes(TABLES_AT, &bytes).await
    }

    /// Whether refcounts may be inconsistent.
    pub fn is_dirty(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_DIRTY != 0
    }

    /// Whether the image is marked as damaged.
    pub fn is_corrupt(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_CORRUPT != 0
    }

    /// Whether refcounts may be brought up to date late.
    pub fn has_lazy_refcounts(&self) -> bool {
        self.compatible_features & COMPATIBLE_LAZY_REFCOUNTS != 0
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub fn l1_entries_needed(&self) -> u64 {
        l1_entries_for(self.size, self.cluster_bits)
    }

    fn check_length(&self, header_length: u32) -> Result<(), HeaderError> {
        let allowed = V3_LENGTH as u32..=self.cluster_size() as u32;
        if self.version == 3 && (!allowed.contains(&header_length) || !header_length.is_multiple_of(8)) {
            let range = format!("a multiple of 8 from {} to {}", allowed.start(), allowed.end());
            return refuse("header_length", 100, header_length, range);
        }
        if self.refcount_order > 6 {
            return refuse("refcount_order", 96, self.refcount_order, "0 to 6");
        }
        Ok(())
    }

    fn check_features(&self, fields: &Fields<'_>, extensions: &Extensions) -> Result<(), HeaderError> {
        match fields.u32(32)? {
            0 => {}
            1 => return Err(HeaderError::Unsupported("AES encryption (crypt_method 1)".into())),
            2 => return Err(HeaderError::Unsupported("LUKS encryption (crypt_method 2)".into())),
            other => return refuse("crypt_method", 32, other, "0 (none), 1 (AES) or 2 (LUKS)"),
        }
        if let Some(feature) = extensions.unsupported {
            return Err(HeaderError::Unsupported(feature.into()));
        }
        let known = [
            (
                INCOMPATIBLE_EXTERNAL_DATA,
                "an external data file (incompatible feature bit 2)",
            ),
            (
                INCOMPATIBLE_EXTENDED_L2,
                "extended L2 entries (incompatible feature bit 4)",
            ),
        ];
        for (bit, name) in known {
            if self.incompatible_features & bit != 0 {
                return Err(HeaderError::Unsupported(name.into()));
            }
        }
        let understood = INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT | INCOMPATIBLE_COMPRESSION_TYPE;
        let unknown = self.incompatible_features & !understood;
        if unknown != 0 {
            let bit = unknown.trailing_zeros();
            let name = extensions
                .feature_name(bit)
                .unwrap_or_else(|| "a feature without a name".into());
            return Err(HeaderError::Unsupported(format!(
                "{name} (incompatible feature bit {bit})"
            )));
        }
        Ok(())
    }

    fn check_tables(&self) -> Result<(), HeaderError> {
        if self.size > i64::MAX as u64 {
            return refuse("size", 24, self.size, format!("at most {}", i64::MAX));
        }
        let l1_limit = (MAX_L1_BYTES / 8) as u32;
        if self.l1_size > l1_limit {
            return refuse("l1_size", 36, self.l1_size, format!("at most {l1_limit}"));
        }
        let needed = self.l1_entries_needed();
        if u64::from(self.l1_size) < needed {
            let found = format!("{} (with size {})", self.l1_size, self.size);
            return refuse("l1_size", 36, found, format!("at least {needed} for that size"));
        }
        let refcount_limit = (MAX_REFCOUNT_TABLE_BYTES >> self.cluster_bits).max(1) as u32;
        if !(1..=refcount_limit).contains(&self.refcount_table_clusters) {
            let allowed = format!("1 to {refcount_limit}");
            return refuse("refcount_table_clusters", 56, self.refcount_table_clusters, allowed);
        }
        if self.snapshot_count > MAX_SNAPSHOTS {
            return refuse(
                "nb_snapshots",
                60,
                self.snapshot_count,
                format!("at most {MAX_SNAPSHOTS}"),
            );
        }
        let tables = [
            ("l1_table_offset", 40, self.l1_table_offset, u64::from(self.l1_size)),
            ("refcount_table_offset", 48, self.refcount_table_offset, 1),
            (
                "snapshots_offset",
                64,
                self.snapshot_table_offset,
                u64::from(self.snapshot_count),
            ),
        ];
        for (field, offset, found, entries) in tables {
            // A table without entries may lie nowhere, but not at nonsense.
            let absent = found == 0 && entries == 0;
            if !absent && (found == 0 || found % self.cluster_size() != 0 || found >= 1 << 56) {
                let allowed = format!("a multiple of {} above 0 and below 2^56", self.cluster_size());
                return refuse(field, offset, format!("{found:#x}"), allowed);
            }
        }
        self.check_overlaps()
    }

    /// The tables that the header names lie apart from it and from each other.
    fn check_overlaps(&self) -> Result<(), HeaderError> {
        let l1 = self.l1_table_offset..self.l1_table_offset + u64::from(self.l1_size) * 8;
        let table_bytes = u64::from(self.refcount_table_clusters) * self.cluster_size();
        let refcounts = self.refcount_table_offset..self.refcount_table_offset + table_bytes;
        if l1.start < refcounts.end && refcounts.start < l1.end {
            let found = format!(
                "{:#x}, so that {:#x}..{:#x} overlaps the refcount table",
                l1.start, l1.start, l1.end
            );
            let allowed = format!("a range outside {:#x}..{:#x}", refcounts.start, refcounts.end);
            return refuse("l1_table_offset", 40, found, allowed);
        }
        let snapshots = self.snapshot_table_offset;
        if self.snapshot_count > 0 && (l1.contains(&snapshots) || refcounts.contains(&snapshots)) {
            return refuse(
                "snapshots_offset",
                64,
                format!("{snapshots:#x}"),
                "a place outside the other tables",
            );
        }
        Ok(())
    }

    fn parse_backing(
        &self,
        fields: &Fields<'_>,
        header_length: u32,
        format: Option<String>,
    ) -> Result<Option<BackingReference>, HeaderError> {
        let offset = fields.u64(8)?;
        let length = fields.u32(16)?;
        if offset == 0 {
            return Ok(None);
        }
        let room = self.cluster_size().saturating_sub(u64::from(header_length));
        let longest = room.min(u64::from(MAX_BACKING_NAME));
        if length == 0 || u64::from(length) > longest {
            return refuse("backing_file_size", 16, length, format!("1 to {longest}"));
        }
        let end = offset.saturating_add(u64::from(length));
        if offset < u64::from(header_length) || end > self.cluster_size() {
            let allowed = format!("{header_length} to {}", self.cluster_size() - u64::from(length));
            return refuse("backing_file_offset", 8, offset, allowed);
        }
        let short = HeaderError::TooShort {
            found: fields.bytes.len(),
            needed: end as usize,
        };
        let name = fields.bytes.get(offset as usize..end as usize).ok_or(short)?;
        match std::str::from_utf8(name) {
            Ok(name) if !name.contains('\0') => Ok(Some(BackingReference {
                name: name.to_owned(),
                format,
            })),
            _ => refuse(
                "backing file name",
                offset as usize,
                String::from_utf8_lossy(name).escape_debug(),
                "UTF-8 text",
            ),
        }
    }
}

fn parse_compression(
    fields: &Fields<'_>,
    version: u32,
    incompatible_features: u64,
    header_length: u32,
) -> Result<Compression, HeaderError> {
    // The field is one byte, present in headers that are longer than the fixed part.
    let present = version == 3 && header_length > V3_LENGTH as u32;
    let kind = if present { fields.u32(V3_LENGTH)? >> 24 } else { 0 };
    let announced = incompatible_features & INCOMPATIBLE_COMPRESSION_TYPE != 0;
    match (kind, announced) {
        (0, false) => Ok(Compression::Deflate),
        (1, true) => Ok(Compression::Zstd),
        (_, false) => refuse(
            "compression_type",
            V3_LENGTH,
            kind,
            "0 (deflate), since incompatible feature bit 3 is clear",
        ),
        (_, true) => refuse(
            "compression_type",
            V3_LENGTH,
            kind,
            "1 (zstd), since incompatible feature bit 3 is set",
        ),
    }
}

/// L1 entries that a disk of `size` bytes needs.
pub(super) fn l1_entries_for(size: u64, cluster_bits: u32) -> u64 {
    let bytes_per_entry_bits = cluster_bits + (cluster_bits - 3);
    size.div_ceil(1 << bytes_per_entry_bits)
}

impl TokenPlace {
    /// In our own extension, or else behind the last one, if the bytes there are zeros that nothing names.
    fn find(
        bytes: &[u8],
        extensions: &Extensions,
        fields: &Fields<'_>,
        cluster_size: u64,
    ) -> Result<Self, HeaderError> {
        if let Some((at, token)) = extensions.token {
            return Ok(TokenPlace::Found { at, token });
        }
        let Some(marker) = extensions.end_marker else {
            return Ok(TokenPlace::Nowhere);
        };
        let end = marker + token::EXTENSION_BYTES;
        let unused = bytes.get(marker as usize..end as usize);
        let is_zero = unused.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
        let name_at = fields.u64(8)?;
        let is_name = name_at != 0 && name_at < end && marker < name_at.saturating_add(u64::from(fields.u32(16)?));
        Ok(if is_zero && !is_name && end <= cluster_size {
            TokenPlace::Room { marker }
        } else {
            TokenPlace::Nowhere
        })
    }
}

/// What the header extensions say.
#[derive(Default)]
struct Extensions {
    backing_format: Option<String>,
    /// Type, bit number and name of each feature.
    feature_names: Vec<(u8, u8, String)>,
    unsupported: Option<&'static str>,
    /// Our own: where its content lies, in bytes, and the content.
    token: Option<(u64, Token)>,
    /// Where the marker of the end lies, in bytes.
    end_marker: Option<u64>,
}

impl Extensions {
    fn parse(bytes: &[u8], start: usize, cluster_size: u64) -> Result<Self, HeaderError> {
        let mut extensions = Self::default();
        let area = &bytes[..bytes.len().min(cluster_size as usize)];
        let mut position = start;
        // An area that ends without an end marker ends there; images of old tools do.
        while let (Some(kind), Some(length)) = (word(area, position), word(area, position + 4)) {
            if kind == EXTENSION_END {
                extensions.end_marker = Some(position as u64);
                break;
            }
            let data = position + 8;
            let Some(content) = data.checked_add(length as usize).and_then(|end| area.get(data..end)) else {
                let allowed = format!("at most {}", area.len().saturating_sub(data));
                return refuse("header extension length", position + 4, length, allowed);
            };
            match (kind, content.try_into()) {
                (token::EXTENSION, Ok(token)) => extensions.token = Some((data as u64, token)),
                _ => extensions.take(kind, content),
            }
            position = data + content.len().next_multiple_of(8);
        }
        Ok(extensions)
    }

    fn take(&mut self, kind: u32, content: &[u8]) {
        match kind {
            EXTENSION_BACKING_FORMAT => self.backing_format = Some(String::from_utf8_lossy(content).into_owned()),
            EXTENSION_FEATURE_NAMES => {
                for record in content.chunks_exact(48) {
                    let name = String::from_utf8_lossy(&record[2..]).trim_end_matches('\0').to_owned();
                    self.feature_names.push((record[0], record[1], name));
                }
            }
            EXTENSION_BITMAPS => self.unsupported = Some("persistent dirty bitmaps (header extension 0x23852875)"),
            EXTENSION_CRYPTO => self.unsupported = Some("full disk encryption (header extension 0x0537be77)"),
            EXTENSION_DATA_FILE => self.unsupported = Some("an external data file (header extension 0x44415441)"),
            // Unknown extensions may be ignored (qcow2 spec, "Header extensions").
            _ => {}
        }
    }

    /// The name that the image itself has for an incompatible feature bit.
    fn feature_name(&self, bit: u32) -> Option<String> {
        let found = self
            .feature_names
            .iter()
            .find(|(kind, number, _)| *kind == 0 && u32::from(*number) == bit);
        found.map(|(_, _, name)| format!("\"{}\"", name.escape_debug()))
    }
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    let word = bytes.get(offset..offset + 4)?;
    Some(u32::from_be_bytes(word.try_into().ok()?))
}
