//! `feed/head`: who writes this gateway's state, how far it is, and how old.

use crate::WireError;
use crate::batch::BatchHeader;
use crate::wire::{Reader, Writer};

/// State of the feed in one gateway process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Head {
    /// Drawn when the gateway process saw its first batch; a restarted gateway has another.
    pub instance: u64,
    /// Epoch of the writer; 0 before the first.
    pub epoch: u64,
    /// Sequence of the last batch claimed in that epoch.
    pub sequence: u64,
    /// Whether the epoch's snapshot has been received whole.
    pub is_complete: bool,
    /// The last complete epoch before this one, served while `is_complete` is false; 0 if none.
    pub previous_epoch: u64,
    /// Moves with every change of a directory, table or model value.
    pub config_version: u32,
    /// Gateway's monotonic clock after the last batch was applied, in nanoseconds.
    pub stamp_ns: u64,
}

/// What a batch does to the head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// It follows: store this head, then apply the entries.
    Apply(Head),
    /// It does not follow the held head.
    Conflict,
}

impl Head {
    /// Epoch whose values readers use now; `None` while there is no complete state.
    pub fn active_epoch(&self) -> Option<u64> {
        match (self.is_complete, self.previous_epoch) {
            (true, _) => Some(self.epoch),
            (false, 0) => None,
            (false, previous) => Some(previous),
        }
    }

    /// Whether `batch` follows this head: same instance, and the next sequence of the same epoch or
    /// the first of a higher one.
    pub fn advance(&self, batch: &BatchHeader) -> Transition {
        if batch.instance != self.instance {
            return Transition::Conflict;
        }
        if batch.epoch == self.epoch && Some(batch.sequence) == self.sequence.checked_add(1) {
            return Transition::Apply(Self { sequence: batch.sequence, ..*self });
        }
        if batch.epoch > self.epoch && batch.sequence == 1 {
            let previous_epoch = if self.is_complete { self.epoch } else { self.previous_epoch };
            // Singletons live under their epoch's parity: writing over the half that is being
            // read would mix two epochs, so such a writer starts without a predecessor.
            let is_apart = (previous_epoch ^ batch.epoch) & 1 == 1;
            return Transition::Apply(Self {
                epoch: batch.epoch,
                sequence: 1,
                is_complete: false,
                previous_epoch: if is_apart { previous_epoch } else { 0 },
                ..*self
            });
        }
        Transition::Conflict
    }

    /// The shared value.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_preamble(b'H', 64);
        writer.u64(self.instance).u64(self.epoch).u64(self.sequence);
        writer.u8(u8::from(self.is_complete)).u64(self.previous_epoch);
        writer.u32(self.config_version).u64(self.stamp_ns);
        writer.0
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.preamble(b'H')?;
        let head = Self {
            instance: reader.u64()?,
            epoch: reader.u64()?,
            sequence: reader.u64()?,
            is_complete: reader.u8()? == 1,
            previous_epoch: reader.u64()?,
            config_version: reader.u32()?,
            stamp_ns: reader.u64()?,
        };
        reader.finish()?;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(instance: u64, epoch: u64, sequence: u64) -> BatchHeader {
        BatchHeader { instance, epoch, sequence, ..BatchHeader::default() }
    }

    #[test]
    fn only_what_follows_is_applied() {
        let head =
            Head { instance: 5, epoch: 8, sequence: 3, is_complete: true, ..Head::default() };
        let applies = |i, e, s| head.advance(&batch(i, e, s)) != Transition::Conflict;
        assert!(applies(5, 8, 4));
        assert!(applies(5, 9, 1));
        for (i, e, s) in
            [(6, 8, 4), (5, 8, 3), (5, 8, 5), (5, 7, 1), (5, 9, 2), (5, 9, 4), (0, 8, 4)]
        {
            assert!(!applies(i, e, s), "({i}, {e}, {s})");
        }
        let full = Head { sequence: u64::MAX, ..head };
        assert_eq!(full.advance(&batch(5, 8, 0)), Transition::Conflict);
    }

    #[test]
    fn a_takeover_serves_the_old_epoch_until_the_new_one_is_complete() {
        let head =
            Head { instance: 5, epoch: 8, sequence: 3, is_complete: true, ..Head::default() };
        let Transition::Apply(taken) = head.advance(&batch(5, 9, 1)) else { panic!() };
        assert_eq!((taken.active_epoch(), taken.is_complete), (Some(8), false));
        // Taken over again before it was complete: 8 is still what readers use, if it is apart.
        let Transition::Apply(again) = taken.advance(&batch(5, 11, 1)) else { panic!() };
        assert_eq!(again.active_epoch(), Some(8));
        let Transition::Apply(same_half) = taken.advance(&batch(5, 10, 1)) else { panic!() };
        assert_eq!(same_half.active_epoch(), None);
    }

    #[test]
    fn round_trip_and_golden_bytes() {
        let head = Head {
            instance: 1,
            epoch: 2,
            sequence: 3,
            is_complete: true,
            previous_epoch: 4,
            config_version: 5,
            stamp_ns: 6,
        };
        let bytes = head.encode();
        assert_eq!(Head::decode(&bytes), Ok(head));
        let mut expected = vec![b'H', 1];
        for part in [
            &1u64.to_le_bytes()[..],
            &2u64.to_le_bytes(),
            &3u64.to_le_bytes(),
            &[1],
            &4u64.to_le_bytes(),
            &5u32.to_le_bytes(),
            &6u64.to_le_bytes(),
        ] {
            expected.extend_from_slice(part);
        }
        assert_eq!(bytes, expected);
        assert_eq!(Head::decode(&[b'H', 2]), Err(WireError::Version(2)));
    }
}
