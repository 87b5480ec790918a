//! Power modes (ATA/ATAPI-6, 6.10). Nothing spins; the modes are what a guest can ask about.

/// What CHECK POWER MODE tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
