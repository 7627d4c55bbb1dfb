//! How fast an endpoint was of late: tokens and the time they took, the older the less they count.

use crate::WireError;
use crate::wire::{Reader, Writer};

/// Answers before a speed is believed.
pub const MIN_SPEED_ANSWERS: u8 = 5;

/// What is left of the sums with each further answer: an answer counts half after eleven more.
const KEEP: f32 = 15.0 / 16.0;

/// Tokens and the milliseconds they took. A ratio of sums, as a mean of ratios would weigh a prompt
/// of ten tokens, most of whose time is no work on them, like one of ten thousand.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Speed {
    /// Answers so far, at most 255.
    pub answers: u8,
    /// Decayed sum of tokens.
    pub tokens: f32,
    /// Decayed sum of milliseconds.
    pub ms: f32,
}

/// Bytes of a speed.
pub(crate) const SPEED_BYTES: usize = 1 + 4 + 4;

impl Speed {
    /// Takes one answer in. One without tokens or time says nothing.
    pub fn observe(&mut self, tokens: f32, ms: f32) {
        let says = |number: f32| number.is_finite() && number > 0.0;
        if says(tokens) && says(ms) {
            self.answers = self.answers.saturating_add(1);
            self.tokens = self.tokens * KEEP + tokens;
            self.ms = self.ms * KEEP + ms;
        }
    }

    /// Tokens per second; `None` before [`MIN_SPEED_ANSWERS`].
    pub fn tokens_per_s(&self) -> Option<f32> {
        self.known(self.tokens / self.ms * 1e3)
    }

    /// Milliseconds per token; `None` before [`MIN_SPEED_ANSWERS`].
    pub fn ms_per_token(&self) -> Option<f32> {
        self.known(self.ms / self.tokens)
    }

    fn known(&self, ratio: f32) -> Option<f32> {
        (self.answers >= MIN_SPEED_ANSWERS && ratio.is_finite() && ratio > 0.0).then_some(ratio)
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.u8(self.answers).u32(self.tokens.to_bits()).u32(self.ms.to_bits());
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let answers = reader.u8()?;
        let mut sum = || -> Result<f32, WireError> {
            let sum = f32::from_bits(reader.u32()?);
            let is_sum = sum.is_finite() && sum >= 0.0;
            if is_sum { Ok(sum) } else { Err(WireError::Range("speed")) }
        };
        Ok(Self { answers, tokens: sum()?, ms: sum()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_told_after_five_answers_and_follows_the_latest() {
        let mut speed = Speed::default();
        for _ in 0..4 {
            speed.observe(1_000.0, 500.0);
            assert_eq!(speed.tokens_per_s(), None);
        }
        // These say nothing.
        for (tokens, ms) in [(0.0, 9.0), (9.0, 0.0), (f32::NAN, 9.0), (9.0, f32::INFINITY)] {
            speed.observe(tokens, ms);
        }
        assert_eq!(speed.tokens_per_s(), None);
        speed.observe(1_000.0, 500.0);
        let is = |value: Option<f32>, expected: f32| {
            assert!((value.unwrap() / expected - 1.0).abs() < 1e-3, "{value:?} {expected}");
        };
        is(speed.tokens_per_s(), 2_000.0);
        is(speed.ms_per_token(), 0.5);
        // Prompts that are all overhead weigh by their tokens and time. In Python:
        // for _ in range(5): t, m = t * .9375 + 1000, m * .9375 + 500
        // for _ in range(16): t, m = t * .9375 + 10, m * .9375 + 50
        (0..16).for_each(|_| speed.observe(10.0, 50.0));
        is(speed.tokens_per_s(), 1_287.163);
    }
}
