//! One IDE channel: a cable with up to two drives, its registers, its interrupt, and its half of the bus master.

mod dma;
mod ports;
mod saved;
mod task_file;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use disk::{DiskError, Request};
use vm_memory::GuestMemoryMmap;

use super::ata::Statistics;
use super::atapi::CdRom;
use super::bus_master::{BusMaster, Event, Status as BusMasterStatus};
use super::drive::{Drive, Step};
use super::error_policy::{Stop, StopObserver};
use super::kernel_ports::DmaState;
use super::registers::DeviceControl;
use crate::interrupt::InterruptLine;

pub(super) use self::ports::{BusMasterPorts, CommandBlock, ControlBlock};
pub use self::saved::ChannelStateError;
pub(super) use self::saved::SavedChannel;

/// What a register of a device that is not there reads as: the cable's pull-down resistor holds DD7 low, so that
/// nobody mistakes the floating bus for a busy drive (ATA/ATAPI-6, 4.3 and 9.16.2).
const NOBODY: u8 = 0x7f;

/// A channel. Its lock is the only one in the controller that is held while a disk is asked for something or an
/// interrupt line is driven; neither calls back.
pub(crate) struct Channel {
    state: Mutex<State>,
    dma_state: DmaState,
    itself: Weak<Channel>,
    /// What users call the drives.
    slots: [&'static str; 2],
}

/// Where a channel's interrupt goes.
pub(crate) struct Lines {
    /// In compatibility mode: IRQ 14 or 15, by edges.
    pub isa: Arc<dyn InterruptLine>,
    /// In native mode: the function's INTA#, by level, which it shares with the other channel.
    pub pci: Arc<dyn InterruptLine>,
}

struct State {
    drives: [Option<Drive>; 2],
    /// Which drive the device register selects.
    selected: usize,
    control: DeviceControl,
    bus_master: BusMaster,
    /// Whether the PCI command register lets the function master the bus.
    mastering: bool,
    /// The channel's own line, and the line of the PCI function, which it uses in native mode.
    lines: Lines,
    native: bool,
    /// Whether the line in use is high.
    asserted: bool,
    memory: GuestMemoryMmap,
    /// Whom a drive asks to stop the machine.
    stops: Option<Arc<StopObserver>>,
}

impl Channel {
    pub(crate) fn new(
        drives: [Option<Drive>; 2],
        slots: [&'static str; 2],
        lines: Lines,
        memory: GuestMemoryMmap,
    ) -> Arc<Self> {
        Arc::new_cyclic(|itself| Self {
            state: Mutex::new(State {
                drives,
                selected: 0,
                control: DeviceControl::empty(),
                bus_master: BusMaster::new(),
                mastering: false,
                lines,
                native: false,
                asserted: false,
                memory,
                stops: None,
            }),
            dma_state: DmaState::default(),
            itself: itself.clone(),
            slots,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `access` on the channel, then does what its new state calls for: the disk request of the selected drive, a
    /// DMA transfer that can run now, and the interrupt line.
    fn access<T>(&self, access: impl FnOnce(&mut State) -> (T, Step)) -> T {
        let mut state = self.lock();
        let selected = state.selected;
        let (result, step) = access(&mut state);
        self.follow(state, selected, step);
        result
    }

    /// A drive's disk request is done.
    fn completed(&self, index: usize, outcome: Result<(), DiskError>) {
        let mut state = self.lock();
        let stops = state.stops.clone();
        let Some(drive) = &mut state.drives[index] else { return };
        // A transfer that failed or was stopped leaves the rest of its table.
        let moved = drive.runs_dma() && outcome.is_ok();
        let mut step = drive.completed(outcome);
        if let Some(error) = drive.stopped() {
            let stop = Stop {
                slot: self.slots[index],
                error: error.to_string(),
                no_space: error.is_no_space(),
            };
            match &stops {
                Some(observer) => observer(&stop),
                None => step = drive.report_stopped(),
            }
        }
        // It may take more requests to fill the memory that was offered.
        if moved && !drive.runs_dma() {
            state.end_dma();
        }
        self.follow(state, index, step);
    }

    /// What every event ends with.
    fn follow(&self, mut state: MutexGuard<'_, State>, index: usize, step: Step) {
        self.submit(&mut state, index, step);
        if let Some((index, step)) = state.run_dma() {
            self.submit(&mut state, index, step);
        }
        let risen = state.drive_line().then(|| state.line().clone());
        self.dma_state.set(state.start_awaited(), state.bus_master.started());
        drop(state);
        if let Some(line) = risen {
            line.deliver();
        }
    }

    /// What can be seen of the bus master without the channel's lock.
    pub(super) fn dma_state(&self) -> &DmaState {
        &self.dma_state
    }

    fn submit(&self, state: &mut State, index: usize, step: Step) {
        let Some(command) = step else { return };
        let Some(disk) = state.drives[index].as_ref().and_then(Drive::disk) else {
            return;
        };
        let channel = self.itself.clone();
        disk.submit(Request {
            command,
            done: Box::new(move |outcome| {
                if let Some(channel) = channel.upgrade() {
                    channel.completed(index, outcome);
                }
            }),
        });
    }

    /// Whom to tell of a drive that wants the machine to stop.
    pub(super) fn observe_stops(&self, observer: Arc<StopObserver>) {
        self.lock().stops = Some(observer);
    }

    /// Makes the requests again that wait for the machine to go on. Returns how many.
    pub(super) fn resume(&self) -> usize {
        let mut resumed = 0;
        for index in 0..2 {
            let mut state = self.lock();
            let step = state.drives[index].as_mut().and_then(Drive::resume);
            resumed += usize::from(step.is_some());
            self.follow(state, index, step);
        }
        resumed
    }

    /// What the disk drives have done.
    pub(super) fn statistics(&self) -> [Option<Statistics>; 2] {
        let state = self.lock();
        state
            .drives
            .each_ref()
            .map(|drive| drive.as_ref().and_then(Drive::statistics))
    }

    /// RST#.
    pub(super) fn hardware_reset(&self) {
        self.access(|state| {
            state.drives.iter_mut().flatten().for_each(Drive::hardware_reset);
            state.selected = 0;
            state.control = DeviceControl::empty();
            state.bus_master = BusMaster::new();
            ((), None)
        });
    }

    /// Moves the interrupt to the line of the channel's mode.
    pub(super) fn set_native(&self, native: bool) {
        self.access(|state| {
            if state.native != native {
                if state.asserted {
                    state.line().lower();
                    state.asserted = false;
                }
                state.native = native;
            }
            ((), None)
        });
    }

    /// Does something with a CD-ROM drive that is not the guest's doing. `None` if the drive is none.
    pub(super) fn with_cd_rom<T>(&self, index: usize, act: impl FnOnce(&mut CdRom) -> T) -> Option<T> {
        self.access(|state| {
            let drive = state.drives[index].as_mut().and_then(Drive::cd_rom_mut);
            (drive.map(act), None)
        })
    }

    /// Follows the bus-master bit of the PCI command register. A transfer that waited for it begins.
    pub(super) fn set_mastering(&self, mastering: bool) {
        self.access(|state| {
            state.mastering = mastering;
            ((), None)
        });
    }

    /// Reads the bus-master registers from byte `register` (0 to 7) on.
    pub(super) fn read_bus_master(&self, register: u16, data: &mut [u8]) {
        let state = self.lock();
        for (register, byte) in (register..).zip(data) {
            *byte = state.bus_master.read(register);
        }
    }

    /// Writes the bus-master registers from byte `register` (0 to 7) on.
    pub(super) fn write_bus_master(&self, register: u16, data: &[u8]) {
        self.access(|state| {
            for (register, byte) in (register..).zip(data) {
                if state.bus_master.write(register, *byte) == Event::Stopped {
                    state.drives.iter_mut().flatten().for_each(Drive::stop_dma);
                }
            }
            ((), None)
        });
    }
}

impl State {
    /// Whether a drive has a DMA command and waits for the bus master.
    fn start_awaited(&self) -> bool {
        self.drives.iter().flatten().any(|drive| drive.dma_request().is_some())
    }

    fn selected(&mut self) -> Option<&mut Drive> {
        self.drives[self.selected].as_mut()
    }

    /// Which drive's registers the host sees: device 0 answers for an absent device 1 (ATA/ATAPI-6, 9.16.1), but not
    /// the other way round.
    fn responder(&self) -> Option<&Drive> {
        self.drives[self.selected].as_ref().or(self.drives[0].as_ref())
    }

    /// Whether the selected drive owns the task file, so that the host's writes to it have no effect.
    fn engaged(&mut self) -> bool {
        self.selected().is_some_and(|drive| drive.engaged())
    }

    fn line(&self) -> &Arc<dyn InterruptLine> {
        if self.native { &self.lines.pci } else { &self.lines.isa }
    }

    /// Whether the line is to be high.
    fn level(&self) -> bool {
        let wanted = self.drives[self.selected].as_ref().is_some_and(Drive::interrupt);
        wanted && !self.control.contains(DeviceControl::NIEN)
    }

    /// Brings the interrupt line to its level: the selected drive's INTRQ, unless nIEN holds it back. Nothing is lost
    /// by that: when nIEN goes, or the drive is selected, the line rises. Returns whether it did.
    fn drive_line(&mut self) -> bool {
        let level = self.level();
        let rises = level && !self.asserted;
        if rises {
            // The bus master sees the rise of the wire, whatever the command was (BMIDE 1.0, 2.1).
            self.bus_master.status.insert(BusMasterStatus::INTERRUPT);
            self.line().raise();
        } else if !level && self.asserted {
            self.line().lower();
        }
        self.asserted = level;
        rises
    }
}
