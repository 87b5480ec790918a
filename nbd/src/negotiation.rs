//! The handshake: fixed newstyle negotiation ("Fixed newstyle negotiation"), as a machine that takes bytes and makes bytes.

use crate::bytes::Reader;
use crate::option::{self, ALLOCATION, ContextQuery, MAX_OPTION_LENGTH, Wanted, info, number, reply_type};
use crate::reply::ALLOCATION_CONTEXT;
use crate::{ProtocolError, TransmissionFlags};

/// "IHAVEOPT", which announces the server as well as each option.
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;

/// The most options that a client may send. Those that are real send ten at most.
const MAX_OPTIONS: u32 = 128;

/// The handshake flags of both sides: fixed newstyle, and no zeros behind the answer to NBD_OPT_EXPORT_NAME.
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

/// What is served, as clients see it.
#[derive(Clone, Debug)]
pub struct Export {
    /// The name that clients ask for; the empty one is the default.
    pub name: String,
    /// For people.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
    /// What requests should be made of.
    pub block_sizes: BlockSizes,
}

/// Constraints on requests ("Block size constraints"), in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths are multiples of this.
    pub minimum: u32,
    /// They had better be multiples of this.
    pub preferred: u32,
    /// No payload is longer.
    pub maximum: u32,
}

/// How both sides have agreed to talk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// Reads, and whatever else has something to say, are answered in chunks.
    pub structured_replies: bool,
    /// [`Command::BlockStatus`](crate::Command::BlockStatus) may ask for base:allocation.
    pub allocation: bool,
}

/// What became of the bytes that [`Negotiation::advance`] was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// They do not hold a whole message yet.
    Incomplete,
    /// So many were a message.
    Taken(usize),
    /// So many were the last one; requests follow.
    Transmission(usize, Agreement),
    /// The client does not want to go on. Close, once what there is to say is said.
    Over,
}

/// One handshake.
#[derive(Debug, Default)]
pub struct Negotiation {
    /// None before the client's flags came.
    client: Option<Client>,
    options: u32,
    agreement: Agreement,
}

#[derive(Clone, Copy, Debug)]
struct Client {
    no_zeroes: bool,
}

impl Negotiation {
    /// What a server says first.
    pub fn greeting() -> Vec<u8> {
        let mut greeting = b"NBDMAGIC".to_vec();
        greeting.extend(OPTION_MAGIC.to_be_bytes());
        greeting.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
        greeting
    }

    /// Takes one message from the front of `input`, and appends what is to be sent to `output`. An error is final,
    /// and so is the end of the negotiation.
    pub fn advance(&mut self, export: &Export, input: &[u8], output: &mut Vec<u8>) -> Result<Step, ProtocolError> {
        match self.client {
            None => self.client_flags(input),
            Some(client) => self.option(client, export, input, output),
        }
    }

    fn client_flags(&mut self, input: &[u8]) -> Result<Step, ProtocolError> {
        let Some(found) = Reader::new(input).u32() else {
            return Ok(Step::Incomplete);
        };
        let known = u32::from(FIXED_NEWSTYLE | NO_ZEROES);
        if found & !known != 0 {
            return Err(ProtocolError::ClientFlags { found });
        }
        self.client = Some(Client {
            no_zeroes: found & u32::from(NO_ZEROES) != 0,
        });
        Ok(Step::Taken(4))
    }

    fn option(
        &mut self,
        client: Client,
        export: &Export,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<Step, ProtocolError> {
        const HEADER: usize = 16;
        let mut reader = Reader::new(input);
        let (Some(magic), Some(option), Some(length)) = (reader.u64(), reader.u32(), reader.u32()) else {
            return Ok(Step::Incomplete);
        };
        if magic != OPTION_MAGIC {
            return Err(ProtocolError::Magic {
                what: "An option",
                found: magic,
                expected: OPTION_MAGIC,
            });
        }
        if length > MAX_OPTION_LENGTH {
            return Err(ProtocolError::OptionTooLong { option, length });
        }
        let Some(data) = reader.take(length as usize) else {
            return Ok(Step::Incomplete);
        };
        self.options += 1;
        if self.options > MAX_OPTIONS {
            return Err(ProtocolError::TooManyOptions(MAX_OPTIONS));
        }
        let taken = HEADER + data.len();
        let mut answer = Answer { output, option };
        match option {
            number::EXPORT_NAME => {
                self.export_name(client, export, data, answer.output)?;
                return Ok(Step::Transmission(taken, self.agreement));
            }
            number::ABORT => {
                answer.send(reply_type::ACK, &[]);
                return Ok(Step::Over);
            }
            number::LIST if !data.is_empty() => answer.send(reply_type::ERR_INVALID, &[]),
            number::LIST => {
                let name = export.name.as_bytes();
                answer.send(reply_type::SERVER, &[&(name.len() as u32).to_be_bytes(), name]);
                answer.send(reply_type::ACK, &[]);
            }
            number::STRUCTURED_REPLY if !data.is_empty() => answer.send(reply_type::ERR_INVALID, &[]),
            number::STRUCTURED_REPLY => {
                self.agreement.structured_replies = true;
                answer.send(reply_type::ACK, &[]);
            }
            number::INFO | number::GO => {
                if tell_info(export, data, &mut answer) && option == number::GO {
                    return Ok(Step::Transmission(taken, self.agreement));
                }
            }
            number::LIST_META_CONTEXT | number::SET_META_CONTEXT => self.meta_context(export, data, &mut answer),
            _ => answer.send(reply_type::ERR_UNSUP, &[]),
        }
        Ok(Step::Taken(taken))
    }

    /// The old way to begin: without a way to refuse but to hang up.
    fn export_name(
        &mut self,
        client: Client,
        export: &Export,
        name: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), ProtocolError> {
        if name != export.name.as_bytes() {
            return Err(ProtocolError::NoSuchExport(String::from_utf8_lossy(name).into_owned()));
        }
        output.extend(export.size.to_be_bytes());
        output.extend(export.flags.bits().to_be_bytes());
        if !client.no_zeroes {
            output.extend([0; 124]);
        }
        Ok(())
    }

    fn meta_context(&mut self, export: &Export, data: &[u8], answer: &mut Answer) {
        let sets = answer.option == number::SET_META_CONTEXT;
        if sets {
            self.agreement.allocation = false;
        }
        let query = ContextQuery::decode(data).filter(|_| self.agreement.structured_replies);
        let Some(query) = query else {
            return answer.send(reply_type::ERR_INVALID, &[]);
        };
        if query.name != export.name.as_bytes() {
            return answer.send(reply_type::ERR_UNKNOWN, &[]);
        }
        // Only a list may ask for everything there is.
        let matches = query.names_allocation || !sets && (query.names_base || query.is_empty);
        if matches {
            let id = if sets { ALLOCATION_CONTEXT } else { 0 };
            answer.send(reply_type::META_CONTEXT, &[&id.to_be_bytes(), ALLOCATION]);
            self.agreement.allocation |= sets;
        }
        answer.send(reply_type::ACK, &[]);
    }
}

/// Answers to one option.
struct Answer<'a> {
    output: &'a mut Vec<u8>,
    option: u32,
}

impl Answer<'_> {
    fn send(&mut self, reply_type: u32, parts: &[&[u8]]) {
        option::reply(self.output, self.option, reply_type, parts);
    }
}

/// Answers NBD_OPT_INFO or NBD_OPT_GO. Returns whether the export is there.
fn tell_info(export: &Export, data: &[u8], answer: &mut Answer) -> bool {
    let Some(wanted) = Wanted::decode(data) else {
        answer.send(reply_type::ERR_INVALID, &[]);
        return false;
    };
    if wanted.name != export.name.as_bytes() {
        answer.send(reply_type::ERR_UNKNOWN, &[]);
        return false;
    }
    let mut tell = |kind: u16, parts: &[&[u8]]| {
        let kind = kind.to_be_bytes();
        let all: Vec<&[u8]> = std::iter::once(&kind[..]).chain(parts.iter().copied()).collect();
        answer.send(reply_type::INFO, &all);
    };
    tell(
        info::EXPORT,
        &[&export.size.to_be_bytes(), &export.flags.bits().to_be_bytes()],
    );
    let sizes = export.block_sizes;
    let sizes = [sizes.minimum, sizes.preferred, sizes.maximum].map(u32::to_be_bytes);
    tell(info::BLOCK_SIZE, &[sizes.as_flattened()]);
    if wanted.wants_name {
        tell(info::NAME, &[export.name.as_bytes()]);
    }
    if wanted.wants_description {
        tell(info::DESCRIPTION, &[export.description.as_bytes()]);
    }
    answer.send(reply_type::ACK, &[]);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export() -> Export {
        Export {
            name: "disk".to_owned(),
            description: "a disk".to_owned(),
            size: 1 << 20,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH,
            block_sizes: BlockSizes {
                minimum: 512,
                preferred: 4096,
                maximum: 1 << 25,
            },
        }
    }

    fn option(number: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    fn named(name: &str, rest: &[u8]) -> Vec<u8> {
        [&(name.len() as u32).to_be_bytes(), name.as_bytes(), rest].concat()
    }

    /// A negotiation that has seen the client's flags.
    fn begun() -> Negotiation {
        let mut negotiation = Negotiation::default();
        let step = negotiation.advance(&export(), &[0, 0, 0, 3], &mut Vec::new());
        assert_eq!(step, Ok(Step::Taken(4)));
        negotiation
    }

    /// What comes of one option, and the types of the replies.
    fn ask(negotiation: &mut Negotiation, number: u32, data: &[u8]) -> (Result<Step, ProtocolError>, Vec<u32>) {
        let mut output = Vec::new();
        let step = negotiation.advance(&export(), &option(number, data), &mut output);
        let mut types = Vec::new();
        let mut reader = Reader::new(&output);
        while !reader.is_empty() {
            let header = (reader.u64(), reader.u32());
            assert_eq!(header, (Some(0x0003_e889_0455_65a9), Some(number)));
            types.push(reader.u32().expect("a type"));
            reader.string().expect("a payload");
        }
        (step, types)
    }

    #[test]
    fn a_client_that_agrees_on_everything_comes_to_transmission() {
        let mut negotiation = begun();
        assert_eq!(
            ask(&mut negotiation, number::STRUCTURED_REPLY, &[]).1,
            [reply_type::ACK]
        );
        let queries = [&1u32.to_be_bytes()[..], &15u32.to_be_bytes(), ALLOCATION].concat();
        let (_, types) = ask(&mut negotiation, number::SET_META_CONTEXT, &named("disk", &queries));
        assert_eq!(types, [reply_type::META_CONTEXT, reply_type::ACK]);
        let go = named("disk", &[0, 2, 0, 1, 0, 2]);
        let (step, types) = ask(&mut negotiation, number::GO, &go);
        let agreement = Agreement {
            structured_replies: true,
            allocation: true,
        };
        assert_eq!(step, Ok(Step::Transmission(16 + go.len(), agreement)));
        assert_eq!(types, [3, 3, 3, 3, 1]);
    }

    #[test]
    fn what_is_not_there_is_refused_and_the_negotiation_goes_on() {
        let mut negotiation = begun();
        let cases: [(u32, Vec<u8>, u32); 7] = [
            (number::GO, named("other", &[0, 0]), reply_type::ERR_UNKNOWN),
            (number::GO, vec![0, 0, 0, 9], reply_type::ERR_INVALID),
            (number::LIST, vec![0], reply_type::ERR_INVALID),
            // STARTTLS, and extended headers.
            (5, vec![], reply_type::ERR_UNSUP),
            (11, vec![], reply_type::ERR_UNSUP),
            (77, vec![1, 2, 3], reply_type::ERR_UNSUP),
            // Before structured replies.
            (
                number::SET_META_CONTEXT,
                named("disk", &[0; 4]),
                reply_type::ERR_INVALID,
            ),
        ];
        for (number, data, expected) in cases {
            let (step, types) = ask(&mut negotiation, number, &data);
            assert_eq!(step, Ok(Step::Taken(16 + data.len())), "{number}");
            assert_eq!(types, [expected], "{number}");
        }
        assert_eq!(ask(&mut negotiation, number::LIST, &[]).1, [2, 1]);
        assert_eq!(ask(&mut negotiation, number::ABORT, &[]).0, Ok(Step::Over));
    }

    #[test]
    fn bytes_may_come_one_by_one() {
        let bytes = option(number::GO, &named("disk", &[0, 0]));
        let mut negotiation = begun();
        for end in 0..bytes.len() {
            let step = negotiation.advance(&export(), &bytes[..end], &mut Vec::new());
            assert_eq!(step, Ok(Step::Incomplete));
        }
        let step = negotiation.advance(&export(), &bytes, &mut Vec::new());
        assert!(matches!(step, Ok(Step::Transmission(..))));
    }

    #[test]
    fn a_client_that_cannot_be_understood_is_an_error() {
        let advance = |negotiation: &mut Negotiation, bytes: &[u8]| {
            let step = negotiation.advance(&export(), bytes, &mut Vec::new());
            step.expect_err("not understood")
        };
        let flags = advance(&mut Negotiation::default(), &[1, 0, 0, 0]);
        assert_eq!(flags, ProtocolError::ClientFlags { found: 1 << 24 });
        assert!(matches!(
            advance(&mut begun(), &[0; 16]),
            ProtocolError::Magic { found: 0, .. }
        ));
        let mut long = option(number::GO, &[]);
        long[12..16].copy_from_slice(&[0xff; 4]);
        let error = advance(&mut begun(), &long);
        assert!(matches!(error, ProtocolError::OptionTooLong { option: 7, .. }));
        let name = advance(&mut begun(), &option(number::EXPORT_NAME, b"other"));
        assert_eq!(name, ProtocolError::NoSuchExport("other".to_owned()));
    }

    #[test]
    fn options_without_end_are_an_error() {
        let mut negotiation = begun();
        for _ in 0..MAX_OPTIONS {
            ask(&mut negotiation, number::LIST, &[]).0.expect("answered");
        }
        assert!(ask(&mut negotiation, number::LIST, &[]).0.is_err());
    }

    #[test]
    fn the_old_way_to_begin_ends_in_zeros_unless_the_client_does_without() {
        for (flags, length) in [(1u8, 134), (3, 10)] {
            let mut negotiation = Negotiation::default();
            let mut output = Vec::new();
            let first = negotiation.advance(&export(), &[0, 0, 0, flags], &mut output);
            assert_eq!(first, Ok(Step::Taken(4)));
            let step = negotiation.advance(&export(), &option(number::EXPORT_NAME, b"disk"), &mut output);
            assert_eq!(step, Ok(Step::Transmission(20, Agreement::default())));
            assert_eq!(output.len(), length);
        }
    }
}
