//! Built-in scorers. Formulas are llm-d's (router v0.10.0,
//! `pkg/epp/framework/plugins/scheduling/scorer`), with unknown readings made explicit.

mod load;
mod no_hit_lru;
mod prefix_cache;

pub use load::{KvCacheUtilization, Queue, effective_waiting};
pub use no_hit_lru::NoHitLru;
pub use prefix_cache::PrefixCache;

use crate::{Candidate, PickHistory, RequestFeatures};

/// Gives every candidate a score in 0..=1, 1 best. Pure: the same arguments, the same scores.
///
/// The same implementation is linked into the router module, packaged as a module of its own, and
/// run natively. A module of its own knows no [`PickHistory`]: it is empty there.
pub trait Scorer {
    /// One score per candidate, in their order. Values outside 0..=1 are clamped. `None`, a value
    /// that is not finite, and a list that ends early are *absent* scores: such a candidate counts
    /// with the median of the others, and a scorer without any score is left out.
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
    ) -> Vec<Option<f32>>;

    /// Whether its parameters are within their ranges. A configuration that fails is refused before
    /// a request sees it.
    fn check(&self) -> Result<(), OutOfRange> {
        Ok(())
    }
}

/// A parameter of the right type with a value that is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key} is {value}, accepted is {accepted}")]
pub struct OutOfRange {
    /// The parameter.
    pub key: &'static str,
    /// What it holds.
    pub value: String,
    /// What it may hold.
    pub accepted: String,
}

impl OutOfRange {
    /// Checks that `value` lies in `accepted`, both ends included. NaN lies nowhere.
    pub fn unless_within<T: PartialOrd + std::fmt::Display>(
        key: &'static str,
        value: T,
        accepted: std::ops::RangeInclusive<T>,
    ) -> Result<(), Self> {
        if accepted.contains(&value) {
            return Ok(());
        }
        let accepted = format!("{} to {}", accepted.start(), accepted.end());
        Err(Self { key, value: value.to_string(), accepted })
    }
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
fn with_median_for_unknown(known: Vec<Option<f32>>) -> Vec<Option<f32>> {
    let median = median(&known).unwrap_or(0.5);
    known.into_iter().map(|score| score.or(Some(median))).collect()
}

/// Median of the known values.
pub(crate) fn median(known: &[Option<f32>]) -> Option<f32> {
    let mut sorted: Vec<f32> = known.iter().copied().flatten().collect();
    sorted.sort_unstable_by(f32::total_cmp);
    let upper = sorted.get(sorted.len() / 2).copied()?;
    let lower = sorted.len().checked_sub(1).and_then(|last| sorted.get(last / 2)).copied()?;
    Some((lower + upper) / 2.0)
}
