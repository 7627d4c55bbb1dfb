//! `load-aware`.

use routing::{Candidate, OutOfRange, PickHistory, RequestFeatures, Scorer};
use serde::Deserialize;

use super::effective_waiting;

/// `0.5 · (1 - min(q, threshold) / threshold)` of the waiting requests `q`: 0.5 without a queue, 0 from
/// the threshold on. `q` is that of `queue`, with what is in flight and not reported yet.
///
/// Source: llm-d `load-aware-scorer` (`scorer/loadaware`). An unknown reading is an absent score.
#[derive(Deserialize)]
#[serde(default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct LoadAware {
    /// Waiting requests from which on an endpoint scores 0.
    pub threshold: f32,
}

impl Default for LoadAware {
    fn default() -> Self {
        Self { threshold: 128.0 }
    }
}

impl Scorer for LoadAware {
    fn score(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let score = |waiting: u32| 0.5 * (1.0 - (waiting as f32 / self.threshold).min(1.0));
        effective_waiting(candidates).into_iter().map(|waiting| waiting.map(score)).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        OutOfRange::unless_within("threshold", self.threshold, 1.0..=1e6)
    }
}
