//! Endpoints, scorers, profiles and the decision with its explanation.
//!
//! Everything here is pure: a snapshot of the candidates, a request and a seed go in, a value that
//! says what and why comes out. Nothing here logs, reads a clock or knows proxy-wasm.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod endpoint;
mod profile;
mod scorers;

pub use endpoint::{
    AdapterState, Candidate, ENGINE_ATTRIBUTES, EndpointSlot, InFlight, Load, PickHistory,
    PrefixMatch, Rates, Reliability, RequestFeatures, SourceState,
};
pub use profile::{Decision, GivenScores, NoDecision, Profile, WeightedScorer};
pub use scorers::{
    KvCacheUtilization, NoHitLru, OutOfRange, PrefixCache, Queue, SCORER_TYPES, Scorer,
    effective_waiting, scorer_of_type,
};
