//! `prefix-cache`.

use routing::{Candidate, OutOfRange, PickHistory, RequestFeatures, Scorer};
use serde::Deserialize;

/// `w · min(1, tokens / scale)² + (1 - w) · share`.
///
/// `share` is the part of the prompt's full strides that the candidate holds on the GPU, times the
/// trust in its source and the reliability of its predictions; a prompt without a full stride scores 0.
/// Where it was sent a longer prefix within the last two seconds, that share instead, as its source
/// cannot know yet. `tokens` are those of the same strides.
///
/// Source: llm-d `prefix-cache-scorer` (`scorer/prefix`), whose `matchBlocks / totalBlocks` is in
/// strides of text here, so that engines of different block sizes compare.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct PrefixCache {
    /// Share `w` of the score that the match's length decides, whatever the prompt's.
    pub match_length_weight: f32,
    /// Tokens of a match from which on a longer one is no better.
    pub match_length_scale_tokens: f32,
}

impl Default for PrefixCache {
    fn default() -> Self {
        Self { match_length_weight: 0.0, match_length_scale_tokens: 8192.0 }
    }
}

impl Scorer for PrefixCache {
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let weight = self.match_length_weight;
        let score = |candidate: &Candidate| {
            let share = share(request, candidate);
            if weight == 0.0 {
                return share;
            }
            let tokens = counted_tokens(request, candidate);
            let length = (tokens / self.match_length_scale_tokens).min(1.0);
            weight * length * length + (1.0 - weight) * share
        };
        candidates.iter().map(score).map(Some).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        OutOfRange::unless_within("matchLengthWeight", self.match_length_weight, 0.0..=1.0)?;
        let scale = self.match_length_scale_tokens;
        OutOfRange::unless_within("matchLengthScaleTokens", scale, 1.0..=1e9)
    }
}

/// Part of the prompt's full strides that the candidate holds, as far as it counts.
pub(crate) fn share(request: &RequestFeatures, candidate: &Candidate) -> f32 {
    match request.strides {
        0 => 0.0,
        all => {
            let matched = &candidate.matched;
            let held = matched.gpu_strides as f32 * counts(candidate);
            held.max(matched.speculative_strides as f32) / all as f32
        }
    }
}

/// Tokens of what [`share`] counts.
fn counted_tokens(request: &RequestFeatures, candidate: &Candidate) -> f32 {
    let matched = &candidate.matched;
    let sent = matched.speculative_strides as f32 / request.strides.max(1) as f32;
    let held = matched.gpu_tokens as f32 * counts(candidate);
    held.max(sent * request.prompt_tokens as f32)
}

fn counts(candidate: &Candidate) -> f32 {
    candidate.source.trust_ratio() * candidate.reliability.ratio()
}
