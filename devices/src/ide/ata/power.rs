//! Power modes and the standby timer (ATA/ATAPI-6, 6.10). Nothing spins; the modes are what a guest can ask about, so the
//! timer needs nobody to wake: whether it has run out is seen when somebody asks.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::saved::MOST_TIME;

/// What CHECK POWER MODE tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PowerMode {
    #[default]
    Active,
    Idle,
    Standby,
    /// Only a reset wakes the drive.
    Sleep,
}

impl PowerMode {
    /// The sector count register that CHECK POWER MODE returns (ATA/ATAPI-6, 8.6).
    pub(super) fn sector_count(self) -> u8 {
        match self {
            Self::Active => 0xff,
            Self::Idle => 0x80,
            Self::Standby | Self::Sleep => 0x00,
        }
    }
}

/// The power mode, and when it changes by itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Power {
    mode: PowerMode,
    /// How long the drive stays at rest before it goes to standby.
    timer: Option<Duration>,
    /// When the timer was last started.
    since: Duration,
}

impl Power {
    /// The mode at this time.
    pub(super) fn mode(&self, now: Duration) -> PowerMode {
        let expired = self.timer.is_some_and(|timer| now.saturating_sub(self.since) >= timer);
        match self.mode {
            PowerMode::Active | PowerMode::Idle if expired => PowerMode::Standby,
            mode => mode,
        }
    }

    /// A command or a reset asks for a mode.
    pub(super) fn enter(&mut self, mode: PowerMode, now: Duration) {
        self.mode = mode;
        self.since = now;
    }

    /// Whether the times are such that one can count with them.
    pub(super) fn is_sound(&self) -> bool {
        self.since < MOST_TIME && self.timer.is_none_or(|timer| timer < MOST_TIME)
    }

    /// The medium is used.
    pub(super) fn wake(&mut self, now: Duration) {
        self.enter(PowerMode::Active, now);
    }

    /// The timer's value in the sector count register of IDLE and STANDBY (ATA/ATAPI-6, table 27).
    pub(super) fn set_timer(&mut self, value: u8) {
        let seconds = match u64::from(value) {
            0 => None,
            value @ 1..=240 => Some(value * 5),
            value @ 241..=251 => Some((value - 240) * 30 * 60),
            252 => Some(21 * 60),
            // Between 8 and 12 hours.
            253 | 254 => Some(8 * 60 * 60),
            _ => Some(21 * 60 + 15),
        };
        self.timer = seconds.map(Duration::from_secs);
    }
}
