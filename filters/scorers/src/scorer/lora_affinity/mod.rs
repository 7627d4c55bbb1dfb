//! `lora-affinity`.

use routing::{AdapterState, Candidate, PickHistory, RequestFeatures, Scorer};
use serde::Deserialize;

/// 1 where the request's adapter is loaded, 0.8 where there is room for it, 0.6 where requests wait
/// for it, 0 where there is no room.
///
/// Source: llm-d `lora-affinity-scorer` (`scorer/loraaffinity`), where an engine that does not tell
/// scores 0; here its score is absent, as is everyone's for a request without an adapter.
#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct LoraAffinity {}

impl Scorer for LoraAffinity {
    fn score(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let score = |candidate: &Candidate| match candidate.adapter {
            AdapterState::Unknown => None,
            AdapterState::Active => Some(1.0),
            AdapterState::Room => Some(0.8),
            AdapterState::Waiting => Some(0.6),
            AdapterState::Full => Some(0.0),
        };
        candidates.iter().map(score).collect()
    }
}
