//! The ports of a channel, and of the bus master over both.

use std::sync::Arc;

use super::{Channel, NOBODY, State};
use crate::bus::PortDevice;
use crate::ide::drive::Step;
use crate::ide::registers::{DeviceControl, offset};

/// The command block's ports of a channel, 8 of them, aligned.
pub(in crate::ide) struct CommandBlock(pub Arc<Channel>);

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
pub(in crate::ide) struct ControlBlock(pub Arc<Channel>);

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

/// The bus master's 16 ports, aligned: 8 for each channel.
pub(in crate::ide) struct BusMasterPorts(pub [Arc<Channel>; 2]);

impl BusMasterPorts {
    /// The channel and register of a port, and how many bytes of an access at it are that channel's.
    fn target(&self, port: u16, length: usize) -> (&Channel, u16, usize) {
        let register = port & 7;
        (
            &self.0[usize::from(port >> 3 & 1)],
            register,
            length.min(usize::from(8 - register)),
        )
    }
}

impl PortDevice for BusMasterPorts {
    fn read(&self, port: u16, data: &mut [u8]) {
        let (channel, register, length) = self.target(port, data.len());
        data[length..].fill(0xff);
        channel.read_bus_master(register, &mut data[..length]);
    }

    fn write(&self, port: u16, data: &[u8]) {
        let (channel, register, length) = self.target(port, data.len());
        channel.write_bus_master(register, &data[..length]);
    }
}
