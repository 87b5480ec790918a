//! A sector of a CD as READ CD shows it: 2352 bytes, of which a mode 1 sector uses 2048 for data (ECMA-130, clauses 14
//! and 20; annex A and B). An image has the data alone; the rest follows from the data and the address.
//!
//! ```text
//!  0     12      16                2064  2068   2076          2248          2352
//!  ├ sync ┼ header ┼ user data ────── ┼ EDC ┼ zeros ┼ P parity ── ┼ Q parity ── ┤
//! ```

use serde::{Deserialize, Serialize};

use super::address::{binary_coded_decimal, minute_second_frame};
use super::tray::BLOCK;

const SYNC: usize = 12;
const HEADER: usize = 4;
const DATA: usize = SYNC + HEADER;
const EDC: usize = DATA + BLOCK;
const P_PARITY: usize = 2076;
const Q_PARITY: usize = 2248;
const SECTOR: usize = 2352;

/// Bytes of error pointers, a bit for each byte of the sector; and with the byte that sums them up, and a pad.
const ERROR_POINTERS: usize = 294;
const ERROR_POINTERS_AND_BLOCK: usize = 296;
/// The Q sub-channel of a sector.
const SUB_CHANNEL_Q: usize = 16;

/// What of a sector the host wants, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parts {
    pub sync: bool,
    pub header: bool,
    pub data: bool,
    /// Error detection and correction codes.
    pub codes: bool,
    pub errors: Errors,
    pub sub_channel_q: bool,
}

/// Which pointers to errors follow. None of the drive's sectors has an error: they are zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Errors {
    #[default]
    None,
    Pointers,
    PointersAndBlock,
}

impl Parts {
    /// Bytes of a sector.
    pub(super) fn bytes(self) -> usize {
        let part = |wanted: bool, bytes: usize| if wanted { bytes } else { 0 };
        part(self.sync, SYNC)
            + part(self.header, HEADER)
            + part(self.data, BLOCK)
            + part(self.codes, SECTOR - EDC)
            + self.error_bytes()
            + part(self.sub_channel_q, SUB_CHANNEL_Q)
    }

    fn error_bytes(self) -> usize {
        match self.errors {
            Errors::None => 0,
            Errors::Pointers => ERROR_POINTERS,
            Errors::PointersAndBlock => ERROR_POINTERS_AND_BLOCK,
        }
    }

    /// These parts of the sector with this number, which holds `data`.
    pub(super) fn of(self, block: u32, data: &[u8]) -> Vec<u8> {
        let sector = raw_sector(block, data);
        let mut bytes = Vec::with_capacity(self.bytes());
        for (wanted, range) in [
            (self.sync, 0..SYNC),
            (self.header, SYNC..DATA),
            (self.data, DATA..EDC),
            (self.codes, EDC..SECTOR),
        ] {
            if wanted {
                bytes.extend_from_slice(&sector[range]);
            }
        }
        bytes.resize(bytes.len() + self.error_bytes(), 0);
        if self.sub_channel_q {
            bytes.extend_from_slice(&sub_channel_q(block));
        }
        bytes
    }
}

/// The formatted Q sub-channel of a sector (MMC-5, table 353): control and address, track 1, index 1, both addresses in
/// decimal digits, without a CRC, which this format may leave zero.
fn sub_channel_q(block: u32) -> [u8; SUB_CHANNEL_Q] {
    let [minute, second, frame] = minute_second_frame(block).map(binary_coded_decimal);
    let relative = [block / 4500, block / 75 % 60, block % 75].map(|part| binary_coded_decimal(part.min(99) as u8));
    let mut bytes = [0; SUB_CHANNEL_Q];
    bytes[..3].copy_from_slice(&[0x41, 0x01, 0x01]);
    bytes[3..6].copy_from_slice(&relative);
    bytes[7..10].copy_from_slice(&[minute, second, frame]);
    bytes
}

/// The whole mode 1 sector.
fn raw_sector(block: u32, data: &[u8]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    sector[1..SYNC - 1].fill(0xff);
    sector[SYNC..SYNC + 3].copy_from_slice(&minute_second_frame(block).map(binary_coded_decimal));
    sector[SYNC + 3] = 1;
    sector[DATA..EDC].copy_from_slice(&data[..BLOCK]);
    let code = error_detection_code(&sector[..EDC]);
    sector[EDC..EDC + 4].copy_from_slice(&code.to_le_bytes());
    add_parity(&mut sector);
    sector
}

/// The CRC of ECMA-130, 14.3: (x^16 + x^15 + x^2 + 1)(x^16 + x^2 + x + 1), least significant bit first.
fn error_detection_code(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |crc: u32, byte| {
        crc >> 8 ^ CRC_OF_BYTE[usize::from(crc as u8 ^ byte)]
    })
}

/// What a byte adds to the CRC.
const CRC_OF_BYTE: [u32; 256] = {
    const REVERSED: u32 = 0xd801_8001;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { REVERSED } else { 0 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The Reed-Solomon product code of ECMA-130, annex A. Bytes from the header on are words of two; the low bytes and the
/// high bytes are coded alike and apart. P codes the columns of a table of 43 words a row, Q its diagonals.
fn add_parity(sector: &mut [u8; SECTOR]) {
    const COLUMNS: usize = 43;
    const ROWS: usize = 24;
    /// Rows with those of the P parity.
    const CODED_ROWS: usize = 26;
    let byte = |word: usize, plane: usize| SYNC + 2 * word + plane;
    for plane in 0..2 {
        for column in 0..COLUMNS {
            let words = (0..ROWS).map(|row| sector[byte(COLUMNS * row + column, plane)]);
            let (first, second) = parity(words);
            sector[P_PARITY + 2 * column + plane] = first;
            sector[P_PARITY + 2 * (COLUMNS + column) + plane] = second;
        }
        for diagonal in 0..CODED_ROWS {
            let words = (0..COLUMNS)
                .map(|step| (44 * step + COLUMNS * diagonal) % (COLUMNS * CODED_ROWS))
                .map(|word| sector[byte(word, plane)]);
            let (first, second) = parity(words);
            sector[Q_PARITY + 2 * diagonal + plane] = first;
            sector[Q_PARITY + 2 * (CODED_ROWS + diagonal) + plane] = second;
        }
    }
}

/// The two symbols that follow `symbols`, so that their sum is 0, and so is their sum weighted with the powers of the
/// primitive element, of which the last symbol has power 0.
fn parity(symbols: impl Iterator<Item = u8>) -> (u8, u8) {
    // Horner's rule, as if both parity symbols were zeros.
    let (sum, weighted) = symbols.fold((0, 0), |(sum, weighted), symbol| {
        (sum ^ symbol, double(weighted) ^ symbol)
    });
    let weighted = double(double(weighted));
    // With p and q behind them: p + q = sum and 2 p + q = weighted, so 3 p = sum + weighted.
    let first = THIRD[usize::from(sum ^ weighted)];
    (first, sum ^ first)
}

/// Twice a number in the field of 256 elements with x^8 + x^4 + x^3 + x^2 + 1.
const fn double(value: u8) -> u8 {
    value << 1 ^ if value & 0x80 != 0 { 0x1d } else { 0 }
}

/// For each number, the one that gives it when it is added to its own double.
const THIRD: [u8; 256] = {
    let mut table = [0; 256];
    let mut value = 0;
    while value < 256 {
        table[(value as u8 ^ double(value as u8)) as usize] = value as u8;
        value += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Vec<u8> {
        (0..BLOCK).map(|index| (index * index / 7) as u8).collect()
    }

    /// Multiplication from its definition, as the check of the arithmetic above.
    fn times(mut a: u8, b: u8) -> u8 {
        let mut product = 0;
        for bit in 0..8 {
            if b >> bit & 1 != 0 {
                product ^= a;
            }
            a = double(a);
        }
        product
    }

    fn power(exponent: usize) -> u8 {
        (0..exponent).fold(1, |value, _| double(value))
    }

    /// Both parity checks of one code word.
    fn syndromes(word: &[u8]) -> (u8, u8) {
        let weighted = word.iter().rev().enumerate();
        (
            word.iter().fold(0, |sum, symbol| sum ^ symbol),
            weighted.fold(0, |sum, (exponent, symbol)| sum ^ times(*symbol, power(exponent))),
        )
    }

    #[test]
    fn the_header_has_the_address_in_decimal_digits() {
        let sector = raw_sector(4500 * 12 + 75 * 34 + 56 - 150, &data());
        assert_eq!(sector[..4], [0, 0xff, 0xff, 0xff]);
        assert_eq!(sector[10..16], [0xff, 0, 0x12, 0x34, 0x56, 1]);
        assert_eq!(sector[16..2064], data());
    }

    #[test]
    fn the_error_detection_code_makes_the_whole_divisible() {
        let sector = raw_sector(77, &data());
        assert_eq!(error_detection_code(&sector[..EDC + 4]), 0);
        assert_ne!(error_detection_code(&sector[..EDC]), 0);
    }

    #[test]
    fn every_code_word_checks() {
        let sector = raw_sector(123_456, &data());
        for plane in 0..2 {
            let byte = |word: usize| sector[SYNC + 2 * word + plane];
            for column in 0..43 {
                let word: Vec<u8> = (0..26).map(|row| byte(43 * row + column)).collect();
                assert_eq!(syndromes(&word), (0, 0), "column {column}");
            }
            for diagonal in 0..26 {
                let data = (0..43).map(|step| byte((44 * step + 43 * diagonal) % 1118));
                let parity = [1118 + diagonal, 1144 + diagonal].map(byte);
                let word: Vec<u8> = data.chain(parity).collect();
                assert_eq!(syndromes(&word), (0, 0), "diagonal {diagonal}");
            }
        }
    }

    #[test]
    fn parts_come_in_order_and_nothing_else() {
        let all = Parts {
            sync: true,
            header: true,
            data: true,
            codes: true,
            errors: Errors::PointersAndBlock,
            sub_channel_q: true,
        };
        let bytes = all.of(16, &data());
        assert_eq!(bytes.len(), 2352 + 296 + 16);
        assert_eq!(bytes.len(), all.bytes());
        assert_eq!(bytes[2352 + 296..][..10], [0x41, 1, 1, 0, 0, 0x16, 0, 0, 2, 0x16]);
        let header = Parts {
            header: true,
            ..Parts::default()
        };
        assert_eq!(header.of(16, &data()), [0, 2, 0x16, 1]);
    }
}
