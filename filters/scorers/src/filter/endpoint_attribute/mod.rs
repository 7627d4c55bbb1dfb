//! `endpoint-attribute`.

use routing::{Candidate, Chance, EndpointFilter, Needs, OutOfRange, PickHistory, RequestFeatures};
use serde::Deserialize;

use super::unless_empty;
use crate::names::{attribute_name, refuse_unless};

/// Keeps the endpoints of which a numeric attribute compares so with a value; those without it as
/// `onMissing` says; and with `fallbackOnEmpty` everyone, where that is nobody.
///
/// Source: llm-d `endpoint-attribute-filter` (`filter/endpointattribute`), its algorithm `threshold`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct EndpointAttribute {
    attribute: String,
    algorithm: Algorithm,
    #[serde(default)]
    on_missing: OnMissing,
    #[serde(default)]
    fallback_on_empty: bool,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
struct Algorithm {
    // One value, and still read: another algorithm is refused by its name.
    #[serde(rename = "type")]
    _type: Kind,
    threshold: Threshold,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(test, derive(serde::Serialize))]
enum Kind {
    Threshold,
}

#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
struct Threshold {
    operator: Operator,
    value: f64,
}

#[derive(Deserialize, Clone, Copy)]
#[cfg_attr(test, derive(serde::Serialize))]
enum Operator {
    LessThan,
    LessThanOrEqual,
    GreaterThan,
    GreaterThanOrEqual,
    Equal,
    NotEqual,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(test, derive(serde::Serialize))]
enum OnMissing {
    #[default]
    Pass,
    Fail,
}

impl EndpointFilter for EndpointAttribute {
    fn keep(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
        _: Chance,
    ) -> Vec<bool> {
        let Threshold { operator, value } = self.algorithm.threshold;
        // As f32, which attributes are: 0.1 equals 0.1.
        let limit = value as f32;
        let keeps = |candidate: &Candidate| {
            let Some(value) = candidate.attribute(&self.attribute) else {
                return self.on_missing == OnMissing::Pass;
            };
            match operator {
                Operator::LessThan => value < limit,
                Operator::LessThanOrEqual => value <= limit,
                Operator::GreaterThan => value > limit,
                Operator::GreaterThanOrEqual => value >= limit,
                Operator::Equal => value == limit,
                Operator::NotEqual => value != limit,
            }
        };
        let keep = candidates.iter().map(keeps).collect();
        match self.fallback_on_empty {
            true => unless_empty(keep),
            false => keep,
        }
    }

    fn check(&self) -> Result<(), OutOfRange> {
        attribute_name("attribute", &self.attribute)?;
        let value = self.algorithm.threshold.value as f32;
        let (key, accepted) = ("algorithm.threshold.value", "a finite number");
        refuse_unless(value.is_finite(), key, &value.to_string(), accepted)
    }

    fn needs(&self) -> Needs {
        Needs { attributes: vec![self.attribute.clone()], ..Needs::default() }
    }
}
