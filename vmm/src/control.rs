//! What the control socket can do with a machine that runs.

use std::path::Path;
use std::sync::Arc;

use devices::ide::cd_rom_handle::{CdRomHandle, EjectOutcome};
use disk::{Engine, Format, Limits};

use crate::announcer::Announcer;
use crate::drives::{CdRomDrive, DiskDrive, Drive, Drives};
use crate::exit_code::Ending;
use crate::power::PowerSwitch;
use crate::qmp::{BlockInfo, Event, Failure, Machine, MediumInfo, Status};
use crate::stops::Reason;
use crate::vm::RunningVm;

/// A machine in the hands of the control socket. Lives on the event loop's thread.
pub struct Control<'a> {
    /// Serves the disks.
    pub engine: &'a Engine,
    /// The machine.
    pub vm: &'a RunningVm,
    /// What ends it.
    pub power: &'a PowerSwitch,
    /// Its drives.
    pub drives: &'a Drives,
}

impl Control<'_> {
    fn disk(&self, device: &str) -> Result<&DiskDrive, Failure> {
        match self.drives.find(device) {
            Some(Drive::Disk(disk)) => Ok(disk),
            Some(Drive::CdRom(_)) => Err(Failure::new(format!("Device \"{device}\" is not a disk"))),
            None => Err(Failure::no_device(device)),
        }
    }

    fn cd_rom(&self, device: &str) -> Result<(&CdRomDrive, CdRomHandle), Failure> {
        let Some(drive) = self.drives.find(device) else {
            return Err(Failure::no_device(device));
        };
        match (drive, self.vm.cd_rom_named(device)) {
            (Drive::CdRom(drive), Some(handle)) => Ok((drive, handle)),
            _ => Err(Failure::new(format!("Device \"{device}\" is not removable"))),
        }
    }
}

impl Machine for Control<'_> {
    fn status(&self) -> Status {
        match self.vm.stops().reason() {
            None => Status::Running,
            Some(Reason::Asked) => Status::Paused,
            Some(Reason::Drive(_)) => Status::IoError,
        }
    }

    fn pause(&self) {
        if !self.vm.stops().is_paused() {
            self.vm.stops().pause(Reason::Asked);
            self.vm.report_pause();
        }
    }

    fn resume(&self) {
        self.vm.resume();
    }

    fn quit(&self) {
        self.power.end(Ending::Quit);
    }

    fn reset(&self) {
        // A machine that is paused has requests that wait: they are made again, and end before the next boot begins.
        self.vm.resume();
        self.power.end(Ending::Reset);
    }

    fn blocks(&self) -> Vec<BlockInfo> {
        let info = |(name, drive): (&'static str, &Drive)| match drive {
            Drive::Disk(disk) => BlockInfo {
                device: name.to_owned(),
                removable: false,
                locked: false,
                tray_open: None,
                inserted: Some(MediumInfo {
                    file: disk.path.display().to_string(),
                    format: match disk.format {
                        Format::Raw => "raw".to_owned(),
                        Format::Qcow2 => "qcow2".to_owned(),
                    },
                    read_only: disk.image.read_only(),
                    size: disk.image.capacity(),
                }),
            },
            Drive::CdRom(drive) => {
                let tray = self.vm.cd_rom_named(name).map(|handle| handle.state());
                BlockInfo {
                    device: name.to_owned(),
                    removable: true,
                    locked: tray.is_some_and(|tray| tray.locked),
                    tray_open: tray.map(|tray| tray.open),
                    inserted: drive.medium().map(|(path, size)| MediumInfo {
                        file: path.display().to_string(),
                        format: "raw".to_owned(),
                        read_only: true,
                        size,
                    }),
                }
            }
        };
        self.drives.iter().map(info).collect()
    }

    fn eject(&self, device: &str, force: bool) -> Result<(), Failure> {
        let (drive, handle) = self.cd_rom(device)?;
        if !force {
            ask_for_tray(device, &handle)?;
        }
        handle.force_out();
        drive.unload();
        Ok(())
    }

    fn change_medium(&self, device: &str, filename: &str, force: bool) -> Result<(), Failure> {
        let (drive, handle) = self.cd_rom(device)?;
        if handle.state().locked {
            if !force {
                ask_for_tray(device, &handle)?;
            }
            handle.force_out();
        }
        // What cannot be opened leaves the disc that is there where it is, unless it was forced out.
        let medium = drive
            .load(Path::new(filename), self.engine)
            .map_err(|error| Failure::new(format!("{error:#}")))?;
        let inserted = self.vm.insert_medium(&handle, medium);
        inserted.map_err(|error| Failure::new(error.to_string()))
    }

    fn resize(&self, device: &str, size: u64) -> Result<(), Failure> {
        let disk = self.disk(device)?;
        let resized = self.engine.resize(&disk.image, size, false);
        resized.map_err(|error| Failure::new(error.to_string()))
    }

    fn snapshot(&self, device: &str, name: &str) -> Result<(), Failure> {
        let disk = self.disk(device)?;
        let taken = self.engine.snapshot_create(&disk.image, name);
        taken.map(drop).map_err(|error| Failure::new(error.to_string()))
    }

    fn delete_snapshot(&self, device: &str, name: &str) -> Result<(), Failure> {
        let disk = self.disk(device)?;
        let deleted = self.engine.snapshot_delete(&disk.image, name);
        deleted.map_err(|error| Failure::new(error.to_string()))
    }

    fn limit(&self, device: &str, limits: Limits) -> Result<(), Failure> {
        Ok(self.disk(device)?.throttle.set_limits(&limits)?)
    }
}

/// Has the tray opened, as by its button.
fn ask_for_tray(device: &str, handle: &CdRomHandle) -> Result<(), Failure> {
    match handle.request_eject() {
        EjectOutcome::Open => Ok(()),
        EjectOutcome::Requested => Err(Failure::new(format!(
            "Device '{device}' is locked and force was not specified; the guest was asked to open the tray, try again"
        ))),
    }
}

/// Announces what the trays of a machine do.
pub fn observe_trays(vm: &RunningVm, drives: &Drives, announcer: &Arc<Announcer>) {
    for (name, drive) in drives.iter() {
        if let (Drive::CdRom(_), Some(handle)) = (drive, vm.cd_rom_named(name)) {
            let announcer = announcer.clone();
            handle.observe(Box::new(move |open| {
                announcer.announce(Event::TrayMoved {
                    device: name.to_owned(),
                    open,
                });
            }));
        }
    }
}
