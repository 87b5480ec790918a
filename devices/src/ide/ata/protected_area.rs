//! The host protected area: READ NATIVE MAX ADDRESS, SET MAX ADDRESS and the passwords for it (ATA/ATAPI-6, 6.11, 8.38 and
//! 8.47).

use serde::{Deserialize, Serialize};

use super::execute::Preceding;
use super::geometry::Geometry;
use super::non_volatile::NonVolatile;
use super::payload::{Payload, password};
use super::transfer::{Addressing, LBA28_SECTORS};
use super::{Drive, Failure, Step};
use crate::ide::registers::{DEVICE_LBA, Error};

/// Wrong passwords before only power-on helps.
const ATTEMPTS: u8 = 5;

/// Sector count register of SET MAX ADDRESS: keep the value over power-on.
const NON_VOLATILE: u8 = 1 << 0;

/// A limit that a SET MAX ADDRESS command set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Limit {
    /// Sectors that are left.
    pub sectors: u64,
    /// Whether the command was the extended one. The other one cannot change it.
    pub extended: bool,
}

impl Limit {
    /// Whether it leaves something.
    pub(super) fn is_sound(self) -> bool {
        (1..=1 << 48).contains(&self.sectors)
    }
}

/// The state that power-on sets right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProtectedArea {
    limit: Option<Limit>,
    /// A value that outlives power was set since power-on: a second one is refused.
    kept_once: bool,
    password: Option<[u8; 32]>,
    locked: bool,
    frozen: bool,
    attempts: u8,
}

impl ProtectedArea {
    /// After power-on or a hardware reset.
    pub(super) fn at_power_on(kept: &NonVolatile) -> Self {
        Self {
            limit: kept.limit,
            attempts: ATTEMPTS,
            ..Self::default()
        }
    }

    /// Sectors that are not protected, while there is a limit.
    pub(super) fn sectors(&self) -> Option<u64> {
        self.limit.map(|limit| limit.sectors)
    }

    /// Whether a password guards SET MAX ADDRESS.
    pub(super) fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// Whether a limit leaves something.
    pub(super) fn is_sound(&self) -> bool {
        self.limit.is_none_or(Limit::is_sound)
    }

    /// Whether SET MAX commands are refused.
    pub(super) fn closed(&self) -> bool {
        self.locked || self.frozen
    }
}

impl Drive {
    /// READ NATIVE MAX ADDRESS, which makes a SET MAX ADDRESS that follows at once possible.
    pub(super) fn read_native_max_address(&mut self, extended: bool) -> Step {
        let last = self.native_capacity() - 1;
        let step = self.complete();
        if extended {
            self.registers.set_lba48(last);
            self.preceding = Some(Preceding::NativeMaxExtended);
        } else {
            if self.registers.device & DEVICE_LBA != 0 {
                self.registers.set_lba28(last.min(LBA28_SECTORS - 1));
            } else {
                let geometry = Geometry::default_for(self.native_capacity());
                geometry.show(&mut self.registers, u64::from(geometry.capacity()) - 1);
            }
            self.preceding = Some(Preceding::NativeMax);
        }
        step
    }

    /// Opcode F9h. After READ NATIVE MAX ADDRESS it is SET MAX ADDRESS whatever the features register says.
    pub(super) fn set_max(&mut self, preceding: Option<Preceding>) -> Result<Step, Failure> {
        if preceding == Some(Preceding::NativeMax) {
            return self.set_max_address(false, preceding);
        }
        let area = &mut self.protected_area;
        match self.registers.features.current {
            0x01 if !area.closed() => return Ok(self.take_sector(Payload::SetMaxPassword, false)),
            0x02 if area.has_password() && !area.closed() => area.locked = true,
            0x03 if area.locked && !area.frozen && area.attempts > 0 => {
                return Ok(self.take_sector(Payload::SetMaxUnlock, false));
            }
            0x04 if area.has_password() && !area.closed() => area.frozen = true,
            _ => return Err(Failure::ABORTED),
        }
        Ok(self.complete())
    }

    pub(super) fn set_max_password(&mut self, sector: &[u8]) -> Result<Step, Failure> {
        self.protected_area.password = Some(password(sector));
        Ok(self.complete())
    }

    pub(super) fn set_max_unlock(&mut self, sector: &[u8]) -> Result<Step, Failure> {
        let area = &mut self.protected_area;
        if area.password != Some(password(sector)) {
            area.attempts = area.attempts.saturating_sub(1);
            return Err(Failure::ABORTED);
        }
        area.locked = false;
        Ok(self.complete())
    }

    /// SET MAX ADDRESS, and the same with an extended address.
    pub(super) fn set_max_address(&mut self, extended: bool, preceding: Option<Preceding>) -> Result<Step, Failure> {
        let needed = if extended {
            Preceding::NativeMaxExtended
        } else {
            Preceding::NativeMax
        };
        let area = &self.protected_area;
        let other_command = area.limit.is_some_and(|limit| limit.extended != extended);
        if preceding != Some(needed) || area.closed() || other_command {
            return Err(Failure::ABORTED);
        }
        let (last, addressing) = self.address_to_set(extended);
        let keep = self.registers.count.current & NON_VOLATILE != 0;
        let native = self.native_capacity();
        if last >= native || keep && area.kept_once {
            return Err(Failure {
                error: Error::IDNF,
                address: (last >= native).then_some((last, addressing)),
            });
        }
        let limit = (last + 1 < native).then_some(Limit {
            sectors: last + 1,
            extended,
        });
        self.protected_area.limit = limit;
        if keep {
            self.protected_area.kept_once = true;
            self.kept.limit = limit;
            self.changed = true;
        }
        self.geometry = Geometry::default_for(self.capacity());
        Ok(self.complete())
    }

    /// The address in the registers. As CHS it is the last cylinder.
    fn address_to_set(&self, extended: bool) -> (u64, Addressing) {
        let registers = &self.registers;
        if extended {
            return (registers.lba48(), Addressing::Lba48);
        }
        if registers.device & DEVICE_LBA != 0 {
            return (registers.lba28(), Addressing::Lba28);
        }
        let cylinder = u16::from_be_bytes([registers.lba_high.current, registers.lba_mid.current]);
        let geometry = Geometry::default_for(self.native_capacity());
        let per_cylinder = u64::from(geometry.heads) * u64::from(geometry.sectors);
        ((u64::from(cylinder) + 1) * per_cylinder - 1, Addressing::Chs)
    }

    /// Whether there is a protected area now.
    pub(super) fn has_protected_area(&self) -> bool {
        self.protected_area.limit.is_some() || self.kept.limit.is_some()
    }
}
