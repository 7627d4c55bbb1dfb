//! One POST: check it whole, claim the head, set the values, stamp the head, answer.

use feed::{
    Accuracy, AccuracyReport, Ack, AckStatus, Batch, Cell, Counters, Directory, Head, Key,
    MAX_ROWS, MatrixRow, Transition, WorkerRow, add_cells,
};
use hostcalls::{CounterSet, Expect, Host, Level, Status};

/// Path that batches are posted to.
pub const PATH: &str = "/feed";

/// Tries at a head that others change at the same time. One daemon at a time writes, so a lost race
/// means a takeover, and the second look tells who holds the head.
const HEAD_TRIES: u32 = 8;

/// Applies batches; one per feeder VM.
#[derive(Default)]
pub struct Feeder {
    counters: Counters,
    metrics: CounterSet,
}

impl Feeder {
    /// Applies the POST's body and returns the answer.
    pub fn post(&mut self, host: &impl Host, body: &[u8]) -> Ack {
        let (status, head, reason) = match self.apply(host, body) {
            Ok(head) => (AckStatus::Applied, head, String::new()),
            Err(Refusal::Conflict(head)) => (AckStatus::Conflict, head, String::new()),
            Err(Refusal::NotUnderstood(reason)) => {
                let held = held_head(host).map(|(head, _)| head).unwrap_or_default();
                (AckStatus::Refused, held, reason)
            }
            Err(Refusal::Host(status)) => {
                (AckStatus::Failed, Head::default(), format!("host call failed: {status:?}"))
            }
        };
        let (count, name) = match status {
            AckStatus::Applied => (&mut self.counters.applied, "applied"),
            AckStatus::Conflict => (&mut self.counters.conflicts, "conflict"),
            AckStatus::Refused => (&mut self.counters.refused, "refused"),
            AckStatus::Failed => (&mut self.counters.failed, "failed"),
        };
        *count += 1;
        self.metrics.add(host, "wasm_epp_feed_batches_", name, "_total");
        if !reason.is_empty() {
            host.log(Level::Warn, &format!("feed batch not applied: {reason}"));
        }
        let now_ns = host.monotonic_ns();
        Ack {
            status,
            head,
            now_ns,
            counters: self.counters,
            rows: rows(host),
            reason,
            in_flight: in_flight(host, now_ns),
        }
    }

    fn apply(&mut self, host: &impl Host, body: &[u8]) -> Result<Head, Refusal> {
        let batch = Batch::decode(body)
            .map_err(|err| Refusal::NotUnderstood(format!("{err} ({} bytes)", body.len())))?;
        let claimed = claim(host, &batch)?;
        let mut is_config_changed = false;
        for (key, value) in &batch.entries {
            host.set_shared(key.encode().as_ref(), value, Expect::Anything)?;
            is_config_changed |= matches!(key, Key::Directory(_) | Key::Table(..) | Key::Model(..));
        }
        self.counters.entries += batch.entries.len() as u64;
        finish(host, claimed, &batch, is_config_changed)
    }
}

enum Refusal {
    Conflict(Head),
    NotUnderstood(String),
    Host(Status),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Host(status)
    }
}

/// The held head, created with a fresh instance when there is none.
fn held_head(host: &impl Host) -> Result<(Head, u32), Status> {
    let key = Key::Head.encode();
    for _ in 0..HEAD_TRIES {
        if let Some((value, cas)) = host.shared(key.as_ref())?
            && let Ok(head) = Head::decode(&value)
        {
            return Ok((head, cas));
        }
        // Instance 0 means "unknown" in a batch, so it is never drawn. A head that cannot be read
        // is another build's: a new instance makes the daemon send everything again.
        let fresh = Head { instance: host.random_u64().max(1), ..Head::default() };
        let expect = match host.shared(key.as_ref())? {
            Some((_, cas)) => Expect::Unchanged(cas),
            None => Expect::Absent,
        };
        match host.set_shared(key.as_ref(), &fresh.encode(), expect) {
            Ok(()) | Err(Status::CasMismatch) => {}
            Err(other) => return Err(other),
        }
    }
    Err(Status::CasMismatch)
}

/// Moves the head to the batch's sequence, so that no other batch can apply in between.
fn claim(host: &impl Host, batch: &Batch<'_>) -> Result<Head, Refusal> {
    for _ in 0..HEAD_TRIES {
        let (head, cas) = held_head(host)?;
        let Transition::Apply(next) = head.advance(&batch.header) else {
            return Err(Refusal::Conflict(head));
        };
        let key = Key::Head.encode();
        match host.set_shared(key.as_ref(), &next.encode(), Expect::Unchanged(cas)) {
            Ok(()) => return Ok(next),
            Err(Status::CasMismatch) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(Refusal::Host(Status::CasMismatch))
}

/// Stamps the head after the values are set, so that a reader that sees the new configuration
/// version also sees the new values.
fn finish(
    host: &impl Host,
    claimed: Head,
    batch: &Batch<'_>,
    is_config_changed: bool,
) -> Result<Head, Refusal> {
    let key = Key::Head.encode();
    for _ in 0..HEAD_TRIES {
        let (held, cas) = held_head(host)?;
        if (held.instance, held.epoch, held.sequence)
            != (claimed.instance, claimed.epoch, claimed.sequence)
        {
            return Err(Refusal::Conflict(held));
        }
        let mut next = Head { stamp_ns: host.monotonic_ns(), ..held };
        if is_config_changed {
            next.config_version = held.config_version.wrapping_add(1);
        }
        if batch.header.completes && !held.is_complete {
            next.is_complete = true;
            next.previous_epoch = 0;
            next.config_version = next.config_version.wrapping_add(1);
        }
        match host.set_shared(key.as_ref(), &next.encode(), Expect::Unchanged(cas)) {
            Ok(()) => return Ok(next),
            Err(Status::CasMismatch) => {}
            Err(other) => return Err(other.into()),
        }
    }
    Err(Refusal::Host(Status::CasMismatch))
}

fn rows(host: &impl Host) -> Vec<WorkerRow> {
    let mut rows = Vec::new();
    for slot in 0..MAX_ROWS {
        // Rows are claimed from slot 0 upward and never deleted: the first gap is the end.
        let Ok(Some((value, _))) = host.shared(Key::Row(slot).encode().as_ref()) else { break };
        // A row that was given up is nobody's.
        rows.extend(WorkerRow::decode(&value).ok().filter(|row| row.vm != 0));
    }
    rows
}

/// How right the predictions were, of every scope of the active directory that a meter measured.
/// What cannot be read is left out: it says nothing.
pub fn accuracy(host: &impl Host) -> AccuracyReport {
    let mut report = AccuracyReport::default();
    let value = |key: Key| host.shared(key.encode().as_ref()).ok().flatten();
    let head = value(Key::Head).and_then(|(value, _)| Head::decode(&value).ok());
    let Some(epoch) = head.and_then(|head| head.active_epoch()) else { return report };
    let directory = value(Key::Directory(Key::parity(epoch)));
    let directory = directory.and_then(|(value, _)| Directory::decode(&value).ok());
    let Some(directory) = directory.filter(|held| held.epoch == epoch) else { return report };
    for entry in &directory.entries {
        let held = value(Key::Accuracy(entry.scope));
        let held = held.and_then(|(value, _)| Accuracy::decode(&value).ok());
        let held = held.filter(|accuracy| accuracy.epoch == epoch);
        if held.is_some_and(|accuracy| !report.push(entry.scope, accuracy)) {
            break;
        }
    }
    report
}

/// A VM whose row has not moved for this long is dead, and what it had in flight is over or will
/// never be told.
const DEAD_NS: u64 = 3_000_000_000;

/// Sums over the VMs that live. A sum of more endpoints than fit the answer keeps the first.
fn in_flight(host: &impl Host, now_ns: u64) -> Vec<Cell> {
    let mut sums = Vec::new();
    for slot in 0..MAX_ROWS {
        let Ok(Some((value, _))) = host.shared(Key::Matrix(slot).encode().as_ref()) else { break };
        if let Ok(row) = MatrixRow::decode(&value)
            && now_ns.saturating_sub(row.beat_ns) < DEAD_NS
        {
            add_cells(&mut sums, &row.cells);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use feed::{BatchBuilder, BatchHeader, DirectoryEntry, EndpointHash, LoadTable, SlotAccuracy};
    use hostcalls::memory::MemoryHost;

    fn host() -> MemoryHost {
        let host = MemoryHost::default();
        host.random.set(41);
        host
    }

    fn head(host: &MemoryHost) -> Head {
        let value = host.shared(b"feed/head").unwrap().unwrap().0;
        Head::decode(&value).unwrap()
    }

    fn post(
        feeder: &mut Feeder,
        host: &MemoryHost,
        header: (u64, u64, u64),
        completes: bool,
    ) -> Ack {
        let (instance, epoch, sequence) = header;
        let mut batch = BatchBuilder::new(BatchHeader { instance, epoch, sequence, completes });
        let directory = Directory { epoch, ..Directory::default() };
        batch.push(Key::Directory(Key::parity(epoch)), &directory.encode());
        feeder.post(host, &batch.finish())
    }

    #[test]
    fn an_unknown_instance_is_told_the_held_head() {
        let (mut feeder, host) = (Feeder::default(), host());
        let ack = post(&mut feeder, &host, (0, 6, 1), false);
        assert_eq!((ack.status, ack.head.instance, ack.head.epoch), (AckStatus::Conflict, 42, 0));
        let ack = post(&mut feeder, &host, (42, 6, 1), false);
        assert_eq!((ack.status, ack.head.sequence), (AckStatus::Applied, 1));
        assert_eq!(head(&host).active_epoch(), None);
        host.now_ns.set(9_000);
        let ack = post(&mut feeder, &host, (42, 6, 2), true);
        assert_eq!(ack.head.active_epoch(), Some(6));
        assert_eq!((head(&host).stamp_ns, head(&host).config_version), (9_000, 3));
        assert_eq!(
            feeder.counters,
            Counters { applied: 2, entries: 2, conflicts: 1, ..Counters::default() }
        );
    }

    #[test]
    fn rows_of_vms_that_ended_are_left_out_and_end_nothing() {
        let (mut feeder, host) = (Feeder::default(), host());
        for (slot, vm) in [(0, 5), (1, 0), (2, 7)] {
            let row = WorkerRow { vm, ..WorkerRow::default() }.encode();
            host.set_shared(Key::Row(slot).encode().as_ref(), &row, Expect::Anything).unwrap();
        }
        let ack = post(&mut feeder, &host, (0, 6, 1), false);
        assert_eq!(ack.rows.iter().map(|row| row.vm).collect::<Vec<_>>(), [5, 7]);
    }

    #[test]
    fn a_repeated_or_skipped_sequence_changes_nothing() {
        let (mut feeder, host) = (Feeder::default(), host());
        post(&mut feeder, &host, (0, 6, 1), false);
        post(&mut feeder, &host, (42, 6, 1), true);
        let before = host.data.borrow().clone();
        for sequence in [1, 3, 0] {
            assert_eq!(
                post(&mut feeder, &host, (42, 6, sequence), false).status,
                AckStatus::Conflict
            );
        }
        assert_eq!(*host.data.borrow(), before);
    }

    #[test]
    fn what_is_not_understood_is_refused_and_counted_and_changes_nothing() {
        let (mut feeder, host) = (Feeder::default(), host());
        post(&mut feeder, &host, (0, 6, 1), false);
        post(&mut feeder, &host, (42, 6, 1), true);
        let before = host.data.borrow().clone();
        let mut batch = BatchBuilder::new(BatchHeader {
            instance: 42,
            epoch: 6,
            sequence: 2,
            completes: false,
        });
        batch.push(Key::Load(false, 0), &LoadTable { epoch: 6, records: vec![] }.encode());
        batch.push(Key::Load(false, 1), b"junk");
        let ack = feeder.post(&host, &batch.finish());
        assert_eq!(ack.status, AckStatus::Refused);
        assert!(ack.reason.contains("magic"), "{}", ack.reason);
        assert_eq!(feeder.post(&host, b"").status, AckStatus::Refused);
        assert_eq!(*host.data.borrow(), before);
        assert_eq!(host.counters.borrow()["wasm_epp_feed_batches_refused_total"], 2);
    }

    #[test]
    fn a_host_that_refuses_calls_is_reported_not_fatal() {
        let (mut feeder, host) = (Feeder::default(), host());
        host.refused.borrow_mut().push("set_shared");
        let ack = post(&mut feeder, &host, (0, 6, 1), false);
        assert_eq!(ack.status, AckStatus::Failed);
        assert!(ack.reason.contains("InternalFailure"));
    }

    #[test]
    fn what_live_vms_have_in_flight_is_summed() {
        let (mut feeder, host) = (Feeder::default(), host());
        host.now_ns.set(10_000_000_000);
        let cell = |endpoint, requests| Cell {
            endpoint: EndpointHash(endpoint),
            requests,
            tokens: 10 * u64::from(requests),
        };
        let rows = [
            (0, 9_000_000_000, vec![cell(1, 2), cell(5, 1)]),
            (1, 7_000_000_000, vec![cell(1, 100)]),
            (2, 7_000_000_001, vec![cell(1, 3), cell(4, 4)]),
            (4, 9_000_000_000, vec![cell(1, 100)]),
        ];
        for (slot, beat_ns, cells) in rows {
            let row = MatrixRow { vm: 1, beat_ns, cells };
            let key = Key::Matrix(slot).encode();
            host.set_shared(key.as_ref(), &row.encode(), Expect::Anything).unwrap();
        }
        let ack = post(&mut feeder, &host, (0, 6, 1), false);
        assert_eq!(ack.in_flight, [cell(1, 5), cell(4, 4), cell(5, 1)]);
    }

    #[test]
    fn rows_are_reported_until_the_first_gap() {
        let (mut feeder, host) = (Feeder::default(), host());
        for slot in [0, 1, 3] {
            let row = WorkerRow { vm: u64::from(slot) + 1, ..WorkerRow::default() };
            host.set_shared(Key::Row(slot).encode().as_ref(), &row.encode(), Expect::Anything)
                .unwrap();
        }
        let ack = post(&mut feeder, &host, (0, 6, 1), false);
        assert_eq!(ack.rows.iter().map(|row| row.vm).collect::<Vec<_>>(), [1, 2]);
    }
    #[test]
    fn accuracies_of_the_active_epoch_are_told() {
        let host = host();
        let set = |key: Key, value: Vec<u8>| {
            host.set_shared(key.encode().as_ref(), &value, Expect::Anything).unwrap();
        };
        assert_eq!(accuracy(&host), AccuracyReport::default());
        let head = Head { instance: 1, epoch: 6, is_complete: true, ..Head::default() };
        set(Key::Head, head.encode());
        assert_eq!(accuracy(&host), AccuracyReport::default());
        let entry = |scope| DirectoryEntry { scope, ..DirectoryEntry::default() };
        let entries = (0..4).map(entry).collect();
        set(Key::Directory(false), Directory { epoch: 6, entries }.encode());
        let of = |epoch| Accuracy { epoch, slots: vec![(2, SlotAccuracy::default())] };
        set(Key::Accuracy(1), of(6).encode());
        set(Key::Accuracy(2), of(5).encode());
        set(Key::Accuracy(3), b"junk".to_vec());
        set(Key::Accuracy(9), of(6).encode());
        assert_eq!(accuracy(&host).scopes, [(1, of(6))]);
    }
}
