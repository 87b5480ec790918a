//! The output of one command in the guest, told apart from the rest of the console.

/// What the guest's init prints before it runs the command.
const BEGIN: &[u8] = b"spindle-guest: begin\n";
/// And after it has remounted the disk read-only; the exit code and a line's end follow.
const EXIT: &[u8] = b"\nspindle-guest: exit ";

/// Takes the console in pieces as they come and gives back the pieces that are the command's output.
#[derive(Debug, Default)]
pub struct ExecOutput {
    pending: Vec<u8>,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Booting,
    Running,
    ExitLine,
    Done(i32),
}

impl ExecOutput {
    /// A console of which nothing was seen.
    pub fn new() -> ExecOutput {
        ExecOutput::default()
    }

    /// The output and the exit code in a whole console; no code if the command did not come to its end.
    pub fn of(console: &[u8]) -> (Vec<u8>, Option<i32>) {
        let mut parser = ExecOutput::new();
        let output = parser.feed(console);
        (output, parser.exit_code())
    }

    /// The command's exit code, once it was seen.
    pub fn exit_code(&self) -> Option<i32> {
        match self.state {
            State::Done(code) => Some(code),
            _ => None,
        }
    }

    /// Takes the next piece of the console; returns what of it is certainly the command's output.
    pub fn feed(&mut self, piece: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(piece);
        let mut output = Vec::new();
        loop {
            match self.state {
                State::Booting => {
                    let Some(at) = find(&self.pending, BEGIN) else { break };
                    self.pending.drain(..at + BEGIN.len());
                    self.state = State::Running;
                }
                State::Running => {
                    let found = find(&self.pending, EXIT);
                    let certain = found.unwrap_or_else(|| self.pending.len() - held_back(&self.pending));
                    output.extend(self.pending.drain(..certain));
                    if found.is_none() {
                        break;
                    }
                    self.pending.drain(..EXIT.len());
                    self.state = State::ExitLine;
                }
                State::ExitLine => {
                    let Some(end) = find(&self.pending, b"\n") else { break };
                    let code = String::from_utf8_lossy(&self.pending[..end]).trim().parse();
                    self.state = State::Done(code.unwrap_or(-1));
                }
                State::Done(_) => break,
            }
        }
        output
    }
}

/// How many bytes at the end may be the beginning of [`EXIT`].
fn held_back(bytes: &[u8]) -> usize {
    let longest = EXIT.len().min(bytes.len());
    (1..=longest)
        .rev()
        .find(|&length| bytes.ends_with(&EXIT[..length]))
        .unwrap_or(0)
}

fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &[u8] = b"spindle-initramfs: up 0.5\r\n\nspindle-guest: begin\none\nspindle-guest: no\ntwo\n\nspindle-guest: exit 7\n[ 1.2] reboot";

    #[test]
    fn output_is_what_stands_between_the_marks() {
        let (output, code) = ExecOutput::of(CONSOLE);

        assert_eq!(output, b"one\nspindle-guest: no\ntwo\n");
        assert_eq!(code, Some(7));
    }

    #[test]
    fn output_does_not_depend_on_how_the_console_is_cut() {
        for size in 1..CONSOLE.len() {
            let mut parser = ExecOutput::new();

            let output: Vec<u8> = CONSOLE.chunks(size).flat_map(|piece| parser.feed(piece)).collect();

            assert_eq!(output, b"one\nspindle-guest: no\ntwo\n", "in pieces of {size}");
            assert_eq!(parser.exit_code(), Some(7));
        }
    }

    #[test]
    fn command_that_was_cut_short_has_no_exit_code() {
        let (output, code) = ExecOutput::of(b"\nspindle-guest: begin\nhalf");

        assert_eq!((output.as_slice(), code), (&b"half"[..], None));
    }
}
