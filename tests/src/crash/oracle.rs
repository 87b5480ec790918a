//! What each sector may hold.

use super::script::Action;

/// Bytes of a sector.
pub(super) const SECTOR: u64 = 512;
/// Sectors of the disk: 4 MiB.
pub(super) const SECTORS: u64 = 8192;

/// The sector `sector` as write number `id` leaves it; number 0 is zeros. It names its place, so that data which lands elsewhere is
/// noticed.
pub(super) fn stamp(id: u32, sector: u64) -> [u8; SECTOR as usize] {
    let mut bytes = [0; SECTOR as usize];
    if id != 0 {
        for word in bytes.as_chunks_mut::<8>().0 {
            word[..4].copy_from_slice(&id.to_le_bytes());
            word[4..].copy_from_slice(&(sector as u32).to_le_bytes());
        }
    }
    bytes
}

/// The values that each sector may have.
#[derive(Clone)]
pub(super) struct Oracle {
    allowed: Vec<Vec<u32>>,
}

impl Oracle {
    /// A disk whose sectors are of these writes.
    pub(super) fn new(ids: &[u32]) -> Self {
        Self {
            allowed: ids.iter().map(|id| vec![*id]).collect(),
        }
    }

    /// `action` was given to the drive, which may or may not have carried it out.
    pub(super) fn issued(&mut self, action: &Action) {
        let (first, count, id) = match *action {
            Action::Write { first, count, id } => (first, count, id),
            // A hint: the sector keeps what it holds or becomes zeros.
            Action::Trim { first, count } => (first, count, 0),
            Action::Flush => return,
        };
        for values in self.range(first, count) {
            if !values.contains(&id) {
                values.push(id);
            }
        }
    }

    /// The drive said that it has carried out `action`.
    pub(super) fn completed(&mut self, action: &Action) {
        if let Action::Write { first, count, id } = *action {
            for values in self.range(first, count) {
                values.clear();
                values.push(id);
            }
        }
    }

    /// Compares the whole disk, and knows from now on what it holds.
    ///
    /// # Errors
    /// The first sector that holds what it must not.
    pub(super) fn compare(&mut self, disk: &[u8]) -> Result<(), String> {
        let mut wrong = Vec::new();
        for (sector, (bytes, values)) in disk
            .as_chunks::<{ SECTOR as usize }>()
            .0
            .iter()
            .zip(&mut self.allowed)
            .enumerate()
        {
            let sector = sector as u64;
            match values.iter().find(|id| stamp(**id, sector) == *bytes) {
                Some(&id) => *values = vec![id],
                None => wrong.push((sector, values.clone(), describe(bytes))),
            }
        }
        let Some((sector, allowed, found)) = wrong.first() else {
            return Ok(());
        };
        Err(format!(
            "sector {sector} holds {found}; allowed are the writes {allowed:?}; {} sectors are wrong",
            wrong.len()
        ))
    }

    /// The write that each sector is of. After [`Oracle::compare`] there is just one.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.allowed
            .iter()
            .map(|values| values.last().copied().unwrap_or(0))
            .collect()
    }

    fn range(&mut self, first: u64, count: u64) -> &mut [Vec<u32>] {
        &mut self.allowed[first as usize..(first + count) as usize]
    }
}

fn describe(bytes: &[u8; SECTOR as usize]) -> String {
    let words = bytes.as_chunks::<4>().0;
    let (id, sector) = (u32::from_le_bytes(words[0]), u32::from_le_bytes(words[1]));
    if bytes.iter().all(|byte| *byte == 0) {
        "zeros".to_owned()
    } else if *bytes == stamp(id, sector.into()) {
        format!("write {id} of sector {sector}")
    } else {
        format!("a mixture that begins with write {id} of sector {sector}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(first: u64, count: u64, id: u32) -> Action {
        Action::Write { first, count, id }
    }

    fn disk(ids: &[u32]) -> Vec<u8> {
        (0..).zip(ids).flat_map(|(sector, id)| stamp(*id, sector)).collect()
    }

    #[test]
    fn a_completed_write_must_be_there_and_an_issued_one_may() {
        let mut oracle = Oracle::new(&[0; 4]);
        oracle.issued(&write(0, 2, 1));
        oracle.completed(&write(0, 2, 1));
        oracle.issued(&write(1, 2, 2));
        for (ids, right) in [
            ([1, 1, 0, 0], true),
            ([1, 2, 0, 0], true),
            ([1, 2, 2, 0], true),
            ([0, 1, 0, 0], false),
            ([1, 1, 1, 0], false),
            ([1, 0, 0, 0], false),
        ] {
            assert_eq!(oracle.clone().compare(&disk(&ids)).is_ok(), right, "{ids:?}");
        }
    }

    #[test]
    fn data_of_another_place_is_wrong() {
        let mut oracle = Oracle::new(&[1, 1]);
        let swapped = [stamp(1, 1), stamp(1, 0)].concat();
        let error = oracle.compare(&swapped).unwrap_err();
        assert!(
            error.contains("write 1 of sector 1") && error.contains("2 sectors"),
            "{error}"
        );
    }

    #[test]
    fn what_was_found_once_must_stay() {
        let mut oracle = Oracle::new(&[3]);
        oracle.issued(&Action::Trim { first: 0, count: 1 });
        oracle.compare(&disk(&[0])).unwrap();
        assert!(oracle.compare(&disk(&[3])).is_err());
    }
}
