//! What a drive has done since power-on.

use serde::{Deserialize, Serialize};

/// Counts of one drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Commands of any kind.
    pub commands: u64,
    /// Read commands.
    pub reads: u64,
    /// Sectors that they read.
    pub sectors_read: u64,
    /// Write commands.
    pub writes: u64,
    /// Sectors that they wrote.
    pub sectors_written: u64,
    /// FLUSH CACHE commands.
    pub flushes: u64,
    /// Ranges that were discarded.
    pub discards: u64,
    /// Commands that ended with an error.
    pub errors: u64,
    /// Commands that a reset ended.
    pub interrupted: u64,
}

impl Statistics {
    /// Whether one can go on counting.
    pub(super) fn is_sound(&self) -> bool {
        let counts = [
            self.commands,
            self.reads,
            self.sectors_read,
            self.writes,
            self.sectors_written,
            self.flushes,
            self.discards,
            self.errors,
            self.interrupted,
        ];
        counts.into_iter().all(|count| count < 1 << 62)
    }

    pub(super) fn read(&mut self, sectors: u32) {
        self.sectors_read += u64::from(sectors);
    }

    pub(super) fn wrote(&mut self, sectors: u32) {
        self.sectors_written += u64::from(sectors);
    }
}
