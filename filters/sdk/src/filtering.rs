//! A filter in a scorer's clothes: a module says scores, whatever they are for.

use routing::{
    Candidate, Chance, EndpointFilter, Needs, OutOfRange, PickHistory, RequestFeatures, Scorer,
};
use serde::{Deserialize, Deserializer};

/// Scores 1 what a filter keeps, and 0 what it does not.
///
/// A module has no chance of its own: what its filter draws depends on the prompt's prefix alone.
pub struct Filtering<F>(F);

impl<'de, F: Deserialize<'de>> Deserialize<'de> for Filtering<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        F::deserialize(deserializer).map(Self)
    }
}

impl<F: EndpointFilter> Scorer for Filtering<F> {
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
    ) -> Vec<Option<f32>> {
        let seed = request.trail.first().copied().unwrap_or_default().into();
        let chance = Chance { tie: seed, draw: seed };
        let keep = self.0.keep(request, candidates, history, chance);
        keep.into_iter().map(|keep| Some(f32::from(keep))).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        self.0.check()
    }

    fn needs(&self) -> Needs {
        self.0.needs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{endpoint, load, request};

    /// Keeps engines with a queue of at most `most`.
    #[derive(Deserialize)]
    struct Short {
        most: u32,
    }

    impl EndpointFilter for Short {
        fn keep(
            &self,
            _: &RequestFeatures,
            candidates: &[Candidate],
            _: &PickHistory,
            _: Chance,
        ) -> Vec<bool> {
            candidates.iter().map(|c| c.load.waiting.is_none_or(|w| w <= self.most)).collect()
        }

        fn check(&self) -> Result<(), OutOfRange> {
            OutOfRange::unless_within("most", self.most, 0..=9)
        }
    }

    crate::filter!(Short);

    #[test]
    fn a_filter_says_one_or_zero_and_has_parameters() {
        let filter = load::<Filtering<Short>>(r#"{"most":2}"#).unwrap();
        let endpoints =
            [endpoint(0).waiting(2), endpoint(1).waiting(3), endpoint(2).unknown_load()];
        assert_eq!(filter.score(&request(), endpoints), [Some(1.0), Some(0.0), Some(1.0)]);
        let refused = load::<Filtering<Short>>(r#"{"most":10}"#).err().unwrap().to_string();
        assert!(refused.contains("most is 10, accepted is 0 to 9"), "{refused}");
        assert!(load::<Filtering<Short>>(r#"{"mist":1}"#).is_err());
    }
}
