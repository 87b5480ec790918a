//! The tray and the medium in it: what the guest and the host do with them, and what each learns of the other.

use std::sync::Arc;

use disk::Disk;
use serde::{Deserialize, Serialize};

use super::sense::Sense;

/// Bytes of a block of a CD-ROM or DVD.
pub(super) const BLOCK: usize = 2048;

/// The most blocks that a CD has: 80 minutes of 75 blocks a second. What is larger is a DVD.
const CD_BLOCKS: u32 = 80 * 60 * 75;

/// Something that cannot be put into a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediumError {
    /// Not whole blocks, or none.
    #[error("{bytes} bytes are not one or more whole blocks of 2048 bytes, as the image of a CD-ROM has")]
    NotBlocks {
        /// The size of the image in bytes.
        bytes: u64,
    },
    /// More blocks than 32 bits count.
    #[error("{bytes} bytes are more than the {most} blocks of 2048 bytes that packet commands address", most = u32::MAX)]
    TooLarge {
        /// The size of the image in bytes.
        bytes: u64,
    },
}

/// What lies in a tray: a disc with one session of one data track.
#[derive(Clone)]
pub struct Medium {
    disk: Arc<dyn Disk>,
    blocks: u32,
}

impl Medium {
    /// A disc that holds what `disk` does, byte for byte.
    ///
    /// # Errors
    /// If that is not a number of whole blocks of 2048 bytes, from one to 2^32 - 1.
    pub fn new(disk: Arc<dyn Disk>) -> Result<Self, MediumError> {
        let bytes = disk.capacity();
        if bytes == 0 || !bytes.is_multiple_of(BLOCK as u64) {
            return Err(MediumError::NotBlocks { bytes });
        }
        let blocks = u32::try_from(bytes / BLOCK as u64).map_err(|_| MediumError::TooLarge { bytes })?;
        Ok(Self { disk, blocks })
    }

    /// The same medium, read through another disk: one that `wrap` puts in front of this one, with the same content.
    #[must_use]
    pub fn wrapped(self, wrap: impl FnOnce(Arc<dyn Disk>) -> Arc<dyn Disk>) -> Self {
        Self {
            disk: wrap(self.disk),
            ..self
        }
    }

    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// How many blocks it has: at least one.
    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Whether it is a DVD and not a CD.
    pub(super) fn is_dvd(&self) -> bool {
        self.blocks > CD_BLOCKS
    }

    /// Refuses a range that does not lie on the medium.
    pub(super) fn check(&self, block: u32, blocks: u32) -> Result<(), Sense> {
        if u64::from(block) + u64::from(blocks) > u64::from(self.blocks) {
            return Err(Sense::OUT_OF_RANGE);
        }
        Ok(())
    }
}

/// What GET EVENT STATUS NOTIFICATION tells of the medium (MMC-5, table 292).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum MediaEvent {
    /// Somebody pressed the eject button of a locked drive.
    EjectRequest = 1,
    /// A medium is there now.
    NewMedia = 2,
    /// The tray opened, or the medium went.
    MediaRemoval = 3,
}

/// How a tray is, as seen from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrayState {
    /// It is open.
    pub open: bool,
    /// The guest has locked it.
    pub locked: bool,
    /// There is a medium in it, be it open or closed.
    pub occupied: bool,
}

/// Is told whenever the tray opens (`true`) or closes, whoever moves it. Called with the channel's lock held, on the
/// thread of whoever moves it: it may signal whom it likes, but not call the drive.
pub type TrayObserver = Box<dyn Fn(bool) + Send + Sync>;

/// The tray.
pub(super) struct Tray {
    medium: Option<Medium>,
    open: bool,
    /// PREVENT ALLOW MEDIUM REMOVAL.
    locked: bool,
    event: Option<MediaEvent>,
    /// The guest was not told yet that the medium may be another one.
    changed: bool,
    /// Counts the times that a medium went or came.
    generation: u64,
    observer: Option<TrayObserver>,
}

/// The tray as it is saved. The medium itself is the host's.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct SavedTray {
    /// Blocks of the medium that lies in it.
    blocks: Option<u32>,
    open: bool,
    locked: bool,
    event: Option<MediaEvent>,
    changed: bool,
    generation: u64,
}

impl Tray {
    /// The state now.
    pub(super) fn save(&self) -> SavedTray {
        SavedTray {
            blocks: self.medium.as_ref().map(Medium::blocks),
            open: self.open,
            locked: self.locked,
            event: self.event,
            changed: self.changed,
            generation: self.generation,
        }
    }

    /// Takes on a saved state. If another medium lies in the tray now, or none, the guest is told that it has changed.
    pub(super) fn restore(&mut self, saved: SavedTray) {
        self.open = saved.open;
        self.locked = saved.locked;
        self.event = saved.event;
        self.changed = saved.changed;
        // Far from the end of the numbers, whatever was saved.
        self.generation = saved.generation.min(u64::MAX / 2);
        if self.medium.as_ref().map(Medium::blocks) != saved.blocks {
            self.generation += 1;
            self.changed = self.medium.is_some();
            self.event = Some(if self.medium.is_some() {
                MediaEvent::NewMedia
            } else {
                MediaEvent::MediaRemoval
            });
        }
    }
}

/// The host cannot change the medium: the guest has locked the tray. [`EjectOutcome::Requested`] is the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("The guest has locked the tray")]
pub struct TrayLocked;

/// What became of the host's wish to open the tray.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EjectOutcome {
    /// The tray is open.
    Open,
    /// The guest has locked it, and was asked to open it: as if somebody had pressed the button of the drive.
    Requested,
}

/// What came of pressing the button of the drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ButtonOutcome {
    /// The tray was closed, and is open.
    Opened,
    /// The tray was open, and is closed.
    Closed,
    /// The guest has locked the tray, and was asked to open it.
    Requested,
}

/// What the host does, which moves the tray.
impl Tray {
    pub(super) fn new(medium: Option<Medium>) -> Self {
        Self {
            medium,
            open: false,
            locked: false,
            event: None,
            changed: false,
            generation: 0,
            observer: None,
        }
    }

    pub(super) fn state(&self) -> TrayState {
        TrayState {
            open: self.open,
            locked: self.locked,
            occupied: self.medium.is_some(),
        }
    }

    pub(super) fn observe(&mut self, observer: TrayObserver) {
        self.observer = Some(observer);
    }

    /// Puts a medium in, in place of what lay there, and closes the tray.
    pub(super) fn insert(&mut self, medium: Medium) -> Result<(), TrayLocked> {
        if self.locked && !self.open {
            return Err(TrayLocked);
        }
        self.medium = Some(medium);
        self.close();
        Ok(())
    }

    /// Presses the eject button.
    pub(super) fn request_eject(&mut self) -> EjectOutcome {
        if self.locked && !self.open {
            self.event = Some(MediaEvent::EjectRequest);
            return EjectOutcome::Requested;
        }
        self.open();
        EjectOutcome::Open
    }

    /// Presses the button of a tray that may be open: then it closes.
    pub(super) fn press_button(&mut self) -> ButtonOutcome {
        if self.open {
            self.close();
            return ButtonOutcome::Closed;
        }
        match self.request_eject() {
            EjectOutcome::Open => ButtonOutcome::Opened,
            EjectOutcome::Requested => ButtonOutcome::Requested,
        }
    }

    /// Takes the medium away, whatever the guest has locked: the pin in the hole of the front panel. The tray stays open.
    pub(super) fn force_out(&mut self) {
        self.open();
        self.medium = None;
    }
}

/// What the guest does.
impl Tray {
    /// The medium that can be read.
    pub(super) fn loaded(&self) -> Result<&Medium, Sense> {
        match &self.medium {
            _ if self.open => Err(Sense::TRAY_OPEN),
            Some(medium) => Ok(medium),
            None => Err(Sense::NO_MEDIUM),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    pub(super) fn is_locked(&self) -> bool {
        self.locked
    }

    pub(super) fn lock(&mut self, locked: bool) {
        self.locked = locked;
    }

    /// START STOP UNIT opens the tray.
    pub(super) fn eject(&mut self) -> Result<(), Sense> {
        if self.locked && !self.open {
            return Err(Sense::REMOVAL_PREVENTED);
        }
        self.open();
        Ok(())
    }

    /// START STOP UNIT closes the tray.
    pub(super) fn load(&mut self) {
        if self.open {
            self.close();
        }
    }

    /// What is new, which is then no longer new.
    pub(super) fn take_event(&mut self) -> Option<MediaEvent> {
        self.event.take()
    }

    /// Whether the medium may be another one since this was asked last.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Differs after the medium went or came.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    fn open(&mut self) {
        if !self.open {
            self.open = true;
            self.generation += 1;
            self.changed = false;
            self.event = Some(MediaEvent::MediaRemoval);
            self.tell(true);
        }
    }

    fn close(&mut self) {
        let was_open = std::mem::replace(&mut self.open, false);
        self.generation += 1;
        if self.medium.is_some() {
            self.changed = true;
            self.event = Some(MediaEvent::NewMedia);
        }
        if was_open {
            self.tell(false);
        }
    }

    fn tell(&self, open: bool) {
        if let Some(observer) = &self.observer {
            observer(open);
        }
    }
}
