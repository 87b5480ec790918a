//! The host's hand on a CD-ROM drive: media in and out while the machine runs.

use std::sync::Arc;

use super::atapi::CdRom;
pub use super::atapi::{ButtonOutcome, EjectOutcome, Medium, MediumError, TrayLocked, TrayObserver, TrayState};
use super::channel::Channel;

/// A CD-ROM drive, from outside the machine. Usable on any thread.
#[derive(Clone)]
pub struct CdRomHandle {
    channel: Arc<Channel>,
    index: usize,
}

impl CdRomHandle {
    /// The drive `index` (0 or 1) of a channel, if it is a CD-ROM drive.
    pub(crate) fn of(channel: &Arc<Channel>, index: usize) -> Option<Self> {
        channel.with_cd_rom(index, |_| Self {
            channel: channel.clone(),
            index,
        })
    }

    /// Puts a medium into the tray, in place of what lay there, and closes it. The guest learns of it by a unit attention
    /// and by an event.
    ///
    /// # Errors
    /// If the guest has locked the tray.
    pub fn insert(&self, medium: Medium) -> Result<(), TrayLocked> {
        self.with(|drive| drive.insert(medium)).unwrap_or(Ok(()))
    }

    /// Presses the eject button: the tray opens, or a guest that has locked it is asked to open it.
    pub fn request_eject(&self) -> EjectOutcome {
        self.with(CdRom::request_eject).unwrap_or(EjectOutcome::Open)
    }

    /// Presses the button of the drive: as [`CdRomHandle::request_eject`], but an open tray closes, over the medium that
    /// lies in it.
    pub fn press_button(&self) -> ButtonOutcome {
        self.with(CdRom::press_button).unwrap_or(ButtonOutcome::Opened)
    }

    /// How the tray is.
    pub fn state(&self) -> TrayState {
        self.with(|drive| drive.tray_state()).unwrap_or(TrayState {
            open: true,
            locked: false,
            occupied: false,
        })
    }

    /// Calls `observer` from now on whenever the tray opens or closes, in place of an earlier one.
    pub fn observe(&self, observer: TrayObserver) {
        self.with(|drive| drive.observe_tray(observer));
    }

    /// Opens the tray although the guest has locked it, and takes the medium out. What reads it then fails.
    pub fn force_out(&self) {
        self.with(CdRom::force_out);
    }

    fn with<T>(&self, act: impl FnOnce(&mut CdRom) -> T) -> Option<T> {
        self.channel.with_cd_rom(self.index, act)
    }
}
