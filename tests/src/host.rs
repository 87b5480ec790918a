//! A place with a full `/dev/kvm`: this machine, or the nested host.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_images::{Guest, Image, NestedHost, Store, dump_from_ext4, ext4_from_directory};

use crate::create_overlay;
use crate::nested::{Nested, NestedOptions};
use crate::run::{Outcome, Run, follow};
use crate::standing::StandingHost;
use crate::{direct, spindle};

/// Where a stock kernel runs under KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostKind {
    /// This machine has VMX or SVM and a `/dev/kvm` that we may open.
    Hardware,
    /// Linux inside QEMU's TCG.
    Nested,
}

impl HostKind {
    /// What this machine can do. `SPINDLE_HOST=nested` in the environment asks for the nested host in any case.
    pub fn detect() -> HostKind {
        if std::env::var_os("SPINDLE_HOST").is_some_and(|kind| kind == "nested") {
            return HostKind::Nested;
        }
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let virtualisation = cpu.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
        let usable = || fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
        if virtualisation && usable() {
            HostKind::Hardware
        } else {
            HostKind::Nested
        }
    }

    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            HostKind::Hardware => "hardware KVM of this machine",
            HostKind::Nested => {
                "the nested host (Linux with KVM inside QEMU's TCG; this machine's KVM cannot run a stock kernel)"
            }
        }
    }
}

/// A host with a work folder.
pub struct Host {
    kind: HostKind,
    folder: tempfile::TempDir,
    base: Option<Guest>,
    nested: Option<NestedHost>,
    /// Memory for guests, in MiB; the nested host gets that and its own.
    pub guest_memory: u32,
    /// CPUs of the nested host.
    pub cpus: u32,
}

/// What the nested host needs beside its guest's memory, in MiB: itself, its page cache, spindle.
const NESTED_OVERHEAD: u32 = 640;
/// The size of the nested host's work folder, in bytes. The file is sparse.
const SCRATCH_SIZE: u64 = 16 << 30;

impl Host {
    /// A host of the kind that this machine offers, with `spindle` and, as `base/`, the files of `guest` in its work folder.
    ///
    /// # Errors
    /// If the nested host is needed and cannot be built.
    pub fn new(store: &Store, spindle: &Path, guest: Option<&Guest>) -> Result<Host> {
        let kind = HostKind::detect();
        let parent = spindle::target_folder().join("system-tests");
        fs::create_dir_all(&parent).with_context(|| format!("Cannot create {}", parent.display()))?;
        let folder =
            tempfile::tempdir_in(&parent).with_context(|| format!("Cannot create a folder in {}", parent.display()))?;
        fs::create_dir_all(folder.path().join("work/disks"))?;
        fs::create_dir(folder.path().join("fetched"))?;
        let host = Host {
            kind,
            base: guest.cloned(),
            nested: if kind == HostKind::Nested {
                Some(NestedHost::get(store)?)
            } else {
                None
            },
            guest_memory: 512,
            cpus: 1,
            folder,
        };
        copy(spindle, &host.work().join("spindle"))?;
        if let Some(guest) = guest {
            // An overlay names its base as `../base/disk.qcow2`: from `disks/`, and from `fetched/` when it is back here.
            symlink(guest.folder(), host.folder.path().join("base"))?;
            match kind {
                HostKind::Hardware => symlink(guest.folder(), host.work().join("base"))?,
                HostKind::Nested => fs::create_dir(host.work().join("base"))?,
            }
        }
        Ok(host)
    }

    /// A host ready to boot the guest `image`, made from nothing: guest images and spindle are built if they are not there.
    /// The root disk is [`Host::ROOT_DISK`], an empty overlay.
    ///
    /// # Errors
    /// If any of it cannot be built.
    pub fn for_guest(image: Image) -> Result<Host> {
        let store = Store::open(&spindle::target_folder(), |step| eprintln!("{step}"))?;
        let guest = Guest::get(&store, image)?;
        let host = Host::new(&store, &spindle::static_spindle()?, Some(&guest))?;
        host.add_overlay()?;
        Ok(host)
    }

    /// The root disk that [`Host::add_overlay`] adds, relative to the work folder.
    pub const ROOT_DISK: &str = "disks/root.qcow2";

    /// Adds [`Host::ROOT_DISK`], an empty overlay over the guest's disk.
    ///
    /// # Errors
    /// If `qemu-img` refuses, or the host has run already.
    pub fn add_overlay(&self) -> Result<()> {
        let overlay = self.staging().join("root.qcow2");
        create_overlay(&overlay, "../base/disk.qcow2")?;
        self.add_file(Host::ROOT_DISK, &overlay)
    }

    /// Which kind it is.
    pub fn kind(&self) -> HostKind {
        self.kind
    }

    /// The folder on this machine with the guest's files, those that are `base/` in the work folder.
    pub fn base_folder(&self) -> Option<PathBuf> {
        self.base.as_ref().map(Guest::folder)
    }

    /// A folder of the host's on this machine, for files on their way in. An overlay made in it finds its base.
    pub fn staging(&self) -> PathBuf {
        self.folder.path().join("fetched")
    }

    /// Puts the file `from` into the work folder as `name`, which may name folders that are not there yet. Before the
    /// first run only.
    ///
    /// # Errors
    /// If the file cannot be copied, or the host has run already.
    pub fn add_file(&self, name: &str, from: &Path) -> Result<()> {
        if self.scratch().exists() {
            bail!("Cannot add {name}: the host has run already");
        }
        let to = self.work().join(name);
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).with_context(|| format!("Cannot create {}", folder.display()))?;
        }
        copy(from, &to)
    }

    /// Runs a program in the work folder and follows it to its end.
    ///
    /// # Errors
    /// If it cannot be run, or does not end in time. How it ends is in the [`Outcome`].
    pub fn run(&self, mut run: Run<'_>) -> Result<Outcome> {
        match &self.nested {
            None => {
                let (session, events) = direct::start(&run.command, &self.work(), run.input)?;
                follow(&mut run, session, &events, Duration::ZERO)
            }
            Some(images) => {
                let begin = Instant::now();
                self.make_scratch()?;
                let base = self.base.as_ref().map(Guest::ext4);
                let (nested, events) = Nested::start(&NestedOptions {
                    images,
                    scratch: &self.scratch(),
                    base: base.as_deref(),
                    exchange: None,
                    recorded: None,
                    memory: self.guest_memory + NESTED_OVERHEAD,
                    cpus: self.cpus,
                    log: self.folder.path().join("nested-host.log"),
                })?;
                let up = begin.elapsed();
                let session = nested.run(&run.command, run.input)?;
                follow(&mut run, session, &events, up)
            }
        }
    }

    /// Starts this host to stay up for many programs. `guest_memory` is what all that run at once need.
    ///
    /// # Errors
    /// If the nested host is needed and does not start.
    pub fn stand(&self) -> Result<StandingHost> {
        self.stand_with(None)
    }

    /// The same; the programs can have the raw file `recorded` too, at [`StandingHost::recorded`]. In the nested host that is a
    /// disk, whose writes and flushes are the file's.
    ///
    /// # Errors
    /// If the nested host is needed and does not start.
    pub fn stand_on(&self, recorded: &Path) -> Result<StandingHost> {
        self.stand_with(Some(recorded))
    }

    fn stand_with(&self, recorded: Option<&Path>) -> Result<StandingHost> {
        let Some(images) = &self.nested else {
            return Ok(StandingHost::here(self.work(), recorded));
        };
        let base = self.base.as_ref().map(Guest::ext4);
        let base = base.context("A standing host has the files of a guest")?;
        self.make_scratch()?;
        let exchange = self.folder.path().join("exchange.raw");
        fs::File::create(&exchange)?.set_len(StandingHost::EXCHANGE_BYTES)?;
        let (nested, events) = Nested::start(&NestedOptions {
            images,
            scratch: &self.scratch(),
            base: Some(&base),
            exchange: Some(&exchange),
            recorded,
            memory: self.guest_memory + NESTED_OVERHEAD,
            cpus: self.cpus,
            log: self.folder.path().join("nested-host.log"),
        })?;
        Ok(StandingHost::nested(nested, events, exchange, recorded.is_some()))
    }

    /// Brings the file `name` back from the work folder. Not during a run.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn fetch(&self, name: &str) -> Result<PathBuf> {
        let inside = self.work().join(name);
        if self.kind == HostKind::Hardware || !self.scratch().exists() {
            return Ok(inside);
        }
        let base_name = Path::new(name)
            .file_name()
            .with_context(|| format!("{name} is no file"))?;
        let fetched = self.staging().join(base_name);
        dump_from_ext4(&self.scratch(), &format!("/{name}"), &fetched)?;
        Ok(fetched)
    }

    fn make_scratch(&self) -> Result<()> {
        let scratch = self.scratch();
        if !scratch.exists() {
            let unfinished = scratch.with_extension("unfinished");
            ext4_from_directory(&self.work(), &unfinished, SCRATCH_SIZE)?;
            fs::rename(&unfinished, &scratch)?;
        }
        Ok(())
    }

    fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    fn scratch(&self) -> PathBuf {
        self.folder.path().join("scratch.ext4")
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("Cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
