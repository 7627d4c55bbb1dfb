//! `utilization`.

use routing::{Candidate, Chance, EndpointFilter, OutOfRange, PickHistory, RequestFeatures};
use serde::Deserialize;

use super::unless_empty;
use crate::names::refuse_unless;
use crate::scorer::effective_waiting;

/// Keeps the endpoints of which no reading is above its `maxValue`; with `fallbackOnEmpty` everyone,
/// where that is nobody. An unknown reading is above nothing.
///
/// `waiting-queue` is that of the scorer `queue`, with what is in flight and not reported yet;
/// `active-requests` are those in flight from all gateways.
///
/// Source: llm-d `utilization-filter` (`filter/utilization`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct Utilization {
    conditions: Vec<Condition>,
    #[serde(default)]
    fallback_on_empty: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
struct Condition {
    metric: Metric,
    max_value: f64,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(test, derive(serde::Serialize))]
enum Metric {
    ActiveRequests,
    RunningRequests,
    WaitingQueue,
    KvCacheUtilization,
}

impl EndpointFilter for Utilization {
    fn keep(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
        _: Chance,
    ) -> Vec<bool> {
        let waiting = effective_waiting(candidates);
        let keep = candidates.iter().zip(&waiting).map(|(candidate, waiting)| {
            self.conditions.iter().all(|Condition { metric, max_value }| {
                let is_above =
                    |count: Option<u32>| count.is_some_and(|count| f64::from(count) > *max_value);
                !match metric {
                    Metric::ActiveRequests => is_above(Some(candidate.in_flight.requests)),
                    Metric::RunningRequests => is_above(candidate.load.running),
                    Metric::WaitingQueue => is_above(*waiting),
                    // As f32, which the reading is: 0.3 is not above 0.3.
                    Metric::KvCacheUtilization => {
                        candidate.load.kv_usage_ratio.is_some_and(|kv| kv > *max_value as f32)
                    }
                }
            })
        });
        match self.fallback_on_empty {
            true => unless_empty(keep.collect()),
            false => keep.collect(),
        }
    }

    fn check(&self) -> Result<(), OutOfRange> {
        refuse_unless(!self.conditions.is_empty(), "conditions", "", "at least one condition")?;
        for Condition { metric, max_value } in &self.conditions {
            let most = if *metric == Metric::KvCacheUtilization { 1.0 } else { 1e9 };
            OutOfRange::unless_within("conditions[].maxValue", *max_value, 0.0..=most)?;
        }
        Ok(())
    }
}
