//! The folder that a gateway watches: what is installed, and what was before.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::installed::Installed;
use crate::render::{self, Output, RenderError, Resource};

/// States kept to go back to.
pub(super) const MAX_HISTORY: usize = 10;

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be read or written.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nothing was rendered there.
    #[error("{} has no rendered filters: is it what `wasm-epp render --out` wrote for this gateway?", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// Another command is changing it.
    #[error("another command is changing {}", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// A file could not be installed.
    #[error(transparent)]
    Write(#[from] RenderError),
}

/// A folder of rendered files, held by this process.
pub(super) struct Store {
    output: Output,
    _lock: File,
}

impl Store {
    /// Takes the folder. One command at a time changes it.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        let empty = || StoreError::Empty { path: folder.to_owned() };
        if !folder.join("ecds").is_dir() {
            return Err(empty());
        }
        let path = folder.join(crate::render::LOCK);
        let failed = |source| StoreError::Io { doing: "locking", path: path.clone(), source };
        let lock = File::create(&path).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Busy { path: folder.to_owned() });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let store = Self { output: Output::create(folder)?, _lock: lock };
        if store.installed().0.is_empty() { Err(empty()) } else { Ok(store) }
    }

    pub(super) fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    pub(super) fn dir(&self) -> &Path {
        self.output.dir()
    }

    /// What its files say.
    pub(super) fn installed(&self) -> Installed {
        installed(self.dir())
    }

    /// Renames a filter's file into the watched folder.
    pub(super) fn install(&mut self, name: &str, resource: &Resource) -> Result<(), StoreError> {
        self.output.replace(&format!("ecds/{name}.yaml"), resource.text.as_bytes())?;
        Ok(())
    }

    /// Keeps what is installed, to go back to; gives its number.
    pub(super) fn remember(&self, set: &Installed) -> Result<u64, StoreError> {
        let number = self.history()?.last().map_or(1, |last| last + 1);
        let (new, kept) = (self.history_dir().join(".new"), self.entry(number));
        let failed = |source| StoreError::Io { doing: "keeping", path: kept.clone(), source };
        let write = || {
            let _ = fs::remove_dir_all(&new);
            fs::create_dir_all(&new)?;
            for (name, resource) in &set.0 {
                fs::write(new.join(format!("{name}.yaml")), &resource.text)?;
            }
            fs::rename(&new, &kept)
        };
        write().map_err(failed)?;
        Ok(number)
    }

    /// What was installed before the last swap.
    pub(super) fn last(&self) -> Result<Option<(u64, Installed)>, StoreError> {
        let last = self.history()?.last().copied();
        Ok(last.map(|last| (last, Installed::of(render::read_filters(&self.entry(last))))))
    }

    /// Drops a state that is not to be gone back to.
    pub(super) fn forget(&self, number: u64) -> Result<(), StoreError> {
        let path = self.entry(number);
        fs::remove_dir_all(&path).map_err(|source| StoreError::Io {
            doing: "removing",
            path,
            source,
        })
    }

    /// Drops states beyond the bound, and the modules that neither a filter nor a kept state names.
    pub(super) fn tidy(&self) -> Result<(), StoreError> {
        let history = self.history()?;
        for number in &history[..history.len().saturating_sub(MAX_HISTORY)] {
            self.forget(*number)?;
        }
        let mut named = files_of(&self.dir().join("ecds"));
        for number in self.history()? {
            named.extend(files_of(&self.entry(number)));
        }
        let folder = self.dir().join("modules");
        let failed = |source| StoreError::Io { doing: "tidying", path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let is_module = path.extension().is_some_and(|extension| extension == "wasm");
            if is_module && !named.contains(&path) {
                fs::remove_file(&path).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn history_dir(&self) -> PathBuf {
        self.dir().join("history")
    }

    fn entry(&self, number: u64) -> PathBuf {
        self.history_dir().join(format!("{number:08}"))
    }

    /// The kept states' numbers, oldest first.
    fn history(&self) -> Result<Vec<u64>, StoreError> {
        let path = self.history_dir();
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(StoreError::Io { doing: "reading", path, source }),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut numbers: Vec<u64> = names.collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// What the files of a folder say, whoever holds it.
pub(super) fn installed(folder: &Path) -> Installed {
    Installed::of(render::read_filters(&folder.join("ecds")))
}

/// The module files that the filters of a folder name.
fn files_of(folder: &Path) -> BTreeSet<PathBuf> {
    let filters = render::read_filters(folder).into_values();
    filters.filter_map(|resource| Some(resource.loaded?.file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(module: &Path) -> String {
        format!(
            "version_info: v\nresources: [{{name: n, typed_config: {{config: {{configuration: \
             {{value: '{{}}'}}, vm_config: {{code: {{local: {{filename: {}}}}}}}}}}}}}]\n",
            module.display()
        )
    }

    #[test]
    fn the_history_is_bounded_and_so_are_the_modules_it_keeps() {
        let folder = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(folder.path()).unwrap();
        assert!(matches!(Store::open(&dir), Err(StoreError::Empty { .. })));
        fs::create_dir_all(dir.join("ecds")).unwrap();
        fs::create_dir_all(dir.join("modules")).unwrap();
        let module = |n: usize| dir.join(format!("modules/m-{n}.wasm"));
        fs::write(dir.join("ecds/picker.yaml"), filter(&module(0))).unwrap();
        // Not what decides, but what a running gateway names.
        fs::write(dir.join("modules/feeder.wasm"), "").unwrap();
        fs::write(dir.join("ecds/feeder.yaml"), filter(&dir.join("modules/feeder.wasm"))).unwrap();
        let mut store = Store::open(&dir).unwrap();
        assert!(matches!(Store::open(&dir), Err(StoreError::Busy { .. })));
        for n in 1..=MAX_HISTORY + 3 {
            fs::write(module(n - 1), "").unwrap();
            fs::write(module(n), "").unwrap();
            let before = store.installed();
            store.remember(&before).unwrap();
            let next = Resource::parse(filter(&module(n))).unwrap();
            store.install("picker", &next).unwrap();
            store.tidy().unwrap();
        }
        let newest = MAX_HISTORY + 3;
        assert_eq!(store.history().unwrap(), (4..=newest as u64).collect::<Vec<_>>());
        let left: BTreeSet<PathBuf> =
            fs::read_dir(dir.join("modules")).unwrap().map(|entry| entry.unwrap().path()).collect();
        let mut expected: BTreeSet<PathBuf> = (3..=newest).map(module).collect();
        expected.insert(dir.join("modules/feeder.wasm"));
        assert_eq!(left, expected);
        let (number, last) = store.last().unwrap().unwrap();
        assert_eq!(last.router().unwrap(), format!("m-{}.wasm", newest - 1));
        store.forget(number).unwrap();
        assert_eq!(store.last().unwrap().unwrap().0, number - 1);
    }
}
