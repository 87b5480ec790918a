//! `--disk PATH[,format=qcow2|raw][,slot=hda..hdd][,readonly][,root][,cache=...][,discard=...][,detect-zeroes=...]
//! [,cache-size=...][,bps=...][,iops=...][,inject=...]`

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use devices::ide::error_policy::{ErrorPolicy, ErrorPolicyError};
use disk::{
    CacheMode, CacheSize, CacheSizeError, DetectZeroes, Discard, Disk, Format, InjectingDisk, Injection,
    InjectionError, LimitError, Limits, OpenOptions, OptionError, ThrottledDisk,
};

use super::drive_options::{DriveOptionError, DriveOptions};

/// Where an IDE drive is plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(usize);

impl Slot {
    /// How many there are.
    pub const COUNT: usize = 4;

    /// hdc, the secondary master: where a CD-ROM drive is, if nobody says otherwise.
    pub const OF_CD_ROM: Self = Self(2);

    /// In the order of the chipset: primary master and slave, secondary master and slave.
    pub const NAMES: [&str; Slot::COUNT] = ["hda", "hdb", "hdc", "hdd"];

    /// 0 is hda.
    pub fn index(self) -> usize {
        self.0
    }

    /// `hda` to `hdd`.
    pub fn name(self) -> &'static str {
        Slot::NAMES[self.0]
    }
}

/// One `--disk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskArgument {
    /// The image file.
    pub path: PathBuf,
    /// Its format; never guessed.
    pub format: Format,
    /// Where it is plugged in, if the user said so.
    pub slot: Option<Slot>,
    /// The guest cannot write.
    pub read_only: bool,
    /// The kernel is told to mount it as its root.
    pub root: bool,
    /// When writes reach the host's disk.
    pub cache: CacheMode,
    /// What becomes of the guest's discards.
    pub discard: Discard,
    /// Whether writes of zeros are stored as such.
    pub detect_zeroes: DetectZeroes,
    /// The size of the metadata cache, if the user said so.
    pub cache_size: Option<CacheSize>,
    /// What becomes of a request that the host fails.
    pub errors: ErrorPolicy,
    /// How fast it may be.
    pub limits: Limits,
    /// What drive the guest sees.
    pub drive: DriveOptions,
    /// Where it fails or dawdles, for tests of a guest.
    pub injections: Vec<Injection>,
}

/// A `--disk` that does not read as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskArgumentError {
    /// There is no path.
    #[error("the path is missing")]
    NoPath,
    /// No such option.
    #[error(
        "unknown option \"{0}\"; there are format=qcow2|raw, slot=hda..hdd, readonly, root, cache=, discard=, detect-zeroes=, cache-size=, werror=, rerror=, bps=, iops=, serial=, model=, firmware=, wwn=, drive=disk|cf and inject= (a comma in the path is written twice)"
    )]
    UnknownOption(String),
    /// An option that was said before.
    #[error("\"{0}\" is said twice")]
    Twice(String),
    /// A format that is not known.
    #[error("format \"{0}\" is not known; say qcow2 or raw")]
    Format(String),
    /// A value that an option does not have.
    #[error("{0}")]
    Value(OptionError),
    /// A size that a metadata cache cannot have.
    #[error("{0}")]
    CacheSize(CacheSizeError),
    /// An error policy that is not known.
    #[error("{0}")]
    ErrorPolicy(ErrorPolicyError),
    /// A speed limit that cannot be.
    #[error("{0}")]
    Limit(LimitError),
    /// An injection that is not understood.
    #[error("{0}")]
    Injection(InjectionError),
    /// A drive that cannot be.
    #[error("{0}")]
    Drive(#[from] DriveOptionError),
    /// A slot that is not there.
    #[error("there is no slot \"{0}\"; say hda, hdb, hdc or hdd")]
    Slot(String),
}

impl From<OptionError> for DiskArgumentError {
    fn from(error: OptionError) -> Self {
        DiskArgumentError::Value(error)
    }
}

impl From<CacheSizeError> for DiskArgumentError {
    fn from(error: CacheSizeError) -> Self {
        DiskArgumentError::CacheSize(error)
    }
}

impl From<ErrorPolicyError> for DiskArgumentError {
    fn from(error: ErrorPolicyError) -> Self {
        DiskArgumentError::ErrorPolicy(error)
    }
}

impl From<LimitError> for DiskArgumentError {
    fn from(error: LimitError) -> Self {
        DiskArgumentError::Limit(error)
    }
}

impl From<InjectionError> for DiskArgumentError {
    fn from(error: InjectionError) -> Self {
        DiskArgumentError::Injection(error)
    }
}

impl FromStr for DiskArgument {
    type Err = DiskArgumentError;

    fn from_str(text: &str) -> Result<Self, DiskArgumentError> {
        let mut fields = split_fields(text).into_iter();
        let path = fields.next().unwrap_or_default();
        if path.is_empty() {
            return Err(DiskArgumentError::NoPath);
        }
        let mut format = None;
        let mut slot = None;
        let mut read_only = None;
        let mut root = None;
        let (mut cache, mut discard, mut detect_zeroes, mut cache_size) = (None, None, None, None);
        let (mut write_errors, mut read_errors) = (None, None);
        let mut limits = Limits::default();
        let mut drive = DriveOptions::default();
        let mut limited = BTreeSet::new();
        let mut injections = Vec::new();
        for field in fields {
            let (name, value) = match field.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (field.as_str(), None),
            };
            match (name, value) {
                ("format", Some(value)) => set(&mut format, "format", parse_format(value)?)?,
                ("slot", Some(value)) => set(&mut slot, "slot", parse_slot(value)?)?,
                ("cache", Some(value)) => set(&mut cache, "cache", value.parse()?)?,
                ("discard", Some(value)) => set(&mut discard, "discard", value.parse()?)?,
                ("detect-zeroes", Some(value)) => set(&mut detect_zeroes, "detect-zeroes", value.parse()?)?,
                ("cache-size", Some(value)) => set(&mut cache_size, "cache-size", value.parse()?)?,
                ("werror", Some(value)) => set(&mut write_errors, "werror", value.parse()?)?,
                ("rerror", Some(value)) => set(&mut read_errors, "rerror", value.parse()?)?,
                ("readonly", None) => set(&mut read_only, "readonly", true)?,
                ("root", None) => set(&mut root, "root", true)?,
                ("inject", Some(value)) => injections.push(value.parse()?),
                (name, Some(value)) if limits.set(name, value)? || drive.set(name, value)? => {
                    if !limited.insert(name.to_owned()) {
                        return Err(DiskArgumentError::Twice(name.to_owned()));
                    }
                }
                _ => return Err(DiskArgumentError::UnknownOption(field)),
            }
        }
        limits.check()?;
        Ok(Self {
            path: path.into(),
            format: format.unwrap_or(Format::Qcow2),
            slot,
            read_only: read_only.unwrap_or(false),
            root: root.unwrap_or(false),
            cache: cache.unwrap_or_default(),
            discard: discard.unwrap_or_default(),
            detect_zeroes: detect_zeroes.unwrap_or_default(),
            cache_size,
            errors: ErrorPolicy {
                write: write_errors.unwrap_or_default(),
                read: read_errors.unwrap_or_default(),
            },
            limits,
            drive,
            injections,
        })
    }
}

impl DiskArgument {
    /// How to open the image.
    pub fn open_options(&self) -> OpenOptions {
        OpenOptions {
            read_only: self.read_only,
            cache: self.cache,
            discard: self.discard,
            detect_zeroes: self.detect_zeroes,
            cache_size: self.cache_size,
            ..OpenOptions::new(&self.path, self.format)
        }
    }

    /// The disk behind what makes it fail, if anything does, and what slows it down.
    pub fn decorated(&self, mut disk: Arc<dyn Disk>) -> Result<Arc<ThrottledDisk>, LimitError> {
        if !self.injections.is_empty() {
            disk = Arc::new(InjectingDisk::new(disk, &self.injections));
        }
        Ok(Arc::new(ThrottledDisk::new(disk, &self.limits)?))
    }
}

/// Splits at single commas; a double comma is a comma.
pub(super) fn split_fields(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            fields.push(String::new());
        } else if let Some(field) = fields.last_mut() {
            field.push(character);
        }
    }
    fields
}

fn set<T>(option: &mut Option<T>, name: &'static str, value: T) -> Result<(), DiskArgumentError> {
    match option.replace(value) {
        Some(_) => Err(DiskArgumentError::Twice(name.to_owned())),
        None => Ok(()),
    }
}

fn parse_format(text: &str) -> Result<Format, DiskArgumentError> {
    match text {
        "qcow2" => Ok(Format::Qcow2),
        "raw" => Ok(Format::Raw),
        _ => Err(DiskArgumentError::Format(text.to_owned())),
    }
}

pub(super) fn parse_slot(text: &str) -> Result<Slot, DiskArgumentError> {
    Slot::NAMES
        .iter()
        .position(|name| *name == text)
        .map(Slot)
        .ok_or_else(|| DiskArgumentError::Slot(text.to_owned()))
}

/// Disks that cannot be plugged in together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotsError {
    /// Two disks for one slot.
    #[error("two disks are for slot {0}")]
    Taken(&'static str),
    /// A disk where the CD-ROM drive is.
    #[error("slot {0} is the CD-ROM drive's; say slot= with --cdrom to have it elsewhere")]
    CdRom(&'static str),
    /// More disks than slots.
    #[error("there are {0} disks, and an IDE controller takes {max}", max = Slot::COUNT)]
    TooMany(usize),
    /// No slot is left for a disk beside the CD-ROM drive.
    #[error("there are {0} disks and a CD-ROM drive, and an IDE controller takes {max} drives", max = Slot::COUNT)]
    TooManyWithCdRom(usize),
    /// Two root disks.
    #[error("two disks are marked as the root disk")]
    TwoRoots,
}

/// Plugs the disks in: first those with a slot of their own, then the others into the first free slots in order. The slot of
/// the CD-ROM drive stays free of disks.
pub fn assign_slots(
    disks: &[DiskArgument],
    cd_rom: Option<Slot>,
) -> Result<[Option<&DiskArgument>; Slot::COUNT], SlotsError> {
    if disks.len() > Slot::COUNT {
        return Err(SlotsError::TooMany(disks.len()));
    }
    if let Some(taken) = disks
        .iter()
        .find_map(|disk| disk.slot.filter(|slot| Some(*slot) == cd_rom))
    {
        return Err(SlotsError::CdRom(taken.name()));
    }
    if cd_rom.is_some() && disks.len() == Slot::COUNT {
        return Err(SlotsError::TooManyWithCdRom(disks.len()));
    }
    if disks.iter().filter(|disk| disk.root).count() > 1 {
        return Err(SlotsError::TwoRoots);
    }
    let mut slots = [None; Slot::COUNT];
    for disk in disks {
        if let Some(slot) = disk.slot
            && slots[slot.index()].replace(disk).is_some()
        {
            return Err(SlotsError::Taken(slot.name()));
        }
    }
    let unplaced = disks.iter().filter(|disk| disk.slot.is_none());
    let free = slots
        .iter_mut()
        .enumerate()
        .filter(|(index, slot)| slot.is_none() && cd_rom.is_none_or(|cd_rom| cd_rom.index() != *index));
    for ((_, slot), disk) in free.zip(unplaced) {
        *slot = Some(disk);
    }
    Ok(slots)
}

/// The name that Linux gives to the root disk, and whether it is writable: `/dev/sda` is the first disk that is there.
pub fn root_device(slots: &[Option<&DiskArgument>; Slot::COUNT]) -> Option<(&'static str, bool)> {
    const NAMES: [&str; Slot::COUNT] = ["/dev/sda", "/dev/sdb", "/dev/sdc", "/dev/sdd"];
    NAMES
        .into_iter()
        .zip(slots.iter().flatten())
        .find(|(_, disk)| disk.root)
        .map(|(name, disk)| (name, !disk.read_only))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(text: &str) -> DiskArgument {
        text.parse().expect("a disk")
    }

    #[test]
    fn options_are_read_and_qcow2_is_the_default() {
        let plain = disk("a.qcow2");
        assert_eq!(
            (plain.format, plain.slot, plain.read_only, plain.root),
            (Format::Qcow2, None, false, false)
        );
        let full = disk("/d,,i/r.img,root,slot=hdc,format=raw,readonly");
        assert_eq!(full.path, PathBuf::from("/d,i/r.img"));
        assert_eq!(
            (full.format, full.slot, full.read_only, full.root),
            (Format::Raw, Some(Slot(2)), true, true)
        );
    }

    #[test]
    fn bad_options_are_named() {
        let cases = [
            ("", "the path is missing"),
            (",root", "the path is missing"),
            ("a,b", "unknown option \"b\""),
            ("a,root=1", "unknown option \"root=1\""),
            ("a,", "unknown option \"\""),
            ("a,root,root", "\"root\" is said twice"),
            ("a,format=vmdk", "format \"vmdk\" is not known"),
            ("a,cache-size=1K", "cache-size=1K is not a size"),
            ("a,slot=sda", "there is no slot \"sda\""),
            ("a,bps=1,bps=2", "\"bps\" is said twice"),
            ("a,bps=x", "bps=x is not a number"),
            ("a,iops_max=5", "iops_max=5 must not be below iops=0"),
            ("a,inject=read", "inject=read: "),
        ];
        for (text, expected) in cases {
            let message = text.parse::<DiskArgument>().expect_err(text).to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    #[test]
    fn disks_without_a_slot_fill_the_gaps() {
        let disks = [disk("a"), disk("b,slot=hda"), disk("c,slot=hdc,root")];
        let slots = assign_slots(&disks, None).expect("three slots");
        let paths = slots.map(|slot| slot.map(|disk| disk.path.to_str().expect("text").to_owned()));
        assert_eq!(paths, [Some("b".into()), Some("a".into()), Some("c".into()), None]);
        assert_eq!(root_device(&slots), Some(("/dev/sdc", true)));
    }

    #[test]
    fn disks_that_do_not_fit_together_are_refused() {
        let same = [disk("a,slot=hdb"), disk("b,slot=hdb")];
        assert_eq!(assign_slots(&same, None), Err(SlotsError::Taken("hdb")));
        let five: Vec<DiskArgument> = ["a", "b", "c", "d", "e"].map(disk).into();
        assert_eq!(assign_slots(&five, None), Err(SlotsError::TooMany(5)));
        let roots = [disk("a,root"), disk("b,root")];
        assert_eq!(assign_slots(&roots, None), Err(SlotsError::TwoRoots));
    }

    #[test]
    fn the_cd_rom_drive_keeps_its_slot() {
        let three = [disk("a"), disk("b"), disk("c")];
        let slots = assign_slots(&three, Some(Slot(2))).expect("a slot for each");
        let paths = slots.map(|slot| slot.map(|disk| disk.path.to_str().expect("text").to_owned()));
        assert_eq!(paths, [Some("a".into()), Some("b".into()), None, Some("c".into())]);
        let there = [disk("a,slot=hdc")];
        assert_eq!(assign_slots(&there, Some(Slot(2))), Err(SlotsError::CdRom("hdc")));
        let four: Vec<DiskArgument> = ["a", "b", "c", "d"].map(disk).into();
        assert_eq!(assign_slots(&four, Some(Slot(2))), Err(SlotsError::TooManyWithCdRom(4)));
    }

    #[test]
    fn the_root_device_counts_only_disks_that_are_there() {
        let disks = [disk("a,slot=hdd,root,readonly")];
        assert_eq!(
            root_device(&assign_slots(&disks, None).expect("a slot")),
            Some(("/dev/sda", false))
        );
    }
}
