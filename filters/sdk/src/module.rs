//! A scorer as a filter: two host calls per request, whatever host it is.

use std::collections::BTreeMap;

use feed::{FEATURES_PROPERTY, Features, SCORE_PROPERTY_PREFIX, Scores};
use hostcalls::{Host, Level};
use routing::{PickHistory, Scorer};
use serde::de::DeserializeOwned;

use crate::ConfigError;
use crate::configuration::{Parsed, parse};

/// All that one VM knows: the scorers of its filters, and which stream belongs to which. Filters
/// with the same code and `vm_id` share a VM, each with a root context of its own.
pub struct Module<S> {
    roots: BTreeMap<u32, Configured<S>>,
    streams: BTreeMap<u32, u32>,
}

struct Configured<S> {
    property: String,
    revision: u32,
    scorer: S,
}

impl<S> Default for Module<S> {
    fn default() -> Self {
        Self { roots: BTreeMap::new(), streams: BTreeMap::new() }
    }
}

impl<S: Scorer + DeserializeOwned> Module<S> {
    /// A filter (parent 0) or a stream of a filter begins.
    pub fn on_context_create(&mut self, context: u32, parent: u32) {
        if parent != 0 {
            self.streams.insert(context, parent);
        }
    }

    /// A filter or a stream is over.
    pub fn on_delete(&mut self, context: u32) {
        if self.streams.remove(&context).is_none() {
            self.roots.remove(&context);
        }
    }

    /// Takes a filter's configuration; false makes the gateway refuse the update.
    pub fn on_configure(&mut self, host: &impl Host, root: u32) -> bool {
        let json = host.configuration().unwrap_or_default();
        match self.configure(root, &json) {
            Ok(()) => true,
            Err(reason) => {
                host.log(Level::Warn, &reason.to_string());
                false
            }
        }
    }

    fn configure(&mut self, root: u32, json: &[u8]) -> Result<(), ConfigError> {
        let Parsed { name, revision, scorer } = parse(json)?;
        let property = format!("{SCORE_PROPERTY_PREFIX}{name}");
        self.roots.insert(root, Configured { property, revision, scorer });
        Ok(())
    }

    /// Scores a request that intake published features of. Says nothing when it cannot: the picker
    /// counts that, and the request goes on.
    pub fn on_request_headers(&self, host: &impl Host, stream: u32) {
        let configured = self.streams.get(&stream).and_then(|root| self.roots.get(root));
        let Some(Configured { property, revision, scorer }) = configured else { return };
        let Ok(Some(bytes)) = host.property(&[FEATURES_PROPERTY]) else { return };
        let Ok(Features { epoch, request, candidates, .. }) = Features::decode(&bytes) else {
            return;
        };
        let scores = scorer.score(&request, &candidates, &PickHistory::default());
        let scores = candidates
            .iter()
            .zip(scores)
            .filter_map(|(candidate, score)| Some((candidate.slot, score?)))
            .collect();
        // Refused: the score is absent, and the picker counts it.
        let _ =
            host.set_property(property, &Scores { epoch, revision: *revision, scores }.encode());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{endpoint, request};
    use hostcalls::memory::MemoryHost;
    use routing::{Candidate, RequestFeatures};
    use serde::Deserialize;

    /// The same score for every endpoint but those without a known queue.
    #[derive(Deserialize)]
    struct Constant {
        value: f32,
    }

    impl Scorer for Constant {
        fn score(
            &self,
            _: &RequestFeatures,
            endpoints: &[Candidate],
            _: &PickHistory,
        ) -> Vec<Option<f32>> {
            endpoints.iter().map(|e| e.load.waiting.map(|_| self.value)).collect()
        }
    }

    fn host(configuration: &str) -> MemoryHost {
        let host = MemoryHost::default();
        host.plugin_configuration.replace(configuration.as_bytes().to_vec());
        host
    }

    fn publish(host: &MemoryHost) {
        let candidates = vec![endpoint(3).into(), endpoint(5).unknown_load().into()];
        let features = Features { epoch: 7, request: request(), candidates, ..Features::default() };
        host.set_property(FEATURES_PROPERTY, &features.encode()).unwrap();
    }

    fn said(host: &MemoryHost, name: &str) -> Option<Scores> {
        let bytes = host.property(&[&format!("wasm_epp.score.{name}")]).unwrap()?;
        Some(Scores::decode(&bytes).unwrap())
    }

    #[test]
    fn two_filters_of_one_vm_score_by_their_own_parameters() {
        let (a, b) = (
            host(r#"{"name":"a","parameters":{"value":0.25}}"#),
            host(r#"{"name":"b","parameters":{"value":1},"revision":4}"#),
        );
        let mut module = Module::<Constant>::default();
        for (root, host) in [(1, &a), (2, &b)] {
            module.on_context_create(root, 0);
            assert!(module.on_configure(host, root));
        }
        module.on_context_create(10, 1);
        module.on_context_create(11, 2);
        for (host, stream) in [(&a, 10), (&b, 11)] {
            publish(host);
            module.on_request_headers(host, stream);
        }
        assert_eq!(said(&a, "a"), Some(Scores { epoch: 7, revision: 0, scores: vec![(3, 0.25)] }));
        assert_eq!(said(&b, "b"), Some(Scores { epoch: 7, revision: 4, scores: vec![(3, 1.0)] }));
        [10, 11].into_iter().for_each(|stream| module.on_delete(stream));
        assert_eq!((module.roots.len(), module.streams.len()), (2, 0));
        [1, 2].into_iter().for_each(|root| module.on_delete(root));
        assert!(module.roots.is_empty());
    }

    #[test]
    fn a_bad_configuration_is_refused_with_its_reason_and_the_old_one_stays() {
        let good = host(r#"{"name":"a","parameters":{"value":0.25}}"#);
        let bad = host(r#"{"name":"a","parameters":{"value":"high"}}"#);
        let mut module = Module::<Constant>::default();
        assert!(module.on_configure(&good, 1));
        assert!(!module.on_configure(&bad, 1));
        assert!(bad.lines.borrow()[0].1.contains("value: invalid type: string \"high\""));
        module.on_context_create(10, 1);
        publish(&good);
        module.on_request_headers(&good, 10);
        assert!(said(&good, "a").is_some());
    }

    #[test]
    fn without_features_it_says_nothing() {
        let host = host(r#"{"name":"a","parameters":{"value":0.25}}"#);
        let mut module = Module::<Constant>::default();
        assert!(module.on_configure(&host, 1));
        module.on_context_create(10, 1);
        for bytes in [None, Some(&b""[..]), Some(b"F\x01broken")] {
            if let Some(bytes) = bytes {
                host.set_property(FEATURES_PROPERTY, bytes).unwrap();
            }
            module.on_request_headers(&host, 10);
            assert_eq!(said(&host, "a"), None);
        }
        // Nor when the host refuses either call, or for a stream nobody announced.
        publish(&host);
        for call in ["property", "set_property"] {
            host.refused.replace(vec![call]);
            module.on_request_headers(&host, 10);
        }
        host.refused.replace(vec![]);
        module.on_request_headers(&host, 99);
        assert_eq!(said(&host, "a"), None);
    }
}
