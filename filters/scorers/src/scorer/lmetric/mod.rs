//! `lmetric`.

use routing::{Candidate, PickHistory, RequestFeatures, Scorer, uncached_tokens};
use serde::Deserialize;

use super::lowest_is_best;

/// `(max - cost) / (max - min)` of `cost = uncached prompt tokens · (requests in flight + 1)`; all equal
/// gives 1. Nothing to tune.
///
/// Source: "Simple is Better: Multiplication May Be All You Need for LLM Request Scheduling"
/// (OSDI 2026, arXiv 2603.15202); normalised as llm-d's proposed `lmetric-scorer` is (llm-d-router
/// pull request 2351). Tokens are an estimate of the prompt's; where it is not known, scores are absent.
#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct Lmetric {}

impl Scorer for Lmetric {
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        if request.prompt_tokens == 0 {
            return Vec::new();
        }
        let cost = |candidate: &Candidate| {
            let batch = f64::from(candidate.in_flight.requests) + 1.0;
            Some(uncached_tokens(request, candidate) as f64 * batch)
        };
        lowest_is_best(&candidates.iter().map(cost).collect::<Vec<_>>())
    }
}
