//! `prefix-cache`.

use super::Scorer;
use crate::{Candidate, PickHistory, RequestFeatures};

/// Share of the prompt's full strides that the candidate holds on the GPU, times the trust in its
/// source and the reliability of its predictions; a prompt without a full stride scores 0. Where it was
/// sent a longer prefix within the last two seconds, that share instead, as its source cannot know yet.
///
/// Source: llm-d `prefix-cache-scorer` with `matchLengthWeight` 0 (`matchBlocks / totalBlocks`), in
/// strides of text where llm-d has blocks, so that engines of different block sizes compare.
pub struct PrefixCache;

impl Scorer for PrefixCache {
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let share = |candidate: &Candidate| match request.strides {
            0 => 0.0,
            all => {
                let matched = &candidate.matched;
                let held = matched.gpu_strides as f32
                    * candidate.source.trust_ratio()
                    * candidate.reliability.ratio();
                held.max(matched.speculative_strides as f32) / all as f32
            }
        };
        candidates.iter().map(share).map(Some).collect()
    }
}
