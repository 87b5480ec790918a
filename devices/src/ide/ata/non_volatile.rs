//! What a drive keeps without power.

use serde::{Deserialize, Serialize};

use super::logs::HostLogs;
use super::overlay::Overlay;
use super::protected_area::Limit;
use super::security::Passwords;
use super::smart::Record;
use super::uncorrectable::Uncorrectable;

/// Passwords, the host protected area, the device configuration, uncorrectable sectors, SMART's record and the host's logs
/// of one drive. A new drive has the default.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NonVolatile {
    pub(super) passwords: Passwords,
    pub(super) limit: Option<Limit>,
    pub(super) overlay: Overlay,
    pub(super) uncorrectable: Uncorrectable,
    pub(super) smart: Record,
    pub(super) host_logs: HostLogs,
}

impl NonVolatile {
    /// Whether a drive can have this.
    pub(super) fn is_sound(&self) -> bool {
        self.limit.is_none_or(Limit::is_sound)
            && self.overlay.is_sound()
            && self.uncorrectable.is_sound()
            && self.smart.is_sound()
            && self.host_logs.is_sound()
    }
}
