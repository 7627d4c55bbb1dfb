//! `token-load`.

use routing::{Candidate, OutOfRange, PickHistory, RequestFeatures, Scorer, uncached_tokens};
use serde::Deserialize;

/// `1 - min(1, tokens / queueThresholdTokens)`: tokens are the uncached prompt tokens in flight to the
/// endpoint, plus those of this request that it would have to compute.
///
/// Source: llm-d `token-load-scorer` (`scorer/tokenload`) with its look-ahead at the current request.
/// A token in flight counts until its request ends.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct TokenLoad {
    /// Tokens from which on an endpoint scores 0; the default is 128 requests of 32 Ki tokens.
    pub queue_threshold_tokens: f64,
}

impl Default for TokenLoad {
    fn default() -> Self {
        Self { queue_threshold_tokens: 4_194_304.0 }
    }
}

impl Scorer for TokenLoad {
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let score = |candidate: &Candidate| {
            let own = uncached_tokens(request, candidate);
            let tokens = candidate.in_flight.tokens.saturating_add(own) as f64;
            (1.0 - (tokens / self.queue_threshold_tokens).min(1.0)) as f32
        };
        candidates.iter().map(score).map(Some).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        OutOfRange::unless_within("queueThresholdTokens", self.queue_threshold_tokens, 1.0..=1e12)
    }
}
