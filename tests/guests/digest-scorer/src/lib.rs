//! A scorer whose scores are a digest of all that it was told, so that nothing can be lost on the way
//! to it unseen.

use serde::Deserialize;
use wasm_epp_sdk::{Candidate, PickHistory, RequestFeatures, Scorer};

/// Has no parameters.
#[derive(Deserialize)]
pub struct Digest {}

impl Scorer for Digest {
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        history: &PickHistory,
    ) -> Vec<Option<f32>> {
        let pick = |picks: &[u64], i: usize| picks.get(i).copied().unwrap_or(0);
        let digest = |(i, candidate): (usize, &Candidate)| {
            let picks = (pick(&history.any, i), pick(&history.cold, i));
            Some(ratio(&format!("{request:?} {candidate:?} {picks:?}")))
        };
        candidates.iter().enumerate().map(digest).collect()
    }
}

/// FNV-1a 64 of a text as a number from 0 to 1: its upper 24 bits, as many as an f32 holds exactly.
fn ratio(text: &str) -> f32 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    (hash >> 40) as f32 / (1 << 24) as f32
}

wasm_epp_sdk::scorer!(Digest);
