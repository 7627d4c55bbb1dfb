//! A profile: filters, weighted scorers, one picker; and the decision it makes.

use std::cmp::Ordering;

use crate::scorers::median;
use crate::{Candidate, PickHistory, RequestFeatures, Scorer};

/// Totals closer than this are a tie. Weighted sums of f32 shares differ in the last bits by order
/// of addition; no scorer means a difference this small.
const TIE: f32 = 1e-5;

/// A scorer with its weight in the profile.
pub struct WeightedScorer {
    /// Finite and not negative.
    pub weight: f32,
    /// The scorer.
    pub scorer: Box<dyn Scorer>,
}

/// Scores that somebody outside the profile gave, such as a scorer module.
#[derive(Clone, PartialEq, Debug)]
pub struct GivenScores {
    /// Finite and not negative.
    pub weight: f32,
    /// One score per candidate, in their order; absent ones as [`Scorer::score`] has them.
    pub scores: Vec<Option<f32>>,
}

/// Filters candidates, scores them, and lists the best.
pub struct Profile {
    /// Scorers in configuration order.
    pub scorers: Vec<WeightedScorer>,
    /// Destinations per decision: one per attempt the proxy may make.
    pub destinations: usize,
}

/// What was decided and why.
#[derive(Clone, PartialEq, Debug)]
pub struct Decision {
    /// Indices into the candidates, best first.
    pub targets: Vec<usize>,
    /// Weighted sum per candidate; `None` for those filtered out.
    pub totals: Vec<Option<f32>>,
    /// Whether the first target was chosen by a tie-break.
    pub was_tie: bool,
    /// Whether no candidate held any of the prompt.
    pub was_cold: bool,
}

/// Why there is no decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoDecision {
    /// The model has no endpoints.
    NoCandidates,
    /// No endpoint is ready.
    NoneReady,
    /// The profile's filters left none of those that are ready.
    FilteredOut,
}

impl NoDecision {
    /// Counter name of this reason.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoCandidates => "no_candidates",
            Self::NoneReady => "none_ready",
            Self::FilteredOut => "filtered_out",
        }
    }
}

impl Profile {
    /// Decides, by the profile's own scorers and by what others `given`. `seed` breaks the ties that
    /// load and pick history leave.
    ///
    /// Scores are clamped to 0..=1, weighted and summed, not normalised (llm-d,
    /// `pkg/epp/scheduling/scheduler_profile.go`). Unknown is not zero: a candidate whose score is
    /// absent counts with the median of the others'.
    pub fn run(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
        given: &[GivenScores],
        seed: u64,
    ) -> Result<Decision, NoDecision> {
        if candidates.is_empty() {
            return Err(NoDecision::NoCandidates);
        }
        let ready: Vec<usize> = candidates
            .iter()
            .enumerate()
            .filter_map(|(i, candidate)| candidate.load.is_ready.then_some(i))
            .collect();
        if ready.is_empty() {
            return Err(NoDecision::NoneReady);
        }
        let kept: Vec<Candidate> =
            ready.iter().filter_map(|i| candidates.get(*i).cloned()).collect();
        let pick = |values: &[u64]| -> Vec<u64> {
            ready.iter().map(|i| values.get(*i).copied().unwrap_or(0)).collect()
        };
        let kept_history = PickHistory { any: pick(&history.any), cold: pick(&history.cold) };

        let mut sums = vec![0f32; kept.len()];
        for WeightedScorer { weight, scorer } in &self.scorers {
            add(&mut sums, *weight, scorer.score(request, &kept, &kept_history));
        }
        for GivenScores { weight, scores } in given {
            let of_kept = ready.iter().map(|i| scores.get(*i).copied().flatten()).collect();
            add(&mut sums, *weight, of_kept);
        }

        let order = ranked(&sums, &kept, &kept_history, seed);
        let mut totals = vec![None; candidates.len()];
        for (i, sum) in ready.iter().zip(&sums) {
            if let Some(total) = totals.get_mut(*i) {
                *total = Some(*sum);
            }
        }
        let sum_at = |rank: usize| order.get(rank).and_then(|i| sums.get(*i)).copied();
        let was_tie = match (sum_at(0), sum_at(1)) {
            (Some(first), Some(second)) => (first - second).abs() <= TIE,
            _ => false,
        };
        Ok(Decision {
            targets: order
                .iter()
                .take(self.destinations.max(1))
                .filter_map(|i| ready.get(*i).copied())
                .collect(),
            totals,
            was_tie,
            was_cold: !kept.iter().any(|candidate| candidate.matched.is_hit()),
        })
    }
}

/// Adds one scorer's share to the sums.
fn add(sums: &mut [f32], weight: f32, mut scores: Vec<Option<f32>>) {
    scores.resize(sums.len(), None);
    for score in &mut scores {
        *score = score.filter(|score| score.is_finite()).map(|score| score.clamp(0.0, 1.0));
    }
    let Some(median) = median(&scores) else { return };
    for (sum, score) in sums.iter_mut().zip(scores) {
        *sum += weight * score.unwrap_or(median);
    }
}

/// Order of the candidates: best total; within a tie the least loaded, then the one picked longest
/// ago, then at random. Position never decides.
fn ranked(sums: &[f32], kept: &[Candidate], history: &PickHistory, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..kept.len()).collect();
    let sum = |i: usize| sums.get(i).copied().unwrap_or(0.0);
    order.sort_by(|a, b| sum(*b).total_cmp(&sum(*a)));
    let mut ranked = Vec::with_capacity(order.len());
    let mut rest = order.as_slice();
    // Cut into runs of ties: "within TIE" is no order of its own, so it cannot be the comparator.
    while let Some(first) = rest.first() {
        let run = rest.iter().take_while(|i| sum(*first) - sum(**i) <= TIE).count().max(1);
        let (tied, later) = rest.split_at(run.min(rest.len()));
        let mut tied = tied.to_vec();
        tied.sort_by(|a, b| {
            by_load(kept.get(*a), kept.get(*b))
                .then_with(|| last(history, *a).cmp(&last(history, *b)))
                .then_with(|| mix(seed, *a).cmp(&mix(seed, *b)))
        });
        ranked.extend(tied);
        rest = later;
    }
    ranked
}

fn by_load(a: Option<&Candidate>, b: Option<&Candidate>) -> Ordering {
    let key = |candidate: Option<&Candidate>| {
        candidate.map(|c| {
            let (waiting, in_flight) = (c.load.waiting.unwrap_or(0), c.in_flight);
            let running = c.load.running.unwrap_or(0);
            // What is in flight waits or runs, and may not have been reported yet.
            let busy = running.max(in_flight.requests.saturating_sub(waiting));
            (waiting, busy, in_flight.requests, in_flight.tokens)
        })
    };
    key(a).cmp(&key(b))
}

fn last(history: &PickHistory, i: usize) -> u64 {
    history.any.get(i).copied().unwrap_or(0)
}

/// SplitMix64's finalizer (Steele, Lea, Flood 2014) over seed and index.
fn mix(seed: u64, i: usize) -> u64 {
    let mut z = seed.wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
