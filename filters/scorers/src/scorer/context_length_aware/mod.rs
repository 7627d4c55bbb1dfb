//! `context-length-aware`.

use routing::{Candidate, Needs, OutOfRange, PickHistory, RequestFeatures, Scorer};
use serde::Deserialize;

use crate::names::label_name;

/// How well the endpoint's range of context lengths, a label `min-max` in tokens, fits the prompt.
/// Within: `0.3 + 0.7 · (0.7 / (1 + width / 10000) + 0.3 · (max - length) / width)`, 1 where
/// `min = max`; outside `0.3 / (1 + distance / 1000)`. 0.5 without the label, 0 where it cannot be read.
///
/// Source: llm-d `context-length-aware` (`scorer/contextlengthaware`). The length is the estimate of
/// the prompt's tokens; where it is not known, scores are absent.
#[derive(Deserialize)]
#[serde(default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct ContextLengthAware {
    /// The label.
    pub label: String,
}

impl Default for ContextLengthAware {
    fn default() -> Self {
        Self { label: ContextRange::LABEL.to_owned() }
    }
}

impl Scorer for ContextLengthAware {
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let Some(length) = ContextRange::length(request) else { return Vec::new() };
        let score = |candidate: &Candidate| match candidate.label(&self.label) {
            None => 0.5,
            Some(text) => ContextRange::parse(text).map_or(0.0, |range| range.score(length)),
        };
        candidates.iter().map(score).map(Some).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        label_name("label", &self.label)
    }

    fn needs(&self) -> Needs {
        Needs { labels: vec![self.label.clone()], ..Needs::default() }
    }
}

/// Lengths of prompts, in tokens, both ends included.
#[derive(Clone, Copy)]
pub(crate) struct ContextRange {
    min: u64,
    max: u64,
}

impl ContextRange {
    pub(crate) const LABEL: &str = "llm-d.ai/context-length-range";

    /// Tokens of the prompt, if anybody knows.
    pub(crate) fn length(request: &RequestFeatures) -> Option<u64> {
        (request.prompt_tokens > 0).then_some(u64::from(request.prompt_tokens))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (min, max) = text.split_once('-')?;
        let (min, max) = (min.trim().parse().ok()?, max.trim().parse().ok()?);
        (min <= max).then_some(Self { min, max })
    }

    pub(crate) fn contains(self, length: u64) -> bool {
        (self.min..=self.max).contains(&length)
    }

    fn score(self, length: u64) -> f32 {
        let width = (self.max - self.min) as f64;
        let score = if !self.contains(length) {
            let distance = self.min.saturating_sub(length).max(length.saturating_sub(self.max));
            0.3 / (1.0 + distance as f64 / 1_000.0)
        } else if width == 0.0 {
            1.0
        } else {
            let headroom = (self.max - length) as f64 / width;
            0.3 + 0.7 * (0.7 / (1.0 + width / 10_000.0) + 0.3 * headroom)
        };
        score as f32
    }
}
