//! `session-affinity`.

use routing::{Candidate, Chance, EndpointFilter, Needs, OutOfRange, PickHistory, RequestFeatures};
use serde::Deserialize;

use super::unless_empty;
use crate::scorer::Sessions;

/// Keeps only the endpoint that the request's session is bound to, where it is among the candidates;
/// else everyone.
///
/// Source: llm-d `session-affinity-filter` (`filter/sessionaffinity`), both strategies.
#[derive(Deserialize, Default)]
#[serde(transparent)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct SessionAffinity(Sessions);

impl EndpointFilter for SessionAffinity {
    fn keep(
        &self,
        _: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
        _: Chance,
    ) -> Vec<bool> {
        unless_empty(candidates.iter().map(|candidate| candidate.has_session).collect())
    }

    fn check(&self) -> Result<(), OutOfRange> {
        self.0.check()
    }

    fn needs(&self) -> Needs {
        self.0.needs()
    }
}
