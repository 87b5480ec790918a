//! `--cdrom [PATH][,slot=hda..hdd][,inject=...]`

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use disk::{Disk, Format, InjectingDisk, Injection, InjectionError, OpenOptions};

use super::disk_argument::{Slot, parse_slot, split_fields};

/// `--cdrom`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CdRomArgument {
    /// The image of the disc in the drive; none leaves the drive empty.
    pub path: Option<PathBuf>,
    /// Where the drive is plugged in.
    pub slot: Slot,
    /// What fails, or takes longer.
    pub injections: Vec<Injection>,
}

/// A `--cdrom` that does not read as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CdRomArgumentError {
    /// No such option.
    #[error("unknown option \"{0}\"; there are slot=hda..hdd and inject= (a comma in the path is written twice)")]
    UnknownOption(String),
    /// Said before.
    #[error("\"slot\" is said twice")]
    SlotTwice,
    /// A slot that is not there.
    #[error("there is no slot \"{0}\"; say hda, hdb, hdc or hdd")]
    Slot(String),
    /// An injection that is none.
    #[error("{0}")]
    Injection(InjectionError),
}

impl FromStr for CdRomArgument {
    type Err = CdRomArgumentError;

    fn from_str(text: &str) -> Result<Self, CdRomArgumentError> {
        let mut fields = split_fields(text).into_iter();
        let path = fields.next().filter(|path| !path.is_empty()).map(PathBuf::from);
        let (mut slot, mut injections) = (None, Vec::new());
        for field in fields {
            match field.split_once('=') {
                Some(("slot", value)) => {
                    let found = parse_slot(value).map_err(|_| CdRomArgumentError::Slot(value.to_owned()))?;
                    if slot.replace(found).is_some() {
                        return Err(CdRomArgumentError::SlotTwice);
                    }
                }
                Some(("inject", value)) => injections.push(value.parse().map_err(CdRomArgumentError::Injection)?),
                _ => return Err(CdRomArgumentError::UnknownOption(field)),
            }
        }
        Ok(Self {
            path,
            slot: slot.unwrap_or(Slot::OF_CD_ROM),
            injections,
        })
    }
}

impl CdRomArgument {
    /// How to open the image of a disc: it is raw, and not written to.
    pub fn open_options(path: &Path) -> OpenOptions {
        OpenOptions {
            read_only: true,
            ..OpenOptions::new(path, Format::Raw)
        }
    }

    /// The disk behind what makes it fail, if anything does.
    pub fn decorated(&self, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        if self.injections.is_empty() {
            return disk;
        }
        Arc::new(InjectingDisk::new(disk, &self.injections))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cd_rom(text: &str) -> CdRomArgument {
        text.parse().expect("a CD-ROM")
    }

    #[test]
    fn the_drive_is_hdc_and_may_be_empty() {
        let plain = cd_rom("a,,b.iso");
        assert_eq!((plain.path, plain.slot.name()), (Some("a,b.iso".into()), "hdc"));
        let empty = cd_rom(",slot=hdb");
        assert_eq!((empty.path, empty.slot.name()), (None, "hdb"));
        assert_eq!(cd_rom("").path, None);
        assert_eq!(cd_rom("a,inject=read:eio").injections.len(), 1);
    }

    #[test]
    fn bad_options_are_named() {
        for (text, expected) in [
            ("a,format=raw", "unknown option \"format=raw\""),
            ("a,", "unknown option \"\""),
            ("a,slot=sr0", "there is no slot \"sr0\""),
            ("a,slot=hda,slot=hda", "\"slot\" is said twice"),
            ("a,inject=x", "inject="),
        ] {
            let message = text.parse::<CdRomArgument>().expect_err(text).to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
