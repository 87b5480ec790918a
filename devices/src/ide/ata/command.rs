//! The command table: which opcode is which command (ATA/ATAPI-6, clause 8; ATA8-ACS, clause 7; ACS-2, clause 7).

use super::power::PowerMode;

/// How a command moves its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Through the data register, an interrupt per sector.
    Pio,
    /// Through the data register, an interrupt per block as SET MULTIPLE MODE says.
    Multiple,
    /// By bus master.
    Dma,
}

/// A command that the drive knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Nop,
    DataSetManagement,
    DeviceReset,
    Read {
        protocol: Protocol,
        extended: bool,
    },
    Write {
        protocol: Protocol,
        extended: bool,
        fua: bool,
    },
    Verify {
        extended: bool,
    },
    WriteUncorrectable,
    ReadLog {
        protocol: Protocol,
    },
    WriteLog,
    ReadNativeMaxAddress {
        extended: bool,
    },
    /// SET MAX ADDRESS and, by the features register, its password commands.
    SetMax,
    SetMaxAddressExtended,
    ExecuteDeviceDiagnostic,
    InitializeDeviceParameters,
    Smart,
    DeviceConfiguration,
    SetMultipleMode,
    FlushCache,
    IdentifyDevice,
    SetFeatures,
    ReadBuffer,
    WriteBuffer,
    CheckPowerMode,
    /// STANDBY, IDLE (which set the timer), their immediate forms and SLEEP.
    Power {
        mode: PowerMode,
        timer: bool,
    },
    SecuritySetPassword,
    SecurityUnlock,
    SecurityErasePrepare,
    SecurityEraseUnit,
    SecurityFreezeLock,
    SecurityDisablePassword,
    CompactFlash(CompactFlash),
    /// A command of the first standards that has nothing to do on any drive of today: RECALIBRATE, SEEK.
    Accept,
}

/// The CFA feature set, on drives that are CompactFlash cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CompactFlash {
    RequestExtendedError,
    TranslateSector,
    EraseSectors,
}

impl Command {
    /// The command with this opcode. `compact_flash` cards know more.
    pub(super) fn decode(opcode: u8, compact_flash: bool) -> Option<Self> {
        use Protocol::{Dma, Multiple, Pio};
        let read = |protocol, extended| Self::Read { protocol, extended };
        let write = |protocol, extended| Self::Write {
            protocol,
            extended,
            fua: false,
        };
        let fua = |protocol| Self::Write {
            protocol,
            extended: true,
            fua: true,
        };
        let power = |mode, timer| Self::Power { mode, timer };
        Some(match opcode {
            0x00 => Self::Nop,
            0x03 if compact_flash => Self::CompactFlash(CompactFlash::RequestExtendedError),
            0x06 => Self::DataSetManagement,
            0x08 => Self::DeviceReset,
            0x10..=0x1f | 0x70..=0x7f => Self::Accept,
            0x20 | 0x21 => read(Pio, false),
            0x24 => read(Pio, true),
            0x25 => read(Dma, true),
            0x27 => Self::ReadNativeMaxAddress { extended: true },
            0x29 => read(Multiple, true),
            0x2f => Self::ReadLog { protocol: Pio },
            0x30 | 0x31 => write(Pio, false),
            0x34 => write(Pio, true),
            0x35 => write(Dma, true),
            0x37 => Self::SetMaxAddressExtended,
            // WRITE SECTORS WITHOUT ERASE.
            0x38 if compact_flash => write(Pio, false),
            0x39 => write(Multiple, true),
            0x3d => fua(Dma),
            0x3f => Self::WriteLog,
            0x40 | 0x41 => Self::Verify { extended: false },
            0x42 => Self::Verify { extended: true },
            0x45 => Self::WriteUncorrectable,
            0x47 => Self::ReadLog { protocol: Dma },
            0x87 if compact_flash => Self::CompactFlash(CompactFlash::TranslateSector),
            0x90 => Self::ExecuteDeviceDiagnostic,
            0x91 => Self::InitializeDeviceParameters,
            // The first of each pair is the opcode of ATA-1 for the same.
            0x94 | 0xe0 => power(PowerMode::Standby, false),
            0x95 | 0xe1 => power(PowerMode::Idle, false),
            0x96 | 0xe2 => power(PowerMode::Standby, true),
            0x97 | 0xe3 => power(PowerMode::Idle, true),
            0x98 | 0xe5 => Self::CheckPowerMode,
            0x99 | 0xe6 => power(PowerMode::Sleep, false),
            0xb0 => Self::Smart,
            0xb1 => Self::DeviceConfiguration,
            0xc0 if compact_flash => Self::CompactFlash(CompactFlash::EraseSectors),
            0xc4 => read(Multiple, false),
            0xc5 => write(Multiple, false),
            0xc6 => Self::SetMultipleMode,
            0xc8 | 0xc9 => read(Dma, false),
            0xca | 0xcb => write(Dma, false),
            // WRITE MULTIPLE WITHOUT ERASE.
            0xcd if compact_flash => write(Multiple, false),
            0xce => fua(Multiple),
            0xe4 => Self::ReadBuffer,
            0xe7 | 0xea => Self::FlushCache,
            0xe8 => Self::WriteBuffer,
            0xec => Self::IdentifyDevice,
            0xef => Self::SetFeatures,
            0xf1 => Self::SecuritySetPassword,
            0xf2 => Self::SecurityUnlock,
            0xf3 => Self::SecurityErasePrepare,
            0xf4 => Self::SecurityEraseUnit,
            0xf5 => Self::SecurityFreezeLock,
            0xf6 => Self::SecurityDisablePassword,
            0xf8 => Self::ReadNativeMaxAddress { extended: false },
            0xf9 => Self::SetMax,
            _ => return None,
        })
    }
}
