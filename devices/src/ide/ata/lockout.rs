//! What a drive refuses while it is locked or frozen (ATA/ATAPI-6, table 7; ATA8-ACS, table 9).

use super::Drive;
use super::command::{Command, CompactFlash};

impl Drive {
    /// Whether SECURITY lets this command run now.
    pub(super) fn permits(&self, command: Command) -> bool {
        let changes_security = matches!(
            command,
            Command::SecuritySetPassword
                | Command::SecurityUnlock
                | Command::SecurityErasePrepare
                | Command::SecurityEraseUnit
                | Command::SecurityDisablePassword
        );
        if self.security.frozen && changes_security {
            return false;
        }
        !self.security.locked || !reaches_data(command)
    }
}

/// Whether the command reads, changes or moves what a lock protects.
fn reaches_data(command: Command) -> bool {
    matches!(
        command,
        Command::Read { .. }
            | Command::Write { .. }
            | Command::Verify { .. }
            | Command::WriteUncorrectable
            | Command::WriteLog
            | Command::DataSetManagement
            | Command::FlushCache
            | Command::SetMax
            | Command::SetMaxAddressExtended
            | Command::DeviceConfiguration
            | Command::SecuritySetPassword
            | Command::SecurityFreezeLock
            | Command::SecurityDisablePassword
            | Command::CompactFlash(CompactFlash::EraseSectors)
    )
}
