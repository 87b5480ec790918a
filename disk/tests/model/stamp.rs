//! Sectors that say which write they come from, and where they belong: data that turns up anywhere else is noticed.

use std::ops::Range;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// The number of a write. 0 stands for zeros.
pub type Id = u64;

/// Sector numbers have so many bits.
const PLACE_BITS: u32 = 20;

fn word(id: Id, sector: u64) -> [u8; 8] {
    if id == 0 {
        [0; 8]
    } else {
        (id << PLACE_BITS | sector).to_le_bytes()
    }
}

/// What write number `id` stores in these sectors.
pub fn stamps(id: Id, sectors: Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(((sectors.end - sectors.start) * SECTOR) as usize);
    for sector in sectors {
        bytes.extend_from_slice(&word(id, sector).repeat(SECTOR as usize / 8));
    }
    bytes
}

/// Which write sector number `sector` comes from.
pub fn id_of(bytes: &[u8], sector: u64) -> Result<Id, String> {
    let (first, rest) = bytes.split_first_chunk::<8>().expect("a sector");
    let found = u64::from_le_bytes(*first);
    let (id, place) = (found >> PLACE_BITS, found & ((1 << PLACE_BITS) - 1));
    if rest != &bytes[..rest.len()] {
        return Err(format!("sector {sector} begins with {found:#x} and does not go on so"));
    }
    if found != 0 && place != sector {
        return Err(format!(
            "sector {sector} holds what write {id} stored in sector {place}"
        ));
    }
    Ok(id)
}

/// Which writes the sectors of a disk come from.
pub fn ids_of(bytes: &[u8]) -> Result<Vec<Id>, String> {
    let sectors = bytes.chunks_exact(SECTOR as usize).enumerate();
    sectors.map(|(sector, bytes)| id_of(bytes, sector as u64)).collect()
}
