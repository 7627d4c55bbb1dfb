//! What a guest may use, and what guests together may make the host keep.

use std::time::Duration;

/// Limits of one virtual machine. Envoy has the memory limit only, of 1 GiB.
#[derive(Clone, Debug)]
pub struct GuestLimits {
    /// Fuel per callback, in units of wasmtime (about one per instruction); `None` is no limit.
    /// What a callback used is counted either way.
    pub fuel: Option<u64>,
    /// Linear memory in bytes. A guest that asks for more is refused, as in Envoy.
    pub memory_bytes: usize,
    /// Entries of all tables.
    pub table_entries: usize,
    /// Time per callback on the real clock; `None` is no limit. Which instruction it ends at is not
    /// the same in every run: for that, use fuel.
    pub wall_time: Option<Duration>,
}

impl Default for GuestLimits {
    fn default() -> Self {
        Self {
            fuel: None,
            memory_bytes: 1024 * 1024 * 1024,
            table_entries: 1_000_000,
            wall_time: None,
        }
    }
}

/// Bounds on what the host keeps for guests. Envoy bounds none of these; a call that would exceed
/// one gets [`InternalFailure`](crate::Status::InternalFailure).
#[derive(Clone, Debug)]
pub struct HostLimits {
    /// Bytes of shared data, and as many of queues.
    pub shared_bytes: usize,
    /// Metrics of different names.
    pub metrics: usize,
    /// Lines of the log that are kept, the newest.
    pub log_lines: usize,
    /// Bytes of a log line that are kept, the first.
    pub log_line_bytes: usize,
    /// Callouts, notifications and messages under way.
    pub pending: usize,
    /// Bytes of headers, trailers and properties of one stream, and as many of its bodies beyond
    /// what was received.
    pub stream_bytes: usize,
    /// Records of callbacks that are kept, the newest.
    pub call_records: usize,
}

impl Default for HostLimits {
    fn default() -> Self {
        Self {
            shared_bytes: 1024 * 1024 * 1024,
            metrics: 100_000,
            log_lines: 100_000,
            log_line_bytes: 64 * 1024,
            pending: 100_000,
            stream_bytes: 256 * 1024 * 1024,
            call_records: 100_000,
        }
    }
}

/// Decides on a guest's memory while it runs.
pub(crate) struct Limiter {
    memory_bytes: usize,
    table_entries: usize,
    pub(crate) denied: bool,
}

impl Limiter {
    pub(crate) fn new(limits: &GuestLimits) -> Self {
        Self {
            memory_bytes: limits.memory_bytes,
            table_entries: limits.table_entries,
            denied: false,
        }
    }
}

impl wasmtime::ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed =
            desired <= self.memory_bytes && maximum.is_none_or(|maximum| desired <= maximum);
        self.denied |= !allowed;
        Ok(allowed)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= self.table_entries && maximum.is_none_or(|maximum| desired <= maximum))
    }
}
