//! Built-in scorers. Formulas are llm-d's (router v0.10.0,
//! `pkg/epp/framework/plugins/scheduling/scorer`), with unknown readings made explicit.

mod load;
mod no_hit_lru;
mod prefix_cache;

pub use load::{KvCacheUtilization, Queue, effective_waiting};
pub use no_hit_lru::NoHitLru;
pub use prefix_cache::PrefixCache;

use crate::{Candidate, PickHistory, RequestFeatures};

/// Gives every candidate a score in 0..=1, 1 best.
pub trait Scorer {
    /// The type as spelled in configuration.
    fn type_name(&self) -> &'static str;

    /// One score per candidate, in their order. Values outside 0..=1 are clamped by the profile.
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
    ) -> Vec<f32>;
}

/// Types that [`scorer_of_type`] knows.
pub const SCORER_TYPES: [&str; 4] = ["prefix-cache", "queue", "kv-cache-utilization", "no-hit-lru"];

/// The built-in scorer of a configured type.
pub fn scorer_of_type(type_name: &str) -> Option<Box<dyn Scorer>> {
    Some(match type_name {
        "prefix-cache" => Box::new(PrefixCache),
        "queue" => Box::new(Queue),
        "kv-cache-utilization" => Box::new(KvCacheUtilization),
        "no-hit-lru" => Box::new(NoHitLru),
        _ => return None,
    })
}

/// Scores of the candidates whose reading is known; the others get the median of those, so that one
/// silent engine is neither starved nor flooded. All unknown: everyone gets 0.5.
fn with_median_for_unknown(known: Vec<Option<f32>>) -> Vec<f32> {
    let mut sorted: Vec<f32> = known.iter().copied().flatten().collect();
    sorted.sort_unstable_by(f32::total_cmp);
    let upper = sorted.get(sorted.len() / 2).copied();
    let lower = sorted.len().checked_sub(1).and_then(|last| sorted.get(last / 2)).copied();
    let median = match (lower, upper) {
        (Some(lower), Some(upper)) => (lower + upper) / 2.0,
        _ => 0.5,
    };
    known.into_iter().map(|score| score.unwrap_or(median)).collect()
}
