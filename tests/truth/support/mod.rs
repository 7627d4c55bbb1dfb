//! A real daemon between engines that speak through Python's ZMQ and a gateway in this process.

pub(crate) mod documents;
pub(crate) mod engine;
pub(crate) mod frames;
pub(crate) mod gateway;
pub(crate) mod http;
pub(crate) mod text;
pub(crate) mod twin;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use routing::SourceState;
use serde_json::{Value, json};
use testbed::{Process, get, port, root, wait_until, wasm_epp};

use engine::{Pages, Publisher};
use frames::{Chain, Event, Release};
use gateway::Gateway;
use text::Text;
use twin::{Place, Space, Twin};

/// Long enough for a busy machine; what takes longer does not happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// How an engine is set up.
pub(crate) struct Plan {
    pub(crate) kind: &'static str,
    pub(crate) block: usize,
    /// Of `publisher.py`.
    pub(crate) args: Vec<String>,
    /// What the daemon is told to connect to instead of the publisher itself.
    pub(crate) proxy_port: Option<u16>,
    pub(crate) topic: String,
}

impl Plan {
    pub(crate) fn vllm(block: usize) -> Self {
        Self { kind: "vllm", block, args: Vec::new(), proxy_port: None, topic: String::new() }
    }

    pub(crate) fn sglang(block: usize) -> Self {
        Self { kind: "sglang", ..Self::vllm(block) }
    }

    pub(crate) fn trtllm(block: usize) -> Self {
        Self { kind: "tensorrt-llm", ..Self::vllm(block) }
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }
}

/// An engine with its twin.
pub(crate) struct Engine {
    pub(crate) publisher: Option<Publisher>,
    pub(crate) pages: Pages,
    pub(crate) twin: Twin,
    pub(crate) release: Release,
    /// Batches that the daemon has to have taken by now, understood or not.
    pub(crate) batches: u64,
    pub(crate) rank: u32,
    plan: Plan,
}

impl Engine {
    pub(crate) fn address(&self) -> String {
        self.pages.server.address.to_string()
    }

    /// The recorded session that its publisher was given.
    pub(crate) fn session(&self) -> String {
        session()
    }

    /// A command of the publisher's that brings the daemon no batch.
    pub(crate) fn tell(&mut self, command: &str) -> Value {
        self.publisher.as_mut().expect("an engine with a publisher").tell(command)
    }

    /// Publishes one batch.
    pub(crate) fn publish(&mut self, events: &[Event]) {
        let batch = self.release.batch(events, 1.5, self.rank);
        self.publish_json(&batch);
    }

    pub(crate) fn publish_json(&mut self, batch: &Value) {
        self.tell(&format!("events {batch}"));
        self.batches += 1;
    }

    /// A batch that happens while nobody is told; it can be replayed.
    pub(crate) fn keep(&mut self, events: &[Event]) {
        let batch = self.release.batch(events, 1.5, self.rank);
        self.tell(&format!("keep {batch}"));
    }

    /// A payload of bytes.
    pub(crate) fn publish_bytes(&mut self, folder: &std::path::Path, payload: &[u8]) {
        let file = folder.join("payload");
        std::fs::write(&file, payload).unwrap();
        self.tell(&format!("file {}", file.display()));
        self.batches += 1;
    }

    /// Stores blocks on the GPU: the event, and the truth.
    pub(crate) fn store(&mut self, chain: &Chain<'_>, blocks: std::ops::Range<usize>) {
        self.publish(&[chain.stored(blocks.clone())]);
        self.twin.hold(chain.text, &chain.space, blocks, Place::Gpu);
    }

    /// Removes blocks from the GPU, as vLLM does: from the end, an event each.
    pub(crate) fn evict(&mut self, chain: &Chain<'_>, blocks: std::ops::Range<usize>) {
        let events: Vec<Event> = blocks.clone().rev().map(|block| chain.removed([block])).collect();
        self.publish(&events);
        self.twin.drop(chain.text, &chain.space, blocks, Place::Gpu);
    }
}

/// What a publisher plays when it is told to send frames and not given any.
fn session() -> String {
    root().join("tests/golden/kv-events/session-hybrid.jsonl").display().to_string()
}

/// Everything; ends with the value.
pub(crate) struct Scene {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) gateway: Gateway,
    pub(crate) engines: Vec<Engine>,
    admin: SocketAddr,
    daemon: Option<Process>,
    more_config: String,
    /// Where engines connect to instead of being connected to.
    pub(crate) listen_port: Option<u16>,
}

impl Scene {
    /// Engines and a gateway; the daemon is yet to start. `None` where tests are to be skipped.
    pub(crate) async fn prepare(plans: Vec<Plan>) -> Option<Self> {
        Self::prepare_with(plans, None).await
    }

    /// The same with engines that connect to the daemon, on this port.
    pub(crate) async fn prepare_with(plans: Vec<Plan>, listen_port: Option<u16>) -> Option<Self> {
        let mut engines = Vec::new();
        for plan in plans {
            let pages = Pages::start().await;
            let has_session = plan.args.first().is_some_and(|arg| arg.ends_with(".jsonl"));
            let mut args = plan.args.clone();
            if !has_session {
                args.insert(0, session());
            }
            if let Some(port) = listen_port {
                let topic = format!("kv@{}@tiny", pages.server.address);
                args.extend(["--connect".into(), format!("tcp://127.0.0.1:{port}")]);
                args.extend(["--topic".into(), topic]);
            }
            let publisher = match plan.kind {
                "tensorrt-llm" => None,
                _ => Some(Publisher::start(&args)?),
            };
            let mut twin = Twin::new(plan.block);
            twin.is_tree = plan.kind != "vllm";
            let release = Release::latest();
            engines.push(Engine { publisher, pages, twin, release, batches: 0, rank: 0, plan });
        }
        Some(Self {
            folder: tempfile::Builder::new().prefix("wasm-epp-truth-").tempdir().unwrap(),
            gateway: Gateway::start().await,
            engines,
            admin: SocketAddr::from(([127, 0, 0, 1], port().unwrap())),
            daemon: None,
            more_config: String::new(),
            listen_port,
        })
    }

    /// Everything, with the daemon fed from every engine's start.
    pub(crate) async fn start(plans: Vec<Plan>) -> Option<Self> {
        let mut scene = Self::prepare(plans).await?;
        scene.serve().await;
        Some(scene)
    }

    fn config(&self) -> String {
        let mut text = format!(
            "dataDir: data\nadmin: {}\ngateways: [{{name: here, feed: 'http://{}'}}]\n\
             metrics: {{intervalMs: 20}}\npools:\n- name: pool\n  models:\n  \
             - {{name: tiny, folder: {}, tokenIdPrompts: true}}\n  endpoints:\n",
            self.admin,
            self.gateway.address(),
            root().join("tests/golden/tiny-model").display(),
        );
        if let Some(port) = self.listen_port {
            text.insert_str(0, &format!("kvEventsListen: 'tcp://127.0.0.1:{port}'\n"));
        }
        for engine in &self.engines {
            let _ = write!(
                text,
                "  - {{address: '{}', model: tiny, engine: {}, topic: '{}'",
                engine.address(),
                engine.plan.kind,
                engine.plan.topic,
            );
            if let Some(publisher) = &engine.publisher {
                let port = engine.plan.proxy_port.map_or(publisher.pub_port, u64::from);
                if self.listen_port.is_none() {
                    let _ = write!(text, ", kvEvents: 'tcp://127.0.0.1:{port}'");
                }
                if let Some(port) = publisher.replay_port {
                    let _ = write!(text, ", replay: 'tcp://127.0.0.1:{port}'");
                }
            } else {
                let address = engine.address();
                let _ = write!(text, ", kvEvents: 'http://{address}/kv_cache_events'");
            }
            text.push_str("}\n");
        }
        text + &self.more_config
    }

    /// Starts the daemon and waits until it feeds the gateway and hears every engine.
    pub(crate) async fn serve(&mut self) {
        let file = self.folder.path().join("wasm-epp.yaml");
        std::fs::write(&file, self.config()).unwrap();
        let mut command = Command::new(wasm_epp().unwrap());
        command.arg("serve").arg("--config").arg(file);
        let log = self.folder.path().join("daemon.log");
        self.daemon = Some(Process::start("wasm-epp serve", &mut command, &log).unwrap());
        let is_listening = self.listen_port.is_some();
        self.wait("the daemon feeds the gateway and hears the engines", move |details| {
            let is_heard = |e: &Value| e["source"] == "live" || e["source"] == "degraded";
            let all = |list: &Value, is: &dyn Fn(&Value) -> bool| {
                list.as_array().is_some_and(|list| list.iter().all(is))
            };
            all(&details["gateways"], &|g| g["state"] == "live")
                && (is_listening || all(&details["endpoints"], &is_heard))
        })
        .await;
    }

    /// `/readyz` of the daemon, which must be running.
    pub(crate) async fn details(&mut self) -> Option<Value> {
        self.daemon.as_mut().expect("a daemon").check().unwrap();
        get(self.admin, "/readyz").await.ok()?.json().ok()
    }

    /// A counter or gauge of the daemon's metrics page, summed over what matches `labels`.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> u64 {
        let page = get(self.admin, "/metrics").await.unwrap();
        let text = String::from_utf8(page.body.to_vec()).unwrap();
        let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        let values = lines.filter(|line| labels.split(' ').all(|label| line.contains(label)));
        values.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>() as u64
    }

    /// Waits until `/readyz` says so.
    pub(crate) async fn wait(&mut self, what: &str, is_so: impl Fn(&Value) -> bool) {
        let mut last = Value::Null;
        let waited = wait_until(what, PATIENCE, async || {
            last = self.details().await?;
            is_so(&last).then_some(())
        });
        if waited.await.is_err() {
            let tail = self.daemon.as_ref().map(Process::tail).unwrap_or_default();
            panic!("{what}: {last:#}\n{tail}");
        }
    }

    /// Waits until the daemon has applied each engine's batches and the gateway has all of it.
    pub(crate) async fn settled(&mut self) {
        let expected: Vec<u64> = self.engines.iter().map(|engine| engine.batches).collect();
        self.wait(&format!("batches {expected:?} are applied"), |details| {
            let taken = |e: &Value| {
                e["event_batches"].as_u64().unwrap() + e["undecodable"].as_u64().unwrap()
            };
            let taken: Vec<u64> =
                details["endpoints"].as_array().unwrap().iter().map(taken).collect();
            assert!(
                taken.iter().zip(&expected).all(|(taken, expected)| taken <= expected),
                "more batches are applied than were sent: {taken:?} of {expected:?}"
            );
            taken == expected
        })
        .await;
        self.pushed().await;
    }

    /// Waits until the gateway has all that the daemon has applied.
    pub(crate) async fn pushed(&mut self) {
        self.wait("all is pushed", |details| {
            details["unchecked_blocks"] == 0
                && details["gateways"].as_array().unwrap().iter().all(|g| g["pending"] == 0)
        })
        .await;
    }

    /// Waits until scorers are told that an engine's source is in this state.
    pub(crate) async fn source(&mut self, engine: usize, state: SourceState) {
        let address = self.engines[engine].address();
        let what = format!("the source of engine {engine} is {state:?}");
        let (gateway, daemon) = (&self.gateway, self.daemon.as_ref());
        let waited = wait_until(&what, PATIENCE, async || {
            (gateway.sources().get(&address) == Some(&state)).then_some(())
        });
        if waited.await.is_err() {
            let tail = daemon.map(Process::tail).unwrap_or_default();
            panic!("{what}, not {:?}\n{tail}", gateway.sources());
        }
    }

    /// State of an engine's source as scorers are told it now.
    pub(crate) fn source_now(&self, engine: usize) -> SourceState {
        self.gateway.sources()[&self.engines[engine].address()]
    }

    /// Waits until all is settled, and compares every engine's depth in each text with its twin's.
    pub(crate) async fn check(&mut self, what: &str, texts: &[&Text]) {
        self.settled().await;
        self.compare(what, texts, &Space::default());
    }

    /// The comparison alone.
    pub(crate) fn compare(&self, what: &str, texts: &[&Text], space: &Space) {
        for text in texts {
            let found = self.gateway.depths(text, space);
            for (i, engine) in self.engines.iter().enumerate() {
                let expected = engine.twin.depth(text, space);
                let prompt: String = text.bytes.chars().take(40).collect();
                assert_eq!(
                    found[&engine.address()],
                    expected,
                    "{what}: engine {i}, left is listed and right is held, of {prompt:?} in {space:?}"
                );
            }
        }
    }

    /// A value of an engine's in `/readyz`.
    pub(crate) async fn endpoint(&mut self, engine: usize, key: &str) -> Value {
        let details = self.details().await.expect("an answer");
        details["endpoints"][engine].get(key).cloned().unwrap_or(json!(null))
    }
}
