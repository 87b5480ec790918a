//! The host's hand on a CD-ROM drive: media in and out while the machine runs.

use std::sync::Arc;

use disk::Disk;

use super::atapi::{CdRom, Medium};
pub use super::atapi::{EjectOutcome, MediumError, TrayLocked};
use super::channel::Channel;

/// Why a medium was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InsertError {
    /// It is none.
    #[error(transparent)]
    Medium(#[from] MediumError),
    /// The guest uses the one that is there.
    #[error(transparent)]
    Locked(#[from] TrayLocked),
}

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

    /// Puts a disc that holds what `disk` does into the tray, in place of what lay there, and closes it. The guest learns
    /// of it by a unit attention and by an event.
    pub fn insert(&self, disk: Arc<dyn Disk>) -> Result<(), InsertError> {
        let medium = Medium::new(disk)?;
        self.with(|drive| drive.insert(medium))
            .unwrap_or(Ok(()))
            .map_err(InsertError::from)
    }

    /// Presses the eject button: the tray opens, or a guest that has locked it is asked to open it.
    pub fn request_eject(&self) -> EjectOutcome {
        self.with(CdRom::request_eject).unwrap_or(EjectOutcome::Open)
    }

    /// Opens the tray although the guest has locked it, and takes the medium out. What reads it then fails.
    pub fn force_out(&self) {
        self.with(CdRom::force_out);
    }

    fn with<T>(&self, act: impl FnOnce(&mut CdRom) -> T) -> Option<T> {
        self.channel.with_cd_rom(self.index, act)
    }
}
