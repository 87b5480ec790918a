//! The snapshot table (qcow2 spec, "Snapshots"): bytes in, checked records out, and back again byte for byte.

use super::header::{Header, MAX_L1_BYTES};
use crate::DiskError;
use crate::disk::Corruption;
use crate::storage::ImageFile;

/// Bytes of a record's fixed part.
const FIXED_LENGTH: usize = 40;

/// The most extra data that a record may have, in bytes (QEMU's limit, too).
const MAX_EXTRA: u64 = 1024;

/// The largest snapshot table that is read or written, in bytes (QEMU's limit, too).
pub(super) const MAX_TABLE_BYTES: u64 = 64 << 20;

/// Where the extra data holds the size of the VM state, and that of the virtual disk.
const EXTRA_VM_STATE: usize = 0;
const EXTRA_DISK_SIZE: usize = 8;
const EXTRA_ICOUNT: usize = 16;

/// An instruction count that is not known.
const NO_ICOUNT: u64 = u64::MAX;

/// One internal snapshot, as the table describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotRecord {
    /// Where its L1 table lies, in bytes.
    pub l1_table_offset: u64,
    /// Entries of its L1 table.
    pub l1_size: u32,
    /// Unique among the snapshots of an image. Bytes, since the format does not say more.
    pub id: Vec<u8>,
    /// What the user calls it.
    pub name: Vec<u8>,
    /// When it was taken: seconds since 1970, and nanoseconds.
    pub date: (u32, u32),
    /// How long the guest had been running, in nanoseconds.
    pub vm_clock: u64,
    /// The size of the VM state in bytes, in its old field of 32 bits.
    vm_state_size: u32,
    /// What the format added since; what we do not know of it is kept.
    extra: Vec<u8>,
}

impl SnapshotRecord {
    /// A snapshot without VM state of a disk of `disk_size` bytes, whose L1 table of `l1_size` entries is yet to be placed.
    pub(super) fn new(id: u64, name: &str, date: (u32, u32), disk_size: u64, l1_size: u32) -> Self {
        let extra = [0, disk_size, NO_ICOUNT];
        Self {
            l1_table_offset: 0,
            l1_size,
            id: id.to_string().into_bytes(),
            name: name.as_bytes().to_vec(),
            date,
            vm_clock: 0,
            vm_state_size: 0,
            extra: extra.iter().flat_map(|word| word.to_be_bytes()).collect(),
        }
    }

    /// The size of the virtual disk in bytes. Old records do not say; then it is that of the active disk.
    pub(super) fn disk_size(&self) -> Option<u64> {
        self.extra_word(EXTRA_DISK_SIZE)
    }

    /// Bytes of VM state that belong to it.
    pub(super) fn vm_state_bytes(&self) -> u64 {
        self.extra_word(EXTRA_VM_STATE).unwrap_or(u64::from(self.vm_state_size))
    }

    /// How many instructions the guest had executed, if that was counted.
    pub(super) fn icount(&self) -> Option<u64> {
        self.extra_word(EXTRA_ICOUNT).filter(|count| *count != NO_ICOUNT)
    }

    /// Bytes of its L1 table.
    pub(super) fn l1_bytes(&self) -> u64 {
        u64::from(self.l1_size) * 8
    }

    /// Bytes of the record in the snapshot table, padding included.
    pub(super) fn length(&self) -> u64 {
        (FIXED_LENGTH + self.extra.len() + self.id.len() + self.name.len()).next_multiple_of(8) as u64
    }

    fn extra_word(&self, at: usize) -> Option<u64> {
        let bytes = self.extra.get(at..at + 8)?;
        Some(big_endian(bytes))
    }

    fn encode(&self, table: &mut Vec<u8>) {
        let start = table.len();
        table.extend(self.l1_table_offset.to_be_bytes());
        table.extend(self.l1_size.to_be_bytes());
        table.extend((self.id.len() as u16).to_be_bytes());
        table.extend((self.name.len() as u16).to_be_bytes());
        table.extend(self.date.0.to_be_bytes());
        table.extend(self.date.1.to_be_bytes());
        table.extend(self.vm_clock.to_be_bytes());
        table.extend(self.vm_state_size.to_be_bytes());
        table.extend((self.extra.len() as u32).to_be_bytes());
        table.extend(&self.extra);
        table.extend(&self.id);
        table.extend(&self.name);
        table.resize(start + self.length() as usize, 0);
    }
}

/// The bytes of a snapshot table.
pub(super) fn encode_table(records: &[SnapshotRecord]) -> Vec<u8> {
    let mut table = Vec::new();
    for record in records {
        record.encode(&mut table);
    }
    table
}

/// Bytes of the snapshot table with these records.
pub(super) fn table_bytes(records: &[SnapshotRecord]) -> u64 {
    records.iter().map(SnapshotRecord::length).sum()
}

/// Reads the snapshot table of an image whose file has `length` bytes.
pub(super) async fn read_table(
    file: &ImageFile,
    header: &Header,
    length: u64,
) -> Result<Vec<SnapshotRecord>, DiskError> {
    let mut table = Table::new(header, length);
    while let Some((at, bytes)) = table.fixed_part()? {
        let fixed = file.read_bytes(at, bytes).await?;
        let (at, bytes) = table.variable_part(&fixed)?;
        table.add(&file.read_bytes(at, bytes).await?);
    }
    Ok(table.records)
}

/// A snapshot table being read: it says what to read next, and takes that.
pub(super) struct Table<'a> {
    header: &'a Header,
    /// Of the image file, in bytes.
    file_length: u64,
    /// Where the next record begins.
    at: u64,
    fixed: Option<FixedPart>,
    pub records: Vec<SnapshotRecord>,
}

/// A record as far as its size is fixed; and how long the rest is.
struct FixedPart {
    record: SnapshotRecord,
    extra: usize,
    id: usize,
    name: usize,
}

impl<'a> Table<'a> {
    pub(super) fn new(header: &'a Header, file_length: u64) -> Self {
        Self {
            header,
            file_length,
            at: header.snapshot_table_offset,
            fixed: None,
            records: Vec::new(),
        }
    }

    /// Where the fixed part of the next record lies, and its length. `None` when there is no next record.
    pub(super) fn fixed_part(&self) -> Result<Option<(u64, usize)>, DiskError> {
        if self.records.len() as u64 == u64::from(self.header.snapshot_count) {
            return Ok(None);
        }
        let used = self.at - self.header.snapshot_table_offset;
        if used > MAX_TABLE_BYTES {
            return Err(corrupt(self.at, used, "a snapshot table of at most 64 MiB"));
        }
        self.check_within_file(FIXED_LENGTH)?;
        Ok(Some((self.at, FIXED_LENGTH)))
    }

    /// Takes the fixed part. Returns where the rest lies, and its length.
    pub(super) fn variable_part(&mut self, fixed: &[u8]) -> Result<(u64, usize), DiskError> {
        let word = |from: usize| big_endian(&fixed[from..from + 8]);
        let half = |from: usize| big_endian(&fixed[from..from + 4]) as u32;
        let at = self.at;
        let (l1_table_offset, l1_size) = (word(0), half(8));
        if l1_table_offset % self.header.cluster_size() != 0 || l1_table_offset == 0 || l1_table_offset >= 1 << 56 {
            return Err(corrupt(
                at,
                l1_table_offset,
                "a cluster-aligned L1 table offset below 2^56",
            ));
        }
        let l1_bytes = u64::from(l1_size) * 8;
        if l1_bytes > MAX_L1_BYTES || l1_table_offset.saturating_add(l1_bytes) > self.file_length {
            return Err(corrupt(
                at + 8,
                u64::from(l1_size),
                "an L1 table that ends within the file",
            ));
        }
        let extra = u64::from(half(36));
        if extra > MAX_EXTRA {
            return Err(corrupt(at + 36, extra, "at most 1024 bytes of extra data"));
        }
        let part = FixedPart {
            record: SnapshotRecord {
                l1_table_offset,
                l1_size,
                id: Vec::new(),
                name: Vec::new(),
                date: (half(16), half(20)),
                vm_clock: word(24),
                vm_state_size: half(32),
                extra: Vec::new(),
            },
            extra: extra as usize,
            id: big_endian(&fixed[12..14]) as usize,
            name: big_endian(&fixed[14..16]) as usize,
        };
        let length = part.extra + part.id + part.name;
        self.check_within_file(FIXED_LENGTH + length)?;
        self.fixed = Some(part);
        Ok((at + FIXED_LENGTH as u64, length))
    }

    /// Takes the rest of a record.
    pub(super) fn add(&mut self, variable: &[u8]) {
        let Some(mut part) = self.fixed.take() else { return };
        let (extra, names) = variable.split_at(part.extra);
        let (id, name) = names.split_at(part.id);
        part.record.extra = extra.to_vec();
        part.record.id = id.to_vec();
        part.record.name = name[..part.name].to_vec();
        self.at += part.record.length();
        self.records.push(part.record);
    }

    fn check_within_file(&self, bytes: usize) -> Result<(), DiskError> {
        if self.at + bytes as u64 > self.file_length {
            return Err(corrupt(self.at, self.file_length, "a record that ends within the file"));
        }
        Ok(())
    }
}

fn corrupt(at: u64, found: u64, expected: &'static str) -> DiskError {
    DiskError::Corrupt(Corruption {
        structure: "snapshot table record",
        at,
        found,
        expected,
    })
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_the_layout_of_the_specification() {
        let mut record = SnapshotRecord::new(7, "before", (1, 2), 0x10_0000, 3);
        record.l1_table_offset = 0x5_0000;
        let bytes = encode_table(&[record.clone()]);
        assert_eq!(bytes.len() as u64, record.length());
        assert_eq!(bytes.len(), (40 + 24 + 1 + 6usize).next_multiple_of(8));
        assert_eq!(&bytes[..8], 0x5_0000u64.to_be_bytes());
        assert_eq!(&bytes[8..16], [0, 0, 0, 3, 0, 1, 0, 6]);
        assert_eq!(&bytes[36..40], [0, 0, 0, 24]);
        assert_eq!(&bytes[48..56], 0x10_0000u64.to_be_bytes());
        assert_eq!(&bytes[56..64], [0xff; 8]);
        assert_eq!(&bytes[64..71], b"7before");
    }
}
