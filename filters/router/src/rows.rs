//! This VM's row in the gateway's shared data: build, configuration, beat.

use feed::{Key, MAX_ROWS, WorkerRow};
use hostcalls::{Expect, Host};

use crate::Report;
use crate::config::fnv1a;

/// The row is written at most this often.
const BEAT_NS: u64 = 250_000_000;
/// A row whose beat is older than this may be claimed by another VM: its owner is idle or dead, and
/// an idle one claims again when it is back.
const ABANDONED_NS: u64 = 6_000_000_000;

/// The row of one VM. Claimed at the first request and not before: the canary and main-thread VMs
/// run `on_configure` too and never serve.
#[derive(Default)]
pub struct Row {
    vm: u64,
    slot: Option<u8>,
    /// `None` when it has something to say that cannot wait.
    written_ns: Option<u64>,
    is_lost: bool,
}

impl Row {
    /// Writes the row if it is time to.
    pub fn beat(&mut self, host: &impl Host, now_ns: u64, config: u64, report: &Report) {
        let is_fresh = self.written_ns.is_some_and(|at| now_ns.saturating_sub(at) < BEAT_NS);
        if self.slot.is_some() && is_fresh && !self.is_lost {
            return;
        }
        if self.vm == 0 {
            self.vm = host.random_u64().max(1);
        }
        let row = WorkerRow {
            vm: self.vm,
            build: build(),
            config,
            beat_ns: now_ns,
            picked: report.picked,
            fell_back: report.fell_back,
            scorers: report.scorers.clone(),
        };
        self.written_ns = Some(now_ns);
        let first = self.slot.unwrap_or(0);
        let held = self.slot.filter(|_| !self.is_lost);
        let others = (first..MAX_ROWS).chain(0..first);
        self.slot = others
            .filter(|slot| !self.is_lost || self.slot != Some(*slot))
            .find(|slot| self.try_write(host, *slot, &row))
            .or(held);
        self.is_lost = false;
    }

    /// The VM ends: its row is nobody's, so that it is not taken for that of one that died.
    pub fn give_up(&mut self, host: &impl Host) {
        let Self { vm, slot, .. } = std::mem::take(self);
        let Some(slot) = slot else { return };
        let key = Key::Row(slot).encode();
        let Ok(Some((value, cas))) = host.shared(key.as_ref()) else { return };
        if WorkerRow::decode(&value).is_ok_and(|held| held.vm == vm) {
            // If another VM takes the row meanwhile, or the host does not take it, it is theirs or
            // stale: nothing to be done here.
            let nobody = WorkerRow::default().encode();
            let _ = host.set_shared(key.as_ref(), &nobody, Expect::Unchanged(cas));
        }
    }

    /// The next beat writes the row, however fresh it is.
    pub fn is_due(&mut self) {
        self.written_ns = None;
    }

    /// The VM's number and slot, once it has one.
    pub fn identity(&self) -> Option<(u64, u8)> {
        self.slot.map(|slot| (self.vm, slot))
    }

    /// Another VM uses the slot: the next beat takes another one.
    pub fn lose(&mut self) {
        self.is_lost = true;
    }

    fn try_write(&self, host: &impl Host, slot: u8, row: &WorkerRow) -> bool {
        let key = Key::Row(slot).encode();
        let expect = match host.shared(key.as_ref()) {
            Ok(None) => Expect::Absent,
            Ok(Some((value, cas))) => match WorkerRow::decode(&value) {
                Ok(held)
                    if held.vm != self.vm
                        && held.vm != 0
                        && row.beat_ns.saturating_sub(held.beat_ns) < ABANDONED_NS =>
                {
                    return false;
                }
                _ => Expect::Unchanged(cas),
            },
            Err(_) => return false,
        };
        host.set_shared(key.as_ref(), &row.encode(), expect).is_ok()
    }
}

/// Number of this build: hash of the source revision given at build time, else of the version.
pub(crate) fn build() -> u64 {
    fnv1a(option_env!("WASM_EPP_BUILD").unwrap_or(env!("CARGO_PKG_VERSION")).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostcalls::memory::MemoryHost;

    fn picked(picked: u64) -> Report {
        let mut report = Report::default();
        report.picked = picked;
        report
    }

    fn held(host: &MemoryHost) -> Vec<u64> {
        (0..MAX_ROWS)
            .map_while(|slot| host.shared(Key::Row(slot).encode().as_ref()).unwrap())
            .map(|(value, _)| WorkerRow::decode(&value).unwrap().vm)
            .collect()
    }

    #[test]
    fn two_vms_take_two_rows_and_a_dead_ones_row_is_reused() {
        let host = MemoryHost::default();
        let (mut a, mut b, mut c) = (Row::default(), Row::default(), Row::default());
        a.beat(&host, 1_000, 0, &picked(1));
        b.beat(&host, 2_000, 0, &picked(1));
        assert_eq!(held(&host), [1, 2]);
        // a goes on, b is silent, c starts later and takes b's row.
        a.beat(&host, 7_000_000_000, 0, &picked(2));
        c.beat(&host, 7_100_000_000, 0, &picked(1));
        assert_eq!(held(&host), [1, 3]);
        // b was only idle: it finds its row taken and takes a new one.
        b.beat(&host, 7_200_000_000, 0, &picked(2));
        assert_eq!(held(&host), [1, 3, 2]);
    }

    #[test]
    fn a_row_that_was_given_up_is_nobodys_and_taken_at_once() {
        let host = MemoryHost::default();
        let (mut a, mut b, mut c) = (Row::default(), Row::default(), Row::default());
        a.beat(&host, 1_000, 0, &picked(1));
        b.beat(&host, 2_000, 0, &picked(1));
        a.give_up(&host);
        assert_eq!((held(&host), a.identity()), (vec![0, 2], None));
        c.beat(&host, 3_000, 0, &picked(1));
        assert_eq!(held(&host), [3, 2]);
        // It serves after all: as another, and elsewhere.
        a.beat(&host, 4_000, 0, &picked(1));
        assert_eq!(held(&host), [3, 2, 4]);
        // A row that another has taken is not given up with one's own.
        let mut late = Row::default();
        late.beat(&host, 5_000, 0, &picked(1));
        b.beat(&host, 7_000_000_000, 0, &picked(2));
        c.beat(&host, 7_000_000_000, 0, &picked(2));
        a.beat(&host, 7_000_000_000, 0, &picked(2));
        Row::default().beat(&host, 7_000_000_000, 0, &picked(1));
        assert_eq!(held(&host), [3, 2, 4, 6]);
        late.give_up(&host);
        assert_eq!(held(&host), [3, 2, 4, 6]);
    }

    #[test]
    fn a_row_is_written_four_times_a_second_at_most() {
        let host = MemoryHost::default();
        let mut row = Row::default();
        let held = |host: &MemoryHost| {
            WorkerRow::decode(&host.shared(Key::Row(0).encode().as_ref()).unwrap().unwrap().0)
                .unwrap()
                .picked
        };
        row.beat(&host, 1, 0, &picked(1));
        row.beat(&host, 249_999_999, 0, &picked(2));
        assert_eq!(held(&host), 1);
        row.beat(&host, 250_000_002, 0, &picked(3));
        assert_eq!(held(&host), 3);
    }
}
