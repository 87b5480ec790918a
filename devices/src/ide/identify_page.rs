//! The 256 words of IDENTIFY DEVICE and IDENTIFY PACKET DEVICE, as they are put together (ATA8-ACS, 7.16 and 7.17).

/// Words of a page.
const WORDS: usize = 256;

/// In words that a drive without them would leave 0 or all ones: bits 15 and 14 are 01.
pub(super) const VALID: u16 = 1 << 14;

/// The page under construction.
pub(super) struct IdentifyPage([u16; WORDS]);

impl IdentifyPage {
    /// A page of zeros.
    pub(super) fn new() -> Self {
        Self([0; WORDS])
    }

    /// Sets one word.
    pub(super) fn set(&mut self, word: usize, value: u16) {
        self.0[word] = value;
    }

    /// A number of several words, lowest first.
    pub(super) fn set_wide(&mut self, first: usize, words: usize, value: u64) {
        for index in 0..words {
            self.0[first + index] = (value >> (16 * index)) as u16;
        }
    }

    /// A string: two characters a word, the first in the high byte, padded with spaces.
    pub(super) fn set_text(&mut self, first: usize, words: usize, text: &str) {
        let mut characters = text.bytes().chain(std::iter::repeat(b' '));
        let mut next = || characters.next().unwrap_or(b' ');
        for word in &mut self.0[first..first + words] {
            *word = u16::from_be_bytes([next(), next()]);
        }
    }

    /// The bytes as the data register gives them, with the checksum of word 255: all 512 bytes add up to 0.
    pub(super) fn into_bytes(mut self) -> Vec<u8> {
        self.set(255, 0x00a5);
        let mut bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        let sum = bytes[..511].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        bytes[511] = sum.wrapping_neg();
        bytes
    }
}
