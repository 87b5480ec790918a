//! The keys that the console keeps for itself: Ctrl-A, and then what to do.

/// Ctrl-A.
const PREFIX: u8 = 0x01;

/// What Ctrl-A h shows.
pub const HELP: &str = "\n\
    Ctrl-A x        quit spindle (the guest is not asked)\n\
    Ctrl-A c        go on with a machine that a disk error has paused\n\
    Ctrl-A e        press the button of the CD-ROM drive: its tray opens or closes\n\
    Ctrl-A Ctrl-A   send Ctrl-A to the guest (Ctrl-A a does, too)\n\
    Ctrl-A h        this help\n";

/// A command to the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Stop the machine.
    Quit,
    /// Go on with a paused machine.
    Continue,
    /// Open or close the tray of the CD-ROM drive.
    Eject,
    /// Show [`HELP`].
    Help,
}

/// Splits what is typed into input for the guest and commands. A key after Ctrl-A that means nothing is dropped.
#[derive(Debug, Default)]
pub struct Keys {
    after_prefix: bool,
}

impl Keys {
    /// Takes `typed`, appends the guest's part to `input` and returns the commands.
    pub fn read(&mut self, typed: &[u8], input: &mut Vec<u8>) -> Vec<Command> {
        let mut commands = Vec::new();
        for &key in typed {
            if !std::mem::take(&mut self.after_prefix) {
                if key == PREFIX {
                    self.after_prefix = true;
                } else {
                    input.push(key);
                }
                continue;
            }
            match key {
                PREFIX | b'a' => input.push(PREFIX),
                b'x' => commands.push(Command::Quit),
                b'c' => commands.push(Command::Continue),
                b'e' => commands.push(Command::Eject),
                b'h' | b'?' => commands.push(Command::Help),
                _ => {}
            }
        }
        commands
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(parts: &[&[u8]]) -> (Vec<u8>, Vec<Command>) {
        let mut keys = Keys::default();
        let mut input = Vec::new();
        let commands = parts.iter().flat_map(|part| keys.read(part, &mut input)).collect();
        (input, commands)
    }

    #[test]
    fn ctrl_a_is_kept_and_can_be_sent() {
        assert_eq!(read(&[b"ls\x03\r"]), (b"ls\x03\r".to_vec(), vec![]));
        assert_eq!(read(&[b"a\x01x"]), (b"a".to_vec(), vec![Command::Quit]));
        assert_eq!(read(&[b"\x01\x01b\x01ac"]), (b"\x01b\x01c".to_vec(), vec![]));
        assert_eq!(read(&[b"\x01hq"]), (b"q".to_vec(), vec![Command::Help]));
        assert_eq!(read(&[b"\x01cq"]), (b"q".to_vec(), vec![Command::Continue]));
        assert_eq!(read(&[b"\x01eq"]), (b"q".to_vec(), vec![Command::Eject]));
        assert_eq!(read(&[b"\x01zq"]), (b"q".to_vec(), vec![]));
    }

    #[test]
    fn the_prefix_is_remembered_between_reads() {
        assert_eq!(read(&[b"\x01", b"x"]), (vec![], vec![Command::Quit]));
    }
}
