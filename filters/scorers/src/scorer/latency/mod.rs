//! `latency`.

use routing::{
    Candidate, Needs, OutOfRange, PickHistory, RequestFeatures, Scorer, uncached_tokens,
};
use serde::Deserialize;

use super::share;

/// Scores are in steps of 1/100, as llm-d's are.
const STEPS: f64 = 100.0;
/// A range of headrooms (ms) that is none.
const NO_RANGE_MS: f64 = 1e-9;

/// How far an endpoint is expected to stay below the latencies that the client accepts.
///
/// Expected are, from the endpoints' own measured rates, `ttft = (uncached tokens in flight + those of
/// this request) / prefill rate` and the measured `tpot`; headroom is objective minus expectation, with
/// an objective of 0 where the client names none. Only one group is scored, the first of these that has
/// anyone: both headrooms at least 0; nothing in flight; only `tpot` missed; only `ttft`; both. The
/// others score 0. Within the group each headroom's size is mapped to 0..=1 and weighted (`ttftWeight`,
/// `tpotWeight`; a dimension without a range does not count); *least* prefers the smaller sum, *most* the
/// larger one, `(⌊100 · x⌋ + 1) / 100`. Where objectives are missed it is *least*.
///
/// Without rates: `round(100 · (kv · (1 - usage) + queue · (max - q) / max + prefix · share)) / 100`, with
/// weights that sum to 1.
///
/// Source: llm-d `latency-scorer` (`scorer/latency`), which asks a predictor. An endpoint without
/// rates where others have some, and one without readings in the second form, has an absent score. A
/// rate that nobody has does not count.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct Latency {
    /// Weight of the time to the first token.
    pub ttft_weight: f64,
    /// Weight of the time per output token.
    pub tpot_weight: f64,
    /// Whether the least or the most headroom is best.
    pub headroom_selection_strategy: Headroom,
    /// Weight of the free KV cache without rates.
    #[serde(rename = "compositeKVWeight")]
    pub composite_kv_weight: f64,
    /// Weight of the queue without rates.
    pub composite_queue_weight: f64,
    /// Weight of the prefix without rates.
    pub composite_prefix_weight: f64,
}

/// Which headroom is best.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(serde::Serialize))]
pub enum Headroom {
    /// The least, which leaves idle endpoints idle.
    #[default]
    Least,
    /// The most, which is the safest.
    Most,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            ttft_weight: 0.8,
            tpot_weight: 0.2,
            headroom_selection_strategy: Headroom::Least,
            composite_kv_weight: 1.0,
            composite_queue_weight: 1.0,
            composite_prefix_weight: 1.0,
        }
    }
}

/// Objective minus expectation, in milliseconds.
#[derive(Clone, Copy)]
struct Headrooms {
    ttft_ms: f64,
    tpot_ms: f64,
    is_idle: bool,
}

/// Groups of endpoints, of which the best non-empty one is scored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Within,
    Idle,
    MissesTpot,
    MissesTtft,
    MissesBoth,
}

impl Headrooms {
    fn group(self) -> Group {
        match (self.ttft_ms < 0.0, self.tpot_ms < 0.0) {
            (false, false) => Group::Within,
            _ if self.is_idle => Group::Idle,
            (false, true) => Group::MissesTpot,
            (true, false) => Group::MissesTtft,
            (true, true) => Group::MissesBoth,
        }
    }
}

impl Scorer for Latency {
    fn needs(&self) -> Needs {
        Needs { request_control: true, rates: true, ..Needs::default() }
    }

    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let has_ttft = candidates.iter().any(|c| prefill_rate(c).is_some());
        let has_tpot = candidates.iter().any(|c| tpot_ms(c).is_some());
        if !has_ttft && !has_tpot {
            return self.composite(request, candidates);
        }
        let objective = |slo_ms: Option<f32>| f64::from(slo_ms.unwrap_or(0.0));
        let headrooms = |candidate: &Candidate| {
            let mut headrooms = Headrooms {
                ttft_ms: 0.0,
                tpot_ms: 0.0,
                is_idle: candidate.in_flight.requests == 0,
            };
            if has_ttft {
                let tokens =
                    candidate.in_flight.tokens as f64 + uncached_tokens(request, candidate) as f64;
                let expected_ms = tokens / prefill_rate(candidate)? * 1_000.0;
                headrooms.ttft_ms = objective(request.slo_ttft_ms) - expected_ms;
            }
            if has_tpot {
                headrooms.tpot_ms = objective(request.slo_tpot_ms) - tpot_ms(candidate)?;
            }
            Some(headrooms)
        };
        self.by_headroom(&candidates.iter().map(headrooms).collect::<Vec<_>>())
    }

    fn check(&self) -> Result<(), OutOfRange> {
        let within = |key, value| OutOfRange::unless_within(key, value, 0.0..=1e6);
        within("ttftWeight", self.ttft_weight)?;
        within("tpotWeight", self.tpot_weight)?;
        within("compositeKVWeight", self.composite_kv_weight)?;
        within("compositeQueueWeight", self.composite_queue_weight)?;
        within("compositePrefixWeight", self.composite_prefix_weight)
    }
}

impl Latency {
    fn by_headroom(&self, all: &[Option<Headrooms>]) -> Vec<Option<f32>> {
        let known = || all.iter().copied().flatten();
        let Some(best) = known().map(Headrooms::group).min() else { return Vec::new() };
        let in_group = || known().filter(|headrooms| headrooms.group() == best);
        let range = |of: fn(Headrooms) -> f64| {
            let sizes = || in_group().map(|headrooms| of(headrooms).abs());
            let min = sizes().fold(f64::MAX, f64::min);
            (min, sizes().fold(0.0, f64::max) - min)
        };
        let (ttft_min, ttft_range) = range(|headrooms| headrooms.ttft_ms);
        let (tpot_min, tpot_range) = range(|headrooms| headrooms.tpot_ms);
        let weights = match (ttft_range > NO_RANGE_MS, tpot_range > NO_RANGE_MS) {
            (false, true) => (0.0, 1.0),
            (true, false) => (1.0, 0.0),
            _ => match self.ttft_weight + self.tpot_weight {
                sum if sum > 0.0 => (self.ttft_weight / sum, self.tpot_weight / sum),
                _ => (1.0, 0.0),
            },
        };
        // Of those that miss an objective the one that misses it least is best, by any strategy.
        let strategy = match best {
            Group::Within => self.headroom_selection_strategy,
            _ => Headroom::Least,
        };
        let place = |size: f64, (min, range): (f64, f64)| match range > NO_RANGE_MS {
            true => (size - min) / range,
            false => 0.5,
        };
        let score = |headrooms: Headrooms| {
            if headrooms.group() != best {
                return 0.0;
            }
            let combined = weights.0 * place(headrooms.ttft_ms.abs(), (ttft_min, ttft_range))
                + weights.1 * place(headrooms.tpot_ms.abs(), (tpot_min, tpot_range));
            let share = match strategy {
                Headroom::Least => 1.0 - combined,
                Headroom::Most => combined,
            };
            (((share * STEPS).floor() + 1.0) / STEPS).min(1.0)
        };
        all.iter().map(|headrooms| headrooms.map(|headrooms| score(headrooms) as f32)).collect()
    }

    fn composite(&self, request: &RequestFeatures, candidates: &[Candidate]) -> Vec<Option<f32>> {
        let given =
            [self.composite_kv_weight, self.composite_queue_weight, self.composite_prefix_weight];
        let [kv, queue, prefix] = match given.iter().sum::<f64>() {
            sum if sum > 0.0 => given.map(|weight| weight / sum),
            _ => [1.0, 0.0, 0.0],
        };
        let longest = candidates.iter().filter_map(|c| c.load.waiting).max().unwrap_or(0);
        let score = |candidate: &Candidate| {
            let waiting = candidate.load.waiting?;
            let free = 1.0 - f64::from(candidate.load.kv_usage_ratio?);
            let short = match longest {
                0 => 1.0,
                longest => f64::from(longest - waiting) / f64::from(longest),
            };
            let sum = kv * free + queue * short + prefix * f64::from(share(request, candidate));
            Some(((sum * STEPS).round() / STEPS) as f32)
        };
        candidates.iter().map(score).collect()
    }
}

/// A rate of 0 predicts nothing.
fn prefill_rate(candidate: &Candidate) -> Option<f64> {
    candidate.rates.prefill_tokens_per_s.map(f64::from).filter(|rate| *rate > 0.0)
}

fn tpot_ms(candidate: &Candidate) -> Option<f64> {
    candidate.rates.tpot_ms.map(f64::from)
}
