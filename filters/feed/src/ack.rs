//! The feeder's answer: the only channel from gateway to daemon.

use crate::matrix::{read_cells, write_cells};
use crate::wire::{Reader, Writer};
use crate::{Cell, Head, WireError, WorkerRow};

/// What became of a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AckStatus {
    /// 200: applied.
    Applied,
    /// 409: it does not follow the head.
    Conflict,
    /// 400: not understood, nothing was applied.
    Refused,
    /// 500: the proxy refused a host call; some values may not be stored.
    Failed,
}

impl AckStatus {
    /// HTTP status that goes with it.
    pub fn http_status(self) -> u32 {
        match self {
            Self::Applied => 200,
            Self::Conflict => 409,
            Self::Refused => 400,
            Self::Failed => 500,
        }
    }
}

/// Counters of the answering feeder VM since it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Batches applied.
    pub applied: u64,
    /// Values set.
    pub entries: u64,
    /// Batches that did not follow.
    pub conflicts: u64,
    /// Batches not understood.
    pub refused: u64,
    /// Host calls that failed.
    pub failed: u64,
}

/// Status, head, age, counters and worker rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ack {
    /// What became of the batch.
    pub status: AckStatus,
    /// Head after it.
    pub head: Head,
    /// Gateway's monotonic clock, to age the head's stamp and the rows' beats.
    pub now_ns: u64,
    /// Counters of the feeder.
    pub counters: Counters,
    /// Router VMs.
    pub rows: Vec<WorkerRow>,
    /// Why a batch was refused; empty otherwise.
    pub reason: String,
    /// What the gateway has in flight: the sums of its live router VMs.
    pub in_flight: Vec<Cell>,
}

impl Ack {
    /// Body of the answer.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_preamble(b'A', 256);
        let head = self.head.encode();
        writer.u16(self.status.http_status() as u16).u16(head.len() as u16).raw(&head);
        writer.u64(self.now_ns);
        let c = &self.counters;
        writer.u64(c.applied).u64(c.entries).u64(c.conflicts).u64(c.refused).u64(c.failed);
        writer.u16(self.rows.len() as u16);
        for row in &self.rows {
            row.write(&mut writer);
        }
        writer.text(&self.reason);
        write_cells(&mut writer, &self.in_flight);
        writer.0
    }

    /// Reads an answer's body.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.preamble(b'A')?;
        let status = match reader.u16()? {
            200 => AckStatus::Applied,
            409 => AckStatus::Conflict,
            400 => AckStatus::Refused,
            500 => AckStatus::Failed,
            _ => return Err(WireError::Range("status")),
        };
        let head_len = usize::from(reader.u16()?);
        let head = Head::decode(reader.take(head_len)?)?;
        let now_ns = reader.u64()?;
        let counters = Counters {
            applied: reader.u64()?,
            entries: reader.u64()?,
            conflicts: reader.u64()?,
            refused: reader.u64()?,
            failed: reader.u64()?,
        };
        let mut rows = Vec::new();
        for _ in 0..reader.u16()? {
            rows.push(WorkerRow::read(&mut reader)?);
        }
        let reason = reader.text("reason")?.to_owned();
        let in_flight = read_cells(&mut reader)?;
        reader.finish()?;
        Ok(Self { status, head, now_ns, counters, rows, reason, in_flight })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ScorerRow;
    use proptest::prelude::*;

    #[test]
    fn round_trip() {
        let ack = Ack {
            status: AckStatus::Conflict,
            head: Head { instance: 3, epoch: 2, ..Head::default() },
            now_ns: 77,
            counters: Counters { applied: 1, entries: 2, conflicts: 3, refused: 4, failed: 5 },
            rows: vec![WorkerRow {
                vm: 1,
                build: 2,
                config: 3,
                beat_ns: 4,
                picked: 5,
                fell_back: 6,
                scorers: vec![ScorerRow { scorer: 7, revision: 8, absent: 9 }],
            }],
            reason: "why".into(),
            in_flight: vec![Cell { requests: 7, tokens: 8, ..Cell::default() }],
        };
        assert_eq!(Ack::decode(&ack.encode()), Ok(ack.clone()));
        let row = &ack.rows[0];
        assert_eq!(WorkerRow::decode(&row.encode()).as_ref(), Ok(row));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            let mut framed = vec![b'A', 1];
            framed.extend(bytes);
            let _ = Ack::decode(&framed);
        }
    }
}
