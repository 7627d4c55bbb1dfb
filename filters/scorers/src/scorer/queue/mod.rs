//! `queue`.

use routing::{Candidate, Load, PickHistory, RequestFeatures, Scorer};
use serde::Deserialize;

use super::{lowest_is_best, with_median_for_unknown};

/// `(max - q) / (max - min)` over the candidates' waiting requests; all equal gives 1.
/// Requests in flight that an engine cannot have reported yet count as waiting
/// ([`effective_waiting`]).
///
/// Source: llm-d `queue-scorer` (`scorer/queuedepth`), which knows reported ones only. Unknown
/// readings score the median.
#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct Queue {}

impl Scorer for Queue {
    fn score(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let waiting = effective_waiting(candidates);
        let waiting: Vec<Option<f64>> =
            waiting.into_iter().map(|waiting| waiting.map(f64::from)).collect();
        with_median_for_unknown(lowest_is_best(&waiting))
    }
}

/// Requests that wait at each candidate: those its engine reported, and those in flight that the
/// report cannot contain, as more are in flight than it says are waiting or running.
///
/// An engine without a queue starts some of them at once. How many is not known, but engines of a
/// pool are alike: up to twice as many as any without a queue was seen running. Without anything in
/// flight, or where the report is incomplete, this is the report.
pub fn effective_waiting(candidates: &[Candidate]) -> Vec<Option<u32>> {
    let without_queue = candidates.iter().filter(|c| c.load.waiting == Some(0));
    let running = without_queue.filter_map(|c| c.load.running).max().unwrap_or(0);
    let batch = running.saturating_mul(2);
    let of = |candidate: &Candidate| {
        let Load { waiting, running, .. } = candidate.load;
        let (waiting, Some(running)) = (waiting?, running) else { return waiting };
        let in_flight = candidate.in_flight.requests;
        let beyond = if waiting == 0 { batch } else { waiting.saturating_add(running) };
        Some(waiting.saturating_add(in_flight.saturating_sub(beyond)))
    };
    candidates.iter().map(of).collect()
}
