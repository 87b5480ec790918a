//! The state of a channel and its drives, as it is saved and restored.

use serde::{Deserialize, Serialize};

use super::{Channel, DeviceControl, State};
use crate::ide::bus_master::BusMaster;
use crate::ide::drive::{Drive, DriveStateError, SavedDrive, Step};

/// One channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::ide) struct SavedChannel {
    drives: [Option<SavedDrive>; 2],
    second_selected: bool,
    control: DeviceControl,
    bus_master: BusMaster,
}

/// A state that a channel cannot take on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelStateError {
    /// The drives are others.
    #[error("Drive {slot} is {found} in the saved state, and {expected} in this machine")]
    OtherDrives {
        /// `hda` to `hdd`.
        slot: &'static str,
        /// What was saved.
        found: &'static str,
        /// What is there.
        expected: &'static str,
    },
    /// A drive's state.
    #[error("Drive {slot}: {source}")]
    Drive {
        /// `hda` to `hdd`.
        slot: &'static str,
        /// What is wrong with it.
        source: DriveStateError,
    },
}

impl Channel {
    /// The state now. Requests at the disks are part of it.
    pub(in crate::ide) fn save(&self) -> SavedChannel {
        let state = self.lock();
        SavedChannel {
            drives: state.drives.each_ref().map(|drive| drive.as_ref().map(Drive::save)),
            second_selected: state.selected == 1,
            control: state.control,
            bus_master: state.bus_master,
        }
    }

    /// Takes on a saved state, and makes the requests again that were at the disks. The drives are new.
    pub(in crate::ide) fn restore(&self, saved: SavedChannel) -> Result<(), ChannelStateError> {
        let mut state = self.lock();
        let mut steps: [Step; 2] = [None, None];
        let State { drives, memory, .. } = &mut *state;
        for (index, (drive, saved)) in drives.iter_mut().zip(saved.drives).enumerate() {
            let slot = self.slots[index];
            let (found, expected) = (
                saved.as_ref().map_or("absent", SavedDrive::kind),
                drive.as_ref().map_or("absent", Drive::kind),
            );
            if found != expected {
                return Err(ChannelStateError::OtherDrives { slot, found, expected });
            }
            if let (Some(drive), Some(saved)) = (drive, saved) {
                steps[index] = drive
                    .restore(saved, memory)
                    .map_err(|source| ChannelStateError::Drive { slot, source })?;
            }
        }
        state.selected = usize::from(saved.second_selected);
        state.control = saved.control;
        state.bus_master = saved.bus_master;
        // A line that was high is no news to the bus master.
        let high = state.level().then(|| state.line().clone());
        if let Some(line) = &high {
            line.raise();
            state.asserted = true;
        }
        for (index, step) in steps.into_iter().enumerate() {
            self.submit(&mut state, index, step);
        }
        self.follow(state, 0, None);
        if let Some(line) = high {
            line.deliver();
        }
        Ok(())
    }
}
