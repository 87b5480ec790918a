//! One IDE channel: a cable with up to two drives, its registers, its interrupt, and its half of the bus master.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use disk::{Buffer, BufferError, DiskError, Request};
use vm_memory::GuestMemoryMmap;

use super::atapi::CdRom;
use super::bus_master::{BusMaster, Command as BusMasterCommand, Event, Status as BusMasterStatus};
use super::drive::{DmaRequest, Drive, Step};
use super::kernel_ports::DmaState;
use super::prd::{self, PrdError};
use super::registers::{DEVICE_DEV, DeviceControl, Status, offset};
use crate::bus::PortDevice;
use crate::interrupt::InterruptLine;

/// EXECUTE DEVICE DIAGNOSTIC, which both drives execute, whichever is selected.
const EXECUTE_DEVICE_DIAGNOSTIC: u8 = 0x90;

/// What a register of a device that is not there reads as: the cable's pull-down resistor holds DD7 low, so that
/// nobody mistakes the floating bus for a busy drive (ATA/ATAPI-6, 4.3 and 9.16.2).
const NOBODY: u8 = 0x7f;

/// A channel. Its lock is the only one in the controller that is held while a disk is asked for something or an
/// interrupt line is driven; neither calls back.
pub(crate) struct Channel {
    state: Mutex<State>,
    dma_state: DmaState,
    itself: Weak<Channel>,
}

struct State {
    drives: [Option<Drive>; 2],
    /// Which drive the device register selects.
    selected: usize,
    control: DeviceControl,
    bus_master: BusMaster,
    /// Whether the PCI command register lets the function master the bus.
    mastering: bool,
    line: Arc<dyn InterruptLine>,
    /// Whether the line is high.
    asserted: bool,
    memory: GuestMemoryMmap,
}

impl Channel {
    pub(crate) fn new(drives: [Option<Drive>; 2], line: Arc<dyn InterruptLine>, memory: GuestMemoryMmap) -> Arc<Self> {
        Arc::new_cyclic(|itself| Self {
            state: Mutex::new(State {
                drives,
                selected: 0,
                control: DeviceControl::empty(),
                bus_master: BusMaster::new(),
                mastering: false,
                line,
                asserted: false,
                memory,
            }),
            dma_state: DmaState::default(),
            itself: itself.clone(),
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
        self.follow(&mut state, selected, step);
        result
    }

    /// A drive's disk request is done.
    fn completed(&self, index: usize, outcome: Result<(), DiskError>) {
        let mut state = self.lock();
        let Some(drive) = &mut state.drives[index] else { return };
        // A transfer that failed or was stopped leaves the rest of its table.
        let moved = drive.runs_dma() && outcome.is_ok();
        let step = drive.completed(outcome);
        // It may take more requests to fill the memory that was offered.
        if moved && !drive.runs_dma() {
            state.end_dma();
        }
        self.follow(&mut state, index, step);
    }

    /// What every event ends with.
    fn follow(&self, state: &mut State, index: usize, step: Step) {
        self.submit(state, index, step);
        if let Some((index, step)) = state.run_dma() {
            self.submit(state, index, step);
        }
        state.drive_line();
        self.dma_state.set(state.start_awaited(), state.bus_master.started());
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

    fn read_register(&mut self, register: u16) -> u8 {
        let hob = self.control.contains(DeviceControl::HOB);
        let absent = self.drives[self.selected].is_none();
        if register == offset::STATUS_COMMAND
            && let Some(drive) = self.selected()
        {
            drive.acknowledge();
        }
        match (register, self.responder()) {
            (_, None) => NOBODY,
            // A packet device does not lend its registers: its signature would be taken for that of a second one
            // (ATA/ATAPI-6, table 18).
            (_, Some(drive)) if absent && drive.is_packet_device() => 0,
            (offset::STATUS_COMMAND | offset::ERROR_FEATURES, Some(_)) if absent => 0,
            (offset::STATUS_COMMAND, Some(drive)) => drive.status().bits(),
            // A busy drive shows its status in every register, as drives do (ATA/ATAPI-6, 7.15.6.1).
            (_, Some(drive)) if !absent && drive.status().contains(Status::BSY) => drive.status().bits(),
            (offset::ERROR_FEATURES, Some(drive)) => drive.error(),
            (offset::DEVICE, Some(drive)) => {
                let device = drive.registers().read(register, hob) & !DEVICE_DEV;
                device | if self.selected == 1 { DEVICE_DEV } else { 0 }
            }
            (_, Some(drive)) => drive.registers().read(register, hob),
        }
    }

    /// The alternate status register: status without acknowledging the interrupt.
    fn alternate_status(&self) -> u8 {
        match (&self.drives[self.selected], self.responder()) {
            (Some(drive), _) => drive.status().bits(),
            (None, Some(_)) => 0,
            (None, None) => NOBODY,
        }
    }

    /// A write to the command block, but for the data register. Both drives take it; only the selected one has to be
    /// at rest (ATA/ATAPI-6, 7.2: the registers shall not be written while BSY or DRQ is set; it is ignored here).
    fn write_register(&mut self, register: u16, value: u8) -> Step {
        self.control.remove(DeviceControl::HOB);
        if register == offset::STATUS_COMMAND {
            return self.command(value);
        }
        if self.engaged() {
            return None;
        }
        for drive in self.drives.iter_mut().flatten() {
            if !drive.engaged() {
                drive.registers_mut().write(register, value);
            }
        }
        if register == offset::DEVICE {
            self.selected = usize::from(value & DEVICE_DEV != 0);
        }
        None
    }

    fn command(&mut self, opcode: u8) -> Step {
        if opcode == EXECUTE_DEVICE_DIAGNOSTIC && !self.engaged() {
            self.diagnose();
            return None;
        }
        self.selected()?.execute(opcode)
    }

    /// EXECUTE DEVICE DIAGNOSTIC: device 0 reports for both, and is selected (ATA/ATAPI-6, 8.11 and 9.11).
    fn diagnose(&mut self) {
        for (index, drive) in self.drives.iter_mut().enumerate() {
            if let Some(drive) = drive {
                drive.diagnose(index == 0);
            }
        }
        self.selected = 0;
    }

    fn write_control(&mut self, value: u8) {
        let before = std::mem::replace(&mut self.control, DeviceControl::from_bits_truncate(value));
        let (was, is) = (
            before.contains(DeviceControl::SRST),
            self.control.contains(DeviceControl::SRST),
        );
        if was == is {
            return;
        }
        for drive in self.drives.iter_mut().flatten() {
            if is {
                drive.hold_reset();
            } else {
                drive.release_reset();
            }
        }
        self.selected = 0;
    }

    /// Brings the interrupt line to its level: the selected drive's INTRQ, unless nIEN holds it back. Nothing is lost
    /// by that: when nIEN goes, or the drive is selected, the line rises.
    fn drive_line(&mut self) {
        let wanted = self.drives[self.selected].as_ref().is_some_and(Drive::interrupt);
        let level = wanted && !self.control.contains(DeviceControl::NIEN);
        if level && !self.asserted {
            // The bus master sees the rise of the wire, whatever the command was (BMIDE 1.0, 2.1).
            self.bus_master.status.insert(BusMasterStatus::INTERRUPT);
            self.line.raise();
        } else if !level && self.asserted {
            self.line.lower();
        }
        self.asserted = level;
    }
}

/// Why a transfer cannot be made, which the guest learns from the bus master's error bit.
#[derive(Debug, thiserror::Error)]
enum DmaError {
    #[error(transparent)]
    Table(#[from] PrdError),
    #[error(transparent)]
    Region(#[from] BufferError),
    #[error("The bus master's direction is not the command's")]
    Direction,
}

/// The bus master's work.
impl State {
    /// Begins the DMA transfer for which drive and bus master are ready, in whichever order they became so.
    fn run_dma(&mut self) -> Option<(usize, Step)> {
        if !self.bus_master.active() || !self.mastering {
            return None;
        }
        let (index, request) = (0..2).find_map(|index| Some((index, self.drives[index].as_ref()?.dma_request()?)))?;
        let offer = self.regions(request);
        let drive = self.drives[index].as_mut()?;
        let buffer = match offer {
            Ok(buffer) => buffer,
            Err(error) => {
                tracing::debug!(%error, "bus-master transfer refused");
                drive.refuse_dma();
                self.bus_master.status.remove(BusMasterStatus::ACTIVE);
                self.bus_master.status.insert(BusMasterStatus::ERROR);
                return None;
            }
        };
        // A table too short for a granule moves nothing; the drive goes on waiting.
        let step = if buffer.is_empty() { None } else { drive.run_dma(buffer) };
        if !drive.runs_dma() {
            self.end_dma();
        }
        Some((index, step))
    }

    /// The memory for the next part of a transfer: all that is asked for, or as many whole granules as the table has.
    fn regions(&mut self, request: DmaRequest) -> Result<Buffer, DmaError> {
        if self.bus_master.command.contains(BusMasterCommand::TO_MEMORY) != request.to_memory {
            return Err(DmaError::Direction);
        }
        let mut regions = prd::read(&self.memory, self.bus_master.table, request.bytes)?;
        if regions.length < request.bytes {
            regions.truncate(regions.length - regions.length % request.granule);
        }
        self.bus_master.last_of_table = regions.exhausted;
        Ok(Buffer::from_guest(&self.memory, regions.ranges)?)
    }

    /// A transfer came to its end. With the table used up the bus master is no longer active; with a rest of it, it is
    /// (BMIDE 1.0, 3.1: both are valid, and the interrupt bit tells a short table from a long one).
    fn end_dma(&mut self) {
        if self.bus_master.last_of_table {
            self.bus_master.status.remove(BusMasterStatus::ACTIVE);
        }
    }
}

/// The command block's ports of a channel, 8 of them, aligned.
pub(super) struct CommandBlock(pub Arc<Channel>);

impl CommandBlock {
    fn read_data(&self, size: usize, data: &mut [u8]) {
        self.0.access(|state| {
            let mut step = None;
            let vacant = state.responder().is_none();
            for element in data.chunks_mut(size) {
                step = step.or(state.read_data(element));
            }
            if vacant {
                for (byte, pulled) in data.iter_mut().zip([NOBODY, 0xff].iter().cycle()) {
                    *byte = *pulled;
                }
            }
            ((), step)
        });
    }

    fn write_data(&self, size: usize, data: &[u8]) {
        self.0.access(|state| {
            let mut step = None;
            for element in data.chunks(size) {
                step = step.or(state.write_data(element));
            }
            ((), step)
        });
    }
}

impl State {
    /// One read of the data register, which is 16 bits wide: a byte read takes a word, and drops its high half.
    fn read_data(&mut self, data: &mut [u8]) -> Step {
        let mut word = [0; 2];
        let byte_wide = data.len() == 1;
        let target = if byte_wide { &mut word[..] } else { &mut *data };
        target.fill(0);
        let step = self.selected().and_then(|drive| drive.read_data(target));
        if byte_wide {
            data[0] = word[0];
        }
        step
    }

    fn write_data(&mut self, data: &[u8]) -> Step {
        self.control.remove(DeviceControl::HOB);
        let drive = self.selected()?;
        match *data {
            [low] => drive.write_data(&[low, 0]),
            _ => drive.write_data(data),
        }
    }
}

impl PortDevice for CommandBlock {
    fn read(&self, port: u16, data: &mut [u8]) {
        self.read_string(port, data.len(), data);
    }

    fn write(&self, port: u16, data: &[u8]) {
        self.write_string(port, data.len(), data);
    }

    fn read_string(&self, port: u16, size: usize, data: &mut [u8]) {
        if port & 7 == offset::DATA {
            return self.read_data(size, data);
        }
        for element in data.chunks_mut(size) {
            for (register, byte) in (port & 7..).zip(element) {
                // A wide access that begins within the block may end beyond it.
                *byte = match register {
                    0..8 => self.0.access(|state| (state.read_register(register), None)),
                    _ => 0xff,
                };
            }
        }
    }

    fn write_string(&self, port: u16, size: usize, data: &[u8]) {
        if port & 7 == offset::DATA {
            return self.write_data(size, data);
        }
        for element in data.chunks(size) {
            for (register, byte) in (port & 7..8).zip(element) {
                self.0.access(|state| ((), state.write_register(register, *byte)));
            }
        }
    }
}

/// The control block's only port of a channel: alternate status and device control.
pub(super) struct ControlBlock(pub Arc<Channel>);

impl PortDevice for ControlBlock {
    fn read(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
        data[0] = self.0.lock().alternate_status();
    }

    fn write(&self, _port: u16, data: &[u8]) {
        self.0.access(|state| {
            state.write_control(data[0]);
            ((), None)
        });
    }
}
