//! The ways to ask a PC for a reset: the keyboard controller, the reset control register and port 0x92.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::bus::ByteRegisters;
use crate::power::PowerControl;

/// The reset control register (PIIX4 datasheet, "RC - Reset Control Register"), for the FADT's RESET_REG.
pub const RESET_PORT: u16 = 0xcf9;

/// What to write to [`RESET_PORT`] for a hard reset: SRST and RCPU.
pub const RESET_VALUE: u8 = 0x06;

/// System reset: a hard reset rather than a CPU reset when RCPU rises.
const SYSTEM_RESET: u8 = 1 << 1;
/// Reset CPU: the reset itself happens when this bit goes from 0 to 1.
const RESET_CPU: u8 = 1 << 2;

/// The reset control register at [`RESET_PORT`].
pub struct ResetControl {
    value: AtomicU8,
    power: Arc<dyn PowerControl>,
}

impl ResetControl {
    /// A register that tells `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self {
            value: AtomicU8::new(0),
            power,
        }
    }

    /// The register's value.
    pub fn read(&self) -> u8 {
        self.value.load(Ordering::SeqCst)
    }

    /// Writes the register; a rising RCPU resets.
    pub fn write(&self, value: u8) {
        let before = self.value.swap(value & (SYSTEM_RESET | RESET_CPU), Ordering::SeqCst);
        if value & RESET_CPU != 0 && before & RESET_CPU == 0 {
            self.power.reset();
        }
    }
}

/// Port 0x92, "system control port A": bit 0 resets the CPU, bit 1 gates A20 (which is always on here).
pub const SYSTEM_CONTROL_PORT: u16 = 0x92;

/// System control port A.
pub struct SystemControl {
    value: AtomicU8,
    power: Arc<dyn PowerControl>,
}

impl SystemControl {
    const FAST_RESET: u8 = 1 << 0;
    const A20_ENABLED: u8 = 1 << 1;

    /// A port that tells `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self {
            value: AtomicU8::new(Self::A20_ENABLED),
            power,
        }
    }
}

impl ByteRegisters for SystemControl {
    fn read_byte(&self, port: u16) -> u8 {
        if port == SYSTEM_CONTROL_PORT {
            self.value.load(Ordering::SeqCst)
        } else {
            0xff
        }
    }

    fn write_byte(&self, port: u16, value: u8) {
        if port != SYSTEM_CONTROL_PORT {
            return;
        }
        let before = self.value.swap(value, Ordering::SeqCst);
        if value & Self::FAST_RESET != 0 && before & Self::FAST_RESET == 0 {
            self.power.reset();
        }
    }
}

/// The keyboard controller's data port.
pub const KEYBOARD_DATA_PORT: u16 = 0x60;

/// The keyboard controller's status (read) and command (write) port.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;

/// An 8042 without keyboard or mouse: enough for the CPU reset line (command 0xfe) and for a driver to find that
/// nothing is plugged in.
pub struct KeyboardController {
    state: Mutex<KeyboardState>,
    power: Arc<dyn PowerControl>,
}

#[derive(Default)]
struct KeyboardState {
    /// The command byte: which interrupts and clocks are on.
    mode: u8,
    /// What the guest reads next from the data port.
    output: Option<u8>,
    /// The command that waits for its parameter at the data port.
    parameter_of: Option<u8>,
}

impl KeyboardController {
    const OUTPUT_FULL: u8 = 1 << 0;
    const SYSTEM_FLAG: u8 = 1 << 2;
    const NOT_LOCKED: u8 = 1 << 4;
    /// Output port: CPU reset not asserted, A20 on.
    const OUTPUT_PORT: u8 = 0x03;
    const RESET_NOT_ASSERTED: u8 = 1 << 0;

    const READ_MODE: u8 = 0x20;
    const WRITE_MODE: u8 = 0x60;
    const TEST_AUX: u8 = 0xa9;
    const SELF_TEST: u8 = 0xaa;
    const TEST_KEYBOARD: u8 = 0xab;
    const READ_OUTPUT_PORT: u8 = 0xd0;
    const WRITE_OUTPUT_PORT: u8 = 0xd1;
    /// 0xf0..=0xff pulse the output port's low four bits that are 0 in the command; bit 0 is the CPU's reset.
    const PULSE: u8 = 0xf0;

    /// A controller that tells `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self {
            state: Mutex::new(KeyboardState::default()),
            power,
        }
    }

    fn command(&self, state: &mut KeyboardState, command: u8) {
        state.parameter_of = None;
        match command {
            Self::READ_MODE => state.output = Some(state.mode),
            Self::SELF_TEST => state.output = Some(0x55),
            // The interface tests fail with "clock line stuck low": no keyboard, no mouse.
            Self::TEST_AUX | Self::TEST_KEYBOARD => state.output = Some(0x01),
            Self::READ_OUTPUT_PORT => state.output = Some(Self::OUTPUT_PORT),
            Self::WRITE_MODE | Self::WRITE_OUTPUT_PORT | 0xd2..=0xd4 => state.parameter_of = Some(command),
            Self::PULSE..=0xff if command & 1 == 0 => self.power.reset(),
            _ => {}
        }
    }

    fn parameter(&self, state: &mut KeyboardState, value: u8) {
        match state.parameter_of.take() {
            Some(Self::WRITE_MODE) => state.mode = value,
            Some(Self::WRITE_OUTPUT_PORT) if value & Self::RESET_NOT_ASSERTED == 0 => self.power.reset(),
            // "Write keyboard output buffer": the byte comes back as if the keyboard (or the mouse) had sent it.
            Some(0xd2 | 0xd3) => state.output = Some(value),
            // To a keyboard or a mouse that is not there: no answer.
            _ => {}
        }
    }
}

impl ByteRegisters for KeyboardController {
    fn read_byte(&self, port: u16) -> u8 {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match port {
            KEYBOARD_DATA_PORT => state.output.take().unwrap_or(0),
            KEYBOARD_COMMAND_PORT => {
                let full = if state.output.is_some() { Self::OUTPUT_FULL } else { 0 };
                full | Self::SYSTEM_FLAG | Self::NOT_LOCKED
            }
            _ => 0xff,
        }
    }

    fn write_byte(&self, port: u16, value: u8) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match port {
            KEYBOARD_DATA_PORT => self.parameter(&mut state, value),
            KEYBOARD_COMMAND_PORT => self.command(&mut state, value),
            _ => {}
        }
    }
}
