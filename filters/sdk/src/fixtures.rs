//! For a scorer's unit tests: requests, endpoints, and the scorer as a gateway would run it.
#![allow(clippy::panic, reason = "called by tests, which panic to fail")]

use feed::{FEATURES_PROPERTY, Features, SCORE_PROPERTY_PREFIX, Scores};
use hostcalls::Host as _;
use hostcalls::memory::MemoryHost;
use routing::{
    AdapterState, Candidate, InFlight, Load, PrefixMatch, Rates, RequestFeatures, Scorer,
    SourceState,
};
use serde::de::DeserializeOwned;

use crate::Module;
use crate::configuration::parse;

/// A chat of 4 KiB whose prompt was matched. Change what matters: the fields are public.
pub fn request() -> RequestFeatures {
    RequestFeatures {
        model: "model".to_owned(),
        adapter: None,
        prompt_bytes: 4096,
        strides: 64,
        prompt_tokens: 1024,
        unmatched_reason: None,
        ..RequestFeatures::default()
    }
}

/// A ready, idle engine with blocks of 16 tokens that holds nothing of the prompt. Its methods change
/// that.
pub fn endpoint(slot: u16) -> Endpoint {
    let load =
        Load { is_ready: true, waiting: Some(0), running: Some(0), kv_usage_ratio: Some(0.0) };
    Endpoint(Candidate {
        slot,
        address: format!("10.0.{}.{}:8000", slot / 256, slot % 256).into(),
        load,
        source: SourceState::Live,
        block_size_tokens: 16,
        matched: PrefixMatch::default(),
        ..Candidate::default()
    })
}

/// An endpoint under construction.
#[derive(Clone, Debug)]
pub struct Endpoint(Candidate);

impl Endpoint {
    /// Requests in its queue.
    pub fn waiting(mut self, requests: u32) -> Self {
        self.0.load.waiting = Some(requests);
        self
    }

    /// Requests in its batch.
    pub fn running(mut self, requests: u32) -> Self {
        self.0.load.running = Some(requests);
        self
    }

    /// Share of its KV cache in use, 0..=1.
    pub fn kv_usage(mut self, ratio: f32) -> Self {
        self.0.load.kv_usage_ratio = Some(ratio);
        self
    }

    /// Its metrics could not be read.
    pub fn unknown_load(mut self) -> Self {
        self.0.load = Load { is_ready: self.0.load.is_ready, ..Load::default() };
        self
    }

    /// Holds so many strides of the prompt, of 64 bytes and here 16 tokens each, on its GPU.
    pub fn holds(mut self, strides: u32) -> Self {
        self.0.matched = PrefixMatch {
            gpu_strides: strides,
            gpu_tokens: strides * 16,
            any_strides: strides,
            any_tokens: strides * 16,
            gpu_blocks: strides,
            speculative_strides: 0,
        };
        self
    }

    /// Was sent so many strides of the prompt within the last two seconds; no event says so yet.
    pub fn was_sent(mut self, strides: u32) -> Self {
        self.0.matched.speculative_strides = strides;
        self
    }

    /// This many requests are in flight to it, with so many prompt tokens to compute.
    pub fn in_flight(mut self, requests: u32, tokens: u64) -> Self {
        self.0.in_flight = InFlight { requests, tokens };
        self
    }

    /// Has a label.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.0.labels.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Has an attribute.
    pub fn attribute(mut self, name: &str, value: f32) -> Self {
        self.0.attributes.push((name.to_owned(), value));
        self
    }

    /// Where the request's LoRA adapter is on it.
    pub fn adapter(mut self, state: AdapterState) -> Self {
        self.0.adapter = state;
        self
    }

    /// The request's session is bound to it.
    pub fn has_session(mut self) -> Self {
        self.0.has_session = true;
        self
    }

    /// How fast it was of late.
    pub fn rates(mut self, rates: Rates) -> Self {
        self.0.rates = rates;
        self
    }

    /// How far its prefix state can be trusted.
    pub fn source(mut self, state: SourceState) -> Self {
        self.0.source = state;
        self
    }
}

impl From<Endpoint> for Candidate {
    fn from(endpoint: Endpoint) -> Self {
        endpoint.0
    }
}

/// A scorer loaded as a gateway loads it.
pub struct Loaded<S> {
    host: MemoryHost,
    module: Module<S>,
}

/// Loads a scorer with these parameters, a JSON object. The error is the line that the gateway would
/// log when it refuses the configuration.
pub fn load<S: Scorer + DeserializeOwned>(parameters: &str) -> Result<Loaded<S>, String> {
    let configuration = format!(r#"{{"name":"{NAME}","parameters":{parameters}}}"#);
    parse::<S>(configuration.as_bytes()).map_err(|err| err.to_string())?;
    let host = MemoryHost::default();
    host.plugin_configuration.replace(configuration.into_bytes());
    let mut module = Module::default();
    assert!(module.on_configure(&host, ROOT), "a configuration that parses is accepted");
    module.on_context_create(STREAM, ROOT);
    Ok(Loaded { host, module })
}

const NAME: &str = "under-test";
const ROOT: u32 = 1;
const STREAM: u32 = 2;

impl<S: Scorer + DeserializeOwned> Loaded<S> {
    /// Scores through the bytes that cross between filters: what the picker would read, one score per
    /// endpoint in their order.
    ///
    /// # Panics
    /// When a score is outside 0..=1, which the picker would clamp without a word.
    pub fn score(
        &self,
        request: &RequestFeatures,
        endpoints: impl IntoIterator<Item = Endpoint>,
    ) -> Vec<Option<f32>> {
        let candidates: Vec<Candidate> = endpoints.into_iter().map(Candidate::from).collect();
        let request = request.clone();
        let features = Features { request, candidates, ..Features::default() };
        let published = self.host.set_property(FEATURES_PROPERTY, &features.encode());
        assert!(published.is_ok(), "the host in memory takes every property");
        self.module.on_request_headers(&self.host, STREAM);
        let property = format!("{SCORE_PROPERTY_PREFIX}{NAME}");
        let bytes = self.host.property(&[&property]).ok().flatten().unwrap_or_default();
        let said = match Scores::decode(&bytes) {
            Ok(said) => said.scores,
            Err(error) => panic!("the module's property cannot be read: {error}"),
        };
        let score_of = |candidate: &Candidate| {
            let (slot, score) = said.iter().find(|(slot, _)| *slot == candidate.slot)?;
            assert!(
                !score.is_finite() || (0.0..=1.0).contains(score),
                "endpoint {slot} has score {score}, accepted is 0 to 1"
            );
            Some(*score).filter(|score| score.is_finite())
        };
        features.candidates.iter().map(score_of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OutOfRange, PickHistory};
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Waiting {
        scale: f32,
    }

    impl Scorer for Waiting {
        fn score(
            &self,
            _: &RequestFeatures,
            endpoints: &[Candidate],
            _: &PickHistory,
        ) -> Vec<Option<f32>> {
            endpoints.iter().map(|e| e.load.waiting.map(|n| n as f32 * self.scale)).collect()
        }
        fn check(&self) -> Result<(), OutOfRange> {
            OutOfRange::unless_within("scale", self.scale, 0.0..=1.0)
        }
    }

    #[test]
    fn a_loaded_scorer_scores_as_the_scorer_does() {
        let loaded = load::<Waiting>(r#"{"scale":0.25}"#).unwrap();
        let endpoints = [endpoint(4).waiting(3), endpoint(1).unknown_load(), endpoint(0)];
        let scores = loaded.score(&request(), endpoints.clone());
        assert_eq!(scores, [Some(0.75), None, Some(0.0)]);
        let native = endpoints.map(Candidate::from);
        let waiting = Waiting { scale: 0.25 };
        assert_eq!(waiting.score(&request(), &native, &PickHistory::default()), scores);
        assert!(load::<Waiting>(r#"{"scale":2}"#).err().unwrap().contains("scale is 2"));
    }

    #[test]
    #[should_panic(expected = "endpoint 4 has score 1.5, accepted is 0 to 1")]
    fn a_score_out_of_range_fails_the_test() {
        load::<Waiting>(r#"{"scale":0.5}"#).unwrap().score(&request(), [endpoint(4).waiting(3)]);
    }
}
