//! `random`.

use routing::{Candidate, Chance, PickHistory, Picked, Picker};
use serde::Deserialize;

/// Any order, each as likely, whatever the scores.
///
/// Source: llm-d `random-picker` (`picker/random`).
#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct Random {}

impl Picker for Random {
    fn pick(&self, _: &[f32], candidates: &[Candidate], _: &PickHistory, chance: Chance) -> Picked {
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        order.sort_by(|a, b| chance.draw(*b).total_cmp(&chance.draw(*a)));
        Picked { order, was_tie: false }
    }
}
