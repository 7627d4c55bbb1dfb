//! `queue` and `kv-cache-utilization`.

use super::{Scorer, with_median_for_unknown};
use crate::{Candidate, PickHistory, RequestFeatures};

/// `(max - q) / (max - min)` over the candidates' waiting requests; all equal gives 1.
///
/// Source: llm-d `queue-scorer`. Unknown readings score the median.
pub struct Queue;

impl Scorer for Queue {
    fn score(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let known = || candidates.iter().filter_map(|candidate| candidate.load.waiting);
        let (min, max) = (known().min().unwrap_or(0), known().max().unwrap_or(0));
        let span = (max - min) as f32;
        let score = |waiting: u32| if max == min { 1.0 } else { (max - waiting) as f32 / span };
        with_median_for_unknown(candidates.iter().map(|c| c.load.waiting.map(score)).collect())
    }
}

/// `1 - usage` of the KV cache.
///
/// Source: llm-d `kv-cache-utilization-scorer`. Unknown readings score the median.
pub struct KvCacheUtilization;

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
