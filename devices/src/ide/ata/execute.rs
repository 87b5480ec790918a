//! A command's way in: what is asked of it before it runs, and who runs it.

use serde::{Deserialize, Serialize};

use super::command::{Command, CompactFlash};
use super::geometry::Geometry;
use super::payload::Payload;
use super::power::PowerMode;
use super::work::{Reason, Work};
use super::{Drive, Failure, Step};

/// A command that the next one needs to have come just before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Preceding {
    /// READ NATIVE MAX ADDRESS, for SET MAX ADDRESS.
    NativeMax,
    /// READ NATIVE MAX ADDRESS EXT, for SET MAX ADDRESS EXT.
    NativeMaxExtended,
    /// SECURITY ERASE PREPARE, for SECURITY ERASE UNIT.
    ErasePrepare,
}

/// IDLE IMMEDIATE with this in features and LBA unloads the heads, and says so in LBA low (ATA8-ACS, 7.19).
const UNLOAD: (u8, u64) = (0x44, 0x55_4e4c);
const UNLOADED: u8 = 0xc4;

impl Drive {
    /// The host wrote the command register. Commands while [`Drive::engaged`] are lost, as on hardware.
    pub(in crate::ide) fn execute(&mut self, opcode: u8) -> Step {
        if self.engaged() {
            tracing::debug!(opcode, "ATA command to a busy drive");
            return None;
        }
        self.acknowledge();
        // A sleeping drive only hears resets (ATA/ATAPI-6, 6.10.3).
        if self.power.mode(self.powered_for()) == PowerMode::Sleep {
            return None;
        }
        self.last_opcode = opcode;
        self.statistics.commands += 1;
        let preceding = self.preceding.take();
        let command = Command::decode(opcode, self.setup.identity.compact_flash())
            .filter(|command| self.kept.overlay.allows(*command));
        let Some(command) = command else {
            tracing::debug!(opcode, "ATA command that the drive does not have");
            return self.fail(&Failure::ABORTED);
        };
        tracing::trace!(?command, registers = ?self.registers, "ATA command");
        if !self.permits(command) {
            return self.fail(&Failure::ABORTED);
        }
        self.dispatch(command, preceding)
            .unwrap_or_else(|failure| self.fail(&failure))
    }

    fn dispatch(&mut self, command: Command, preceding: Option<Preceding>) -> Result<Step, Failure> {
        match command {
            Command::Read { protocol, extended } => self.start_read(protocol, extended),
            Command::Write {
                protocol,
                extended,
                fua,
            } => self.start_write(protocol, extended, fua),
            Command::Verify { extended } => self.start_verify(extended),
            Command::WriteUncorrectable => self.write_uncorrectable(),
            Command::FlushCache => {
                self.statistics.flushes += 1;
                Ok(self.ask(Work::Flush(Reason::Command)))
            }
            Command::DataSetManagement => self.start_trim(),
            Command::IdentifyDevice => {
                let page = self.identify();
                Ok(self.give(page))
            }
            Command::SetFeatures => self.set_features(),
            Command::SetMultipleMode => self.set_multiple_mode(),
            Command::InitializeDeviceParameters => self.initialize_device_parameters(),
            Command::ReadNativeMaxAddress { extended } => Ok(self.read_native_max_address(extended)),
            Command::SetMax => self.set_max(preceding),
            Command::SetMaxAddressExtended => self.set_max_address(true, preceding),
            Command::ReadLog { protocol } => self.read_log(protocol),
            Command::WriteLog => self.write_log(),
            Command::ReadBuffer => {
                let bytes = self.sector_buffer.clone();
                Ok(self.give(bytes))
            }
            Command::WriteBuffer => Ok(self.take_sector(Payload::Buffer, false)),
            Command::Smart => self.smart_command(),
            Command::DeviceConfiguration => self.device_configuration(),
            Command::CheckPowerMode => {
                self.registers.count.current = self.power.mode(self.powered_for()).sector_count();
                Ok(self.complete())
            }
            Command::Power { mode, timer } => Ok(self.set_power_mode(mode, timer)),
            Command::SecuritySetPassword => Ok(self.take_sector(Payload::SetPassword, false)),
            Command::SecurityUnlock => Ok(self.take_sector(Payload::Unlock, false)),
            Command::SecurityErasePrepare => {
                self.preceding = Some(Preceding::ErasePrepare);
                Ok(self.complete())
            }
            Command::SecurityEraseUnit if preceding != Some(Preceding::ErasePrepare) => Err(Failure::ABORTED),
            Command::SecurityEraseUnit => Ok(self.take_sector(Payload::Erase, false)),
            Command::SecurityFreezeLock => {
                self.security.frozen = true;
                Ok(self.complete())
            }
            Command::SecurityDisablePassword => Ok(self.take_sector(Payload::DisablePassword, false)),
            Command::CompactFlash(CompactFlash::RequestExtendedError) => Ok(self.request_extended_error()),
            Command::CompactFlash(CompactFlash::TranslateSector) => self.translate_sector(),
            Command::CompactFlash(CompactFlash::EraseSectors) => self.erase_sectors(),
            Command::Accept => Ok(self.complete()),
            // NOP always ends with ABRT (ATA/ATAPI-6, 8.17). DEVICE RESET is for packet devices (8.8).
            Command::Nop | Command::DeviceReset => Err(Failure::ABORTED),
            // The channel does it, for both drives.
            Command::ExecuteDeviceDiagnostic => Ok(None),
        }
    }

    fn set_multiple_mode(&mut self) -> Result<Step, Failure> {
        self.features
            .set_multiple(self.registers.count.current)
            .ok_or(Failure::ABORTED)?;
        Ok(self.complete())
    }

    fn initialize_device_parameters(&mut self) -> Result<Step, Failure> {
        let heads = (self.registers.device & 0x0f) + 1;
        self.geometry =
            Geometry::translated(self.capacity(), heads, self.registers.count.current).ok_or(Failure::ABORTED)?;
        Ok(self.complete())
    }

    fn set_power_mode(&mut self, mode: PowerMode, timer: bool) -> Step {
        if timer {
            self.power.set_timer(self.registers.count.current);
        }
        let unload =
            mode == PowerMode::Idle && !timer && (self.registers.features.current, self.registers.lba28()) == UNLOAD;
        if unload {
            self.registers.lba_low.current = UNLOADED;
        }
        self.power.enter(mode, self.powered_for());
        // Spinning down parks the heads over a disk that has everything.
        if matches!(mode, PowerMode::Standby | PowerMode::Sleep) && !self.setup.disk.read_only() {
            return self.ask(Work::Flush(Reason::Command));
        }
        self.complete()
    }
}
