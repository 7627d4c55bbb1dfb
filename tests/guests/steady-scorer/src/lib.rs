//! A scorer that always says the same: the best endpoint is the one it is told.

use serde::Deserialize;
use wasm_epp_sdk::{Candidate, OutOfRange, PickHistory, RequestFeatures, Scorer};

/// Scores one endpoint 1 and the others `others`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Steady {
    /// Address of the best endpoint.
    best: String,
    /// Score of each other one, 0..=1.
    #[serde(default)]
    others: f32,
}

impl Scorer for Steady {
    fn score(
        &self,
        _: &RequestFeatures,
        endpoints: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let score = |is_best| if is_best { 1.0 } else { self.others };
        endpoints.iter().map(|endpoint| Some(score(*endpoint.address == *self.best))).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        OutOfRange::unless_within("others", self.others, 0.0..=1.0)
    }
}

wasm_epp_sdk::scorer!(Steady);

#[cfg(test)]
mod tests {
    use super::Steady;
    use wasm_epp_sdk::fixtures::{endpoint, load, request};

    #[test]
    fn one_is_the_best() {
        let scorer = load::<Steady>(r#"{"best":"10.0.0.1:8000","others":0.25}"#).unwrap();
        assert_eq!(scorer.score(&request(), [endpoint(0), endpoint(1)]), [Some(0.25), Some(1.0)]);
    }
}
