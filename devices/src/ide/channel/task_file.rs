//! The registers of the cable: which drive a read or a write reaches, and what it does there.

use super::{NOBODY, State};
use crate::ide::drive::Step;
use crate::ide::registers::{DEVICE_DEV, DeviceControl, Status, offset};

/// EXECUTE DEVICE DIAGNOSTIC, which both drives execute, whichever is selected.
const EXECUTE_DEVICE_DIAGNOSTIC: u8 = 0x90;

impl State {
    pub(super) fn read_register(&mut self, register: u16) -> u8 {
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
    pub(super) fn alternate_status(&self) -> u8 {
        match (&self.drives[self.selected], self.responder()) {
            (Some(drive), _) => drive.status().bits(),
            (None, Some(_)) => 0,
            (None, None) => NOBODY,
        }
    }

    /// A write to the command block, but for the data register. Both drives take it; only the selected one has to be
    /// at rest (ATA/ATAPI-6, 7.2: the registers shall not be written while BSY or DRQ is set; it is ignored here).
    pub(super) fn write_register(&mut self, register: u16, value: u8) -> Step {
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

    pub(super) fn write_control(&mut self, value: u8) {
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
}
