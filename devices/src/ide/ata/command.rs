//! The command table: which opcode is which command (ATA/ATAPI-6, clause 8; ATA8-ACS, clause 7).

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
    ReadNativeMaxAddress {
        extended: bool,
    },
    ExecuteDeviceDiagnostic,
    InitializeDeviceParameters,
    Smart,
    SetMultipleMode,
    FlushCache,
    IdentifyDevice,
    SetFeatures,
    ReadBuffer,
    WriteBuffer,
    CheckPowerMode,
    Power {
        mode: PowerMode,
        flush: bool,
    },
    /// A command of the first standards that has nothing to do on any drive of today: RECALIBRATE, SEEK.
    Accept,
}

impl Command {
    /// The command with this opcode.
    pub(super) fn decode(opcode: u8) -> Option<Self> {
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
        let power = |mode, flush| Self::Power { mode, flush };
        Some(match opcode {
            0x00 => Self::Nop,
            0x06 => Self::DataSetManagement,
            0x08 => Self::DeviceReset,
            0x10..=0x1f | 0x70..=0x7f => Self::Accept,
            0x20 | 0x21 => read(Pio, false),
            0x24 => read(Pio, true),
            0x25 => read(Dma, true),
            0x27 => Self::ReadNativeMaxAddress { extended: true },
            0x29 => read(Multiple, true),
            0x30 | 0x31 => write(Pio, false),
            0x34 => write(Pio, true),
            0x35 => write(Dma, true),
            0x39 => write(Multiple, true),
            0x3d => fua(Dma),
            0x40 | 0x41 => Self::Verify { extended: false },
            0x42 => Self::Verify { extended: true },
            0x90 => Self::ExecuteDeviceDiagnostic,
            0x91 => Self::InitializeDeviceParameters,
            // The first of each pair is the opcode of ATA-1 for the same.
            0x94 | 0xe0 => power(PowerMode::Standby, true),
            0x95 | 0xe1 => power(PowerMode::Idle, false),
            0x96 | 0xe2 => power(PowerMode::Standby, true),
            0x97 | 0xe3 => power(PowerMode::Idle, false),
            0x98 | 0xe5 => Self::CheckPowerMode,
            0x99 | 0xe6 => power(PowerMode::Sleep, true),
            0xb0 => Self::Smart,
            0xc4 => read(Multiple, false),
            0xc5 => write(Multiple, false),
            0xc6 => Self::SetMultipleMode,
            0xc8 | 0xc9 => read(Dma, false),
            0xca | 0xcb => write(Dma, false),
            0xce => fua(Multiple),
            0xe4 => Self::ReadBuffer,
            0xe7 | 0xea => Self::FlushCache,
            0xe8 => Self::WriteBuffer,
            0xec => Self::IdentifyDevice,
            0xef => Self::SetFeatures,
            0xf8 => Self::ReadNativeMaxAddress { extended: false },
            _ => return None,
        })
    }
}
