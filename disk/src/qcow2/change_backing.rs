//! Another name for the backing file of an image at rest.
//!
//! The name, and an extension with its format, lie in the first cluster. The new name goes where nothing is yet and is made durable;
//! then the header and its extensions are written at once. In almost all images what changes there lies in the first sector, so that it
//! has either the old backing file or the new one.

use std::path::Path;

use super::header::{BackingReference, EXTENSION_BACKING_FORMAT, Header, MAX_BACKING_NAME, V2_LENGTH};
use super::repair::CheckError;
use crate::at_rest::{RestingFile, Sharing};
use crate::disk::Corruption;
use crate::open::read_header;
use crate::{DiskError, OpenError};

/// Where the header names the backing file: offset and length.
const BACKING_AT: usize = 8;

/// Makes `backing` the backing file of the qcow2 image at `path`, whatever is in it.
pub fn change_backing(path: &Path, backing: Option<&BackingReference>) -> Result<(), CheckError> {
    let file = RestingFile::open(path, Sharing::Nobody)?;
    let header = read_header(file.file()).map_err(|cause| OpenError {
        path: path.to_owned(),
        cause: Box::new(cause),
    })?;
    let old = file.metadata(0, header.cluster_size() as usize)?;
    let (head, name_at) = new_head(&old, &header, backing)?;
    if let Some(backing) = backing {
        file.write(name_at as u64, backing.name.as_bytes())?;
        file.sync()?;
    }
    file.write(0, &head)?;
    file.sync()?;
    Ok(())
}

/// The header with its extensions, and where the name goes.
fn new_head(old: &[u8], header: &Header, backing: Option<&BackingReference>) -> Result<(Vec<u8>, usize), DiskError> {
    let header_length = if header.version == 2 {
        V2_LENGTH
    } else {
        big_endian(&old[100..104])
    };
    let mut head = old[..header_length].to_vec();
    if let Some(format) = backing.and_then(|backing| backing.format.as_ref()) {
        add_extension(&mut head, EXTENSION_BACKING_FORMAT, format.as_bytes());
    }
    let (extensions, old_end) = extensions(old, header_length);
    for (kind, content) in extensions
        .into_iter()
        .filter(|(kind, _)| *kind != EXTENSION_BACKING_FORMAT)
    {
        add_extension(&mut head, kind, content);
    }
    head.extend([0; 8]);
    let old_name_end = big_endian(&old[BACKING_AT..BACKING_AT + 8]) + big_endian(&old[BACKING_AT + 8..BACKING_AT + 12]);
    let length = backing.map_or(0, |backing| backing.name.len());
    // Behind all that is there, so that the old header stays true until the new one is written; without room, behind the new one.
    let beyond = head.len().max(old_end).max(old_name_end).next_multiple_of(8);
    let name_at = if beyond + length <= old.len() {
        beyond
    } else {
        head.len()
    };
    if name_at + length > old.len() || length > MAX_BACKING_NAME as usize {
        return Err(DiskError::Corrupt(Corruption {
            structure: "backing file name",
            at: name_at as u64,
            found: length as u64,
            expected: "a name of at most 1023 bytes that fits into the first cluster",
        }));
    }
    let (at, length) = if backing.is_some() {
        (name_at as u64, length as u32)
    } else {
        (0, 0)
    };
    head[BACKING_AT..BACKING_AT + 8].copy_from_slice(&at.to_be_bytes());
    head[BACKING_AT + 8..BACKING_AT + 12].copy_from_slice(&length.to_be_bytes());
    Ok((head, name_at))
}

fn add_extension(head: &mut Vec<u8>, kind: u32, content: &[u8]) {
    head.extend(kind.to_be_bytes());
    head.extend((content.len() as u32).to_be_bytes());
    head.extend(content);
    head.resize(head.len().next_multiple_of(8), 0);
}

/// The extensions that an image has, which were checked when its header was read, and where they end.
fn extensions(old: &[u8], start: usize) -> (Vec<(u32, &[u8])>, usize) {
    let mut found = Vec::new();
    let mut at = start;
    while let Some(fixed) = old.get(at..at + 8) {
        let (kind, length) = (big_endian(&fixed[..4]) as u32, big_endian(&fixed[4..]));
        if kind == 0 {
            return (found, at + 8);
        }
        let Some(content) = old.get(at + 8..at + 8 + length) else {
            break;
        };
        found.push((kind, content));
        at += 8 + length.next_multiple_of(8);
    }
    (found, at.min(old.len()))
}

fn big_endian(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |value, byte| value << 8 | usize::from(*byte))
}
