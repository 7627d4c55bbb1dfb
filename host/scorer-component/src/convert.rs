//! Our types as the interface has them, and back.

use routing::{PickHistory, Reliability, SessionSource};

use crate::bindings::exports::wasm_epp::scoring::scorer::{Candidate, Needs, RequestFeatures};
use crate::bindings::wasm_epp::scoring::types;

pub(crate) fn request(request: &routing::RequestFeatures) -> RequestFeatures {
    let request = request.clone();
    RequestFeatures {
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

pub(crate) fn candidates(
    candidates: &[routing::Candidate],
    history: &PickHistory,
) -> Vec<Candidate> {
    let pick = |picks: &[u64], i: usize| picks.get(i).copied().filter(|pick| *pick > 0);
    let told = |(i, candidate): (usize, &routing::Candidate)| {
        let picked = types::LastPicks { any: pick(&history.any, i), cold: pick(&history.cold, i) };
        self::candidate(candidate, picked)
    };
    candidates.iter().enumerate().map(told).collect()
}

fn candidate(candidate: &routing::Candidate, picked: types::LastPicks) -> Candidate {
    let routing::Load { is_ready, waiting, running, kv_usage_ratio } = candidate.load;
    let routing::Rates { prefill_tokens_per_s, tpot_ms } = candidate.rates;
    let block_size = candidate.block_size_tokens;
    Candidate {
        slot: candidate.slot,
        address: candidate.address.to_string(),
        load: types::Load { is_ready, waiting, running, kv_usage_ratio },
        source: source(candidate.source),
        block_size_tokens: (block_size > 0).then_some(block_size),
        matched: types::PrefixMatch {
            gpu_strides: candidate.matched.gpu_strides,
            gpu_tokens: candidate.matched.gpu_tokens,
            any_strides: candidate.matched.any_strides,
            any_tokens: candidate.matched.any_tokens,
            gpu_blocks: candidate.matched.gpu_blocks,
            speculative_strides: candidate.matched.speculative_strides,
        },
        reliability: reliability(candidate.reliability),
        in_flight: types::InFlight {
            requests: candidate.in_flight.requests,
            tokens: candidate.in_flight.tokens,
        },
        adapter: adapter(candidate.adapter),
        has_session: candidate.has_session,
        rates: types::Rates { prefill_tokens_per_s, tpot_ms },
        labels: candidate.labels.clone(),
        attributes: candidate.attributes.clone(),
        picked,
    }
}

fn source(state: routing::SourceState) -> types::SourceState {
    use routing::SourceState as S;
    use types::SourceState as T;
    match state {
        S::None => T::None,
        S::Live => T::Live,
        S::Resyncing => T::Resyncing,
        S::Degraded => T::Degraded,
        S::Lost => T::Lost,
        S::Approximate => T::Approximate,
    }
}

fn adapter(state: routing::AdapterState) -> types::AdapterState {
    use routing::AdapterState as S;
    use types::AdapterState as T;
    match state {
        S::Unknown => T::Unknown,
        S::Active => T::Active,
        S::Room => T::Room,
        S::Waiting => T::Waiting,
        S::Full => T::Full,
    }
}

fn reliability(reliability: Reliability) -> types::Reliability {
    match reliability {
        Reliability::QUARTER => types::Reliability::Quarter,
        Reliability::HALF => types::Reliability::Half,
        _ => types::Reliability::Full,
    }
}

pub(crate) fn needs(needs: Needs) -> routing::Needs {
    let Needs { headers, labels, attributes, request_control, rates, session } = needs;
    let session = session.map(|source| match source {
        types::SessionSource::EncodedEndpoint(header) => SessionSource::EncodedEndpoint { header },
        types::SessionSource::SessionId(types::SessionHeaders { headers, ttl_seconds }) => {
            SessionSource::SessionId { headers, ttl_seconds }
        }
    });
    routing::Needs { headers, labels, attributes, request_control, rates, session }
}
