//! `label-selector`.

use std::collections::BTreeMap;

use routing::{Candidate, Chance, EndpointFilter, Needs, OutOfRange, PickHistory, RequestFeatures};
use serde::Deserialize;

use crate::names::{label_name, refuse_unless};

/// Keeps what a Kubernetes label selector selects: each of `matchLabels` equal, and each of
/// `matchExpressions` true (`In`, `NotIn`, `Exists`, `DoesNotExist`; `NotIn` also without the label).
/// An empty selector selects everyone.
///
/// Source: llm-d `label-selector-filter` (`filter/bylabel`); Kubernetes `metav1.LabelSelector`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct LabelSelector {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<Expression>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(serde::Serialize))]
struct Expression {
    key: String,
    operator: Operator,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(serde::Serialize))]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Expression {
    fn is_true(&self, candidate: &Candidate) -> bool {
        let label = candidate.label(&self.key);
        let is_listed = || label.is_some_and(|label| self.values.iter().any(|v| v == label));
        match self.operator {
            Operator::In => is_listed(),
            Operator::NotIn => !is_listed(),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
        }
    }
}

impl EndpointFilter for LabelSelector {
    fn keep(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
        _: Chance,
    ) -> Vec<bool> {
        let keeps = |candidate: &Candidate| {
            self.match_labels
                .iter()
                .all(|(key, value)| candidate.label(key) == Some(value.as_str()))
                && self.match_expressions.iter().all(|expression| expression.is_true(candidate))
        };
        candidates.iter().map(keeps).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        for key in self.match_labels.keys() {
            label_name("matchLabels", key)?;
        }
        for Expression { key, operator, values } in &self.match_expressions {
            label_name("matchExpressions[].key", key)?;
            let has_values = matches!(operator, Operator::In | Operator::NotIn);
            let accepted = match has_values {
                true => "at least one for In and NotIn",
                false => "none for Exists and DoesNotExist",
            };
            let is_accepted = has_values != values.is_empty();
            refuse_unless(is_accepted, "matchExpressions[].values", &values.join(", "), accepted)?;
        }
        Ok(())
    }

    fn needs(&self) -> Needs {
        let expressions = self.match_expressions.iter().map(|expression| &expression.key);
        let labels = self.match_labels.keys().chain(expressions).cloned().collect();
        Needs { labels, ..Needs::default() }
    }
}
