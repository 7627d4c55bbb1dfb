//! How right the predictions of cached tokens were: what the meter learns, the router weighs by and
//! the daemon shows.

use routing::Reliability;

use crate::WireError;
use crate::speed::{SPEED_BYTES, Speed};
use crate::values::{MAX_SINGLETON_BYTES, open, start};
use crate::wire::{Reader, Writer};

/// Path of the feed listener under which the feeder answers with an [`AccuracyReport`]. A feeder
/// that does not know it answers 404.
pub const ACCURACY_PATH: &str = "/feed/accuracy";

/// Judged answers that are remembered of an endpoint: the bits of a window.
pub const WINDOW_ANSWERS: u32 = u32::BITS;

/// Fewer judged answers than this say nothing: three of five may be chance.
const MIN_JUDGED: u8 = 8;

/// Bytes of a slot in the value.
const SLOT_BYTES: usize = 2 + 4 + 4 + 4 + 1 + 4 + 4 + 2 * SPEED_BYTES;
/// Slots that fit a singleton, after kind, version, epoch and count.
const MAX_SLOTS: usize = (MAX_SINGLETON_BYTES - 12) / SLOT_BYTES;

/// What an answer said of a prediction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The engine does not say how many tokens it had cached, though a hit was predicted.
    Silent,
    /// Nothing was predicted that could have been wrong.
    Nothing,
    /// As predicted, within the tolerance.
    Right,
    /// More was predicted than the engine had.
    Over,
    /// The engine had more than was predicted.
    Under,
}

/// What is known of one endpoint's answers: how right the predictions were, how fast it was.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct SlotAccuracy {
    /// Measured answers that a prediction was made for.
    pub answers: u32,
    /// Of those, with the engine's count of cached tokens.
    pub reported: u32,
    /// Of those, without it although a hit was predicted.
    pub silent: u32,
    /// Judged answers in the windows, at most [`WINDOW_ANSWERS`].
    pub judged: u8,
    /// The latest judged answers, the last in the lowest bit: 1 where too much was predicted.
    pub over: u32,
    /// The same: 1 where too little was predicted.
    pub under: u32,
    /// Prompt tokens that were not cached, in the time to the first token.
    pub prefill: Speed,
    /// Output tokens after the first.
    pub decode: Speed,
}

impl SlotAccuracy {
    /// Takes one answer in. `is_reported`: the engine named its cached tokens.
    pub fn observe(&mut self, outcome: Outcome, is_reported: bool) {
        self.answers = self.answers.saturating_add(1);
        self.reported = self.reported.saturating_add(u32::from(is_reported));
        match outcome {
            Outcome::Silent => self.silent = self.silent.saturating_add(1),
            Outcome::Nothing => {}
            Outcome::Right | Outcome::Over | Outcome::Under => {
                self.over = self.over << 1 | u32::from(outcome == Outcome::Over);
                self.under = self.under << 1 | u32::from(outcome == Outcome::Under);
                self.judged = (self.judged + 1).min(WINDOW_ANSWERS as u8);
            }
        }
    }

    /// How much its matches are worth: all, half when a quarter of the latest predictions were too
    /// high, a quarter when half were. Never nothing: an endpoint that gets no request that it is
    /// said to hold could not show that it is right again. Too low a prediction lowers nothing, as
    /// what is matched is held.
    pub fn reliability(&self) -> Reliability {
        let (judged, over) = (u32::from(self.judged), self.over.count_ones());
        if self.judged < MIN_JUDGED || over * 4 < judged {
            Reliability::FULL
        } else if over * 2 < judged {
            Reliability::HALF
        } else {
            Reliability::QUARTER
        }
    }
}

/// Accuracy of a scope's endpoints, shared by all workers of a gateway.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Accuracy {
    /// Epoch whose slots these are; another epoch's are forgotten.
    pub epoch: u64,
    /// By slot, ascending.
    pub slots: Vec<(u16, SlotAccuracy)>,
}

impl Accuracy {
    /// What is known of `slot`.
    pub fn of(&self, slot: u16) -> SlotAccuracy {
        let at = self.slots.binary_search_by_key(&slot, |entry| entry.0).ok();
        at.and_then(|at| self.slots.get(at)).map(|entry| entry.1).unwrap_or_default()
    }

    /// Takes one answer of `slot` in; an endpoint beyond what a value holds is not remembered.
    pub fn observe(&mut self, slot: u16, outcome: Outcome, is_reported: bool) {
        self.change(slot, |accuracy| accuracy.observe(outcome, is_reported));
    }

    /// Changes what is known of `slot`; an endpoint beyond what a value holds is not remembered.
    pub fn change(&mut self, slot: u16, change: impl FnOnce(&mut SlotAccuracy)) {
        let at = match self.slots.binary_search_by_key(&slot, |entry| entry.0) {
            Ok(at) => at,
            Err(_) if self.slots.len() >= MAX_SLOTS => return,
            Err(at) => {
                self.slots.insert(at, (slot, SlotAccuracy::default()));
                at
            }
        };
        if let Some((_, accuracy)) = self.slots.get_mut(at) {
            change(accuracy);
        }
    }

    /// The shared value.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = start(b'C', self.epoch);
        writer.u16(self.slots.len() as u16);
        for (slot, a) in &self.slots {
            writer.u16(*slot).u32(a.answers).u32(a.reported).u32(a.silent);
            writer.u8(a.judged).u32(a.over).u32(a.under);
            a.prefill.write(&mut writer);
            a.decode.write(&mut writer);
        }
        writer.0
    }

    /// Reads the shared value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let (epoch, mut reader) = open(b'C', bytes)?;
        let mut slots = Vec::new();
        for _ in 0..reader.u16()? {
            let slot = reader.u16()?;
            let accuracy = SlotAccuracy {
                answers: reader.u32()?,
                reported: reader.u32()?,
                silent: reader.u32()?,
                judged: reader.u8()?,
                over: reader.u32()?,
                under: reader.u32()?,
                prefill: Speed::read(&mut reader)?,
                decode: Speed::read(&mut reader)?,
            };
            if u32::from(accuracy.judged) > WINDOW_ANSWERS {
                return Err(WireError::Range("judged answers"));
            }
            slots.push((slot, accuracy));
        }
        reader.finish()?;
        Ok(Self { epoch, slots })
    }
}

/// Accuracies of all scopes that have one: the feeder's answer under [`ACCURACY_PATH`].
#[derive(Clone, PartialEq, Debug, Default)]
pub struct AccuracyReport {
    /// By scope.
    pub scopes: Vec<(u16, Accuracy)>,
}

/// Largest report: scopes beyond it are left out.
const MAX_REPORT_BYTES: usize = 1 << 20;

impl AccuracyReport {
    /// Adds what is held of `scope`; false when it no longer fits.
    pub fn push(&mut self, scope: u16, accuracy: Accuracy) -> bool {
        let bytes = |accuracy: &Accuracy| 18 + accuracy.slots.len() * SLOT_BYTES;
        let held: usize = self.scopes.iter().map(|(_, accuracy)| bytes(accuracy)).sum();
        let fits = held + bytes(&accuracy) <= MAX_REPORT_BYTES - 4;
        if fits {
            self.scopes.push((scope, accuracy));
        }
        fits
    }

    /// Body of the answer.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_preamble(b'U', 256);
        writer.u16(self.scopes.len() as u16);
        for (scope, accuracy) in &self.scopes {
            let value = accuracy.encode();
            writer.u16(*scope).u32(value.len() as u32).raw(&value);
        }
        writer.0
    }

    /// Reads the answer's body.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_REPORT_BYTES {
            return Err(WireError::Range("report size"));
        }
        let mut reader = Reader::new(bytes);
        reader.preamble(b'U')?;
        let mut scopes = Vec::new();
        for _ in 0..reader.u16()? {
            let (scope, len) = (reader.u16()?, reader.u32()? as usize);
            scopes.push((scope, Accuracy::decode(reader.take(len)?)?));
        }
        reader.finish()?;
        Ok(Self { scopes })
    }
}

// The window's value fits what a key may hold.
const _: () = assert!(12 + MAX_SLOTS * SLOT_BYTES <= MAX_SINGLETON_BYTES);
const _: () = assert!(MAX_SINGLETON_BYTES + 22 <= MAX_REPORT_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_weight_falls_with_wrong_predictions_and_recovers() {
        let mut accuracy = Accuracy { epoch: 1, ..Accuracy::default() };
        let mut after = |outcome, times: u32| {
            (0..times).for_each(|_| accuracy.observe(3, outcome, true));
            accuracy.of(3).reliability().ratio()
        };
        assert_eq!(after(Outcome::Over, 7), 1.0, "too few to tell");
        assert_eq!(after(Outcome::Over, 1), 0.25);
        assert_eq!(after(Outcome::Right, 8), 0.25, "8 of 16");
        assert_eq!(after(Outcome::Nothing, 99), 0.25, "says nothing");
        assert_eq!(after(Outcome::Under, 1), 0.5, "8 of 17");
        assert_eq!(after(Outcome::Right, 15), 0.5, "8 of 32");
        assert_eq!(after(Outcome::Right, 1), 1.0, "7 of the last 32");
        let held = accuracy.of(3);
        assert_eq!((held.answers, held.judged, held.over.count_ones()), (132, 32, 7));
        assert_eq!(accuracy.of(2), SlotAccuracy::default());
    }

    #[test]
    fn a_value_holds_no_more_than_it_may() {
        let mut accuracy = Accuracy::default();
        (0..=u16::MAX).for_each(|slot| accuracy.observe(slot, Outcome::Right, true));
        let bytes = accuracy.encode().len();
        assert!(bytes <= MAX_SINGLETON_BYTES && bytes > MAX_SINGLETON_BYTES - SLOT_BYTES);
        let mut report = AccuracyReport::default();
        let fitted = (0..100).take_while(|scope| report.push(*scope, accuracy.clone())).count();
        assert!(fitted > 10 && report.encode().len() <= MAX_REPORT_BYTES);
        assert_eq!(AccuracyReport::decode(&report.encode()), Ok(report));
    }

    fn any_accuracy() -> impl Strategy<Value = Accuracy> {
        let speed = || {
            let speed = (any::<u8>(), 0f32..1e9, 0f32..1e9);
            speed.prop_map(|(answers, tokens, ms)| Speed { answers, tokens, ms })
        };
        let slot = (any::<u16>(), any::<[u32; 5]>(), 0u8..=32, speed(), speed());
        (any::<u64>(), proptest::collection::vec(slot, 0..20)).prop_map(|(epoch, slots)| {
            let slots = slots.into_iter().map(
                |(slot, [answers, reported, silent, over, under], judged, prefill, decode)| {
                    let counts = SlotAccuracy {
                        answers,
                        reported,
                        silent,
                        judged,
                        over,
                        under,
                        prefill,
                        decode,
                    };
                    (slot, counts)
                },
            );
            Accuracy { epoch, slots: slots.collect() }
        })
    }

    proptest! {
        #[test]
        fn values_and_reports_round_trip(scopes in proptest::collection::vec((any::<u16>(), any_accuracy()), 0..5)) {
            for (_, accuracy) in &scopes {
                prop_assert_eq!(&Accuracy::decode(&accuracy.encode()).unwrap(), accuracy);
            }
            let report = AccuracyReport { scopes };
            prop_assert_eq!(AccuracyReport::decode(&report.encode()), Ok(report));
        }

        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            for kind in *b"CU" {
                let mut framed = vec![kind, 1];
                framed.extend(&bytes);
                let _ = (Accuracy::decode(&framed), AccuracyReport::decode(&framed));
            }
        }
    }
}
