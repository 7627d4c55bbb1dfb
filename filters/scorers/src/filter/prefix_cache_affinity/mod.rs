//! `prefix-cache-affinity`.

use routing::{
    Candidate, Chance, EndpointFilter, OutOfRange, PickHistory, RequestFeatures, uncached_tokens,
};
use serde::Deserialize;

use crate::scorer::share;

/// Keeps the endpoints that hold `affinityThreshold` of the prompt, if any does. Released, so that
/// everyone stays: with `explorationProbability`; when the best expected time to the first token among
/// them is more than `maxTTFTPenaltyMs` above the best among the others (0: never); and when either is
/// not known.
///
/// Expected is `tokens in flight / peakPrefillThroughput`, or (`ttftSource: latencyPredictor`) tokens in
/// flight and this request's over the endpoint's own measured prefill rate.
///
/// Source: llm-d `prefix-cache-affinity-filter` (`filter/prefixcacheaffinity`); the share is that of
/// `prefix-cache`. As a module it explores by prefix, not by request: it knows no chance of its own.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct PrefixCacheAffinity {
    affinity_threshold: f32,
    exploration_probability: f64,
    #[serde(rename = "maxTTFTPenaltyMs")]
    max_ttft_penalty_ms: f64,
    ttft_source: TtftSource,
    peak_prefill_throughput: f64,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(serde::Serialize))]
enum TtftSource {
    PrefillThroughput,
    LatencyPredictor,
}

impl Default for PrefixCacheAffinity {
    fn default() -> Self {
        Self {
            affinity_threshold: 0.8,
            exploration_probability: 0.0,
            max_ttft_penalty_ms: 18_000.0,
            ttft_source: TtftSource::PrefillThroughput,
            peak_prefill_throughput: 15_928.0,
        }
    }
}

impl EndpointFilter for PrefixCacheAffinity {
    fn keep(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
        chance: Chance,
    ) -> Vec<bool> {
        let holds = |candidate: &Candidate| share(request, candidate) >= self.affinity_threshold;
        let sticky: Vec<bool> = candidates.iter().map(holds).collect();
        let is_released = candidates.len() <= 1
            || self.affinity_threshold <= 0.0
            || chance.draw(0) < self.exploration_probability
            || !sticky.contains(&true)
            || self.costs_too_much(request, candidates, &sticky);
        match is_released {
            true => vec![true; candidates.len()],
            false => sticky,
        }
    }

    fn check(&self) -> Result<(), OutOfRange> {
        let within = OutOfRange::unless_within;
        OutOfRange::unless_within("affinityThreshold", self.affinity_threshold, 0.0..=1.0)?;
        within("explorationProbability", self.exploration_probability, 0.0..=1.0)?;
        within("maxTTFTPenaltyMs", self.max_ttft_penalty_ms, 0.0..=1e9)?;
        within("peakPrefillThroughput", self.peak_prefill_throughput, 1.0..=1e9)
    }
}

impl PrefixCacheAffinity {
    fn costs_too_much(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        sticky: &[bool],
    ) -> bool {
        if self.max_ttft_penalty_ms == 0.0 || !sticky.contains(&false) {
            return false;
        }
        let best = |is_sticky: bool| {
            let of = candidates.iter().zip(sticky).filter(|(_, sticky)| **sticky == is_sticky);
            let known = of.filter_map(|(candidate, _)| self.ttft_ms(request, candidate));
            known.reduce(f64::min)
        };
        match (best(true), best(false)) {
            (Some(sticky), Some(other)) => sticky - other > self.max_ttft_penalty_ms,
            _ => true,
        }
    }

    fn ttft_ms(&self, request: &RequestFeatures, candidate: &Candidate) -> Option<f64> {
        let in_flight = candidate.in_flight.tokens as f64;
        let (tokens, rate) = match self.ttft_source {
            TtftSource::PrefillThroughput => (in_flight, self.peak_prefill_throughput),
            TtftSource::LatencyPredictor => {
                let rate = candidate.rates.prefill_tokens_per_s.map(f64::from);
                let own = uncached_tokens(request, candidate) as f64;
                (in_flight + own, rate.filter(|rate| *rate > 0.0)?)
            }
        };
        Some(tokens / rate * 1_000.0)
    }
}
