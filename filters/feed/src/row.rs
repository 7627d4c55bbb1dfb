//! A worker row: what one router VM says of itself.

use crate::WireError;
use crate::wire::{Reader, Writer};

/// Rows per gateway. A gateway with more workers leaves the rest unreported.
pub const MAX_ROWS: u8 = 64;

/// One router VM. A VM that died stops moving its beat; nothing else shows that under `fail_open`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WorkerRow {
    /// Drawn by the VM; tells two VMs of one row apart.
    pub vm: u64,
    /// Build of the module.
    pub build: u64,
    /// Hash of the picker's configuration.
    pub config: u64,
    /// Gateway's monotonic clock at the last write, in nanoseconds.
    pub beat_ns: u64,
    /// Requests the VM decided.
    pub picked: u64,
    /// Requests it left to the fallback policy.
    pub fell_back: u64,
}

impl WorkerRow {
    /// The shared value.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_preamble(b'R', 50);
        self.write(&mut writer);
        writer.0
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.u64(self.vm).u64(self.build).u64(self.config);
        writer.u64(self.beat_ns).u64(self.picked).u64(self.fell_back);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            vm: reader.u64()?,
            build: reader.u64()?,
            config: reader.u64()?,
            beat_ns: reader.u64()?,
            picked: reader.u64()?,
            fell_back: reader.u64()?,
        })
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.preamble(b'R')?;
        let row = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(row)
    }
}
