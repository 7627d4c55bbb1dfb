//! A host call under way: the guest's memory, its allocator, and the state behind it.

use super::Status;
use crate::state::logs::{LogLevel, LogLine};
use crate::state::{Shared, lock};
use crate::stream::data::StreamRef;
use crate::vm::state::VmState;
use std::ops::Range;
use std::sync::MutexGuard;
use wasmtime::{AsContext, AsContextMut, Caller, Memory, Val};

/// Why a host call does not return `Ok`.
pub(crate) enum Fail {
    Status(Status),
    /// The guest's allocator trapped, so the guest does.
    Trap(wasmtime::Error),
}

impl From<Status> for Fail {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

pub(crate) type Done = Result<(), Fail>;

pub(crate) struct Call<'a> {
    caller: Caller<'a, VmState>,
}

impl<'a> Call<'a> {
    pub(crate) fn new(caller: Caller<'a, VmState>) -> Self {
        Self { caller }
    }

    pub(crate) fn state(&mut self) -> &mut VmState {
        self.caller.data_mut()
    }

    pub(crate) fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.caller.data().shared)
    }

    /// The stream that host calls are for, and the filter's place in it.
    pub(crate) fn stream(&mut self) -> Option<(StreamRef, usize)> {
        self.state().current()?.as_stream()
    }

    fn memory(&mut self) -> Option<Memory> {
        match self.state().memory {
            Some(memory) => Some(memory),
            // Before the instance is complete.
            None => self.caller.get_export("memory")?.into_memory(),
        }
    }

    fn range(&mut self, ptr: u32, len: usize) -> Result<(Memory, Range<usize>), Status> {
        let memory = self.memory().ok_or(Status::InvalidMemoryAccess)?;
        let start = usize::try_from(ptr).map_err(|_| Status::InvalidMemoryAccess)?;
        let end = start.checked_add(len).ok_or(Status::InvalidMemoryAccess)?;
        if end > memory.data_size(self.caller.as_context()) {
            return Err(Status::InvalidMemoryAccess);
        }
        Ok((memory, start..end))
    }

    /// The guest's bytes there.
    pub(crate) fn read(&mut self, ptr: u32, len: u32) -> Result<Vec<u8>, Status> {
        self.read_start(ptr, len, usize::MAX)
    }

    /// As [`read`](Self::read), but not more than the first `most` of them.
    pub(crate) fn read_start(
        &mut self,
        ptr: u32,
        len: u32,
        most: usize,
    ) -> Result<Vec<u8>, Status> {
        let len = usize::try_from(len).map_err(|_| Status::InvalidMemoryAccess)?;
        let (memory, range) = self.range(ptr, len)?;
        let bytes = memory.data(self.caller.as_context()).get(range);
        let bytes = bytes.ok_or(Status::InvalidMemoryAccess)?;
        Ok(bytes.get(..most).unwrap_or(bytes).to_vec())
    }

    pub(crate) fn write(&mut self, ptr: u32, bytes: &[u8]) -> Result<(), Status> {
        let (memory, range) = self.range(ptr, bytes.len())?;
        let target = memory.data_mut(self.caller.as_context_mut()).get_mut(range);
        target.ok_or(Status::InvalidMemoryAccess)?.copy_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn write_u32(&mut self, ptr: u32, value: u32) -> Result<(), Status> {
        self.write(ptr, &value.to_le_bytes())
    }

    pub(crate) fn write_u64(&mut self, ptr: u32, value: u64) -> Result<(), Status> {
        self.write(ptr, &value.to_le_bytes())
    }

    /// Hands bytes over: the guest allocates, and pointer and length go where it said. No bytes are
    /// a null pointer, without asking its allocator.
    pub(crate) fn give(&mut self, bytes: &[u8], ptr_ptr: u32, len_ptr: u32) -> Done {
        let ptr = if bytes.is_empty() { 0 } else { self.allocate(bytes)? };
        self.write_u32(ptr_ptr, ptr)?;
        self.write_u32(len_ptr, u32::try_from(bytes.len()).unwrap_or(u32::MAX))?;
        Ok(())
    }

    fn allocate(&mut self, bytes: &[u8]) -> Result<u32, Fail> {
        let len = i32::try_from(bytes.len()).map_err(|_| Status::InvalidMemoryAccess)?;
        let malloc = self.state().malloc.ok_or(Status::InvalidMemoryAccess)?;
        let before = self.state().phase.replace("allocating");
        let mut results = [Val::I32(0)];
        let outcome = malloc.call(self.caller.as_context_mut(), &[Val::I32(len)], &mut results);
        self.state().phase = before;
        outcome.map_err(Fail::Trap)?;
        let ptr = results[0].i32().unwrap_or(0).cast_unsigned();
        if ptr == 0 {
            return Err(Status::InvalidMemoryAccess.into());
        }
        self.write(ptr, bytes)?;
        Ok(ptr)
    }

    pub(crate) fn log(&mut self, level: LogLevel, text: &[u8]) {
        let (source, worker) = (self.state().source(), self.state().worker);
        let mut shared = self.shared();
        let text = text.get(..shared.logs.line_bytes()).unwrap_or(text);
        let text = String::from_utf8_lossy(text).into_owned();
        let time_ns = shared.wall_ns;
        shared.logs.write(LogLine { time_ns, level, worker, source, text });
    }
}
