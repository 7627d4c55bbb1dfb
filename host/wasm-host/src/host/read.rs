//! What an embedder can look at and put in place: shared state, logs, what callbacks cost.

use super::Host;
use crate::state::lock;
use crate::state::logs::LogLine;
use crate::state::metrics::{Metric, MetricKind};
use crate::vm::report::CallRecord;

impl Host {
    /// Value of shared data.
    pub fn shared_data(&self, vm_id: &str, key: impl AsRef<[u8]>) -> Option<Vec<u8>> {
        lock(&self.shared).data.get(vm_id, key.as_ref()).map(|(value, _)| value.to_vec())
    }

    /// Sets shared data, whatever is there; whether there was room for it.
    pub fn set_shared_data(
        &mut self,
        vm_id: &str,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> bool {
        lock(&self.shared).data.set(vm_id, key.as_ref(), value.as_ref(), 0).is_ok()
    }

    /// Removes shared data, which no guest can; whether it was there.
    pub fn remove_shared_data(&mut self, vm_id: &str, key: impl AsRef<[u8]>) -> bool {
        lock(&self.shared).data.remove(vm_id, key.as_ref())
    }

    /// Keys of shared data, sorted.
    pub fn shared_keys(&self, vm_id: &str) -> Vec<Vec<u8>> {
        lock(&self.shared).data.keys(vm_id)
    }

    /// Entries that wait in a queue, if there is such a queue.
    pub fn queue_len(&self, vm_id: &str, name: impl AsRef<[u8]>) -> Option<usize> {
        let shared = lock(&self.shared);
        shared.queues.len(shared.queues.resolve(vm_id, name.as_ref())?)
    }

    /// A metric.
    pub fn metric(&self, kind: MetricKind, name: impl AsRef<[u8]>) -> Option<Metric> {
        lock(&self.shared).metrics.get(kind, name.as_ref()).cloned()
    }

    /// All metrics by kind, then name.
    pub fn metrics(&self) -> Vec<(MetricKind, Vec<u8>, Metric)> {
        let shared = lock(&self.shared);
        let all = shared.metrics.all();
        all.map(|(kind, name, metric)| (kind, name.to_vec(), metric.clone())).collect()
    }

    /// Lines of the log that are kept.
    pub fn logs(&self) -> Vec<LogLine> {
        lock(&self.shared).logs.lines().cloned().collect()
    }

    /// Takes the lines of the log away.
    pub fn take_logs(&mut self) -> Vec<LogLine> {
        lock(&self.shared).logs.take()
    }

    /// Lines that were not kept, for there were too many.
    pub fn dropped_logs(&self) -> u64 {
        lock(&self.shared).logs.dropped()
    }

    /// Callbacks, oldest first, with the fuel each used.
    pub fn calls(&self) -> impl Iterator<Item = &CallRecord> {
        self.records.iter()
    }

    /// Takes the records of callbacks away.
    pub fn take_calls(&mut self) -> Vec<CallRecord> {
        self.records.take()
    }
}
