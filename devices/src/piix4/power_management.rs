//! 00:01.3: the PIIX4's power management function, and the ACPI registers that it has in I/O space: PM1a event and
//! control blocks and the PM timer (PIIX4 datasheet, chapter 7; ACPI 6.5, 4.8).

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::bus::PortDevice;
use crate::pci::configuration::{ConfigurationSpace, Identity, PciFunction, register};
use crate::power::PowerControl;

/// All ports of the function.
pub const PM_PORTS: RangeInclusive<u16> = 0x600..=0x63f;

/// PM1a event block for the FADT: status, then enable, 2 ports each.
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// Length of the PM1a event block in ports.
pub const PM1A_EVENT_LENGTH: u8 = 4;
/// PM1a control block for the FADT.
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// Length of the PM1a control block in ports.
pub const PM1A_CONTROL_LENGTH: u8 = 2;
/// The PM timer for the FADT.
pub const PM_TIMER_PORT: u16 = 0x608;
/// Length of the PM timer block in ports.
pub const PM_TIMER_LENGTH: u8 = 4;
/// The PM timer counts in 24 bits, as the PIIX4's does: the FADT's TMR_VAL_EXT flag is 0.
pub const PM_TIMER_BITS: u32 = 24;
/// The PM timer's frequency in Hz.
pub const PM_TIMER_FREQUENCY: u64 = 3_579_545;
/// SLP_TYP of soft off, for the DSDT's `\_S5` (PIIX4: 0 is "soft off or suspend to disk").
pub const SLEEP_TYPE_S5: u8 = 0;
/// The system control interrupt, for the FADT's SCI_INT. Nothing raises it yet.
pub const SCI_GSI: u32 = 9;

const PM1_STATUS: usize = 0x00;
const PM1_ENABLE: usize = 0x02;
const PM1_CONTROL: usize = 0x04;
const PM_TIMER: usize = 0x08;
/// GPSTS, GPEN, PCNTRL and what follows up to the general purpose outputs: storage.
const GENERAL: usize = 0x0c;

/// PM1 status: the timer's top bit changed.
const TIMER_STATUS: u8 = 1 << 0;
/// PM1 enable: timer, global, power button, RTC.
const PM1_ENABLE_WRITABLE: [u8; 2] = [0x21, 0x05];
/// PM1 control, low byte: ACPI mode. Always on: there is no firmware that owned the machine before.
const SCI_ENABLE: u8 = 1 << 0;
/// PM1 control, low byte: bus master reload.
const BUS_MASTER_RELOAD: u8 = 1 << 1;
/// PM1 control, high byte: enter the state that SLP_TYP names. Reads as 0.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0x07 << SLEEP_TYPE_SHIFT;

/// The function's configuration space. The I/O base is fixed at 0x600, where the ACPI tables say it is.
pub struct PowerManagementFunction {
    space: Mutex<ConfigurationSpace>,
}

impl Default for PowerManagementFunction {
    fn default() -> Self {
        const PMBA: usize = 0x40;
        const PMREGMISC: usize = 0x80;
        let identity = Identity {
            vendor: 0x8086,
            device: 0x7113,
            revision: 3,
            class: [0x06, 0x80, 0x00],
            multifunction: false,
        };
        let space = ConfigurationSpace::new(identity)
            .allow_u16(register::COMMAND, 0x0001)
            .with_u16(register::STATUS, 0x0280)
            .clear_u16(register::STATUS, 0x7800)
            // The SCI is IRQ 9, by INTA as the datasheet says.
            .with_u8(0x3c, SCI_GSI as u8)
            .with_u8(0x3d, 1)
            .with_u32(PMBA, u32::from(*PM_PORTS.start()) | 1)
            .with_u8(PMREGMISC, 1);
        Self {
            space: Mutex::new(space),
        }
    }
}

impl PciFunction for PowerManagementFunction {
    fn read_configuration(&self, offset: usize, data: &mut [u8]) {
        self.space
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset, data);
    }

    fn write_configuration(&self, offset: usize, data: &[u8]) {
        self.space
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, data);
    }
}

/// The ACPI registers at [`PM_PORTS`].
pub struct PowerManagement {
    state: Mutex<State>,
    started: Instant,
    power: Arc<dyn PowerControl>,
}

struct State {
    /// The 64 bytes, but for the timer and its status bit, which are derived from the clock.
    registers: [u8; 64],
    /// The timer (all bits, not only the visible ones) when its status bit was last cleared.
    timer_acknowledged: u64,
}

impl PowerManagement {
    /// Registers that tell `power` of S5.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        let mut registers = [0; 64];
        registers[PM1_CONTROL] = SCI_ENABLE;
        Self {
            state: Mutex::new(State {
                registers,
                timer_acknowledged: 0,
            }),
            started: Instant::now(),
            power,
        }
    }

    /// Ticks since the start.
    fn timer(&self) -> u64 {
        (self.started.elapsed().as_nanos() * u128::from(PM_TIMER_FREQUENCY) / 1_000_000_000) as u64
    }

    fn write_byte(&self, state: &mut State, at: usize, value: u8) {
        match at {
            PM1_STATUS if value & TIMER_STATUS != 0 => state.timer_acknowledged = self.timer(),
            PM1_ENABLE | 0x03 => state.registers[at] = value & PM1_ENABLE_WRITABLE[at - PM1_ENABLE],
            PM1_CONTROL => state.registers[at] = SCI_ENABLE | value & BUS_MASTER_RELOAD,
            0x05 => {
                state.registers[at] = value & SLEEP_TYPE_MASK;
                let sleep_type = (value & SLEEP_TYPE_MASK) >> SLEEP_TYPE_SHIFT;
                if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 {
                    self.power.power_off();
                }
            }
            // The general purpose status bits can only be cleared, and nothing sets them.
            GENERAL | 0x0d => {}
            0x0e.. => state.registers[at] = value,
            _ => {}
        }
    }
}

impl PortDevice for PowerManagement {
    fn read(&self, port: u16, data: &mut [u8]) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut registers = state.registers;
        let timer = self.timer();
        let visible = timer & ((1 << PM_TIMER_BITS) - 1);
        registers[PM_TIMER..PM_TIMER + 4].copy_from_slice(&(visible as u32).to_le_bytes());
        let top = PM_TIMER_BITS - 1;
        if timer >> top != state.timer_acknowledged >> top {
            registers[PM1_STATUS] |= TIMER_STATUS;
        }
        let offset = usize::from(port - PM_PORTS.start());
        for (at, byte) in (offset..).zip(data) {
            *byte = registers.get(at).copied().unwrap_or(0xff);
        }
    }

    fn write(&self, port: u16, data: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let offset = usize::from(port - PM_PORTS.start());
        for (at, byte) in (offset..state.registers.len()).zip(data) {
            self.write_byte(&mut state, at, *byte);
        }
    }
}
