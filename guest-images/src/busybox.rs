//! The static busybox that initramfs and root disks carry.

use std::path::PathBuf;
use std::process::Command;

use crate::tool::run;
use crate::{Error, Store, apt};

const PACKAGE: &str = "busybox-static";

/// A static busybox from its package; the package is not installed, since it conflicts with the dynamic one.
pub(crate) struct Busybox {
    /// The program.
    pub(crate) program: PathBuf,
    /// The programs it can act as.
    pub(crate) applets: Vec<String>,
}

impl Busybox {
    pub(crate) fn get(store: &Store) -> Result<Busybox, Error> {
        let folder = store.artefact("busybox", &[PACKAGE], |folder| {
            store.progress("downloading busybox-static");
            apt::unpack_package(PACKAGE, folder)
        })?;
        let program = ["bin/busybox", "usr/bin/busybox"]
            .map(|path| folder.join(path))
            .into_iter()
            .find(|path| path.is_file());
        let program = program.ok_or_else(|| Error::NoPackage {
            package: PACKAGE.to_owned(),
            hint: "the package has no bin/busybox",
        })?;
        let list = run(Command::new(&program).arg("--list"))?.stdout;
        let applets = String::from_utf8_lossy(&list).lines().map(str::to_owned).collect();
        Ok(Busybox { program, applets })
    }
}
