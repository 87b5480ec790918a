//! Options and their answers ("Option types", "Option reply types").

use crate::bytes::Reader;

/// The longest option that is taken, in bytes: a name of 4096 and a good many queries.
pub const MAX_OPTION_LENGTH: u32 = 16 * 1024;

/// The longest string in the protocol ("Terminology").
const MAX_STRING: usize = 4096;

/// The numbers of options.
pub(crate) mod number {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// The types of option replies.
pub(crate) mod reply_type {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERR_UNSUP: u32 = 1 << 31 | 1;
    pub(crate) const ERR_INVALID: u32 = 1 << 31 | 3;
    pub(crate) const ERR_UNKNOWN: u32 = 1 << 31 | 6;
}

/// The types of NBD_REP_INFO.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// What NBD_OPT_INFO and NBD_OPT_GO carry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wanted<'a> {
    pub name: &'a [u8],
    /// The name of the export is to be told.
    pub wants_name: bool,
    /// Its description is to be told.
    pub wants_description: bool,
}

impl<'a> Wanted<'a> {
    pub(crate) fn decode(data: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(data);
        let name = reader.string().filter(|name| name.len() <= MAX_STRING)?;
        let mut wanted = Self {
            name,
            wants_name: false,
            wants_description: false,
        };
        for _ in 0..reader.u16()? {
            match reader.u16()? {
                info::NAME => wanted.wants_name = true,
                info::DESCRIPTION => wanted.wants_description = true,
                // The others are told anyhow, or not known.
                _ => {}
            }
        }
        reader.is_empty().then_some(wanted)
    }
}

/// What NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT carry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContextQuery<'a> {
    pub name: &'a [u8],
    /// There is no query at all.
    pub is_empty: bool,
    /// A query is "base:allocation".
    pub names_allocation: bool,
    /// A query is "base:", which lists all that begin so.
    pub names_base: bool,
}

/// The one metadata context that there is ("Metadata contexts").
pub(crate) const ALLOCATION: &[u8] = b"base:allocation";

impl<'a> ContextQuery<'a> {
    pub(crate) fn decode(data: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(data);
        let name = reader.string().filter(|name| name.len() <= MAX_STRING)?;
        let count = reader.u32()?;
        let mut query = Self {
            name,
            is_empty: count == 0,
            names_allocation: false,
            names_base: false,
        };
        // Each query takes four bytes at least, so a count that lies ends this soon.
        for _ in 0..count {
            let text = reader.string().filter(|text| text.len() <= MAX_STRING)?;
            query.names_allocation |= text == ALLOCATION;
            query.names_base |= text == b"base:";
        }
        reader.is_empty().then_some(query)
    }
}

/// Appends a reply to `option` to `output`.
pub(crate) fn reply(output: &mut Vec<u8>, option: u32, reply_type: u32, parts: &[&[u8]]) {
    const MAGIC: u64 = 0x0003_e889_0455_65a9;
    let length: usize = parts.iter().map(|part| part.len()).sum();
    output.extend(MAGIC.to_be_bytes());
    output.extend(option.to_be_bytes());
    output.extend(reply_type.to_be_bytes());
    output.extend((length as u32).to_be_bytes());
    for part in parts {
        output.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_lie_are_refused() {
        let good = [&[0, 0, 0, 1][..], b"x", &[0, 1, 0, 3]].concat();
        assert_eq!(Wanted::decode(&good).map(|wanted| wanted.name), Some(&b"x"[..]));
        for end in 0..good.len() {
            assert_eq!(Wanted::decode(&good[..end]), None, "{end}");
        }
        assert_eq!(Wanted::decode(&[&good[..], &[0]].concat()), None);
        assert_eq!(Wanted::decode(&[0xff; 40]), None);
        assert_eq!(ContextQuery::decode(&[0xff; 40]), None);
        // No name, 2^32-1 queries.
        assert_eq!(ContextQuery::decode(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), None);
    }
}
