//! The command line that boots one of the guests of `guest-images`.

use anyhow::{Result, ensure};
use base64::prelude::{BASE64_STANDARD, Engine};
use guest_images::Guest;

/// A guest's boot, before it is turned into a command line.
#[derive(Clone, Debug)]
pub struct Boot {
    /// The root disk, relative to the work folder.
    pub disk: String,
    /// The guest's CPUs.
    pub cpus: u32,
    /// The guest's memory in MiB.
    pub memory: u32,
    /// One shell command to run before the guest powers off; none gives a shell.
    pub exec: Option<String>,
    /// More for the kernel's command line.
    pub append: String,
    /// Whether the kernel is to keep quiet: a serial line takes its time.
    pub quiet: bool,
    /// More options of `spindle run`.
    pub options: Vec<String>,
}

/// The kernel cuts off what is longer, without a word (`COMMAND_LINE_SIZE` on x86).
const COMMAND_LINE_SIZE: usize = 2048;

impl Boot {
    /// For [`Boot::append`]: without what the kernel does for security, which has nothing to do with disks and costs half of the
    /// boot in the nested host.
    pub const LEAN: &str = "mitigations=off lsm= ipv6.disable=1";

    /// Boots from `disk` with one CPU and 512 MiB.
    pub fn new(disk: impl Into<String>) -> Boot {
        Boot {
            disk: disk.into(),
            cpus: 1,
            memory: 512,
            exec: None,
            append: String::new(),
            quiet: true,
            options: Vec::new(),
        }
    }

    /// The same, to run `command` and power off.
    pub fn exec(disk: impl Into<String>, command: impl Into<String>) -> Boot {
        Boot {
            exec: Some(command.into()),
            ..Boot::new(disk)
        }
    }

    /// `./spindle run` and its arguments.
    ///
    /// # Errors
    /// If the kernel's command line, which carries the command in base64, gets longer than a kernel takes.
    pub fn command(&self) -> Result<Vec<String>> {
        let kernel_line = self.kernel_line();
        ensure!(
            kernel_line.len() < COMMAND_LINE_SIZE,
            "The command is too long: the kernel command line that carries it would have {} bytes and may have {}",
            kernel_line.len(),
            COMMAND_LINE_SIZE - 1
        );
        let mut command: Vec<String> = ["./spindle", "run", "--kernel"].map(str::to_owned).into();
        let mut add = |words: &[&str]| command.extend(words.iter().map(|&word| word.to_owned()));
        add(&[
            &format!("base/{}", Guest::KERNEL),
            "--initrd",
            &format!("base/{}", Guest::INITRAMFS),
        ]);
        add(&[
            "--append",
            &kernel_line,
            "--disk",
            &format!("{},format=qcow2,slot=hda", self.disk),
        ]);
        add(&[
            "--cpus",
            &self.cpus.to_string(),
            "--memory",
            &format!("{}M", self.memory),
        ]);
        add(&["--console", "stdio", "--no-reboot"]);
        command.extend(self.options.iter().cloned());
        Ok(command)
    }

    fn kernel_line(&self) -> String {
        let mut line = "console=ttyS0 nokaslr root=/dev/hda rw".to_owned();
        if self.quiet {
            line.push_str(" quiet");
        }
        if !self.append.is_empty() {
            line.push(' ');
            line.push_str(&self.append);
        }
        if let Some(command) = &self.exec {
            line.push_str(" spindle.exec=");
            line.push_str(&BASE64_STANDARD.encode(command));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_that_does_not_fit_is_refused() {
        let error = Boot::exec("disks/a", "x".repeat(2000)).command().unwrap_err();

        assert!(error.to_string().contains("too long"), "{error}");
    }
}
