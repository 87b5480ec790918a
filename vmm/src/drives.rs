//! The drives of a machine: what stands between an image and the IDE controller, from one boot to the next.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use devices::chipset::{CdRomConfig, DriveConfig, Plugged};
use devices::ide::cd_rom_handle::Medium;
use disk::{Disk, Engine, Format, ThrottledDisk};

use crate::cli::cd_rom_argument::CdRomArgument;
use crate::cli::disk_argument::{DiskArgument, Slot};
use crate::in_flight::Counted;
use crate::metrics::{DiskMetrics, Metrics};

/// What is plugged in: hda to hdd.
#[derive(Default)]
pub struct Drives([Option<Drive>; Slot::COUNT]);

/// One drive.
pub enum Drive {
    /// A disk.
    Disk(DiskDrive),
    /// A CD-ROM drive.
    CdRom(CdRomDrive),
}

/// A disk, and the layers in front of its image.
pub struct DiskDrive {
    /// The image file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// The image, as the engine knows it.
    pub image: Arc<dyn Disk>,
    /// Limits how fast it is.
    pub throttle: Arc<ThrottledDisk>,
    counted: Arc<Counted>,
    /// The same in every boot, for what a drive keeps without power.
    config: DriveConfig,
}

/// A CD-ROM drive, and what lies in it.
pub struct CdRomDrive {
    slot: Slot,
    argument: CdRomArgument,
    metrics: Arc<DiskMetrics>,
    loaded: RefCell<Option<Loaded>>,
    /// Discs that were taken out, as long as something of theirs is in flight.
    earlier: RefCell<Vec<Arc<Counted>>>,
}

struct Loaded {
    path: PathBuf,
    counted: Arc<Counted>,
    medium: Medium,
}

impl Drives {
    /// Opens the images.
    pub fn open(
        disks: &[Option<&DiskArgument>; Slot::COUNT],
        cd_rom: Option<&CdRomArgument>,
        engine: &Engine,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
        let mut drives = Self::default();
        for (index, (drive, argument)) in drives.0.iter_mut().zip(disks).enumerate() {
            if let Some(argument) = argument {
                *drive = Some(Drive::Disk(DiskDrive::open(argument, index, engine, metrics)?));
            }
        }
        if let Some(argument) = cd_rom {
            let drive = CdRomDrive {
                slot: argument.slot,
                argument: argument.clone(),
                metrics: metrics.disk(argument.slot.name()),
                loaded: RefCell::default(),
                earlier: RefCell::default(),
            };
            if let Some(path) = &argument.path {
                drive.load(path, engine)?;
            }
            drives.0[argument.slot.index()] = Some(Drive::CdRom(drive));
        }
        Ok(drives)
    }

    /// The drive in the slot of this name.
    pub fn find(&self, name: &str) -> Option<&Drive> {
        let index = Slot::NAMES.iter().position(|slot| *slot == name)?;
        self.0[index].as_ref()
    }

    /// All drives, with the names of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Drive)> {
        let named = Slot::NAMES.into_iter().zip(&self.0);
        named.filter_map(|(name, drive)| Some((name, drive.as_ref()?)))
    }

    /// Whether nothing is in flight.
    pub fn are_idle(&self) -> bool {
        self.iter().all(|(_, drive)| match drive {
            Drive::Disk(disk) => disk.counted.is_idle(),
            Drive::CdRom(drive) => drive.is_idle(),
        })
    }

    /// What the chipset is built with.
    pub fn plugged(&self) -> [Option<Plugged>; Slot::COUNT] {
        self.0.each_ref().map(|drive| {
            Some(match drive.as_ref()? {
                Drive::Disk(disk) => Plugged::Disk(disk.config.clone()),
                Drive::CdRom(drive) => {
                    let loaded = drive.loaded.borrow();
                    let medium = loaded.as_ref().map(|loaded| loaded.medium.clone());
                    Plugged::CdRom(CdRomConfig::new(medium, drive.slot.index()))
                }
            })
        })
    }
}

impl DiskDrive {
    fn open(argument: &DiskArgument, index: usize, engine: &Engine, metrics: &Metrics) -> anyhow::Result<Self> {
        let image = engine.open(&argument.open_options())?;
        let throttle = argument.decorated(image.clone())?;
        let counted = Arc::new(Counted::new(throttle.clone(), metrics.disk(Slot::NAMES[index])));
        let mut config = DriveConfig {
            error_policy: argument.errors,
            ..DriveConfig::new(counted.clone(), index)
        };
        argument.drive.apply(&mut config);
        Ok(Self {
            path: argument.path.clone(),
            format: argument.format,
            image,
            throttle,
            counted,
            config,
        })
    }
}

impl CdRomDrive {
    /// Puts the disc whose image is at `path` in place of the one that was there, and returns it for the drive. The image of
    /// the other stays open until the engine closes: something of it may be in flight.
    pub fn load(&self, path: &Path, engine: &Engine) -> anyhow::Result<Medium> {
        let disk = self
            .argument
            .decorated(engine.open(&CdRomArgument::open_options(path))?);
        let counted = Arc::new(Counted::new(disk, self.metrics.clone()));
        let medium =
            Medium::new(counted.clone()).with_context(|| format!("{} is no image of a disc", path.display()))?;
        self.unload();
        *self.loaded.borrow_mut() = Some(Loaded {
            path: path.to_owned(),
            counted,
            medium: medium.clone(),
        });
        Ok(medium)
    }

    /// The disc is gone.
    pub fn unload(&self) {
        let mut earlier = self.earlier.borrow_mut();
        earlier.retain(|counted| !counted.is_idle());
        earlier.extend(self.loaded.take().map(|loaded| loaded.counted));
    }

    /// The image of the disc in the drive, and its size in bytes.
    pub fn medium(&self) -> Option<(PathBuf, u64)> {
        let loaded = self.loaded.borrow();
        loaded
            .as_ref()
            .map(|loaded| (loaded.path.clone(), loaded.counted.capacity()))
    }

    fn is_idle(&self) -> bool {
        let loaded = self.loaded.borrow();
        loaded.as_ref().is_none_or(|loaded| loaded.counted.is_idle())
            && self.earlier.borrow().iter().all(|counted| counted.is_idle())
    }
}
