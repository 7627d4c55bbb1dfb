//! `queue`, but that the last score is off by the least that a number can be: whoever compares
//! packagings of `queue` must notice.

use scorers::scorer::Queue;
use serde::Deserialize;
use wasm_epp_sdk::{Candidate, PickHistory, RequestFeatures, Scorer};

/// Has no parameters.
#[derive(Deserialize)]
pub struct Skewed {}

impl Scorer for Skewed {
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
    ) -> Vec<Option<f32>> {
        let mut scores = Queue {}.score(request, candidates, history);
        if let Some(Some(last)) = scores.last_mut() {
            *last = if *last > 0.0 { last.next_down() } else { last.next_up() };
        }
        scores
    }
}

wasm_epp_sdk::scorer!(Skewed);
