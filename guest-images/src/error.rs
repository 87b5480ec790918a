//! What can go wrong while an artefact is built.

use std::io;
use std::path::{Path, PathBuf};

/// Why an artefact could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program that is needed is not installed.
    #[error("`{program}` is not installed; `apt-get install {package}` provides it (`cargo xtask setup` does it)")]
    Missing {
        /// The program.
        program: String,
        /// The Debian package that has it.
        package: String,
    },
    /// A program ended with an error.
    #[error("`{command}` failed ({status}): {stderr}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of what it wrote to its standard error.
        stderr: String,
    },
    /// A file could not be read, written or renamed.
    #[error("Cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// apt offers no such package.
    #[error("apt offers no package {package}: {hint}")]
    NoPackage {
        /// The package.
        package: String,
        /// What to look at.
        hint: &'static str,
    },
    /// A kernel image is not what its format says.
    #[error("The kernel image {path} cannot be unpacked: {why}")]
    Kernel {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A module is in neither `modules.dep` nor `modules.builtin`.
    #[error("The kernel {release} has no module {module}")]
    NoModule {
        /// The kernel's release.
        release: String,
        /// The module's name.
        module: String,
    },
}

impl Error {
    /// For `map_err`: says what was tried on which path.
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { what, path, source }
    }
}
