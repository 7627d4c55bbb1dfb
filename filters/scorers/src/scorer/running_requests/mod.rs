//! `running-requests`.

use routing::{Candidate, PickHistory, RequestFeatures, Scorer};
use serde::Deserialize;

use super::lowest_is_best;

/// `(max - r) / (max - min)` over the requests in the engines' batches; all equal gives 1.
///
/// Source: llm-d `running-requests-size-scorer` (`scorer/runningrequests`). An unknown reading is an
/// absent score.
#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct RunningRequests {}

impl Scorer for RunningRequests {
    fn score(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let running = candidates.iter().map(|c| c.load.running.map(f64::from));
        lowest_is_best(&running.collect::<Vec<_>>())
    }
}
