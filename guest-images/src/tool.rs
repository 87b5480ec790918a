//! Debian's programs: which ones are needed, from which packages, and how they are run.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::Error;

/// A program that this workspace runs, and the Debian package that has it.
#[derive(Clone, Copy, Debug)]
pub struct Requirement {
    /// The program's name, looked up on the path and in the `sbin` folders.
    pub program: &'static str,
    /// The package.
    pub package: &'static str,
}

const fn requirement(program: &'static str, package: &'static str) -> Requirement {
    Requirement { program, package }
}

/// Everything beyond Rust and Debian's essential packages that building guests and testing with them needs.
/// The nested host's `qemu-system-x86_64` is not among them: only a machine without hardware KVM needs it.
pub const REQUIREMENTS: &[Requirement] = &[
    requirement("debugfs", "e2fsprogs"),
    requirement("depmod", "kmod"),
    requirement("e2fsck", "e2fsprogs"),
    requirement("lz4", "lz4"),
    requirement("mke2fs", "e2fsprogs"),
    requirement("mmdebstrap", "mmdebstrap"),
    requirement("qemu-img", "qemu-utils"),
    requirement("xorriso", "xorriso"),
    requirement("xz", "xz-utils"),
    requirement("zstd", "zstd"),
];

/// Where `program` is, looked up like a shell with root's path does: `mke2fs` and its like are not on a user's.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// A command for `program`, which must be installed.
pub(crate) fn tool(program: &str) -> Result<Command, Error> {
    let found = find_program(program).ok_or_else(|| Error::Missing {
        program: program.to_owned(),
        package: package_of(program).to_owned(),
    })?;
    let mut command = Command::new(found);
    // Output is parsed: it must not be translated.
    command.env("LC_ALL", "C").stdin(Stdio::null());
    Ok(command)
}

fn package_of(program: &str) -> &str {
    let known = REQUIREMENTS.iter().find(|known| known.program == program);
    known.map_or(program, |known| known.package)
}

/// Runs `program` and returns what it wrote to its standard output.
///
/// # Errors
/// [`Error::Missing`] if it is not installed, [`Error::Failed`] with its last words if it ends with an error.
pub fn run_tool<I: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = I>) -> Result<Vec<u8>, Error> {
    let mut command = tool(program)?;
    command.args(arguments);
    Ok(run(&mut command)?.stdout)
}

/// Runs `command` to its end; anything but success is an error.
pub(crate) fn run(command: &mut Command) -> Result<Output, Error> {
    let output = command.output().map_err(|error| could_not_start(command, &error))?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(failed(command, &output))
    }
}

fn could_not_start(command: &Command, error: &io::Error) -> Error {
    Error::Failed {
        command: describe(command),
        status: "it did not start".to_owned(),
        stderr: error.to_string(),
    }
}

pub(crate) fn failed(command: &Command, output: &Output) -> Error {
    Error::Failed {
        command: describe(command),
        status: output.status.to_string(),
        stderr: last_lines(&output.stderr),
    }
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default();
    let words = std::iter::once(program).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// The end of a program's standard error: where the reason is.
fn last_lines(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(6)..].join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_program_names_its_package() {
        let error = run_tool("no-such-program-anywhere", [""; 0]).unwrap_err();

        assert_eq!(
            error.to_string(),
            "`no-such-program-anywhere` is not installed; `apt-get install no-such-program-anywhere` provides it (`cargo \
             xtask setup` does it)"
        );
    }

    #[test]
    fn failing_program_says_its_last_words() {
        let error = run_tool("sh", ["-c", "echo first >&2; echo last >&2; exit 3"]).unwrap_err();

        assert!(
            matches!(&error, Error::Failed { stderr, .. } if stderr == "first; last"),
            "{error}"
        );
        assert!(error.to_string().contains("exit status: 3"), "{error}");
    }
}
