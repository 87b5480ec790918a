//! An ATA disk drive: a state machine between a task file and a disk.
//!
//! Each entry point of the drive takes one event (a command, a word of data, a completion, a reset), moves the drive on, and
//! returns the request that it now wants to make of its disk, if any. It knows no threads and no ports: the channel
//! does the calling, the submitting and the interrupt line.
//!
//! ```text
//!  command     opcode -> command       execute    the way of a command in; lockout   what a locked drive refuses
//!  phase       what it waits for       ending     the ways of a command out          reset  SRST, diagnostics, power
//!  work        what is at the disk     completion what follows from its outcome      search which sector is bad
//!  transfer, read_write, dma           sectors through the data register and the bus master
//!  identify, features, geometry, power, trim, smart, logs, security, protected_area, overlay, uncorrectable, compact_flash
//!  non_volatile  what outlives power   saved      the whole drive, in mid-command
//! ```

mod command;
mod compact_flash;
mod completion;
mod dma;
mod ending;
mod execute;
mod features;
mod geometry;
mod identify;
mod lockout;
mod logs;
mod non_volatile;
mod overlay;
mod payload;
mod phase;
mod power;
mod protected_area;
mod read_write;
mod reset;
mod saved;
mod search;
mod security;
mod smart;
mod statistics;
mod transfer;
mod trim;
mod uncorrectable;
mod work;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use disk::{Disk, DiskError, SECTOR_SIZE};

use self::ending::Failure;
use self::features::Features;
use self::geometry::Geometry;
pub use self::non_volatile::NonVolatile;
use self::phase::Phase;
use self::power::Power;
use self::protected_area::ProtectedArea;
pub(super) use self::saved::SavedDrive;
use self::security::Security;
pub use self::statistics::Statistics;
use self::work::Work;
use super::drive::{DmaRequest, Step};
use super::error_policy::ErrorPolicy;
use super::identity::Identity;
use super::registers::{Status, TaskFile};
use crate::clock::Clock;

/// Bytes of a sector, as a length in memory.
const SECTOR: usize = SECTOR_SIZE as usize;

/// What a drive is made of.
pub(crate) struct Setup {
    /// Who it says it is.
    pub identity: Identity,
    /// What it stores.
    pub disk: Arc<dyn Disk>,
    /// What it keeps without power, shared with whoever builds the drive again after a reset of the machine.
    pub non_volatile: Arc<Mutex<NonVolatile>>,
    /// What a failed request becomes.
    pub error_policy: ErrorPolicy,
    /// For standby timers and SMART.
    pub clock: Arc<dyn Clock>,
}

/// One disk drive.
pub(crate) struct Drive {
    setup: Setup,
    registers: TaskFile,
    status: Status,
    error: u8,
    /// INTRQ, before device selection and nIEN.
    interrupt: bool,
    phase: Phase,
    /// The request at the disk, or the one that waits for the machine to go on.
    work: Option<Work>,
    /// Why `work` is not at the disk, but waits.
    stopped: Option<DiskError>,
    /// The last command, while only it allows what comes next.
    preceding: Option<execute::Preceding>,
    /// The opcode of the last command.
    last_opcode: u8,
    geometry: Geometry,
    features: Features,
    power: Power,
    security: Security,
    protected_area: ProtectedArea,
    /// DEVICE CONFIGURATION commands are refused until power-on.
    overlay_frozen: bool,
    kept: NonVolatile,
    /// Whether `kept` has changed since it was last stored.
    changed: bool,
    statistics: Statistics,
    /// The clock's time at power-on.
    powered_on: Duration,
    /// How long the drive was on before that, in another process.
    on_before: Duration,
    /// READ BUFFER and WRITE BUFFER.
    sector_buffer: Vec<u8>,
}

impl Drive {
    /// A drive after power-on.
    pub(crate) fn new(setup: Setup) -> Self {
        let mut kept = setup
            .non_volatile
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        kept.smart.power_on();
        let mut drive = Self {
            powered_on: setup.clock.now(),
            on_before: Duration::ZERO,
            setup,
            registers: TaskFile::default(),
            status: Status::BSY,
            error: 0,
            interrupt: false,
            phase: Phase::Idle,
            work: None,
            stopped: None,
            preceding: None,
            last_opcode: 0,
            geometry: Geometry::default_for(1),
            features: Features::default(),
            power: Power::default(),
            security: Security::at_power_on(&kept.passwords),
            protected_area: ProtectedArea::default(),
            overlay_frozen: false,
            kept,
            changed: true,
            statistics: Statistics::default(),
            sector_buffer: vec![0; SECTOR],
        };
        drive.protected_area = ProtectedArea::at_power_on(&drive.kept);
        drive.geometry = Geometry::default_for(drive.capacity());
        drive.store();
        drive.show_signature();
        drive
    }

    /// The disk behind the drive.
    pub(super) fn disk(&self) -> &Arc<dyn Disk> {
        &self.setup.disk
    }

    /// The status register, without any effect.
    pub(super) fn status(&self) -> Status {
        self.status
    }

    /// Whether a command, or a reset, is under way: the task file is the drive's.
    pub(super) fn engaged(&self) -> bool {
        self.status.intersects(Status::BSY | Status::DRQ)
    }

    /// Whether the drive asks for an interrupt.
    pub(super) fn interrupt(&self) -> bool {
        self.interrupt
    }

    /// The host read the status register or wrote a command: the interrupt is acknowledged.
    pub(super) fn acknowledge(&mut self) {
        self.interrupt = false;
    }

    /// The error register.
    pub(super) fn error(&self) -> u8 {
        self.error
    }

    /// The registers with parameters.
    pub(super) fn registers(&self) -> &TaskFile {
        &self.registers
    }

    /// The registers with parameters, for the host to write. Not while [`Drive::engaged`].
    pub(super) fn registers_mut(&mut self) -> &mut TaskFile {
        &mut self.registers
    }

    /// What the drive has done since power-on.
    pub(super) fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Sectors of the disk, less those that DEVICE CONFIGURATION SET hides: READ NATIVE MAX ADDRESS and one.
    fn native_capacity(&self) -> u64 {
        let sectors = self.setup.disk.capacity() / SECTOR_SIZE;
        self.kept
            .overlay
            .sectors
            .map_or(sectors, |limit| limit.min(sectors))
            .max(1)
    }

    /// Sectors that commands reach: fewer than the native capacity while there is a host protected area.
    fn capacity(&self) -> u64 {
        let native = self.native_capacity();
        self.protected_area.sectors().map_or(native, |limit| limit.min(native))
    }

    /// How long the drive has been on.
    fn powered_for(&self) -> Duration {
        self.on_before + self.setup.clock.now().saturating_sub(self.powered_on)
    }

    /// Whether a request is at the disk.
    fn in_flight(&self) -> bool {
        self.work.is_some() && self.stopped.is_none()
    }

    /// Keeps what outlives power, if it changed.
    fn store(&mut self) {
        if std::mem::take(&mut self.changed) {
            *self.setup.non_volatile.lock().unwrap_or_else(PoisonError::into_inner) = self.kept.clone();
        }
    }
}
