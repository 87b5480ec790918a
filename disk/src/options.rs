//! How an image is used: QEMU's options, by their names and with their meaning (qemu-system-x86_64(1), "-drive").

use std::fmt;
use std::str::FromStr;

use crate::Aio;

/// When writes reach the disk below, and whether by way of the host's page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Through the host's page cache; a flush makes writes durable.
    #[default]
    Writeback,
    /// Past the host's page cache (O_DIRECT); a flush makes writes durable.
    None,
    /// Through the host's page cache; every write is durable when it completes.
    Writethrough,
    /// Past the host's page cache; every write is durable when it completes.
    Directsync,
    /// Flushes are ignored. For data that nobody will miss.
    Unsafe,
}

impl CacheMode {
    /// Whether transfers go past the host's page cache.
    pub fn is_direct(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::Directsync)
    }

    /// Whether a write is durable when it completes.
    pub fn is_write_through(self) -> bool {
        matches!(self, CacheMode::Writethrough | CacheMode::Directsync)
    }
}

/// What becomes of a guest's discards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discard {
    /// Nothing.
    #[default]
    Ignore,
    /// Clusters are given up, and their space in the host's file system with them.
    Unmap,
}

/// Whether writes of nothing but zeros are stored as such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// Zeros are data.
    #[default]
    Off,
    /// They become zero clusters.
    On,
    /// They become zero clusters, and with [`Discard::Unmap`] give up their space.
    Unmap,
}

/// The size of the metadata cache of one image, in bytes: L2 slices, refcount blocks and the tables above them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize(u64);

impl CacheSize {
    /// With less, requests would wait for each other's slices.
    pub const MIN: u64 = 256 << 10;
    /// What a killed process leaves is read in one piece.
    pub const MAX: u64 = 2 << 30;

    /// A size from [`CacheSize::MIN`] to [`CacheSize::MAX`].
    pub fn new(bytes: u64) -> Result<Self, CacheSizeError> {
        if (Self::MIN..=Self::MAX).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(CacheSizeError(bytes.to_string()))
        }
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

/// Not the size of a metadata cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cache-size={0} is not a size; say a number of bytes from 256K to 2G (K, M and G are powers of 1024)")]
pub struct CacheSizeError(String);

impl FromStr for CacheSize {
    type Err = CacheSizeError;

    /// A number of bytes, with a suffix as QEMU's sizes have.
    fn from_str(text: &str) -> Result<Self, CacheSizeError> {
        let refuse = || CacheSizeError(text.to_owned());
        let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
        let shift = match &text[digits.len()..] {
            "" | "b" | "B" => 0,
            "k" | "K" => 10,
            "m" | "M" => 20,
            "g" | "G" => 30,
            _ => return Err(refuse()),
        };
        let number: u64 = digits.parse().map_err(|_| refuse())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(refuse)?;
        Self::new(bytes).map_err(|_| refuse())
    }
}

impl fmt::Display for CacheSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes.is_multiple_of(1 << 20) => write!(f, "{}M", bytes >> 20),
            bytes if bytes.is_multiple_of(1 << 10) => write!(f, "{}K", bytes >> 10),
            bytes => write!(f, "{bytes}"),
        }
    }
}

/// A word that is none of an option's values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option}={found} is not known; say {}", values.join(", "))]
pub struct OptionError {
    option: &'static str,
    found: String,
    values: Vec<&'static str>,
}

/// Reading and printing an option whose values are words.
macro_rules! words {
    ($type:ident, $option:literal, $($word:literal => $value:ident),+) => {
        impl FromStr for $type {
            type Err = OptionError;

            fn from_str(text: &str) -> Result<Self, OptionError> {
                match text {
                    $($word => Ok($type::$value),)+
                    _ => Err(OptionError { option: $option, found: text.to_owned(), values: vec![$($word),+] }),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $($type::$value => $word),+
                })
            }
        }
    };
}

words!(Aio, "aio", "io_uring" => IoUring, "threads" => Threads);
words!(CacheMode, "cache", "writeback" => Writeback, "none" => None, "writethrough" => Writethrough,
    "directsync" => Directsync, "unsafe" => Unsafe);
words!(Discard, "discard", "ignore" => Ignore, "unmap" => Unmap);
words!(DetectZeroes, "detect-zeroes", "off" => Off, "on" => On, "unmap" => Unmap);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_size_has_a_suffix_and_limits() {
        for (text, bytes) in [
            ("256K", 256 << 10),
            ("36M", 36 << 20),
            ("2G", 2 << 30),
            ("1048576", 1 << 20),
        ] {
            let size: CacheSize = text.parse().expect(text);
            assert_eq!(size.bytes(), bytes);
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for text in [
            "",
            "M",
            "255K",
            "2049M",
            "-1M",
            "1.5M",
            "1T",
            "1MiB",
            "99999999999999G",
            "0",
        ] {
            let error = text.parse::<CacheSize>().expect_err(text).to_string();
            assert!(
                error.starts_with(&format!("cache-size={text} is not a size; say ")),
                "{error}"
            );
        }
    }

    #[test]
    fn options_are_said_with_qemus_words() {
        for word in ["writeback", "none", "writethrough", "directsync", "unsafe"] {
            assert_eq!(word.parse::<CacheMode>().expect("known").to_string(), word);
        }
        let error = "sometimes".parse::<Discard>().expect_err("unknown");
        assert_eq!(error.to_string(), "discard=sometimes is not known; say ignore, unmap");
    }
}
