//! What a decision is made from.

use std::sync::Arc;

/// Number of an endpoint in the endpoint table of one writer epoch.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct EndpointSlot(pub u16);

/// How far the prefix state of an endpoint can be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SourceState {
    /// The engine announces nothing: no prefix state by configuration.
    #[default]
    None,
    /// Every event since the engine's start, or since its last clear, was applied.
    Live,
    /// Catching up: what is listed is right, but more may be held.
    Resyncing,
    /// Something about this engine is not understood or was missed.
    Degraded,
    /// No connection to the engine's events: the state is frozen.
    Lost,
    /// The engine announces nothing; what counts is what the gateway sent it.
    Approximate,
}

impl SourceState {
    /// Share of a match that is counted, 0..=1. A match of a doubtful source is worth half: it is
    /// neither trusted silently nor dropped silently.
    pub fn trust_ratio(self) -> f32 {
        match self {
            // As llm-d's: it is not known to be wrong, and there is no better for this engine.
            Self::Live | Self::Approximate => 1.0,
            Self::Resyncing | Self::Degraded | Self::Lost => 0.5,
            Self::None => 0.0,
        }
    }
}

/// Load of one endpoint as last measured; unknown is `None`, never 0.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Load {
    /// False when the endpoint must not be picked: unreachable, starting or terminating.
    pub is_ready: bool,
    /// Requests waiting in the engine's queue.
    pub waiting: Option<u32>,
    /// Requests in the engine's batch.
    pub running: Option<u32>,
    /// KV cache in use by running requests, 0..=1.
    pub kv_usage_ratio: Option<f32>,
}

/// How much of the prompt an endpoint holds, on the GPU and in any tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PrefixMatch {
    /// Full strides of the prompt held on the GPU.
    pub gpu_strides: u32,
    /// Tokens of those strides.
    pub gpu_tokens: u32,
    /// Full strides held in some tier.
    pub any_strides: u32,
    /// Tokens of those strides.
    pub any_tokens: u32,
    /// Full blocks of the engine within `gpu_tokens`, after the engine's own caps.
    pub gpu_blocks: u32,
    /// Strides that it will hold if it serves what it was sent in the last two seconds, where that
    /// reaches beyond `gpu_strides`; else 0. A guess: no event has told yet.
    pub speculative_strides: u32,
}

impl PrefixMatch {
    /// Whether it holds any of the prompt, or was just sent some of it.
    pub fn is_hit(&self) -> bool {
        self.any_strides > 0 || self.speculative_strides > 0
    }
}

/// What gateways have sent to an endpoint and not seen end yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InFlight {
    /// Requests.
    pub requests: u32,
    /// Their prompt tokens that the endpoint did not hold, by estimate.
    pub tokens: u64,
}

/// How much of an endpoint's match counts, by how right its predictions were: 1 unless a meter
/// found them wrong.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Reliability(f32);

impl Reliability {
    /// Nothing is known against it.
    pub const FULL: Self = Self(1.0);
    /// Its predictions are too high now and then.
    pub const HALF: Self = Self(0.5);
    /// Its predictions are too high as often as not.
    pub const QUARTER: Self = Self(0.25);

    /// Share of a match that is counted, above 0 and at most 1.
    pub fn ratio(self) -> f32 {
        self.0
    }
}

impl Default for Reliability {
    fn default() -> Self {
        Self::FULL
    }
}

/// Where the request's LoRA adapter is on an endpoint, by the engine's metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AdapterState {
    /// The engine does not tell, or the request names no adapter.
    #[default]
    Unknown,
    /// Loaded.
    Active,
    /// Not loaded; there is room for one more.
    Room,
    /// Requests for it wait until it is loaded.
    Waiting,
    /// Not loaded, and no room.
    Full,
}

/// How fast an endpoint was of late, measured on its answers.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Rates {
    /// Uncached prompt tokens per second of time to the first token.
    pub prefill_tokens_per_s: Option<f32>,
    /// Milliseconds per output token after the first.
    pub tpot_ms: Option<f32>,
}

const WAITING_QUEUE_SIZE: &str = "waiting-queue-size";
const RUNNING_REQUESTS_SIZE: &str = "running-requests-size";
const KV_CACHE_UTILIZATION: &str = "kv-cache-utilization";

/// Attributes that every endpoint has from its engine's metrics. They need not be listed, and are
/// not published a second time.
pub const ENGINE_ATTRIBUTES: [&str; 3] =
    [WAITING_QUEUE_SIZE, RUNNING_REQUESTS_SIZE, KV_CACHE_UTILIZATION];

/// An endpoint that may serve the request.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Candidate {
    /// Slot in the endpoint table.
    pub slot: u16,
    /// `ip:port` exactly as the proxy spells it. Shared, so that a candidate is copied without it.
    pub address: Arc<str>,
    /// Measured load.
    pub load: Load,
    /// State of its prefix source.
    pub source: SourceState,
    /// Tokens per block of this engine; 0 while unknown.
    pub block_size_tokens: u32,
    /// What it holds of this prompt.
    pub matched: PrefixMatch,
    /// How right its predictions were.
    pub reliability: Reliability,
    /// What this gateway and the others have in flight to it.
    pub in_flight: InFlight,
    /// Where the request's adapter is.
    pub adapter: AdapterState,
    /// Whether the request's session is bound to it.
    pub has_session: bool,
    /// How fast it was.
    pub rates: Rates,
    /// Its labels that some plugin of the configuration names.
    pub labels: Vec<(String, String)>,
    /// Its numeric attributes that some plugin of the configuration names.
    pub attributes: Vec<(String, f32)>,
}

impl Candidate {
    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// An attribute's value: one of [`ENGINE_ATTRIBUTES`] from its load, others as configured.
    pub fn attribute(&self, name: &str) -> Option<f32> {
        let load = &self.load;
        match name {
            WAITING_QUEUE_SIZE => return load.waiting.map(|requests| requests as f32),
            RUNNING_REQUESTS_SIZE => return load.running.map(|requests| requests as f32),
            KV_CACHE_UTILIZATION => return load.kv_usage_ratio,
            _ => {}
        }
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| *value)
    }
}

/// What scorers may know of the request.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RequestFeatures {
    /// Canonical model name.
    pub model: String,
    /// LoRA adapter that the request names.
    pub adapter: Option<String>,
    /// Bytes of the rendered prompt; 0 when it was not rendered.
    pub prompt_bytes: u32,
    /// Full strides of the prompt.
    pub strides: u32,
    /// Estimated tokens of the prompt.
    pub prompt_tokens: u32,
    /// Why there is no match, when the prompt could not be matched; `None` when it was.
    pub unmatched_reason: Option<String>,
    /// Short keys of the prompt's prefixes at growing depths (`feed::trail_depths`): two prompts
    /// share about as much as their trails do. Empty when it was not matched.
    pub trail: Vec<u32>,
    /// Its headers that some plugin of the configuration names, in lower case.
    pub headers: Vec<(String, String)>,
    /// Priority of its objective; higher is more important. `None` without an objective.
    pub priority: Option<i32>,
    /// Whose share of the pool it counts to.
    pub fairness_id: Option<String>,
    /// Longest time to the first token that its client accepts.
    pub slo_ttft_ms: Option<f32>,
    /// Longest time per output token that its client accepts.
    pub slo_tpot_ms: Option<f32>,
    /// Labels of the endpoint that the request's first profile chose, for those after it. Not on the
    /// wire: it is known while profiles run.
    pub peer_labels: Vec<(String, String)>,
}

impl RequestFeatures {
    /// A header's value, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Prompt tokens that the endpoint will have to compute, by estimate: those it neither holds nor was
/// just sent.
pub fn uncached_tokens(request: &RequestFeatures, candidate: &Candidate) -> u64 {
    let (all, matched) = (u64::from(request.prompt_tokens), &candidate.matched);
    let sent = all * u64::from(matched.speculative_strides) / u64::from(request.strides.max(1));
    all.saturating_sub(sent.max(u64::from(matched.gpu_tokens)))
}

/// When each candidate was last picked, in picks (not time): higher is later, 0 is never.
/// Aligned with the candidates; entries beyond its end read as 0.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PickHistory {
    /// Last pick of any kind.
    pub any: Vec<u64>,
    /// Last pick of a request that no candidate held a prefix of.
    pub cold: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engines_load_is_an_attribute_too() {
        let load = Load { waiting: Some(3), kv_usage_ratio: Some(0.25), ..Load::default() };
        let attributes = vec![("cost".to_owned(), 2.5), ("waiting-queue-size".to_owned(), 9.0)];
        let candidate = Candidate { load, attributes, ..Candidate::default() };
        let of = |name| candidate.attribute(name);
        assert_eq!(ENGINE_ATTRIBUTES.map(of), [Some(3.0), None, Some(0.25)]);
        assert_eq!((of("cost"), of("else")), (Some(2.5), None));
    }
}
