//! Which VMs are dead, from the rows of one ack after another. No clock, no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use feed::WorkerRow;
use tokio::time::Instant;

/// A router VM beats every second, so one whose row is older is dead. Others stop counting what it has
/// in flight after three, but a worker that is starved may be as late as that and live. Rows of VMs
/// that ended otherwise are not in the ack.
const SILENT_NS: u64 = 5_000_000_000;
/// Requests without a scorer's scores, in a row and in one worker, from which its VM counts as dead.
const ABSENT: u32 = 3;
/// Time a gateway may take from renamed files to a VM that serves. What its rows say of a scorer
/// meanwhile is of the VM before.
const SETTLED: Duration = Duration::from_secs(2);
/// Time after which a gateway whose living VMs still have the configuration from before has not taken
/// the files. Loading a module anew takes it up to three seconds.
const TAKEN: Duration = Duration::from_secs(10);

/// Filters that share a VM in each worker.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Vm {
    /// Intake and picker.
    Router,
    /// The scorer whose name has this hash.
    Scorer(u64),
}

/// VMs that are dead and were not revived since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Dead {
    pub(crate) vm: Vm,
    /// In so many workers.
    pub(crate) workers: usize,
    /// Of a scorer: any worker has had scores of it. One that never scored may never have been loaded.
    pub(crate) has_scored: bool,
    /// They were revived, and the gateway took no notice.
    pub(crate) is_ignored: bool,
}

/// What one gateway's acks have told.
#[derive(Default)]
pub(crate) struct Judge {
    /// The gateway's process: another one has other VMs.
    instance: u64,
    /// Dead router VMs that were dealt with, while their rows are there.
    revived: BTreeMap<u64, Revived>,
    scorers: BTreeMap<u64, Scorer>,
}

struct Revived {
    at: Instant,
    /// Configurations of the VMs that lived then.
    configs: BTreeSet<u64>,
}

#[derive(Default)]
struct Scorer {
    revived: Option<Instant>,
    /// By router VM: requests without scores that the last revival came too late for.
    excused: BTreeMap<u64, u32>,
}

/// What an ack says of the router VMs.
#[derive(Clone, Copy)]
pub(crate) struct Seen<'a> {
    pub(crate) instance: u64,
    /// The gateway's clock.
    pub(crate) now_ns: u64,
    pub(crate) rows: &'a [WorkerRow],
}

impl Seen<'_> {
    fn lives(&self, row: &WorkerRow) -> bool {
        self.now_ns.saturating_sub(row.beat_ns) <= SILENT_NS
    }

    fn living(&self) -> impl Iterator<Item = &WorkerRow> {
        self.rows.iter().filter(|row| self.lives(row))
    }
}

impl Judge {
    /// Takes what an ack says, which came at `now`, and tells what is dead by it.
    pub(crate) fn judge(&mut self, seen: Seen<'_>, now: Instant) -> Vec<Dead> {
        if seen.instance != self.instance {
            *self = Self { instance: seen.instance, ..Self::default() };
        }
        let mut dead = Vec::new();
        dead.extend(self.router(seen, now));
        dead.extend(self.of_scorers(seen, now));
        dead
    }

    /// The files of these filters were written anew at `now`, after this ack.
    pub(crate) fn revived(&mut self, vm: Vm, seen: Seen<'_>, now: Instant) {
        match vm {
            Vm::Router => {
                let configs: BTreeSet<u64> = seen.living().map(|row| row.config).collect();
                for row in seen.rows.iter().filter(|row| !seen.lives(row)) {
                    self.revived.insert(row.vm, Revived { at: now, configs: configs.clone() });
                }
            }
            Vm::Scorer(hash) => {
                self.scorers.entry(hash).or_default().revived = Some(now);
            }
        }
    }

    fn router(&mut self, seen: Seen<'_>, now: Instant) -> Option<Dead> {
        self.revived.retain(|vm, _| seen.rows.iter().any(|row| row.vm == *vm));
        let mut dead = Dead { vm: Vm::Router, workers: 0, has_scored: true, is_ignored: false };
        for row in seen.rows.iter().filter(|row| !seen.lives(row)) {
            // A worker's next VM takes a row at its first request, and not always this one, so a row may
            // stay for long after its VM was replaced. The VMs that live tell at once whether it was:
            // all of a gateway's are configured anew, and the dead ones replaced, by the same files.
            let mut living = seen.living().peekable();
            if living.peek().is_some() && living.all(|living| living.config != row.config) {
                continue;
            }
            let is_ignored = self.revived.get(&row.vm).map(|revived| {
                let mut living = seen.living().peekable();
                now.duration_since(revived.at) > TAKEN
                    && living.peek().is_some()
                    && living.all(|row| revived.configs.contains(&row.config))
            });
            if is_ignored.unwrap_or(true) {
                dead.workers += 1;
                dead.is_ignored |= is_ignored.is_some();
            }
        }
        (dead.workers > 0).then_some(dead)
    }

    fn of_scorers(&mut self, seen: Seen<'_>, now: Instant) -> Vec<Dead> {
        let hashes: BTreeSet<u64> =
            seen.rows.iter().flat_map(|row| row.scorers.iter().map(|of| of.scorer)).collect();
        self.scorers.retain(|hash, _| hashes.contains(hash));
        hashes.into_iter().filter_map(|hash| self.scorer(hash, seen, now)).collect()
    }

    fn scorer(&mut self, hash: u64, seen: Seen<'_>, now: Instant) -> Option<Dead> {
        let held = self.scorers.entry(hash).or_default();
        let is_settling = held.revived.is_some_and(|at| now.duration_since(at) < SETTLED);
        let mut workers = 0;
        let mut excused = BTreeMap::new();
        for row in seen.living() {
            let Some(of) = row.scorers.iter().find(|of| of.scorer == hash) else { continue };
            let before = match held.excused.get(&row.vm).copied().unwrap_or(0) {
                _ if is_settling => of.absent,
                // It has scored between.
                before if of.absent < before => 0,
                before => before,
            };
            excused.insert(row.vm, before);
            workers += usize::from(of.absent - before >= ABSENT);
        }
        held.excused = excused;
        let mut all = seen.rows.iter().flat_map(|row| &row.scorers);
        let has_scored = all.any(|of| of.scorer == hash && of.revision != 0);
        (workers > 0).then_some(Dead {
            vm: Vm::Scorer(hash),
            workers,
            has_scored,
            is_ignored: false,
        })
    }
}

#[cfg(test)]
mod tests;
