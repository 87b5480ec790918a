//! Power-on, SRST, DEVICE RESET and EXECUTE DEVICE DIAGNOSTIC (ATA/ATAPI-6, 9.2, 9.13, 9.16 and 8.8).
//!
//! None of them changes what the host has set, the lock of the tray included: these are resets of the interface. The sense
//! data of the last command goes.

use super::super::registers::{Error, Status, TaskFile};
use super::CdRom;
use super::mode::Parameters;
use super::phase::Phase;
use super::sense::Sense;
use super::transfer_mode::TransferMode;

impl CdRom {
    /// SRST was set: whatever the drive does, it stops doing.
    pub(in crate::ide) fn hold_reset(&mut self) {
        self.phase = Phase::Reset { held: true };
        self.interrupt = false;
        self.busy();
    }

    /// SRST was cleared: the reset ends as soon as no request is in flight.
    pub(in crate::ide) fn release_reset(&mut self) {
        if matches!(self.phase, Phase::Reset { .. }) {
            self.phase = Phase::Reset { held: false };
            self.finish_reset();
        }
    }

    /// EXECUTE DEVICE DIAGNOSTIC, as either drive of the channel does it. A drive that is still in a reset shows the
    /// same result when that is done.
    pub(in crate::ide) fn diagnose(&mut self, interrupt: bool) {
        if !self.in_flight {
            self.show_signature();
            self.interrupt = interrupt;
        }
    }

    /// DEVICE RESET, the one command that a busy drive takes. It ends without an interrupt.
    pub(super) fn device_reset(&mut self) {
        // SRST is stronger.
        if !matches!(self.phase, Phase::Reset { .. }) {
            self.phase = Phase::DeviceReset;
            self.interrupt = false;
            self.busy();
            self.finish_reset();
        }
    }

    /// Ends a reset that nothing holds up any more.
    pub(super) fn finish_reset(&mut self) {
        if self.in_flight {
            return;
        }
        // DEVICE RESET leaves the drive selected as it is (9.16).
        let selection = match self.phase {
            Phase::DeviceReset => self.registers.device & super::super::registers::DEVICE_DEV,
            _ => 0,
        };
        self.show_signature();
        self.registers.device = selection;
    }

    pub(super) fn show_signature(&mut self) {
        self.phase = Phase::Idle;
        self.registers = TaskFile::packet_signature();
        // Not ready: a packet device waits to be asked (9.12, "Status").
        self.status = Status::empty();
        self.error = Error::DIAGNOSTIC_PASSED.bits();
        self.interrupt = false;
        self.sense = Sense::NONE;
        self.asleep = false;
        self.standby = false;
    }

    /// RST#: as after power-on, but that a request in flight is waited for. The medium stays where it is.
    pub(in crate::ide) fn hardware_reset(&mut self) {
        self.parameters = Parameters::default();
        self.transfer_mode = TransferMode::default();
        self.tray.lock(false);
        self.powered_on = true;
        self.phase = Phase::Reset { held: false };
        self.interrupt = false;
        self.busy();
        self.finish_reset();
    }
}
