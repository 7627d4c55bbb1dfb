//! A scorer as a component: the interface of `wit/scorer.wit`, for the macro and for components that
//! are written against the interface itself.

use std::cell::RefCell;

use routing::{
    InFlight, Load, ParameterError, PickHistory, PrefixMatch, Rates, Reliability, Scorer,
    SessionSource, read_parameters,
};
use serde::de::DeserializeOwned;
use serde_json::{Error, Map, Value};

use bindings::exports::wasm_epp::scoring::scorer::{Candidate, Needs, RequestFeatures};
use bindings::wasm_epp::scoring::types;

/// What `wit-bindgen` makes of the interface.
#[allow(
    missing_docs,
    unsafe_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "scoring",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "wasm_epp_sdk::component::bindings",
        runtime_path: "wasm_epp_sdk::component::runtime",
    });
}

pub use bindings::export;
pub use bindings::exports::wasm_epp::scoring::scorer::Guest;
pub use wit_bindgen::rt as runtime;

/// `configure`: reads the parameters, and keeps the scorer.
///
/// # Errors
/// A line that names key, value and what is accepted.
pub fn configure<S: Scorer + DeserializeOwned>(
    cell: &RefCell<Option<S>>,
    parameters: &str,
) -> Result<Needs, String> {
    let parameters: Map<String, Value> = serde_json::from_str(parameters)
        .map_err(|source: Error| format!("parameters: not a JSON object: {source}"))?;
    let refused = |error: ParameterError| error.to_string();
    let scorer: S = read_parameters(parameters).map_err(|source| refused(source.into()))?;
    scorer.check().map_err(|source| refused(source.into()))?;
    let needs = needs(scorer.needs());
    *cell.try_borrow_mut().map_err(|_| "configured while it scores".to_owned())? = Some(scorer);
    Ok(needs)
}

/// `score`: one per candidate, absent where the scorer says nothing, says something that is not finite,
/// or was not configured.
pub fn score<S: Scorer>(
    cell: &RefCell<Option<S>>,
    request: RequestFeatures,
    candidates: Vec<Candidate>,
) -> Vec<Option<f32>> {
    let count = candidates.len();
    let never = |pick: Option<u64>| pick.unwrap_or(0);
    let history = PickHistory {
        any: candidates.iter().map(|candidate| never(candidate.picked.any)).collect(),
        cold: candidates.iter().map(|candidate| never(candidate.picked.cold)).collect(),
    };
    let candidates: Vec<_> = candidates.into_iter().map(routing::Candidate::from).collect();
    let scorer = cell.try_borrow();
    let scorer = scorer.as_ref().ok().and_then(|scorer| scorer.as_ref());
    let scores = scorer.map(|scorer| scorer.score(&request.into(), &candidates, &history));
    let finite = |score: Option<f32>| score.filter(|score| score.is_finite());
    let mut scores: Vec<_> = scores.unwrap_or_default().into_iter().map(finite).collect();
    scores.resize(count, None);
    scores
}

fn needs(needs: routing::Needs) -> Needs {
    let routing::Needs { headers, labels, attributes, request_control, rates, session } = needs;
    let session = session.map(|source| match source {
        SessionSource::EncodedEndpoint { header } => types::SessionSource::EncodedEndpoint(header),
        SessionSource::SessionId { headers, ttl_seconds } => {
            types::SessionSource::SessionId(types::SessionHeaders { headers, ttl_seconds })
        }
    });
    Needs { headers, labels, attributes, request_control, rates, session }
}

impl From<RequestFeatures> for routing::RequestFeatures {
    fn from(request: RequestFeatures) -> Self {
        Self {
            model: request.model,
            adapter: request.adapter,
            prompt_bytes: request.prompt_bytes,
            strides: request.strides,
            prompt_tokens: request.prompt_tokens,
            unmatched_reason: request.unmatched_reason,
            trail: request.trail,
            headers: request.headers,
            priority: request.priority,
            fairness_id: request.fairness_id,
            slo_ttft_ms: request.slo_ttft_ms,
            slo_tpot_ms: request.slo_tpot_ms,
            peer_labels: request.peer_labels,
        }
    }
}

impl From<Candidate> for routing::Candidate {
    fn from(candidate: Candidate) -> Self {
        let types::Load { is_ready, waiting, running, kv_usage_ratio } = candidate.load;
        let types::Rates { prefill_tokens_per_s, tpot_ms } = candidate.rates;
        Self {
            slot: candidate.slot,
            address: candidate.address.into(),
            load: Load { is_ready, waiting, running, kv_usage_ratio },
            source: source(candidate.source),
            block_size_tokens: candidate.block_size_tokens.unwrap_or(0),
            matched: PrefixMatch {
                gpu_strides: candidate.matched.gpu_strides,
                gpu_tokens: candidate.matched.gpu_tokens,
                any_strides: candidate.matched.any_strides,
                any_tokens: candidate.matched.any_tokens,
                gpu_blocks: candidate.matched.gpu_blocks,
                speculative_strides: candidate.matched.speculative_strides,
            },
            reliability: match candidate.reliability {
                types::Reliability::Full => Reliability::FULL,
                types::Reliability::Half => Reliability::HALF,
                types::Reliability::Quarter => Reliability::QUARTER,
            },
            in_flight: InFlight {
                requests: candidate.in_flight.requests,
                tokens: candidate.in_flight.tokens,
            },
            adapter: adapter(candidate.adapter),
            has_session: candidate.has_session,
            rates: Rates { prefill_tokens_per_s, tpot_ms },
            labels: candidate.labels,
            attributes: candidate.attributes,
        }
    }
}

fn source(state: types::SourceState) -> routing::SourceState {
    use routing::SourceState as S;
    use types::SourceState as T;
    match state {
        T::None => S::None,
        T::Live => S::Live,
        T::Resyncing => S::Resyncing,
        T::Degraded => S::Degraded,
        T::Lost => S::Lost,
        T::Approximate => S::Approximate,
    }
}

fn adapter(state: types::AdapterState) -> routing::AdapterState {
    use routing::AdapterState as S;
    use types::AdapterState as T;
    match state {
        T::Unknown => S::Unknown,
        T::Active => S::Active,
        T::Room => S::Room,
        T::Waiting => S::Waiting,
        T::Full => S::Full,
    }
}
