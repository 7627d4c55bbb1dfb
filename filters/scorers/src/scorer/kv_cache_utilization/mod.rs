//! `kv-cache-utilization`.

use routing::{Candidate, PickHistory, RequestFeatures, Scorer};
use serde::Deserialize;

use super::with_median_for_unknown;

/// `1 - usage` of the KV cache.
///
/// Source: llm-d `kv-cache-utilization-scorer` (`scorer/kvcacheutilization`). Unknown readings score
/// the median.
#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct KvCacheUtilization {}

impl Scorer for KvCacheUtilization {
    fn score(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let score = |usage: f32| (1.0 - usage).clamp(0.0, 1.0);
        with_median_for_unknown(
            candidates.iter().map(|c| c.load.kv_usage_ratio.map(score)).collect(),
        )
    }
}
