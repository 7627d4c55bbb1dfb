//! LoRA adapters of an engine in the load table.

use crate::WireError;
use crate::wire::{Reader, Writer};

/// Most adapters that are told of one engine as running, and as waiting.
pub const MAX_ENGINE_ADAPTERS: usize = 64;

const KNOWN: u8 = 1;
const ROOM: u8 = 2;

/// What an engine says of its LoRA adapters. Numbers are places in the directory entry's list, which
/// only grows within an epoch.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EngineAdapters {
    /// Whether one more can be loaded.
    pub has_room: bool,
    /// Adapters of requests that run.
    pub running: Vec<u16>,
    /// Adapters of requests that wait.
    pub waiting: Vec<u16>,
}

pub(crate) fn write_adapters(writer: &mut Writer, adapters: Option<&EngineAdapters>) {
    let Some(adapters) = adapters else {
        writer.u8(0);
        return;
    };
    writer.u8(KNOWN | if adapters.has_room { ROOM } else { 0 });
    for list in [&adapters.running, &adapters.waiting] {
        let told = list.len().min(MAX_ENGINE_ADAPTERS);
        writer.u8(told as u8);
        for number in list.iter().take(told) {
            writer.u16(*number);
        }
    }
}

pub(crate) fn read_adapters(reader: &mut Reader<'_>) -> Result<Option<EngineAdapters>, WireError> {
    let flags = reader.u8()?;
    if flags & KNOWN == 0 {
        return Ok(None);
    }
    let mut list = || -> Result<Vec<u16>, WireError> {
        let count = reader.u8()?;
        if usize::from(count) > MAX_ENGINE_ADAPTERS {
            return Err(WireError::Range("adapter count"));
        }
        (0..count).map(|_| reader.u16()).collect()
    };
    let (running, waiting) = (list()?, list()?);
    Ok(Some(EngineAdapters { has_room: flags & ROOM != 0, running, waiting }))
}
