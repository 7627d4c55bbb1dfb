//! Scorers.

mod active_request;
mod context_length_aware;
mod endpoint_attribute;
mod header_label_affinity;
mod kv_cache_utilization;
mod latency;
mod lmetric;
mod load_aware;
mod lora_affinity;
mod no_hit_lru;
mod prefix_cache;
mod queue;
mod running_requests;
mod session_affinity;
mod token_load;
mod topology_affinity;

pub use active_request::ActiveRequest;
pub use context_length_aware::ContextLengthAware;
pub use endpoint_attribute::EndpointAttribute;
pub use header_label_affinity::HeaderLabelAffinity;
pub use kv_cache_utilization::KvCacheUtilization;
pub use latency::Latency;
pub use lmetric::Lmetric;
pub use load_aware::LoadAware;
pub use lora_affinity::LoraAffinity;
pub use no_hit_lru::NoHitLru;
pub use prefix_cache::PrefixCache;
pub use queue::{Queue, effective_waiting};
pub use running_requests::RunningRequests;
pub use session_affinity::SessionAffinity;
pub use token_load::TokenLoad;
pub use topology_affinity::TopologyAffinity;

pub(crate) use context_length_aware::ContextRange;
pub(crate) use prefix_cache::share;
pub(crate) use session_affinity::Sessions;
pub(crate) use topology_affinity::{Level, TopologyLabels};

use routing::median;

/// Scores of the candidates whose reading is known; the others get the median of those, so that one
/// silent engine is neither starved nor flooded. All unknown: everyone gets 0.5.
fn with_median_for_unknown(known: Vec<Option<f32>>) -> Vec<Option<f32>> {
    if known.iter().all(Option::is_some) {
        return known;
    }
    let median = median(&known).unwrap_or(0.5);
    known.into_iter().map(|score| score.or(Some(median))).collect()
}

/// `(max - v) / (max - min)` over the known values, which is 1 for the lowest; all equal gives 1.
fn lowest_is_best(values: &[Option<f64>]) -> Vec<Option<f32>> {
    let known = || values.iter().copied().flatten();
    let (min, max) = (known().fold(f64::MAX, f64::min), known().fold(f64::MIN, f64::max));
    let score = |value: f64| if max > min { ((max - value) / (max - min)) as f32 } else { 1.0 };
    values.iter().map(|value| value.map(score)).collect()
}
