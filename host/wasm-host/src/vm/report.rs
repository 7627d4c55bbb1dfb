//! What callbacks cost, and how virtual machines end.

use super::state::VmState;
use crate::error::{Cause, VmFailure};
use crate::limits::GuestLimits;
use std::collections::VecDeque;
use std::sync::Arc;
use wasmtime::{Trap, WasmBacktrace};

/// One callback, as it went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRecord {
    /// Worker it ran on.
    pub worker: usize,
    /// Name of the module.
    pub module: Arc<str>,
    /// Export that was called.
    pub callback: &'static str,
    /// Context it was called for; 0 while a module starts.
    pub context: u32,
    /// Fuel used, in units of wasmtime, with the guest's own allocator called for results.
    pub fuel: u64,
    /// Whether it ended in a trap or at a limit.
    pub trapped: bool,
}

/// Newest records, so many.
pub(crate) struct Records {
    records: VecDeque<CallRecord>,
    limit: usize,
}

impl Records {
    pub(crate) fn new(limit: usize) -> Self {
        Self { records: VecDeque::new(), limit }
    }

    pub(crate) fn push(&mut self, record: CallRecord) {
        if self.limit == 0 {
            return;
        }
        while self.records.len() >= self.limit {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &CallRecord> {
        self.records.iter()
    }

    pub(crate) fn take(&mut self) -> Vec<CallRecord> {
        self.records.drain(..).collect()
    }
}

/// A host call that Envoy answers with a trap.
#[derive(Debug, thiserror::Error)]
#[error("call of {function} while {phase}")]
pub(crate) struct RestrictedCall {
    pub(crate) function: &'static str,
    pub(crate) phase: &'static str,
}

/// Frames that a report keeps, innermost first (as many as the C++ host's).
const FRAMES: usize = 20;

pub(crate) fn describe(
    error: &wasmtime::Error,
    state: &VmState,
    limits: &GuestLimits,
) -> VmFailure {
    let cause = if let Some(restricted) = error.downcast_ref::<RestrictedCall>() {
        Cause::Restricted { function: restricted.function, phase: restricted.phase }
    } else {
        match error.downcast_ref::<Trap>() {
            Some(Trap::OutOfFuel) => Cause::Fuel { limit: limits.fuel.unwrap_or(u64::MAX) },
            Some(Trap::Interrupt) => {
                Cause::WallTime { limit: limits.wall_time.unwrap_or_default() }
            }
            Some(trap) => Cause::Trap(trap.to_string()),
            None => Cause::Trap(error.root_cause().to_string()),
        }
    };
    let frames = error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames);
    let name = |frame: &wasmtime::FrameInfo| {
        let symbol = frame.symbols().iter().find_map(|symbol| symbol.name().map(str::to_owned));
        symbol
            .or_else(|| frame.func_name().map(str::to_owned))
            .unwrap_or_else(|| format!("function {}", frame.func_index()))
    };
    VmFailure {
        module: state.module.to_string(),
        vm_id: state.vm_id.clone(),
        worker: state.worker,
        callback: "",
        context: 0,
        cause,
        memory_denied: state.limiter.denied,
        backtrace: frames.iter().take(FRAMES).map(name).collect(),
    }
}
