//! Resets: by software (ATA/ATAPI-6, 9.2), EXECUTE DEVICE DIAGNOSTIC, and of the whole machine.

use super::features::Features;
use super::geometry::Geometry;
use super::phase::Phase;
use super::power::Power;
use super::protected_area::ProtectedArea;
use super::security::Security;
use super::{Drive, SECTOR};
use crate::ide::registers::{Error, Status, TaskFile};

impl Drive {
    /// SRST was set: whatever the drive does, it stops doing.
    pub(in crate::ide) fn hold_reset(&mut self) {
        self.abandon();
        self.phase = Phase::Reset { held: true };
        self.interrupt = false;
        self.busy();
    }

    /// SRST was cleared: the reset ends as soon as no request is in flight. Until then the drive is busy, so nothing
    /// stale happens after the reset.
    pub(in crate::ide) fn release_reset(&mut self) {
        if matches!(self.phase, Phase::Reset { .. }) {
            self.phase = Phase::Reset { held: false };
            self.finish_reset();
        }
    }

    /// A request that waits for the machine to go on is made no more.
    fn abandon(&mut self) {
        if self.phase_ran() {
            self.statistics.interrupted += 1;
        }
        if self.stopped.take().is_some() {
            self.work = None;
        }
    }

    fn phase_ran(&self) -> bool {
        !matches!(self.phase, Phase::Idle | Phase::Reset { .. })
    }

    /// EXECUTE DEVICE DIAGNOSTIC, as either drive of the channel does it. A drive that is still in a reset shows the
    /// same result when that is done.
    pub(in crate::ide) fn diagnose(&mut self, interrupt: bool) {
        if !self.in_flight() {
            self.abandon();
            self.preceding = None;
            self.last_opcode = 0x90;
            self.show_signature();
            self.interrupt = interrupt;
        }
    }

    pub(super) fn finish_reset(&mut self) {
        if !self.in_flight() {
            self.preceding = None;
            self.features.software_reset();
            self.power.wake(self.powered_for());
            if self.features.reverts() {
                // The power-on defaults are the translation's, too.
                self.geometry = Geometry::default_for(self.capacity());
            }
            self.show_signature();
        }
    }

    /// RST#: as after power-on, but that a request in flight is waited for.
    pub(in crate::ide) fn hardware_reset(&mut self) {
        self.abandon();
        self.preceding = None;
        self.interrupt = false;
        self.features = Features::default();
        self.power = Power::default();
        self.power.wake(self.powered_for());
        self.kept.smart.power_on();
        self.changed = true;
        self.security = Security::at_power_on(&self.kept.passwords);
        self.protected_area = ProtectedArea::at_power_on(&self.kept);
        self.overlay_frozen = false;
        self.geometry = Geometry::default_for(self.capacity());
        self.sector_buffer = vec![0; SECTOR];
        self.store();
        if self.in_flight() {
            self.phase = Phase::Reset { held: false };
            self.busy();
        } else {
            self.show_signature();
        }
    }

    pub(super) fn show_signature(&mut self) {
        self.phase = Phase::Idle;
        self.registers = TaskFile::signature();
        self.status = Status::DRDY | Status::DSC;
        self.error = Error::DIAGNOSTIC_PASSED.bits();
        self.interrupt = false;
    }
}
