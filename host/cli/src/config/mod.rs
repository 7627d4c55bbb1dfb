//! The configuration file: one YAML file for all commands.
//!
//! [`load`] reads it into a checked [`Config`]; nothing downstream checks again. Relative paths in
//! the file are relative to the file's own folder.

mod address;
mod approximate;
mod carrier;
mod check;
mod discovery;
mod envoy_gateway;
mod error;
mod features;
mod feed_tls;
mod istio;
mod plugins;
mod raw;
mod rewrites;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use address::is_host_and_port;
pub use address::{FeedAddress, FeedTls, HttpsAddress};
pub use approximate::ApproximatePrefix;
pub use carrier::Carrier;
pub(crate) use discovery::listed;
pub use discovery::{Discovery, DiscoveryError, EndpointsOf, Kubernetes, Source, Template};
pub use envoy_gateway::{EnvoyGateway, RoutedPool};
pub use error::ConfigError;
pub use features::Objective;
pub use istio::{Istio, IstioPool, MODULES_PATH, PoolCluster};
pub use rewrites::{ModelRewrite, RewriteTarget};
use routing::Needs;
use scorers::spec::RoutingSpec;

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// Folder of the daemon's seeds and state.
    pub data_dir: PathBuf,
    /// Where the daemon answers `/healthz`, `/readyz`, `/metrics` and `/snapshot`. Port 0 takes a free one.
    pub admin: SocketAddr,
    /// Where engines that connect by themselves publish; topics `kv@POD@MODEL`.
    pub kv_events_listen: Option<String>,
    /// The gateways the daemon pushes to; at least one.
    pub gateways: Vec<Gateway>,
    /// The pools; at least one, names unique. Requests on no pool's own path go to the first pool,
    /// or to the first that serves their model if it does not.
    pub pools: Vec<Pool>,
    /// How engines are watched.
    pub metrics: Metrics,
    /// What is kept on disk of the engines' state; `None` for nothing.
    pub snapshot: Option<Snapshot>,
    /// Through which server engines' events come; `None` to follow each engine.
    pub carrier: Option<Carrier>,
    /// Priorities that requests may name.
    pub objectives: Vec<Objective>,
    /// How an endpoint is chosen.
    pub routing: Routing,
    /// Requests that go to another model than they ask for.
    pub model_rewrites: Vec<ModelRewrite>,
    /// How answers are measured; `None` leaves the module out.
    pub meter: Option<Meter>,
    /// What `render --gateway envoy` writes.
    pub envoy: Envoy,
    /// What `render --gateway istio` patches.
    pub istio: Option<Istio>,
    /// What `render --gateway envoy-gateway` patches.
    pub envoy_gateway: Option<EnvoyGateway>,
    /// Accepted, but probably not meant; one sentence each.
    pub warnings: Vec<String>,
}

/// A gateway's feed listener.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// Unique name, a label of metrics.
    pub name: String,
    /// Where the daemon posts.
    pub feed: FeedAddress,
    /// Envoy's admin interface, by which a swap is verified.
    pub admin: Option<SocketAddr>,
    /// The folder that `render --out` wrote for this gateway, on this machine.
    pub resources: Option<PathBuf>,
}

/// Endpoints that share routing state; also a cluster of Envoy of the same name.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Unique name.
    pub name: String,
    /// The models served; at least one, names and aliases unique within the pool.
    pub models: Vec<Model>,
    /// The engines, addresses unique within the pool; none where they are discovered.
    pub endpoints: Vec<Endpoint>,
    /// How engines are discovered while the daemon runs.
    pub discovery: Option<Discovery>,
    /// Path prefix whose requests go to the pool whatever their model, without a final slash. The
    /// first pool has none: it has the paths that are no other pool's.
    pub route_prefix: Option<String>,
}

/// A served model.
#[derive(Clone, Debug)]
pub struct Model {
    /// The name requests use.
    pub name: String,
    /// Further names requests may use.
    pub aliases: Vec<String>,
    /// LoRA adapters known from the start; others are learned from the engines' events.
    pub adapters: Vec<String>,
    /// Where tokenizer and chat template are.
    pub source: ModelSource,
    /// Bound of the gateway's index, in strides.
    pub max_strides: u64,
    /// Whether prompts given as token ids are matched too, in a key space of their own.
    pub token_id_prompts: bool,
}

/// Where a model's tokenizer and chat template come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A folder of files, a repository of a Hugging Face cache, or a whole cache.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Branch, tag or commit in a cache.
        revision: Option<String>,
    },
    /// A repository of a Hugging Face hub; needs the cargo feature `hub`.
    Hub {
        /// `ORG/NAME`.
        repository: String,
        /// Branch, tag or commit; `main` if none.
        revision: Option<String>,
    },
}

/// Kinds of engines, which differ in what their events mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// vLLM: physical blocks, stored and removed one by one.
    Vllm,
    /// SGLang: a tree, in which a block is or is not.
    Sglang,
    /// TensorRT-LLM: a tree; its events are fetched over HTTP.
    Trtllm,
}

impl EngineKind {
    /// Names in the configuration.
    pub const NAMES: [(&'static str, EngineKind); 3] = [
        ("vllm", EngineKind::Vllm),
        ("sglang", EngineKind::Sglang),
        ("tensorrt-llm", EngineKind::Trtllm),
    ];
}

/// One engine, or one data-parallel rank of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// `ip:port` in Envoy's own form: compare as a string.
    pub address: String,
    /// The same, parsed.
    pub socket: SocketAddr,
    /// Name of one of the pool's models.
    pub model: String,
    /// What kind of engine it is.
    pub engine: EngineKind,
    /// ZMQ address of its KV events; for TensorRT-LLM the URL of its event list. Without it the endpoint has no prefix state.
    pub kv_events: Option<String>,
    /// ZMQ address of its replay socket.
    pub replay: Option<String>,
    /// Topic of its KV events.
    pub topic: String,
    /// URL of its metrics.
    pub metrics: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its numeric attributes, finite.
    pub attributes: BTreeMap<String, f32>,
}

/// How engines are watched.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Time between two scrapes of one endpoint.
    pub interval_ms: u64,
    /// Time after which a scrape has failed.
    pub timeout_ms: u64,
    /// Failed scrapes in a row after which an endpoint is down.
    pub down_after_failures: u32,
}

/// The daemon's own snapshot, in its data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Time between two of them.
    pub interval: Duration,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug)]
pub struct Routing {
    /// The profiles with their plugins; of modules without their parameters.
    pub spec: RoutingSpec,
    /// What plugins read beyond what is always published: built-in ones by their parameters, modules
    /// by `routing.features`.
    pub needs: Needs,
    /// Plugins that are modules of their own, each once, names unique; at most `module_places`.
    pub modules: Vec<PluginModule>,
    /// Places for modules between intake and picker. What stands in them can change while
    /// the gateway runs, their number cannot.
    pub module_places: usize,
    /// Age from which the gateway's state no longer routes.
    pub max_state_age_ms: u64,
    /// Larger bodies are routed by load alone. Below Envoy's buffer limit.
    pub max_body_bytes: u64,
    /// Further attempts after a failed one.
    pub retries: u32,
    /// Whether answers name the endpoint they are from, in a header.
    pub has_served_header: bool,
    /// How prompts are remembered for endpoints without events; `None` for not at all.
    pub approximate_prefix: Option<ApproximatePrefix>,
    /// Whether requests are refused where llm-d refuses them.
    pub refuses: bool,
    /// Whether clients may choose endpoints, as the conformance suite of the Gateway API Inference Extension does.
    pub is_conformance: bool,
}

/// How answers are measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Meter {
    /// Share of the requests that are measured, 0..=1.
    pub share_ratio: f64,
    /// Ask streams for their usage, and take it out of what the client gets.
    pub include_usage: bool,
}

/// A scorer or filter of endpoints that is a module of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginModule {
    /// Part of the names of its property, its counters and its file.
    pub name: String,
    /// The module.
    pub file: PathBuf,
    /// Passed to the module, which checks them when the gateway loads it.
    pub parameters: serde_json::Map<String, serde_json::Value>,
}

/// Most places for plugin modules, as many as a picker asks.
pub const MAX_MODULE_PLACES: usize = scorers::spec::MAX_MODULES;

/// Envoy's buffer for a request body while it is scored. A body above it is answered 413 by Envoy
/// itself, so `maxBodyBytes` stays below.
pub const BUFFER_LIMIT_BYTES: u64 = 16 * 1024 * 1024;

/// What `render --gateway envoy` writes.
#[derive(Clone, Debug)]
pub struct Envoy {
    /// The inference listener.
    pub listen: SocketAddr,
    /// Envoy's admin interface, on loopback.
    pub admin: SocketAddr,
    /// The feed listener.
    pub feed: FeedAddress,
    /// Permission bits of the feed's socket.
    pub feed_mode: u32,
    /// Folder with `router.wasm` and `feeder.wasm`, and `meter.wasm` where answers are measured.
    pub modules: PathBuf,
    /// Envoy's `--log-level`, for the command line that `render` suggests.
    pub log_level: String,
}

/// Reads and checks a configuration file.
///
/// # Errors
/// When the file cannot be read, is not of the documented shape, or holds a value that is not
/// accepted. All of them are the user's to mend: exit code 64.
pub fn load(path: impl AsRef<Path>) -> Result<Config, ConfigError> {
    let file = path.as_ref();
    let text = std::fs::read_to_string(file)
        .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
    let base = std::path::absolute(file)
        .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
    parse(&text, file, base.parent().unwrap_or(Path::new("/")))
}

/// Checks the text of a configuration file. `file` is for messages, `base` for relative paths.
fn parse(text: &str, file: &Path, base: &Path) -> Result<Config, ConfigError> {
    let raw =
        serde_saphyr::from_str(text).map_err(|error| ConfigError::shape(file, text, &error))?;
    check::check(raw, file, base).map_err(|refused| refused.in_file(file))
}

impl Pool {
    /// The model requests may call `name`.
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models
            .iter()
            .find(|model| model.name == name || model.aliases.iter().any(|alias| alias == name))
    }

    /// Whether an endpoint of it may announce no events.
    pub fn may_be_silent(&self) -> bool {
        match &self.discovery {
            Some(Discovery { source: Source::File(_), .. }) => true,
            Some(discovery) => discovery.template.kv_events_port.is_none(),
            None => self.endpoints.iter().any(|endpoint| endpoint.kv_events.is_none()),
        }
    }
}
