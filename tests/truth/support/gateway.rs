//! A gateway in the test's process: the feeder applies what is posted, the router's view reads it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use feeder::Feeder;
use hostcalls::memory::MemoryHost;
use prefix::{KeyChain, Namespace, match_prefix};
use prompt::Api;
use router::{Intake, IntakeConfig, StateError, View, Vm};
use routing::{PickHistory, Scorer, SourceState};
use scorers::scorer::PrefixCache;

use super::http::Server;
use super::text::Text;
use super::twin::{Depth, Space};

/// Lookups per match, as the router allows itself.
const MAX_LOOKUPS: u32 = 64;
/// The router's default, in nanoseconds.
const MAX_AGE_NS: u64 = 5_000_000_000;

pub(crate) struct Gateway {
    inner: Arc<Mutex<Inner>>,
    started: Instant,
    server: Server,
}

#[derive(Default)]
struct Inner {
    feeder: Feeder,
    host: MemoryHost,
}

impl Gateway {
    pub(crate) async fn start() -> Self {
        let inner: Arc<Mutex<Inner>> = Arc::default();
        let started = Instant::now();
        let held = Arc::clone(&inner);
        let server = Server::start(move |path, body| {
            if path != feeder::PATH {
                return (404, Vec::new());
            }
            let mut held = held.lock().unwrap();
            held.host.now_ns.set(started.elapsed().as_nanos() as u64);
            let Inner { feeder, host } = &mut *held;
            let ack = feeder.post(host, body);
            (ack.status.http_status() as u16, ack.encode())
        })
        .await;
        Self { inner, started, server }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Reads the state as the router does for one request.
    fn read<T>(
        &self,
        read: impl FnOnce(&MemoryHost, &mut View) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let inner = self.inner.lock().unwrap();
        let now_ns = self.started.elapsed().as_nanos() as u64;
        let mut view = View::default();
        view.refresh(&inner.host, now_ns, MAX_AGE_NS)?;
        read(&inner.host, &mut view)
    }

    /// How deep each endpoint holds a text, by address.
    pub(crate) fn depths(&self, text: &Text, space: &Space) -> BTreeMap<String, Depth> {
        let ids: Vec<u8> = text.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let bytes = if text.is_ids() { &ids } else { text.bytes.as_bytes() };
        let read = |host: &MemoryHost, view: &mut View| {
            let entry = view.resolve("pool", Some("tiny"))?;
            let model = view.model(host, entry.scope)?;
            let Space { lora, salt } = space;
            let (lora, salt) = (lora.as_deref(), salt.as_deref());
            let namespace = Namespace { model: &entry.model, lora, salt };
            let seed = &model.value.seed;
            let (root, scope) = match text.is_ids() {
                true => (namespace.root_of_token_ids(seed), entry.token_ids_scope.unwrap()),
                false => (namespace.root(seed), entry.scope),
            };
            let keys = KeyChain::keys_of(root, seed, bytes);
            let found = match_prefix(&keys, MAX_LOOKUPS, |key| model.stride(host, scope, key));
            let of = |slot: u16| {
                let found = found.iter().find(|(other, _)| *other == slot);
                found.map_or(Depth::default(), |(_, depths)| Depth {
                    gpu: depths.gpu,
                    any: depths.any,
                    resume_tokens: depths.resume_tokens,
                })
            };
            let endpoints = model.table.endpoints.iter();
            Ok(endpoints.map(|e| (e.address.clone(), of(e.slot))).collect())
        };
        self.read(read).unwrap()
    }

    /// State of each endpoint's source as scorers are told it; nothing before the first snapshot.
    pub(crate) fn sources(&self) -> BTreeMap<String, SourceState> {
        let read = |host: &MemoryHost, view: &mut View| {
            let entry = view.resolve("pool", Some("tiny"))?;
            let model = view.model(host, entry.scope)?;
            let loads = view.loads(host, entry.scope)?;
            let of =
                |slot: u16| loads.iter().find(|load| load.slot == slot).map(|load| load.source);
            let endpoints = model.table.endpoints.iter();
            Ok(endpoints.filter_map(|e| Some((e.address.clone(), of(e.slot)?))).collect())
        };
        self.read(read).unwrap_or_default()
    }

    /// The totals by which the router's own filters choose for a completion, by address, with
    /// `prefix-cache` as the only scorer.
    pub(crate) fn prefix_scores(&self, prompt: &str) -> BTreeMap<String, f32> {
        let inner = self.inner.lock().unwrap();
        let host = &inner.host;
        let body = serde_json::json!({"model": "tiny", "prompt": prompt}).to_string();
        host.body.replace(body.into_bytes());
        host.properties.borrow_mut().insert("xds/cluster_name".into(), b"pool".to_vec());
        let config = br#"{"maxBodyBytes":1000000,"maxStateAgeMs":5000,"pools":[{"name":"pool"}]}"#;
        let mut intake = Intake::new(IntakeConfig::parse(config).unwrap());
        let now_ns = self.started.elapsed().as_nanos() as u64;
        intake.decide(host, &mut Vm::default(), Api::Completions, now_ns);
        let published = host.properties.borrow()[feed::FEATURES_PROPERTY].clone();
        let features = feed::Features::decode(&published).unwrap();
        let scores = PrefixCache::default().score(
            &features.request,
            &features.candidates,
            &PickHistory::default(),
        );
        let candidates =
            features.candidates.into_iter().map(|candidate| candidate.address.to_string());
        candidates.zip(scores).filter_map(|(address, score)| Some((address, score?))).collect()
    }
}
