//! `weighted-random`.

use routing::{Candidate, Chance, PickHistory, Picked, Picker};
use serde::Deserialize;

/// At random, in proportion to the totals: the largest `U^(1/total)` first, with `U` even in 0..1 (A-Res).
/// A total of 0 comes after all others; are all 0, each is as likely.
///
/// Source: llm-d `weighted-random-picker` (`picker/weightedrandom`); Efraimidis and Spirakis 2006.
#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct WeightedRandom {}

impl Picker for WeightedRandom {
    fn pick(
        &self,
        totals: &[f32],
        candidates: &[Candidate],
        _: &PickHistory,
        chance: Chance,
    ) -> Picked {
        // ln(U) / total orders as U^(1/total) does, and does not run out of digits for small totals.
        let key = |i: usize| match totals.get(i).copied().map(f64::from).unwrap_or(0.0) {
            total if total > 0.0 => (true, chance.draw(i).ln() / total),
            _ => (false, chance.draw(i)),
        };
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        order.sort_by(|a, b| {
            let (a, b) = (key(*a), key(*b));
            b.0.cmp(&a.0).then_with(|| b.1.total_cmp(&a.1))
        });
        Picked { order, was_tie: false }
    }
}
