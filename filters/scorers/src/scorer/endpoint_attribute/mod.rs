//! `endpoint-attribute`.

use routing::{Candidate, Needs, OutOfRange, PickHistory, RequestFeatures, Scorer};
use serde::Deserialize;

use crate::names::attribute_name;

/// A numeric attribute, mapped linearly to 0..=1: over the candidates' own range (all equal: 1), or
/// over `fixedRange`, beyond which values are clamped. An endpoint without the attribute scores 0.
///
/// Source: llm-d `endpoint-attribute-scorer` (`scorer/endpointattribute`).
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct EndpointAttribute {
    attribute_key: String,
    algorithm: Algorithm,
}

#[derive(Deserialize, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
struct Algorithm {
    r#type: Direction,
    #[serde(default)]
    normalization: Normalization,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(serde::Serialize))]
enum Direction {
    #[default]
    LinearLowerIsBetter,
    LinearHigherIsBetter,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(serde::Serialize))]
struct Normalization {
    fixed_range: Option<Fixed>,
    adaptive_range: Option<Adaptive>,
}

#[derive(Deserialize, Clone, Copy)]
#[cfg_attr(test, derive(serde::Serialize))]
struct Fixed {
    min: f64,
    max: f64,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
struct Adaptive {}

impl Scorer for EndpointAttribute {
    fn score(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let value = |candidate: &Candidate| candidate.attribute(&self.attribute_key).map(f64::from);
        let values: Vec<Option<f64>> = candidates.iter().map(value).collect();
        let known = || values.iter().copied().flatten();
        let Fixed { min, max } = self.algorithm.normalization.fixed_range.unwrap_or_else(|| {
            Fixed { min: known().fold(f64::MAX, f64::min), max: known().fold(f64::MIN, f64::max) }
        });
        let score = |value: f64| {
            if max <= min {
                return 1.0;
            }
            let share = ((value - min) / (max - min)).clamp(0.0, 1.0);
            match self.algorithm.r#type {
                Direction::LinearLowerIsBetter => 1.0 - share,
                Direction::LinearHigherIsBetter => share,
            }
        };
        values.iter().map(|value| Some(value.map_or(0.0, score) as f32)).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        attribute_name("attributeKey", &self.attribute_key)?;
        let Normalization { fixed_range, adaptive_range } = &self.algorithm.normalization;
        let Some(Fixed { min, max }) = fixed_range else { return Ok(()) };
        if adaptive_range.is_some() {
            let (value, accepted) = ("a value".to_owned(), "none beside fixedRange".to_owned());
            return Err(OutOfRange {
                key: "algorithm.normalization.adaptiveRange",
                value,
                accepted,
            });
        }
        if !(min.is_finite() && max.is_finite() && min < max) {
            let (value, accepted) = (format!("{min} to {max}"), "min below max".to_owned());
            return Err(OutOfRange { key: "algorithm.normalization.fixedRange", value, accepted });
        }
        Ok(())
    }

    fn needs(&self) -> Needs {
        Needs { attributes: vec![self.attribute_key.clone()], ..Needs::default() }
    }
}
