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
    fn options_are_said_with_qemus_words() {
        for word in ["writeback", "none", "writethrough", "directsync", "unsafe"] {
            assert_eq!(word.parse::<CacheMode>().expect("known").to_string(), word);
        }
        let error = "sometimes".parse::<Discard>().expect_err("unknown");
        assert_eq!(error.to_string(), "discard=sometimes is not known; say ignore, unmap");
    }
}
