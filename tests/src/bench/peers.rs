//! Other routers, in front of the same backends. `scripts/bench-peers` gets them; one that is not there
//! is missing from the comparison, by name.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Value, json};
use testbed::{Client, Process, port, root, wait_until};

use crate::fleet::PATH;
use crate::listeners::Rendered;

const START: Duration = Duration::from_secs(40);
/// Answered by any of them, once it routes.
const PROBE: &[u8] =
    br#"{"model":"tiny","max_tokens":1,"messages":[{"role":"user","content":"Are you there?"}]}"#;

/// `scripts/bench-peers`' folder, or that of `WASM_EPP_PEERS`.
fn folder() -> PathBuf {
    std::env::var_os("WASM_EPP_PEERS").map_or_else(|| root().join(".local/peers"), PathBuf::from)
}

/// A program of a peer's, or how to get it.
pub(crate) fn find(program: &str) -> Result<PathBuf, String> {
    let path = folder().join(program);
    let missing = || format!("no {}: scripts/bench-peers gets it", path.display());
    path.is_file().then(|| path.clone()).ok_or_else(missing)
}

fn loopback() -> Result<SocketAddr> {
    Ok(SocketAddr::from(([127, 0, 0, 1], port()?)))
}

/// Waits until a request is answered; the error has the end of the log.
async fn answers(name: &str, process: &mut Process, listener: SocketAddr) -> Result<()> {
    let process = std::cell::RefCell::new(process);
    let (client, what) = (Client::new(listener), format!("{name} answers"));
    let headers = [("content-type", "application/json")];
    let ready = wait_until(&what, START, async || {
        if let Err(error) = process.borrow_mut().check() {
            return Some(Err(error));
        }
        let probe = client.send("POST", PATH, &headers, Bytes::from_static(PROBE)).await.ok()?;
        probe.status.is_success().then_some(Ok(()))
    });
    ready.await.and_then(|ready| ready).with_context(|| process.borrow().tail())
}

/// vLLM's router, which is a proxy of its own.
pub(crate) struct VllmRouter {
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
}

impl VllmRouter {
    /// Starts `program` with its default policy, prefixes by a tree of what it has sent. For each
    /// request it has a worker render the prompt (`/v1/chat/completions/render`); backends answer
    /// that at once, where an engine would tokenize.
    pub(crate) async fn start(
        program: &Path,
        backends: &[SocketAddr],
        threads: u32,
        log: &Path,
    ) -> Result<Self> {
        let (address, metrics) = (loopback()?, loopback()?);
        let mut command = Command::new(program);
        command
            .args(["--policy", "cache_aware", "--log-level", "warning"])
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--prometheus-host", "127.0.0.1"])
            .args(["--prometheus-port", &metrics.port().to_string()])
            .arg("--worker-urls")
            .args(backends.iter().map(|backend| format!("http://{backend}")))
            // What tokio takes the number of its workers from.
            .env("TOKIO_WORKER_THREADS", threads.to_string());
        let mut process = Process::start("vllm-router", &mut command, log)?;
        answers("vllm-router", &mut process, address).await?;
        Ok(Self { address, process })
    }
}

/// llm-d's endpoint picker behind a listener of the gateway, by `ext_proc`.
pub(crate) struct Epp {
    pub(crate) listener: SocketAddr,
    pub(crate) process: Process,
}

/// Addresses that the gateway is configured with before the picker starts.
pub(crate) struct EppPlan {
    listener: SocketAddr,
    grpc: SocketAddr,
}

impl EppPlan {
    /// Adds the listener, as llm-d's guide without Kubernetes has it: the picker sees bodies both ways
    /// (`FULL_DUPLEX_STREAMED`), and its header is the destination.
    pub(crate) fn add(config: &mut Rendered) -> Result<Self> {
        let plan = Self { listener: loopback()?, grpc: loopback()? };
        let filter = json!({
            "name": "envoy.filters.http.ext_proc",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
                "grpc_service": {"envoy_grpc": {"cluster_name": "bench-epp"}, "timeout": "10s"},
                "message_timeout": "1000s",
                "processing_mode": {
                    "request_header_mode": "SEND", "request_body_mode": "FULL_DUPLEX_STREAMED",
                    "request_trailer_mode": "SEND", "response_header_mode": "SEND",
                    "response_body_mode": "FULL_DUPLEX_STREAMED", "response_trailer_mode": "SEND",
                },
            },
        });
        let listener = config.inference("llm-d", plan.listener)?.only([filter])?;
        config.add_listener(listener.routed_to("bench-epp-destination")?)?;
        let many = json!({"thresholds": [{
            "max_connections": 40_000, "max_pending_requests": 40_000, "max_requests": 40_000,
        }]});
        config.add_cluster(json!({
            "name": "bench-epp-destination", "type": "ORIGINAL_DST", "connect_timeout": "10s",
            "lb_policy": "CLUSTER_PROVIDED", "circuit_breakers": &many,
            "original_dst_lb_config": {
                "use_http_header": true, "http_header_name": "x-gateway-destination-endpoint",
            },
        }))?;
        let address = json!({"address": "127.0.0.1", "port_value": plan.grpc.port()});
        config.add_cluster(json!({
            "name": "bench-epp", "type": "STATIC", "connect_timeout": "10s",
            "circuit_breakers": &many,
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {
                        "initial_stream_window_size": 65_536,
                        "initial_connection_window_size": 1_048_576,
                    }},
                },
            },
            "load_assignment": {"cluster_name": "bench-epp", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": {"socket_address": address}}},
            ]}]},
        }))?;
        Ok(plan)
    }

    /// Starts the picker with the profile of llm-d's guide (approximate prefixes, queue, cache
    /// utilization, spreading of what nobody has) on the backends. The gateway runs.
    pub(crate) async fn start(
        self,
        program: &Path,
        backends: &[SocketAddr],
        threads: u32,
        folder: &Path,
    ) -> Result<Epp> {
        let endpoints: Vec<Value> = backends
            .iter()
            .enumerate()
            .map(|(i, at)| {
                json!({"name": format!("engine-{i}"), "address": at.ip(), "port": at.port().to_string(),
                       "labels": {"model": "tiny"}})
            })
            .collect();
        let list = folder.join("epp-endpoints.yaml");
        std::fs::write(&list, json!({"endpoints": endpoints}).to_string())?;
        let config = folder.join("epp.yaml");
        std::fs::write(&config, profile(&list).to_string())?;
        let (health, metrics) = (loopback()?, loopback()?);
        let mut command = Command::new(program);
        command
            .arg("--config-file")
            .arg(&config)
            .args(["--pool-name", "file-discovery", "--pool-namespace", "default"])
            .args(["--grpc-port", &self.grpc.port().to_string()])
            .args(["--grpc-health-port", &health.port().to_string()])
            .args(["--metrics-port", &metrics.port().to_string()])
            .args(["--secure-serving=false", "--tracing=false", "--v=0"])
            .env("GOMAXPROCS", threads.to_string());
        let mut process = Process::start("llm-d's EPP", &mut command, &folder.join("epp.log"))?;
        answers("llm-d's EPP", &mut process, self.listener).await?;
        Ok(Epp { listener: self.listener, process })
    }
}

fn profile(endpoints: &Path) -> Value {
    json!({
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [
            {"name": "file-discovery", "type": "file-discovery", "parameters": {"path": endpoints}},
            {"type": "queue-scorer"},
            {"type": "kv-cache-utilization-scorer"},
            {"type": "prefix-cache-scorer"},
            {"type": "no-hit-lru-scorer"},
            {"type": "max-score-picker"},
            {"type": "single-profile-handler"},
            {"name": "metrics-source", "type": "metrics-data-source"},
            {"name": "metrics-extractor", "type": "core-metrics-extractor"},
        ],
        "schedulingProfiles": [{"name": "default", "plugins": [
            {"pluginRef": "queue-scorer", "weight": 2},
            {"pluginRef": "kv-cache-utilization-scorer", "weight": 2},
            {"pluginRef": "prefix-cache-scorer", "weight": 3},
            {"pluginRef": "no-hit-lru-scorer", "weight": 2},
            {"pluginRef": "max-score-picker"},
        ]}],
        "dataLayer": {
            "injectDefaults": false,
            "discovery": {"pluginRef": "file-discovery"},
            "sources": [
                {"pluginRef": "metrics-source", "extractors": [{"pluginRef": "metrics-extractor"}]},
            ],
        },
    })
}
