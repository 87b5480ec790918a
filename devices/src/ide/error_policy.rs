//! What becomes of a request that the host fails: QEMU's `werror=` and `rerror=`, by their names and with their meaning
//! (qemu-system-x86_64(1), "-drive").
//!
//! With `stop` the request is kept, [`StopObserver`] is told, and the drive stays busy as if the disk were slow. When
//! the cause is gone, `Chipset::resume` makes the same request again. What the guest does in the meantime (the machine may
//! take a moment to stop) cannot do harm: a reset drops the request, as it drops one that is at the disk.

use std::fmt;
use std::str::FromStr;

use disk::DiskError;

/// What a failed write, flush or discard does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteErrorPolicy {
    /// The guest gets an error.
    Report,
    /// The machine stops.
    Stop,
    /// The machine stops if the host has no space left, else the guest gets an error.
    #[default]
    Enospc,
    /// The guest is told that all is well. Its data is lost.
    Ignore,
}

/// What a failed read does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadErrorPolicy {
    /// The guest gets an error.
    #[default]
    Report,
    /// The machine stops.
    Stop,
    /// The guest is told that all is well, and gets data that means nothing.
    Ignore,
}

/// Both, for one drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorPolicy {
    /// Writes, flushes and discards.
    pub write: WriteErrorPolicy,
    /// Reads.
    pub read: ReadErrorPolicy,
}

/// What to do about one error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reaction {
    Report,
    Stop,
    Ignore,
}

impl ErrorPolicy {
    /// What to do about `error` of a request that reads, or one that does not.
    pub(crate) fn reaction(self, reading: bool, error: &DiskError) -> Reaction {
        // A wrong request is wrong however often it is made.
        let host = !matches!(
            error,
            DiskError::OutOfRange { .. } | DiskError::Unaligned { .. } | DiskError::ReadOnly | DiskError::Closed
        );
        if !host {
            return Reaction::Report;
        }
        match (reading, self.read, self.write) {
            (true, ReadErrorPolicy::Report, _) | (false, _, WriteErrorPolicy::Report) => Reaction::Report,
            (true, ReadErrorPolicy::Stop, _) | (false, _, WriteErrorPolicy::Stop) => Reaction::Stop,
            (true, ReadErrorPolicy::Ignore, _) | (false, _, WriteErrorPolicy::Ignore) => Reaction::Ignore,
            (false, _, WriteErrorPolicy::Enospc) if error.is_no_space() => Reaction::Stop,
            (false, _, WriteErrorPolicy::Enospc) => Reaction::Report,
        }
    }
}

/// A drive whose request waits for the machine to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// `hda` to `hdd`.
    pub slot: &'static str,
    /// What the host said.
    pub error: String,
    /// Whether it is for want of space.
    pub no_space: bool,
}

/// Is told that a drive wants the machine to stop. Called on the engine's thread, with the channel's lock held: it may
/// signal whom it likes, but not call the chipset.
pub type StopObserver = Box<dyn Fn(&Stop) + Send + Sync>;

/// A word that no policy has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option}={found} is not known; say {allowed}")]
pub struct ErrorPolicyError {
    option: &'static str,
    found: String,
    allowed: &'static str,
}

/// Reading and printing a policy.
macro_rules! words {
    ($type:ident, $option:literal, $allowed:literal, $($word:literal => $value:ident),+) => {
        impl FromStr for $type {
            type Err = ErrorPolicyError;

            fn from_str(text: &str) -> Result<Self, ErrorPolicyError> {
                match text {
                    $($word => Ok(Self::$value),)+
                    _ => Err(ErrorPolicyError { option: $option, found: text.to_owned(), allowed: $allowed }),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$value => $word),+
                })
            }
        }
    };
}

words!(WriteErrorPolicy, "werror", "report, stop, enospc or ignore",
    "report" => Report, "stop" => Stop, "enospc" => Enospc, "ignore" => Ignore);
words!(ReadErrorPolicy, "rerror", "report, stop or ignore",
    "report" => Report, "stop" => Stop, "ignore" => Ignore);

#[cfg(test)]
mod tests {
    use super::*;

    fn io(errno: i32) -> DiskError {
        DiskError::Io {
            operation: "write",
            offset: 0,
            error: std::io::Error::from_raw_os_error(errno),
        }
    }

    #[test]
    fn the_default_stops_for_want_of_space_and_reports_the_rest() {
        let policy = ErrorPolicy::default();
        assert_eq!(policy.reaction(false, &io(28)), Reaction::Stop);
        assert_eq!(policy.reaction(false, &io(5)), Reaction::Report);
        assert_eq!(policy.reaction(true, &io(28)), Reaction::Report);
        assert_eq!(policy.reaction(false, &DiskError::ReadOnly), Reaction::Report);
    }

    #[test]
    fn words_are_read_and_printed() {
        for word in ["report", "stop", "enospc", "ignore"] {
            assert_eq!(
                word.parse::<WriteErrorPolicy>().map(|policy| policy.to_string()),
                Ok(word.to_owned())
            );
        }
        let error = "enospc".parse::<ReadErrorPolicy>().expect_err("reads need no space");
        assert_eq!(
            error.to_string(),
            "rerror=enospc is not known; say report, stop or ignore"
        );
    }
}
