//! The task file and its bits (ATA/ATAPI-6, clause 7).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

bitflags! {
    /// The status register (ATA/ATAPI-6, 7.15).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Status: u8 {
        /// The device is busy; no other bit means anything.
        const BSY = 1 << 7;
        /// The device is ready for commands.
        const DRDY = 1 << 6;
        /// Device fault.
        const DF = 1 << 5;
        /// Seek complete, as old software knows it.
        const DSC = 1 << 4;
        /// The device wants to transfer data.
        const DRQ = 1 << 3;
        /// The error register says what went wrong.
        const ERR = 1 << 0;
    }
}

bitflags! {
    /// The error register (ATA/ATAPI-6, 7.9).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Error: u8 {
        /// An Ultra DMA burst did not arrive as it was sent.
        const ICRC = 1 << 7;
        /// The data could not be read.
        const UNC = 1 << 6;
        /// The address does not exist.
        const IDNF = 1 << 4;
        /// The command was aborted.
        const ABRT = 1 << 2;
        /// After a reset or EXECUTE DEVICE DIAGNOSTIC: this device passed (ATA/ATAPI-6, table 26).
        const DIAGNOSTIC_PASSED = 1 << 0;
    }
}

bitflags! {
    /// The device control register (ATA/ATAPI-6, 7.8).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct DeviceControl: u8 {
        /// Reads see the previous content of the two-deep registers.
        const HOB = 1 << 7;
        /// Software reset, for as long as it is set.
        const SRST = 1 << 2;
        /// The interrupt line is not driven.
        const NIEN = 1 << 1;
    }
}

/// Device register: the address is an LBA (ATA/ATAPI-6, 7.7).
pub const DEVICE_LBA: u8 = 1 << 6;
/// Device register: device 1 is selected.
pub const DEVICE_DEV: u8 = 1 << 4;

/// Offsets of the command block registers.
pub mod offset {
    /// Data, 16 or 32 bits.
    pub const DATA: u16 = 0;
    /// Error (read), features (write).
    pub const ERROR_FEATURES: u16 = 1;
    /// Sector count.
    pub const COUNT: u16 = 2;
    /// LBA bits 0 to 7, sector number.
    pub const LBA_LOW: u16 = 3;
    /// LBA bits 8 to 15, cylinder low.
    pub const LBA_MID: u16 = 4;
    /// LBA bits 16 to 23, cylinder high.
    pub const LBA_HIGH: u16 = 5;
    /// Device, head, LBA bits 24 to 27.
    pub const DEVICE: u16 = 6;
    /// Status (read), command (write).
    pub const STATUS_COMMAND: u16 = 7;
}

/// A register that remembers what it held before the last write, for 48-bit commands (ATA/ATAPI-6, 6.20).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwoDeep {
    /// The last value written.
    pub current: u8,
    /// The one before.
    pub previous: u8,
}

impl TwoDeep {
    /// Both values at once.
    pub fn new(current: u8, previous: u8) -> Self {
        Self { current, previous }
    }

    /// Writes the register.
    pub fn push(&mut self, value: u8) {
        self.previous = std::mem::replace(&mut self.current, value);
    }

    /// Reads the register, or with `hob` what it held before.
    pub fn read(self, hob: bool) -> u8 {
        if hob { self.previous } else { self.current }
    }

    /// Previous and current value as one number.
    pub fn wide(self) -> u16 {
        u16::from_be_bytes([self.previous, self.current])
    }
}

/// The command block registers that hold a command's parameters, as one device has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFile {
    /// Features.
    pub features: TwoDeep,
    /// Sector count.
    pub count: TwoDeep,
    /// LBA low, or sector number.
    pub lba_low: TwoDeep,
    /// LBA mid, or cylinder low.
    pub lba_mid: TwoDeep,
    /// LBA high, or cylinder high.
    pub lba_high: TwoDeep,
    /// Device.
    pub device: u8,
}

impl TaskFile {
    /// What a disk drive shows after a reset (ATA/ATAPI-6, 9.12, "Signature and persistence").
    pub fn signature() -> Self {
        Self {
            count: TwoDeep::new(1, 0),
            lba_low: TwoDeep::new(1, 0),
            ..Self::default()
        }
    }

    /// What a packet device shows after a reset, and when it is taken for a disk.
    pub fn packet_signature() -> Self {
        Self {
            lba_mid: TwoDeep::new(0x14, 0),
            lba_high: TwoDeep::new(0xeb, 0),
            ..Self::signature()
        }
    }

    /// A write to the register at `offset` of the command block. Data and command have no storage here.
    pub fn write(&mut self, offset: u16, value: u8) {
        match offset {
            offset::ERROR_FEATURES => self.features.push(value),
            offset::COUNT => self.count.push(value),
            offset::LBA_LOW => self.lba_low.push(value),
            offset::LBA_MID => self.lba_mid.push(value),
            offset::LBA_HIGH => self.lba_high.push(value),
            offset::DEVICE => self.device = value,
            _ => {}
        }
    }

    /// A read from one of the registers that keep what was written.
    pub fn read(&self, offset: u16, hob: bool) -> u8 {
        match offset {
            offset::COUNT => self.count.read(hob),
            offset::LBA_LOW => self.lba_low.read(hob),
            offset::LBA_MID => self.lba_mid.read(hob),
            offset::LBA_HIGH => self.lba_high.read(hob),
            // Bits 7 and 5 are obsolete and read as ones.
            offset::DEVICE => self.device | 0xa0,
            _ => 0xff,
        }
    }

    /// The 28-bit address.
    pub fn lba28(&self) -> u64 {
        u64::from(u32::from_be_bytes([
            self.device & 0x0f,
            self.lba_high.current,
            self.lba_mid.current,
            self.lba_low.current,
        ]))
    }

    /// The 48-bit address.
    pub fn lba48(&self) -> u64 {
        u64::from_be_bytes([
            0,
            0,
            self.lba_high.previous,
            self.lba_mid.previous,
            self.lba_low.previous,
            self.lba_high.current,
            self.lba_mid.current,
            self.lba_low.current,
        ])
    }

    /// Sets the 28-bit address; what does not fit is lost.
    pub fn set_lba28(&mut self, lba: u64) {
        let [high_nibble, high, mid, low] = (lba as u32).to_be_bytes();
        self.lba_low.current = low;
        self.lba_mid.current = mid;
        self.lba_high.current = high;
        self.device = self.device & 0xf0 | high_nibble & 0x0f;
    }

    /// Sets the 48-bit address.
    pub fn set_lba48(&mut self, lba: u64) {
        let [_, _, b5, b4, b3, b2, b1, b0] = lba.to_be_bytes();
        self.lba_low = TwoDeep::new(b0, b3);
        self.lba_mid = TwoDeep::new(b1, b4);
        self.lba_high = TwoDeep::new(b2, b5);
    }
}
