//! Commands of the ATA level, and the packet command from its packet to what comes of it (ATA/ATAPI-6, 8.23 and 9.8).

use super::super::data_block::DataBlock;
use super::super::drive::Step;
use super::CdRom;
use super::answer::Answer;
use super::operation::Operation;
use super::packet::{self, Packet};
use super::phase::{Phase, Way};
use super::sense::Sense;

/// Features register of PACKET: data by bus master; overlapped, which the drive does not do.
const DMA: u8 = 1 << 0;
const OVERLAPPED: u8 = 1 << 1;

impl CdRom {
    /// The host wrote the command register. Commands while [`CdRom::engaged`] are lost, except DEVICE RESET.
    pub(in crate::ide) fn execute(&mut self, opcode: u8) -> Step {
        if opcode == 0x08 {
            self.device_reset();
            return None;
        }
        if self.engaged() {
            tracing::debug!(opcode, "ATA command to a busy CD-ROM drive");
            return None;
        }
        self.acknowledge();
        if self.asleep {
            return None;
        }
        match opcode {
            0xa0 => self.start_packet(),
            0xa1 => self.give_page(),
            // READ SECTOR(S), IDENTIFY DEVICE.
            0x20 | 0xec => self.abort_with_signature(),
            0xe0 | 0xe2 => self.set_power(true, false),
            0xe1 | 0xe3 => self.set_power(false, false),
            0xe5 => {
                self.registers.count.current = if self.standby { 0x00 } else { 0xff };
                self.complete_ata()
            }
            0xe6 => self.set_power(true, true),
            0xef => self.set_features(),
            // NOP among them, which always ends so.
            _ => {
                tracing::debug!(opcode, "ATA command that a CD-ROM drive does not have");
                self.abort()
            }
        }
    }

    fn set_power(&mut self, standby: bool, asleep: bool) -> Step {
        self.standby = standby;
        self.asleep = asleep;
        self.complete_ata()
    }

    fn set_features(&mut self) -> Step {
        match self.registers.features.current {
            0x03 => match self.transfer_mode.chosen(self.registers.count.current) {
                Some(mode) => self.transfer_mode = mode,
                None => return self.abort(),
            },
            // Settings outlive a reset, or they do not: resets change none.
            0x66 | 0xcc => {}
            _ => return self.abort(),
        }
        self.complete_ata()
    }

    fn give_page(&mut self) -> Step {
        self.phase = Phase::Page(DataBlock::full(self.identify()));
        let registers = self.registers;
        self.request_data(true, 0);
        // A command of the ATA level: there is no interrupt reason, and no byte count.
        self.registers = registers;
        None
    }

    fn start_packet(&mut self) -> Step {
        let features = self.registers.features.current;
        if features & OVERLAPPED != 0 {
            return self.abort();
        }
        let way = if features & DMA != 0 { Way::BusMaster } else { Way::Port };
        // The registers will hold the size of each block instead.
        let registers = &self.registers;
        self.byte_count_limit = u16::from_be_bytes([registers.lba_high.current, registers.lba_mid.current]);
        self.phase = Phase::PacketOut {
            packet: DataBlock::empty(packet::LENGTH),
            way,
        };
        self.request_packet();
        None
    }

    /// The packet is here.
    pub(super) fn took_packet(&mut self, packet: &Packet, way: Way) -> Step {
        self.busy();
        self.standby = false;
        match self.perform(packet) {
            Ok(answer) => self.deliver(answer, way),
            Err(sense) => self.check(sense),
        }
    }

    /// Does what the packet says.
    fn perform(&mut self, packet: &Packet) -> Result<Answer, Sense> {
        let operation = Operation::decode(packet.operation_code());
        tracing::trace!(?operation, ?packet, "packet command");
        if operation == Some(Operation::RequestSense) {
            return Ok(self.request_sense(packet));
        }
        self.sense = Sense::NONE;
        let operation = operation.ok_or(Sense::INVALID_OPERATION)?;
        if !operation.ignores_attention()
            && let Some(attention) = self.take_attention()
        {
            return Err(attention);
        }
        match operation {
            Operation::TestUnitReady => self.tray.loaded().map(|_| Answer::Done),
            Operation::RequestSense => Ok(self.request_sense(packet)),
            Operation::Inquiry => self.inquiry(packet),
            Operation::StartStopUnit => self.start_stop_unit(packet),
            Operation::PreventAllowMediumRemoval => Ok(self.prevent_allow_medium_removal(packet)),
            Operation::ReadCapacity => self.read_capacity(),
            Operation::Read10 => self.read(packet, packet.u16(7).into()),
            Operation::Read12 => self.read(packet, packet.u32(6)),
            Operation::ReadCd => self.read_cd(packet),
            Operation::ReadCdMsf => self.read_cd_msf(packet),
            Operation::Seek => self.seek(packet),
            Operation::ReadSubChannel => self.read_sub_channel(packet),
            Operation::ReadToc => self.read_toc(packet),
            Operation::GetConfiguration => self.get_configuration(packet),
            Operation::GetEventStatusNotification => self.get_event_status_notification(packet),
            Operation::ReadDiscInformation => self.read_disc_information(packet),
            Operation::ReadTrackInformation => self.read_track_information(packet),
            Operation::ReadDvdStructure => self.read_dvd_structure(packet),
            Operation::ModeSense10 => self.mode_sense(packet),
            Operation::ModeSelect10 => self.mode_select(packet),
            Operation::GetPerformance => self.get_performance(packet),
            Operation::SetCdSpeed => Ok(self.set_cd_speed(packet)),
            Operation::MechanismStatus => Ok(self.mechanism_status(packet)),
        }
    }

    /// REQUEST SENSE: why the last command failed; or else what waits to be told; or else that all is well. Telling it
    /// clears it (SPC-3, 6.27).
    fn request_sense(&mut self, packet: &Packet) -> Answer {
        let sense = std::mem::replace(&mut self.sense, Sense::NONE);
        let sense = match sense {
            Sense::NONE => self.take_attention().unwrap_or(Sense::NONE),
            sense => sense,
        };
        Answer::reply(sense.to_bytes().into(), packet.u8(4).into())
    }

    /// The unit attention that waits longest, which then no longer waits.
    fn take_attention(&mut self) -> Option<Sense> {
        if std::mem::take(&mut self.powered_on) {
            return Some(Sense::POWER_ON);
        }
        self.tray.take_changed().then_some(Sense::MEDIUM_CHANGED)
    }
}
