//! `max-score`.

use std::cmp::Ordering;

use routing::{Candidate, Chance, PickHistory, Picked, Picker};
use serde::Deserialize;

/// Totals closer than this are a tie. Weighted sums of f32 shares differ in the last bits by order
/// of addition; no scorer means a difference this small.
const TIE: f32 = 1e-5;

/// Best total first; within a tie the least loaded, then the one picked longest ago, then at random.
/// Position never decides.
///
/// Source: llm-d `max-score-picker` (`picker/maxscore`), which breaks ties at random.
#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct MaxScore {}

impl Picker for MaxScore {
    fn pick(
        &self,
        totals: &[f32],
        candidates: &[Candidate],
        history: &PickHistory,
        chance: Chance,
    ) -> Picked {
        let total = |i: usize| totals.get(i).copied().unwrap_or(0.0);
        // Each with its total in one number, so that comparing two looks nothing up.
        let mut keyed: Vec<u64> = (0..candidates.len())
            .map(|i| u64::from(descending(total(i))) << 32 | i as u64)
            .collect();
        keyed.sort_unstable();
        let sorted: Vec<usize> = keyed.into_iter().map(|key| key as u32 as usize).collect();
        let mut order = Vec::with_capacity(sorted.len());
        let mut rest = sorted.as_slice();
        // Cut into runs of ties: "within TIE" is no order of its own, so it cannot be the comparator.
        while let Some(first) = rest.first() {
            let is_tied = |i: usize| total(*first) - total(i) <= TIE;
            let run = rest.iter().take_while(|i| is_tied(**i)).count().max(1);
            let (tied, later) = rest.split_at(run.min(rest.len()));
            rest = later;
            if let [alone] = tied {
                order.push(*alone);
                continue;
            }
            let mut tied = tied.to_vec();
            tied.sort_by(|a, b| {
                by_load(candidates.get(*a), candidates.get(*b))
                    .then_with(|| last(history, *a).cmp(&last(history, *b)))
                    .then_with(|| chance.tie(*a).cmp(&chance.tie(*b)))
            });
            order.extend(tied);
        }
        let was_tie = match order.as_slice() {
            [first, second, ..] => (total(*first) - total(*second)).abs() <= TIE,
            _ => false,
        };
        Picked { order, was_tie }
    }
}

/// A number that is smaller the greater `total` is, by `f32::total_cmp`.
fn descending(total: f32) -> u32 {
    let bits = total.to_bits();
    // The order of floats as that of unsigned numbers: negative ones are counted downwards.
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
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
