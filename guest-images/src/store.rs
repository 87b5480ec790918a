//! The cache of finished artefacts.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::Error;

/// Finished artefacts, each in a folder named after it and the hash of its recipe.
pub struct Store {
    root: PathBuf,
    progress: Box<dyn Fn(&str) + Send + Sync>,
}

impl Store {
    /// Opens the store in `target/guest-images/`. `progress` is told what is being built, a short phrase at a time.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be made.
    pub fn open(target: &Path, progress: impl Fn(&str) + Send + Sync + 'static) -> Result<Store, Error> {
        let root = target.join("guest-images");
        fs::create_dir_all(&root).map_err(Error::io("create", &root))?;
        Ok(Store {
            root,
            progress: Box::new(progress),
        })
    }

    /// Says what is being done.
    pub(crate) fn progress(&self, what: &str) {
        (self.progress)(what);
    }

    /// Where the store keeps its artefacts.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the artefact `name` as `recipe` describes it. `build` fills the folder if there is none yet.
    ///
    /// Two processes that want the same artefact do not both build it: the second waits. Artefacts of the same name
    /// with another recipe are removed, since nothing will ask for them again.
    pub(crate) fn artefact(
        &self,
        name: &str,
        recipe: &[&str],
        build: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<PathBuf, Error> {
        let finished = self.root.join(format!("{name}-{}", recipe_hash(recipe)));
        if finished.is_dir() {
            return Ok(finished);
        }
        let _lock = self.lock(name)?;
        if finished.is_dir() {
            return Ok(finished);
        }
        let unfinished = self.root.join(format!("{name}.unfinished"));
        remove_if_there(&unfinished)?;
        fs::create_dir(&unfinished).map_err(Error::io("create", &unfinished))?;
        build(&unfinished)?;
        self.remove_other_recipes(name)?;
        fs::rename(&unfinished, &finished).map_err(Error::io("rename", &unfinished))?;
        Ok(finished)
    }

    /// Forgets the artefact `name`, so that it is built anew.
    pub(crate) fn forget(&self, name: &str) -> Result<(), Error> {
        let _lock = self.lock(name)?;
        self.remove_other_recipes(name)
    }

    /// Held while an artefact is built; released when dropped, and by the kernel when this process dies.
    fn lock(&self, name: &str) -> Result<File, Error> {
        let path = self.root.join(format!("{name}.lock"));
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        if file.try_lock().is_err() {
            self.progress(&format!("waiting for another process that builds {name}"));
            file.lock().map_err(Error::io("lock", &path))?;
        }
        Ok(file)
    }

    fn remove_other_recipes(&self, name: &str) -> Result<(), Error> {
        let entries = fs::read_dir(&self.root).map_err(Error::io("list", &self.root))?;
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &self.root))?;
            let file_name = entry.file_name();
            let hash = file_name
                .to_str()
                .and_then(|found| found.strip_prefix(name)?.strip_prefix('-'));
            if hash.is_some_and(|hash| hash.len() == HASH_DIGITS && hash.bytes().all(|digit| digit.is_ascii_hexdigit()))
            {
                remove_if_there(&entry.path())?;
            }
        }
        Ok(())
    }
}

const HASH_DIGITS: usize = 16;

fn recipe_hash(recipe: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in recipe {
        // The length keeps ["ab", "c"] apart from ["a", "bc"].
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize()[..HASH_DIGITS / 2]
        .iter()
        .fold(String::new(), |mut digits, byte| {
            let _ = write!(digits, "{byte:02x}");
            digits
        })
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn store(folder: &Path) -> Store {
        Store::open(folder, |_| {}).unwrap()
    }

    #[test]
    fn artefact_is_built_once() {
        let folder = tempfile::tempdir().unwrap();
        let builds = AtomicUsize::new(0);
        let get = || {
            store(folder.path()).artefact("disk", &["recipe"], |at| {
                builds.fetch_add(1, Ordering::Relaxed);
                fs::write(at.join("file"), "content").map_err(Error::io("write", at))
            })
        };

        let first = get().unwrap();
        let second = get().unwrap();

        assert_eq!(first, second);
        assert_eq!(fs::read(first.join("file")).unwrap(), b"content");
        assert_eq!(builds.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn changed_recipe_replaces_the_artefact_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let old = store.artefact("disk", &["a"], |_| Ok(())).unwrap();
        let neighbour = store.artefact("disk-ext4", &["a"], |_| Ok(())).unwrap();

        let new = store.artefact("disk", &["b"], |_| Ok(())).unwrap();

        assert_ne!(old, new);
        assert!(!old.exists());
        assert!(neighbour.exists());
    }

    #[test]
    fn failed_build_leaves_no_artefact() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let refuse = |_: &Path| {
            Err(Error::NoPackage {
                package: "x".to_owned(),
                hint: "y",
            })
        };

        store.artefact("disk", &["a"], refuse).unwrap_err();
        let built = store.artefact("disk", &["a"], |_| Ok(()));

        assert!(built.is_ok());
    }

    #[test]
    fn recipe_parts_are_kept_apart() {
        assert_ne!(recipe_hash(&["ab", "c"]), recipe_hash(&["a", "bc"]));
    }
}
