//! `no-hit-lru`.

use routing::{Candidate, PickHistory, RequestFeatures, Scorer};
use serde::Deserialize;

/// Spreads cold requests: with `n` candidates the one picked longest ago for a cold request scores
/// 1, the latest 0, `1 - rank / (n - 1)` between. A request that some candidate holds a prefix of
/// scores 0.5 everywhere.
///
/// Source: llm-d `no-hit-lru-scorer` (`scorer/nohitlru`). One deviation: candidates that were never
/// picked share rank 0 (llm-d ranks them by list position), so that position never decides; the
/// picker's tie-break orders them. There is no `lruSize`: every endpoint's last pick is kept.
#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct NoHitLru {}

impl Scorer for NoHitLru {
    fn score(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
    ) -> Vec<Option<f32>> {
        if candidates.iter().any(|candidate| candidate.matched.is_hit()) {
            return vec![Some(0.5); candidates.len()];
        }
        let last = |i: usize| history.cold.get(i).copied().unwrap_or(0);
        let mut sorted: Vec<u64> = (0..candidates.len()).map(last).collect();
        sorted.sort_unstable();
        let steps = candidates.len().saturating_sub(1).max(1) as f32;
        let score = |i: usize| match last(i) {
            0 => 1.0,
            mine => 1.0 - sorted.partition_point(|other| *other < mine) as f32 / steps,
        };
        (0..candidates.len()).map(score).map(Some).collect()
    }
}
