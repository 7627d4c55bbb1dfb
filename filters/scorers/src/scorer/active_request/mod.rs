//! `active-request`.

use routing::{Candidate, OutOfRange, PickHistory, RequestFeatures, Scorer};
use serde::Deserialize;

/// 1 up to `idleThreshold` requests in flight, else `(max - count) / max · maxBusyScore`.
///
/// Source: llm-d `active-request-scorer` (`scorer/activerequest`), which counts its own replica's
/// requests; here those of all gateways of the pool count.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct ActiveRequest {
    /// Requests in flight up to which an endpoint is idle.
    pub idle_threshold: f32,
    /// Best score of an endpoint that is not idle.
    pub max_busy_score: f32,
}

impl Default for ActiveRequest {
    fn default() -> Self {
        Self { idle_threshold: 0.0, max_busy_score: 1.0 }
    }
}

impl Scorer for ActiveRequest {
    fn score(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let count = |candidate: &Candidate| candidate.in_flight.requests;
        let max = candidates.iter().map(count).max().unwrap_or(0);
        let score = |count: u32| match count as f32 <= self.idle_threshold {
            true => 1.0,
            false => (max - count) as f32 / max as f32 * self.max_busy_score,
        };
        candidates.iter().map(|candidate| Some(score(count(candidate)))).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        OutOfRange::unless_within("idleThreshold", self.idle_threshold, 0.0..=1e6)?;
        OutOfRange::unless_within("maxBusyScore", self.max_busy_score, 0.0..=1.0)
    }
}
