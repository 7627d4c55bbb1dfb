//! A worker row: what one router VM says of itself.

use crate::WireError;
use crate::wire::{Reader, Writer};

/// Rows per gateway. A gateway with more workers leaves the rest unreported.
pub const MAX_ROWS: u8 = 64;

/// Scorer modules a row tells of.
pub const MAX_ROW_SCORERS: usize = 16;

/// What one router VM last got of one scorer module.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScorerRow {
    /// FNV-1a 64 of its name.
    pub scorer: u64,
    /// `revision` of the configuration that scored last, 0 while none did.
    pub revision: u32,
    /// Requests without its scores since the last one with.
    pub absent: u32,
}

impl ScorerRow {
    /// What stands for a scorer's name.
    pub fn hash_of(name: &str) -> u64 {
        crate::EndpointHash::of(name).0
    }
}

/// One router VM. A VM that died stops moving its beat; nothing else shows that under `fail_open`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WorkerRow {
    /// Drawn by the VM; tells two VMs of one row apart. 0 when the VM has ended and given up the
    /// row, which one that died cannot do.
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
    /// Scorer modules in the order of the picker's configuration, at most [`MAX_ROW_SCORERS`].
    pub scorers: Vec<ScorerRow>,
}

impl WorkerRow {
    /// The shared value.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_preamble(b'R', 52 + 16 * self.scorers.len());
        self.write(&mut writer);
        writer.0
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.u64(self.vm).u64(self.build).u64(self.config);
        writer.u64(self.beat_ns).u64(self.picked).u64(self.fell_back);
        let scorers = self.scorers.iter().take(MAX_ROW_SCORERS);
        writer.u16(scorers.len() as u16);
        for row in scorers {
            writer.u64(row.scorer).u32(row.revision).u32(row.absent);
        }
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut row = Self {
            vm: reader.u64()?,
            build: reader.u64()?,
            config: reader.u64()?,
            beat_ns: reader.u64()?,
            picked: reader.u64()?,
            fell_back: reader.u64()?,
            scorers: Vec::new(),
        };
        let count = usize::from(reader.u16()?);
        if count > MAX_ROW_SCORERS {
            return Err(WireError::Range("scorers of a row"));
        }
        for _ in 0..count {
            row.scorers.push(ScorerRow {
                scorer: reader.u64()?,
                revision: reader.u32()?,
                absent: reader.u32()?,
            });
        }
        Ok(row)
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
