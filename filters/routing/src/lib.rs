//! Endpoints, the traits of plugins, profiles and the decision with its explanation.
//!
//! Everything here is pure: a snapshot of the candidates, a request and a seed go in, a value that
//! says what and why comes out. Nothing here logs, reads a clock or knows proxy-wasm.
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod endpoint;
mod parameters;
mod plugin;
mod profile;
mod profiles;

pub use endpoint::{
    AdapterState, Candidate, ENGINE_ATTRIBUTES, EndpointSlot, InFlight, Load, PickHistory,
    PrefixMatch, Rates, Reliability, RequestFeatures, SourceState, uncached_tokens,
};
pub use parameters::{ParameterError, read_parameters};
pub use plugin::{
    Chance, EndpointFilter, Needs, OutOfRange, Picked, Picker, Scorer, SessionSource, median,
};
pub use profile::{
    Decision, Explained, KeptBy, ModuleScores, NamedFilter, NoDecision, Profile, ScoredBy,
    WeightedScorer,
};
pub use profiles::{Chosen, Handler, Outcome, Profiles};
