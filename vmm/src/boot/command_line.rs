//! The kernel command line.

use std::fmt;
use std::str::FromStr;

use super::BootError;

/// A kernel command line: words that the kernel splits at spaces. Never contains a NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine(String);

/// The text cannot be a command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A kernel command line cannot contain the control character {0:?}")]
pub struct CommandLineError(char);

impl CommandLine {
    /// What a guest is given: the console and the root device first, so that the user's words, which follow, win.
    ///
    /// `console=ttyS0` is added where `append` has no `console=`; `root` (a device name and whether it is
    /// writable) where a disk was marked as the root disk.
    pub fn for_guest(append: &CommandLine, root: Option<(&str, bool)>) -> Self {
        let mut words = Vec::new();
        if !append.has("console=") {
            words.push("console=ttyS0".to_owned());
        }
        if let Some((device, writable)) = root {
            words.push(format!("root={device} {}", if writable { "rw" } else { "ro" }));
        }
        if !append.0.is_empty() {
            words.push(append.0.clone());
        }
        Self(words.join(" "))
    }

    /// Whether a word begins with `prefix`.
    fn has(&self, prefix: &str) -> bool {
        self.0.split_whitespace().any(|word| word.starts_with(prefix))
    }

    /// Fails if the kernel cannot take this many bytes, the terminating NUL not counted.
    pub(super) fn check(&self, limit: usize) -> Result<(), BootError> {
        let length = self.0.len();
        if length > limit {
            return Err(BootError::CommandLineTooLong { length, limit });
        }
        Ok(())
    }

    /// With the terminating NUL.
    pub(super) fn to_c_bytes(&self) -> Vec<u8> {
        [self.0.as_bytes(), &[0]].concat()
    }
}

impl FromStr for CommandLine {
    type Err = CommandLineError;

    fn from_str(text: &str) -> Result<Self, CommandLineError> {
        match text.chars().find(|c| c.is_control() && !c.is_whitespace()) {
            Some(control) => Err(CommandLineError(control)),
            None => Ok(Self(text.trim().to_owned())),
        }
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> CommandLine {
        text.parse().expect("no control characters")
    }

    #[test]
    fn a_console_is_named_unless_the_user_named_one() {
        assert_eq!(CommandLine::for_guest(&line(""), None).to_string(), "console=ttyS0");
        assert_eq!(
            CommandLine::for_guest(&line("quiet"), None).to_string(),
            "console=ttyS0 quiet"
        );
        assert_eq!(
            CommandLine::for_guest(&line("quiet console=tty0"), None).to_string(),
            "quiet console=tty0"
        );
        // A word that only contains it does not count.
        assert_eq!(
            CommandLine::for_guest(&line("netconsole=x"), None).to_string(),
            "console=ttyS0 netconsole=x"
        );
    }

    #[test]
    fn a_root_disk_comes_before_what_the_user_said() {
        assert_eq!(
            CommandLine::for_guest(&line("ro"), Some(("/dev/sda", true))).to_string(),
            "console=ttyS0 root=/dev/sda rw ro"
        );
        assert_eq!(
            CommandLine::for_guest(&line(""), Some(("/dev/sdb", false))).to_string(),
            "console=ttyS0 root=/dev/sdb ro"
        );
    }

    #[test]
    fn control_characters_are_refused() {
        assert_eq!("a\0b".parse::<CommandLine>(), Err(CommandLineError('\0')));
    }
}
