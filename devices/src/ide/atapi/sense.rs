//! Sense data: why a packet command failed, for REQUEST SENSE (SPC-3, 4.5; MMC-5, annex F).

use serde::{Deserialize, Serialize};

/// Bytes of sense data in the fixed format.
const LENGTH: usize = 18;

/// The category of sense data, which the error register shows in its high nibble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Key {
    NoSense = 0x0,
    NotReady = 0x2,
    MediumError = 0x3,
    IllegalRequest = 0x5,
    UnitAttention = 0x6,
    AbortedCommand = 0xb,
}

/// Sense data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sense {
    pub key: Key,
    /// Additional sense code, and its qualifier.
    code: (u8, u8),
    /// The block that an error is about.
    block: Option<u32>,
    /// What field of the request was wrong.
    field: Option<Field>,
}

/// A field that a drive does not accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Field {
    /// Its byte in the packet.
    Packet(u16),
    /// Its byte in the parameter list.
    ParameterList(u16),
}

impl Sense {
    pub(super) const NONE: Self = Self::new(Key::NoSense, 0x00, 0x00);
    /// There is no medium, and the tray is closed.
    pub(super) const NO_MEDIUM: Self = Self::new(Key::NotReady, 0x3a, 0x01);
    pub(super) const TRAY_OPEN: Self = Self::new(Key::NotReady, 0x3a, 0x02);
    pub(super) const INVALID_OPERATION: Self = Self::new(Key::IllegalRequest, 0x20, 0x00);
    pub(super) const OUT_OF_RANGE: Self = Self::new(Key::IllegalRequest, 0x21, 0x00);
    pub(super) const PARAMETER_LIST_LENGTH: Self = Self::new(Key::IllegalRequest, 0x1a, 0x00);
    pub(super) const SAVING_NOT_SUPPORTED: Self = Self::new(Key::IllegalRequest, 0x39, 0x00);
    /// The medium is of another kind than the command is for.
    pub(super) const INCOMPATIBLE_MEDIUM: Self = Self::new(Key::IllegalRequest, 0x30, 0x02);
    pub(super) const REMOVAL_PREVENTED: Self = Self::new(Key::IllegalRequest, 0x53, 0x02);
    /// The sectors of the track are not what was asked for.
    pub(super) const WRONG_TRACK_MODE: Self = Self::new(Key::IllegalRequest, 0x64, 0x00);
    pub(super) const MEDIUM_CHANGED: Self = Self::new(Key::UnitAttention, 0x28, 0x00);
    pub(super) const POWER_ON: Self = Self::new(Key::UnitAttention, 0x29, 0x00);
    /// The bus master could not transfer the data, or was stopped.
    pub(super) const DATA_PHASE: Self = Self::new(Key::AbortedCommand, 0x4b, 0x00);

    const fn new(key: Key, code: u8, qualifier: u8) -> Self {
        Self {
            key,
            code: (code, qualifier),
            block: None,
            field: None,
        }
    }

    /// A field of the packet that begins at byte `byte`.
    pub(super) const fn invalid_field(byte: u16) -> Self {
        Self {
            field: Some(Field::Packet(byte)),
            ..Self::new(Key::IllegalRequest, 0x24, 0x00)
        }
    }

    /// A field of the parameter list that begins at byte `byte`.
    pub(super) const fn invalid_parameter(byte: u16) -> Self {
        Self {
            field: Some(Field::ParameterList(byte)),
            ..Self::new(Key::IllegalRequest, 0x26, 0x00)
        }
    }

    /// The host could not read this block.
    pub(super) const fn unreadable(block: u32) -> Self {
        Self {
            block: Some(block),
            ..Self::new(Key::MediumError, 0x11, 0x00)
        }
    }

    /// The data of REQUEST SENSE, in the fixed format.
    pub(super) fn to_bytes(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0] = 0x70;
        bytes[2] = self.key as u8;
        if let Some(block) = self.block {
            bytes[0] |= 0x80;
            bytes[3..7].copy_from_slice(&block.to_be_bytes());
        }
        bytes[7] = LENGTH as u8 - 8;
        (bytes[12], bytes[13]) = self.code;
        // Sense-key specific: valid, in the packet (0x40) or not, and the byte.
        let (flags, byte) = match self.field {
            Some(Field::Packet(byte)) => (0xc0, byte),
            Some(Field::ParameterList(byte)) => (0x80, byte),
            None => return bytes,
        };
        bytes[15] = flags;
        bytes[16..18].copy_from_slice(&byte.to_be_bytes());
        bytes
    }
}
