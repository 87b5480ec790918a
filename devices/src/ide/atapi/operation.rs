//! The operations that the drive has: which code is which (MMC-5, table 238).

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    TestUnitReady,
    RequestSense,
    Inquiry,
    StartStopUnit,
    PreventAllowMediumRemoval,
    ReadCapacity,
    Read10,
    Read12,
    ReadCd,
    ReadCdMsf,
    Seek,
    ReadSubChannel,
    ReadToc,
    GetConfiguration,
    GetEventStatusNotification,
    ReadDiscInformation,
    ReadTrackInformation,
    ReadDvdStructure,
    ModeSense10,
    ModeSelect10,
    GetPerformance,
    SetCdSpeed,
    MechanismStatus,
}

impl Operation {
    /// The operation with this code.
    pub(super) fn decode(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => Self::TestUnitReady,
            0x03 => Self::RequestSense,
            0x12 => Self::Inquiry,
            0x1b => Self::StartStopUnit,
            0x1e => Self::PreventAllowMediumRemoval,
            0x25 => Self::ReadCapacity,
            0x28 => Self::Read10,
            0x2b => Self::Seek,
            0x42 => Self::ReadSubChannel,
            0x43 => Self::ReadToc,
            0x46 => Self::GetConfiguration,
            0x4a => Self::GetEventStatusNotification,
            0x51 => Self::ReadDiscInformation,
            0x52 => Self::ReadTrackInformation,
            0x55 => Self::ModeSelect10,
            0x5a => Self::ModeSense10,
            0xa8 => Self::Read12,
            0xac => Self::GetPerformance,
            0xad => Self::ReadDvdStructure,
            0xb9 => Self::ReadCdMsf,
            0xbb => Self::SetCdSpeed,
            0xbd => Self::MechanismStatus,
            0xbe => Self::ReadCd,
            _ => return None,
        })
    }

    /// Whether the operation is done although a unit attention waits, which it neither reports nor clears: these tell
    /// what the drive is and how it does (MMC-5, 4.1.6.1). REQUEST SENSE reports it in its own way.
    pub(super) fn ignores_attention(self) -> bool {
        matches!(
            self,
            Self::RequestSense | Self::Inquiry | Self::GetConfiguration | Self::GetEventStatusNotification
        )
    }
}
