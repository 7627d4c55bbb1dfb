//! Running again when a file changes.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Files;
use super::error::RunError;
use super::report::Report;
use super::stand::{Modules, StandOptions};
use crate::render::content_hash;

/// Time between two looks at the files: below what a person notices, and a stat per file.
const INTERVAL: Duration = Duration::from_millis(100);
/// Above the resolution of any file system's times.
const SETTLED: Duration = Duration::from_secs(3);

/// A file's content as of a look, by its hash; `None` while it cannot be read.
type Seen = Vec<(PathBuf, Option<String>)>;

/// Runs until the process is ended. A file that is wrong for a while is said and waited for; the first
/// run's errors are the caller's.
pub(super) fn watch(
    files: &Files<'_>,
    modules: &mut Modules,
    options: StandOptions,
) -> Result<(), RunError> {
    // Looked at before the run, so that no change falls between.
    let mut seen = look(files, &[]);
    let (layout, mut last) = files.run(modules, options)?;
    let mut watched = layout.watched.clone();
    seen.extend(look_at(&watched, &seen));
    show(1, &last.text(), watched.len() + 1 + usize::from(files.state.is_some()));
    for run in 2u64.. {
        wait(&mut seen);
        match files.run(modules, options) {
            Ok((layout, report)) => {
                watched.clone_from(&layout.watched);
                show_difference(run, &report, &last);
                last = report;
            }
            Err(error) => println!("== run {run}\n{error}\n"),
        }
        let kept = look(files, &watched);
        // What changed during the run is news at the next look.
        let held = std::mem::take(&mut seen);
        seen = kept
            .into_iter()
            .map(|(path, now)| {
                let before = held.iter().find(|(held, _)| *held == path);
                before.cloned().unwrap_or((path, now))
            })
            .collect();
    }
    Ok(())
}

fn show(run: u64, text: &str, files: usize) {
    println!("== run {run}\n{text}\nwatching {files} files");
}

fn show_difference(run: u64, report: &Report, last: &Report) {
    println!("== run {run}\n{}\nwatching", report.difference(last));
}

fn look(files: &Files<'_>, more: &[PathBuf]) -> Seen {
    let named = [Some(files.chain), files.state, Some(files.requests)].into_iter().flatten();
    let mut all: Vec<PathBuf> = named.map(Path::to_owned).chain(more.iter().cloned()).collect();
    all.sort();
    all.dedup();
    look_at(&all, &[])
}

/// Looks at those that are not among `known`.
fn look_at(paths: &[PathBuf], known: &[(PathBuf, Option<String>)]) -> Seen {
    let fresh = paths.iter().filter(|path| !known.iter().any(|(held, _)| held == *path));
    fresh.map(|path| (path.clone(), hash(path))).collect()
}

fn hash(path: &Path) -> Option<String> {
    Some(content_hash(&std::fs::read(path).ok()?))
}

/// Until a file's content is another. A file that is being replaced may be away for a moment.
fn wait(seen: &mut Seen) {
    let stamp = |path: &Path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    let mut stamps: Vec<_> = seen.iter().map(|_| None).collect();
    loop {
        let mut changed = false;
        for ((path, held), known) in seen.iter_mut().zip(&mut stamps) {
            let now = stamp(path);
            // A change within the clock's resolution of another leaves the stamp as it is.
            let is_old = |(modified, _): &(SystemTime, u64)| {
                modified.elapsed().is_ok_and(|age| age > SETTLED)
            };
            if now == *known && now.as_ref().is_some_and(is_old) {
                continue;
            }
            *known = now;
            if let Some(content) = hash(path)
                && held.as_ref() != Some(&content)
            {
                *held = Some(content);
                changed = true;
            }
        }
        if changed {
            return;
        }
        // Between two looks at files, which cannot call us.
        std::thread::sleep(INTERVAL);
    }
}
