//! apt: what this machine's package sources are, and packages from them without installing.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::tool::{run, run_tool, tool};

/// One component of one suite that this machine's apt uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AptSource {
    /// The repository's address.
    pub uri: String,
    /// The suite, such as `bookworm` or `bookworm-backports`.
    pub suite: String,
    /// The component, such as `main`.
    pub component: String,
}

/// The package sources of this machine's apt, whatever kind of file configures them.
///
/// # Errors
/// If `apt-get` is missing or fails.
pub fn apt_sources() -> Result<Vec<AptSource>, Error> {
    let format = "$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let text = run_tool("apt-get", ["indextargets", "--format", format, "Created-By: Packages"])?;
    Ok(parse_sources(&String::from_utf8_lossy(&text)))
}

fn parse_sources(text: &str) -> Vec<AptSource> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let [uri, suite, component] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            continue;
        };
        let source = AptSource {
            uri: uri.to_owned(),
            suite: suite.to_owned(),
            component: component.to_owned(),
        };
        // Machines with more than one architecture have each source once for each.
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    sources
}

/// The package that the meta package `meta` pulls in whose name begins with `prefix`, as apt would install it.
pub(crate) fn dependency_of(meta: &str, prefix: &str) -> Result<String, Error> {
    let none = || Error::NoPackage {
        package: meta.to_owned(),
        hint: "run `apt-get update`, and see that apt's sources name a Debian release",
    };
    let record = run_tool("apt-cache", ["show", "--no-all-versions", meta]).map_err(|error| match error {
        Error::Failed { .. } => none(),
        other => other,
    })?;
    parse_dependency(&String::from_utf8_lossy(&record), prefix).ok_or_else(none)
}

fn parse_dependency(record: &str, prefix: &str) -> Option<String> {
    let depends = record.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    let names = depends
        .split([',', '|'])
        .filter_map(|one| one.split_whitespace().next());
    names
        .into_iter()
        .find(|name| name.starts_with(prefix))
        .map(str::to_owned)
}

/// Downloads `package` in the version that apt would install and unpacks it into `folder`.
pub(crate) fn unpack_package(package: &str, folder: &Path) -> Result<(), Error> {
    let download = tempfile::tempdir_in(folder).map_err(Error::io("create a folder in", folder))?;
    run(tool("apt-get")?
        .args(["-q", "-o", "Acquire::Retries=5", "download", package])
        .current_dir(download.path()))?;
    let archive = only_file(download.path(), package)?;
    run(tool("dpkg-deb")?.arg("-x").arg(archive).arg(folder))?;
    Ok(())
}

fn only_file(folder: &Path, package: &str) -> Result<PathBuf, Error> {
    let mut entries = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    let entry = entries.next().ok_or_else(|| Error::NoPackage {
        package: package.to_owned(),
        hint: "`apt-get download` brought nothing",
    })?;
    Ok(entry.map_err(Error::io("list", folder))?.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_listed_once_each() {
        let text = "http://one/debian/ bookworm main\nhttp://one/debian/ bookworm main\nhttp://two/s/ bookworm-security main\n";

        let sources = parse_sources(text);

        assert_eq!(sources.len(), 2);
        assert_eq!(sources[1].suite, "bookworm-security");
    }

    #[test]
    fn meta_package_leads_to_the_kernel_package() {
        let record =
            "Package: linux-image-cloud-amd64\nDepends: linux-base, linux-image-6.1.0-9-cloud-amd64 (= 6.1.9-1)\n";

        let package = parse_dependency(record, "linux-image-");

        assert_eq!(package.as_deref(), Some("linux-image-6.1.0-9-cloud-amd64"));
    }
}
