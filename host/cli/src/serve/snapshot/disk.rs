//! The daemon's own file: written beside its place and renamed, so that there is a whole one always.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use tokio::time::MissedTickBehavior;

use super::{Record, take};
use crate::serve::scope::Scope;

fn place(data_dir: &Path) -> PathBuf {
    data_dir.join("snapshot")
}

/// The file as it is; `None` when there is none.
pub(super) fn open(data_dir: &Path) -> anyhow::Result<Option<Box<dyn Read>>> {
    let path = place(data_dir);
    match File::open(&path) {
        Ok(file) => Ok(Some(Box::new(BufReader::new(file)))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot be opened at {}", path.display())),
    }
}

/// Writes the file of a data folder.
pub(crate) struct Disk {
    data_dir: PathBuf,
    scopes: Vec<Arc<Scope>>,
    record: Arc<Record>,
}

impl Disk {
    pub(crate) fn new(data_dir: &Path, scopes: &[Arc<Scope>], record: &Arc<Record>) -> Arc<Self> {
        let record = Arc::clone(record);
        Arc::new(Self { data_dir: data_dir.to_owned(), scopes: scopes.to_vec(), record })
    }

    /// Writes now and then.
    pub(crate) async fn run(self: Arc<Self>, interval: Duration) {
        let first = tokio::time::Instant::now() + interval;
        let mut ticks = tokio::time::interval_at(first, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.clone().write_apart().await;
        }
    }

    /// Writes once, on a thread that may block.
    pub(crate) async fn write_apart(self: Arc<Self>) {
        // A panic there is reported where it happens, and costs this snapshot.
        let _ = tokio::task::spawn_blocking(move || self.write()).await;
    }

    fn write(&self) {
        let _turn = self.record.turn();
        match self.replace() {
            Ok(()) => {
                self.record.written.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                let why = format!("snapshot not written: {error:#}");
                tracing::warn!("{why}");
                self.record.fail(why);
            }
        }
    }

    fn replace(&self) -> anyhow::Result<()> {
        let path = place(&self.data_dir);
        let temporary = self.data_dir.join("snapshot.tmp");
        let _lock = lock(&self.data_dir.join("snapshot.lock"))?;
        let what = || format!("write {}", temporary.display());
        // One that a crash left may have other permissions.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(what);
            }
            _ => {}
        }
        let file = private().create_new(true).open(&temporary).with_context(what)?;
        let mut file = BufWriter::new(file);
        let written =
            take(&self.scopes, &self.record, |piece| file.write_all(&piece).with_context(what));
        let written = written.and_then(|()| {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error);
            file.and_then(|file| file.sync_all()).with_context(what)?;
            fs::rename(&temporary, &path).with_context(|| format!("replace {}", path.display()))?;
            let folder = File::open(&self.data_dir).and_then(|folder| folder.sync_all());
            folder.with_context(|| format!("sync {}", self.data_dir.display()))
        });
        if written.is_err() {
            // What it was fails again if this does.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

fn private() -> fs::OpenOptions {
    let mut options = File::options();
    options.write(true).mode(0o600);
    options
}

/// Keeps two daemons of one data folder from writing at once; ends with the process.
fn lock(path: &Path) -> anyhow::Result<File> {
    let file = private().create(true).truncate(false).open(path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            anyhow::bail!("another daemon writes to {}", path.display())
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", path.display()))
        }
    }
}
