//! The decision in Envoy's V8: CPU of the worker, by what stands in the listener's chain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use feed::BatchBuilder;
use feed_push::{Fill, PushState, Pusher, PusherConfig, StateSource, Target};
use serde_json::{Value, json};
use testbed::{Backend, Client, Stand, StandOptions, port, root, wait_until};
use tokio::sync::{Notify, watch};

use super::case::{Ready, Scorers};
use crate::cpu::worker_ns;
use crate::listeners::read_yaml;
use crate::load::{self, Shot};

const PATH: &str = "/v1/chat/completions";
/// What a listener's chain holds; the router's is the rendered one.
pub(super) const ARMS: [&str; 4] = ["plain", "noop", "floor", "router"];

/// Bytes sent per measurement, which decide how many requests it takes.
const BYTES: usize = 24 << 20;
const REQUESTS: std::ops::RangeInclusive<usize> = 60..=600;

/// One Envoy with one worker and a listener per arm.
pub(super) struct Worker {
    stand: Stand,
    listeners: [SocketAddr; 4],
    _backends: Vec<Backend>,
    /// Pushes the state of the case until the next.
    pusher: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(pusher) = &self.pusher {
            pusher.abort();
        }
    }
}

impl Worker {
    /// Renders the configuration of these scorers.
    pub(super) async fn prepare(scorers: Scorers) -> Result<Self> {
        let mut backends = Vec::new();
        for _ in 0..3 {
            backends.push(Backend::start(Bytes::new()).await?);
        }
        let options = StandOptions {
            engines: Vec::new(),
            others: backends.iter().map(|backend| backend.address).collect(),
            model: "m".to_owned(),
            more_config: scorers.yaml(),
            ..StandOptions::default()
        };
        let stand = Stand::prepare(options).await?;
        stand.render()?;
        let free = || anyhow::Ok(SocketAddr::from(([127, 0, 0, 1], port()?)));
        let listeners = [free()?, free()?, free()?, stand.gateway];
        add_listeners(&stand, &listeners)?;
        Ok(Self { stand, listeners, _backends: backends, pusher: None })
    }

    /// Configurations of intake and picker as rendered.
    pub(super) fn configurations(&self) -> Result<(Value, Value)> {
        let of = |filter: &str| -> Result<Value> {
            let file = self.stand.rendered().join(format!("ecds/{filter}.yaml"));
            let resource: Value = read_yaml(&file)?;
            let value =
                &resource["resources"][0]["typed_config"]["config"]["configuration"]["value"];
            Ok(serde_json::from_str(value.as_str().context("a configuration")?)?)
        };
        let mut intake = of("intake")?;
        // In wasmtime the state is put there once.
        intake["maxStateAgeMs"] = json!(3_600_000);
        // Endpoints of the pushed state announce themselves; those of the configuration do not.
        if let Some(intake) = intake.as_object_mut() {
            intake.remove("approximatePrefix");
        }
        Ok((intake, of("picker")?))
    }

    pub(super) async fn start(&mut self) -> Result<()> {
        self.stand.start_envoy(&[]).await?;
        self.log_level("info").await
    }

    /// Feeds the state of a case, and sees that decisions are made by it.
    pub(super) async fn hold(&mut self, ready: Ready) -> Result<Arc<Vec<Shot>>> {
        let shot = Shot { path: PATH, body: Bytes::from(ready.body.clone()), backend: None };
        let must_match = ready.must_match() as u64;
        if let Some(pusher) = self.pusher.take() {
            pusher.abort();
            // Ended is when it has let go of its connection.
            let _ = pusher.await;
        }
        let (stop, stopped) = watch::channel(false);
        let pusher = Pusher::new(
            PusherConfig {
                poll: Duration::MAX,
                name: "gw".into(),
                target: Target::Unix(self.stand.folder.path().join("feed.sock")),
                changed: Arc::new(Notify::new()),
                aside: watch::channel(false).1,
                stop: stopped,
            },
            Records { ready, left: Vec::new(), is_new: true, sent: Vec::new() },
        );
        let status = pusher.status();
        self.pusher = Some(tokio::spawn(async move {
            pusher.run().await;
            drop(stop);
        }));
        wait_until("the gateway has the state", Duration::from_secs(60), async || {
            status.lock().ok().filter(|status| status.state == PushState::Live).map(drop)
        })
        .await?;
        self.log_level("debug").await?;
        let answer = self.stand.client().send("POST", PATH, &[], shot.body.clone()).await?;
        ensure!(answer.status.is_success(), "{answer:?}");
        let line = self.stand.pod_scores(answer.header("x-request-id")).await?;
        let matched = line.scores().and_then(|scores| scores.values().max().copied()).unwrap_or(0);
        // Blocks of 16 tokens, four bytes each, are strides; the last token is computed again.
        ensure!(
            matched + 1 >= must_match && !line.picked().is_empty(),
            "{matched} of {must_match} held strides were matched: {line:?}"
        );
        self.log_level("info").await?;
        Ok(Arc::new(vec![shot]))
    }

    async fn log_level(&self, level: &str) -> Result<()> {
        let path = format!("/logging?wasm={level}");
        let answer = Client::new(self.stand.envoy_admin).send("POST", &path, &[], "").await?;
        ensure!(answer.status.is_success(), "{path}: {answer:?}");
        Ok(())
    }

    /// Microseconds of worker CPU per request in this arm.
    pub(super) async fn measure(&self, arm: usize, shots: &Arc<Vec<Shot>>) -> Result<f64> {
        let bytes = shots.first().map_or(1, |shot| shot.body.len()).max(1);
        let requests = (BYTES / bytes).clamp(*REQUESTS.start(), *REQUESTS.end());
        let process = self.stand.envoy.as_ref().context("Envoy runs")?.id();
        let picked = || self.stand.envoy_stat("wasmcustom.wasm_epp_requests_picked_total");
        let picked_before = picked().await?;
        let before = worker_ns(process)?;
        load::run(self.listeners[arm], shots, 2, requests).await?;
        let us = (worker_ns(process)? - before) as f64 / 1000.0 / requests as f64;
        if ARMS[arm] == "router" {
            let decided = picked().await? - picked_before;
            ensure!(decided == requests as u64, "{decided} of {requests} requests were decided");
        }
        Ok(us)
    }
}

/// Values that do not change.
struct Records {
    ready: Ready,
    left: Vec<(feed::Key, Vec<u8>)>,
    is_new: bool,
    sent: Vec<(feed::Key, Vec<u8>)>,
}

impl StateSource for Records {
    fn begin_snapshot(&mut self) {
        (self.is_new, self.left) = (true, Vec::new());
        self.sent.clear();
    }
    fn fill(&mut self, epoch: u64, batch: &mut BatchBuilder, bytes: usize, entries: u32) -> Fill {
        if std::mem::take(&mut self.is_new) {
            self.left = self.ready.records(epoch);
        }
        self.sent.clear();
        while batch.len_bytes() < bytes
            && batch.count() < entries
            && let Some((key, value)) = self.left.pop()
        {
            batch.push(key, &value);
            self.sent.push((key, value));
        }
        if self.left.is_empty() { Fill::Drained } else { Fill::More }
    }
    fn applied(&mut self) {
        self.sent.clear();
    }
    fn unknown(&mut self) {
        self.left.append(&mut self.sent);
    }
}

/// Adds the listeners of the other arms to the rendered `envoy.yaml`: copies of the inference listener
/// with other filters.
fn add_listeners(stand: &Stand, addresses: &[SocketAddr; 4]) -> Result<()> {
    let file = stand.rendered().join("envoy.yaml");
    let mut config: Value = read_yaml(&file)?;
    let intake: Value = read_yaml(&stand.rendered().join("ecds/intake.yaml"))?;
    let module = |name: &str| {
        // As intake is loaded, callbacks withheld and all, but for what it is.
        let mut filter = intake["resources"][0]["typed_config"].clone();
        filter["config"]["name"] = json!(name);
        filter["config"]["root_id"] = json!(name);
        filter["config"]["vm_config"]["vm_id"] = json!(name);
        filter["config"]["vm_config"]["code"]["local"]["filename"] =
            json!(root().join(format!("target/wasm/{name}.wasm")));
        json!({"name": name, "typed_config": filter})
    };
    let listeners = config["static_resources"]["listeners"].as_array_mut().context("listeners")?;
    let inference = listeners.iter().find(|listener| listener["name"] == "inference");
    let inference = inference.context("the inference listener")?.clone();
    for (name, address) in ARMS.into_iter().zip(addresses).take(3) {
        let mut listener = inference.clone();
        listener["name"] = json!(name);
        listener["address"]["socket_address"]["port_value"] = json!(address.port());
        let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
        manager["stat_prefix"] = json!(name);
        let router = manager["http_filters"].as_array().and_then(|filters| filters.last());
        let first = (name != "plain").then(|| module(name));
        let filters: Vec<Value> = first.into_iter().chain(router.cloned()).collect();
        manager["http_filters"] = json!(filters);
        let routes = manager["route_config"]["virtual_hosts"][0]["routes"].as_array_mut();
        for route in routes.context("routes")? {
            route.as_object_mut().context("a route")?.remove("typed_per_filter_config");
        }
        listeners.push(listener);
    }
    // JSON is YAML.
    Ok(std::fs::write(&file, config.to_string())?)
}
