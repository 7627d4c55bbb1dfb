//! Prediction against truth, and where the tokens went that were not reused.

use feed::Outcome;

/// Bytes of a stride, of which the index knows only whole ones.
const STRIDE_BYTES: u64 = prefix::STRIDE_BYTES as u64;

/// What was predicted, and what the engine counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tokens {
    /// Of the prompt, by the engine.
    pub prompt: u64,
    /// Cached, by the engine.
    pub cached: u64,
    /// Predicted of the endpoint that served.
    pub predicted: u64,
    /// Predicted of the best endpoint that could have served.
    pub best: u64,
    /// Bytes of the prompt.
    pub prompt_bytes: u64,
    /// Tokens per block of the engine; 0 while unknown.
    pub block_size: u64,
}

/// A prompt's tokens by what became of them. `cached` and the four parts of the shortfall add up to
/// the prompt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Judgement {
    /// Of the prompt.
    pub prompt: u64,
    /// Reused.
    pub cached: u64,
    /// Predicted of the endpoint that served.
    pub predicted: u64,
    /// Predicted of the best endpoint.
    pub best: u64,
    /// Computed, as nobody held them.
    pub no_reuse: u64,
    /// Computed, as another endpoint held them.
    pub not_routed: u64,
    /// Computed although the endpoint was said to hold them.
    pub state_wrong: u64,
    /// Computed although predicted, but fewer than a prediction can tell.
    pub within_tolerance: u64,
    /// Reused beyond what was predicted.
    pub underpredicted: u64,
    /// What it says of the prediction.
    pub outcome: Outcome,
}

/// Judges one answer. A prediction is good to one block, which engines reuse whole, plus a stride,
/// which the index lists whole.
pub fn judge(tokens: Tokens) -> Judgement {
    let prompt = tokens.prompt;
    let cached = tokens.cached.min(prompt);
    let predicted = tokens.predicted.min(prompt);
    let best = tokens.best.clamp(predicted, prompt);
    let tolerance = tolerance(&tokens);
    let (over, under) = (predicted.saturating_sub(cached), cached.saturating_sub(predicted));
    let outcome = if over > tolerance {
        Outcome::Over
    } else if under > tolerance {
        Outcome::Under
    } else if predicted > tolerance {
        Outcome::Right
    } else {
        Outcome::Nothing
    };
    let is_over = outcome == Outcome::Over;
    Judgement {
        prompt,
        cached,
        predicted,
        best,
        no_reuse: prompt - best.max(cached),
        not_routed: best.max(cached) - predicted.max(cached),
        state_wrong: if is_over { over } else { 0 },
        within_tolerance: if is_over { 0 } else { over },
        underpredicted: if outcome == Outcome::Under { under } else { 0 },
        outcome,
    }
}

/// One block plus a stride, in tokens of this prompt.
pub(crate) fn tolerance(tokens: &Tokens) -> u64 {
    let stride = (STRIDE_BYTES * tokens.prompt).div_ceil(tokens.prompt_bytes.max(1));
    // A token has at least one byte.
    tokens.block_size + stride.min(STRIDE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of 1000 tokens with 4 bytes each and blocks of 16: the tolerance is 32.
    fn of(cached: u64, predicted: u64, best: u64) -> Judgement {
        judge(Tokens { prompt: 1000, cached, predicted, best, prompt_bytes: 4000, block_size: 16 })
    }

    #[test]
    fn the_shortfall_has_three_causes_and_a_tolerance() {
        let parts = |j: Judgement| (j.no_reuse, j.not_routed, j.state_wrong, j.within_tolerance);
        let check = |(cached, predicted, best), expected, outcome| {
            let judged = of(cached, predicted, best);
            assert_eq!((parts(judged), judged.outcome), (expected, outcome), "{judged:?}");
        };
        check((0, 0, 0), (1000, 0, 0, 0), Outcome::Nothing);
        check((480, 490, 490), (510, 0, 0, 10), Outcome::Right);
        check((160, 170, 800), (200, 630, 0, 10), Outcome::Right);
        check((0, 500, 500), (500, 0, 500, 0), Outcome::Over);
        check((0, 33, 33), (967, 0, 33, 0), Outcome::Over);
        check((0, 32, 32), (968, 0, 0, 32), Outcome::Nothing);
        check((500, 0, 0), (500, 0, 0, 0), Outcome::Under);
        // More than anybody was known to hold: nothing was missed by routing.
        check((900, 100, 800), (100, 0, 0, 0), Outcome::Under);
        assert_eq!(of(900, 100, 800).underpredicted, 800);
        assert_eq!(of(900, 880, 880).underpredicted, 0);
    }

    proptest! {
        #[test]
        fn every_token_of_the_prompt_is_accounted_for_once(
            prompt in 0u64..5000, cached in 0u64..6000, predicted in 0u64..6000,
            best in 0u64..6000, prompt_bytes in 0u64..20_000, block_size in 0u64..300,
        ) {
            let tokens = Tokens { prompt, cached, predicted, best, prompt_bytes, block_size };
            let j = judge(tokens);
            prop_assert_eq!(
                j.cached + j.no_reuse + j.not_routed + j.state_wrong + j.within_tolerance,
                prompt
            );
            prop_assert!(tolerance(&tokens) <= block_size + 64);
        }
    }
}
