//! `context-length-aware`.

use routing::{Candidate, Chance, EndpointFilter, Needs, OutOfRange, PickHistory, RequestFeatures};
use serde::Deserialize;

use crate::names::label_name;
use crate::scorer::ContextRange;

/// Keeps the endpoints whose range of context lengths, a label `min-max` in tokens, contains the
/// prompt's, and those without the label; not those where it cannot be read. Everyone where the length
/// is not known, or with `enableFiltering: false`.
///
/// Source: llm-d `context-length-aware` (`scorer/contextlengthaware`), where one plugin scores and, with
/// `enableFiltering`, filters.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct ContextLengthAware {
    label: String,
    enable_filtering: bool,
}

impl Default for ContextLengthAware {
    fn default() -> Self {
        Self { label: ContextRange::LABEL.to_owned(), enable_filtering: true }
    }
}

impl EndpointFilter for ContextLengthAware {
    fn keep(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
        _: Chance,
    ) -> Vec<bool> {
        let length = ContextRange::length(request).filter(|_| self.enable_filtering);
        let Some(length) = length else { return vec![true; candidates.len()] };
        let keeps = |candidate: &Candidate| match candidate.label(&self.label) {
            None => true,
            Some(text) => ContextRange::parse(text).is_some_and(|range| range.contains(length)),
        };
        candidates.iter().map(keeps).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        label_name("label", &self.label)
    }

    fn needs(&self) -> Needs {
        Needs { labels: vec![self.label.clone()], ..Needs::default() }
    }
}
