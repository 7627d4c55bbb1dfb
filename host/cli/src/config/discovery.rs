//! How a pool's endpoints are found while the daemon runs.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::discovery::dns::{DnsConfig, Record};
use ::discovery::{FileConfig, Found};
use serde::Deserialize;

use super::error::{ConfigError, Refused};
use super::raw::RawEndpoint;
use super::{Endpoint, EngineKind, Model};
use super::{address, check, features};

/// Most data-parallel ranks, which have a port each: as many as InferencePool has ports.
const MAX_RANKS: i64 = 8;
/// The label by which llm-d says what an engine is.
const ENGINE_TYPE: &str = "llm-d.ai/engine-type";
/// Its values that are known, which are not ours.
const ENGINE_TYPES: [(&str, EngineKind); 3] = [
    ("vllm", EngineKind::Vllm),
    ("sglang", EngineKind::Sglang),
    ("trtllm-serve", EngineKind::Trtllm),
];
/// Labels that are passed on whatever plugins read.
const LABELS_PREFIX: &str = "llm-d.ai/";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawDiscovery {
    kubernetes: Option<RawKubernetes>,
    dns: Option<RawDns>,
    file: Option<RawFile>,
    #[serde(default)]
    endpoint: RawTemplate,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawKubernetes {
    namespace: Option<String>,
    inference_pool: Option<String>,
    selector: Option<BTreeMap<String, String>>,
    service: Option<String>,
    target_ports: Option<Vec<i64>>,
    api_server: Option<String>,
    ca_file: Option<String>,
    token_file: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawDns {
    name: String,
    port: Option<i64>,
    #[serde(default = "default_record")]
    record: String,
    server: Option<String>,
    #[serde(default = "default_dns_interval")]
    max_interval_seconds: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawFile {
    path: String,
    #[serde(default = "default_file_interval")]
    interval_ms: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RawTemplate {
    model: Option<String>,
    engine: Option<String>,
    kv_events_port: Option<i64>,
    replay_port: Option<i64>,
    topic: String,
    metrics_path: String,
}

impl Default for RawTemplate {
    fn default() -> Self {
        Self {
            model: None,
            engine: None,
            kv_events_port: None,
            replay_port: None,
            topic: String::new(),
            metrics_path: "/metrics".to_owned(),
        }
    }
}

fn default_record() -> String {
    "address".to_owned()
}

fn default_dns_interval() -> i64 {
    30
}

fn default_file_interval() -> i64 {
    1_000
}

/// How a pool's endpoints are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Where.
    pub source: Source,
    /// What is not told of each.
    pub template: Template,
}

/// Where endpoints are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In Kubernetes.
    Kubernetes(Kubernetes),
    /// In DNS.
    Dns(DnsConfig),
    /// In a file of a list like `endpoints`.
    File(FileConfig),
}

/// Endpoints in Kubernetes. What is `None` is the daemon's own pod's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// Key of the section, for messages.
    pub key: String,
    /// The namespace of everything.
    pub namespace: Option<String>,
    /// Which endpoints.
    pub of: EndpointsOf,
    /// URL of the API server.
    pub api_server: Option<String>,
    /// What its certificate is signed by.
    pub ca_file: Option<PathBuf>,
    /// Who asks.
    pub token_file: Option<PathBuf>,
}

/// Which endpoints of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointsOf {
    /// Those of an InferencePool.
    InferencePool(String),
    /// Pods with these labels, by ports.
    Pods(BTreeMap<String, String>, Vec<u16>),
    /// Those of a service, by ports; its own if there are none.
    Service(String, Vec<u16>),
}

/// What every discovered endpoint of a pool is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Name of one of the pool's models.
    pub model: String,
    /// What kind of engine it is, unless a label says so.
    pub engine: EngineKind,
    /// Port of the first rank's KV events; each further rank has the next.
    pub kv_events_port: Option<u16>,
    /// The same of replay.
    pub replay_port: Option<u16>,
    /// Topic of KV events.
    pub topic: String,
    /// Path of metrics, on the endpoint's own port.
    pub metrics_path: String,
}

/// Why the endpoints of a file are not taken.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DiscoveryError(#[from] ConfigError);

pub(super) fn check(
    key: &str,
    raw: RawDiscovery,
    models: &[Model],
    base: &Path,
) -> Result<Discovery, Refused> {
    let RawDiscovery { kubernetes: in_kubernetes, dns: in_dns, file: in_file, endpoint } = raw;
    let source = match (in_kubernetes, in_dns, in_file) {
        (Some(raw), None, None) => {
            Source::Kubernetes(kubernetes(&format!("{key}.kubernetes"), raw, base)?)
        }
        (None, Some(raw), None) => Source::Dns(dns(&format!("{key}.dns"), raw)?),
        (None, None, Some(raw)) => Source::File(file(&format!("{key}.file"), raw, base)?),
        (None, None, None) => {
            return Err(Refused {
                key: key.to_owned(),
                value: "nothing".into(),
                expected: "kubernetes, dns or file".into(),
            });
        }
        _ => {
            return Err(Refused {
                key: key.to_owned(),
                value: "several".into(),
                expected: "one of kubernetes, dns and file".into(),
            });
        }
    };
    let is_file = matches!(source, Source::File(_));
    let template = template(&format!("{key}.endpoint"), endpoint, models, is_file)?;
    Ok(Discovery { source, template })
}

fn kubernetes(key: &str, raw: RawKubernetes, base: &Path) -> Result<Kubernetes, Refused> {
    let of = |name: &str| format!("{key}.{name}");
    if !cfg!(feature = "kubernetes") {
        let expected =
            "dns or file: this build cannot ask an API server (cargo feature `kubernetes`)";
        return Err(Refused {
            key: key.to_owned(),
            value: "a section".into(),
            expected: expected.into(),
        });
    }
    let had_ports = raw.target_ports.is_some();
    let mut seen = HashSet::new();
    let mut ports = Vec::new();
    for (i, port) in raw.target_ports.unwrap_or_default().into_iter().enumerate() {
        let key = of(&format!("targetPorts[{i}]"));
        let port: u16 = check::within(&key, port, 1, 65_535)?;
        if i as i64 >= MAX_RANKS || !seen.insert(port) {
            return Err(Refused::new(key, port, format!("at most {MAX_RANKS}, each once")));
        }
        ports.push(port);
    }
    let endpoints = match (raw.inference_pool, raw.selector, raw.service) {
        (Some(name), None, None) => {
            if had_ports {
                let expected = "nothing: the InferencePool has its own";
                return Err(Refused::new(of("targetPorts"), ports, expected));
            }
            EndpointsOf::InferencePool(object_name(&of("inferencePool"), name)?)
        }
        (None, Some(labels), None) => {
            let labels = features::labels(&of("selector"), labels)?;
            if labels.is_empty() {
                return Err(Refused::new(of("selector"), labels, "at least one label"));
            }
            if ports.is_empty() {
                let expected = "at least one port: nothing else says where pods listen";
                return Err(Refused::new(of("targetPorts"), ports, expected));
            }
            EndpointsOf::Pods(labels, ports)
        }
        (None, None, Some(name)) => EndpointsOf::Service(object_name(&of("service"), name)?, ports),
        _ => {
            return Err(Refused {
                key: key.to_owned(),
                value: "none or several".into(),
                expected: "one of inferencePool, selector and service".into(),
            });
        }
    };
    let path = |name: &str, text: Option<String>| match text {
        Some(text) => Ok(Some(address::resolve(base, &check::filled(&of(name), text)?))),
        None => Ok(None),
    };
    let api_server = raw.api_server.map(|text| api_server(&of("apiServer"), text)).transpose()?;
    let ca_file = path("caFile", raw.ca_file)?;
    if api_server.as_ref().is_some_and(|url| url.starts_with("https")) && ca_file.is_none() {
        return Err(Refused {
            key: of("caFile"),
            value: "nothing".into(),
            expected: "the certificates that apiServer's is signed by".into(),
        });
    }
    Ok(Kubernetes {
        key: key.to_owned(),
        namespace: raw.namespace.map(|name| object_name(&of("namespace"), name)).transpose()?,
        of: endpoints,
        api_server,
        ca_file,
        token_file: path("tokenFile", raw.token_file)?,
    })
}

fn api_server(key: &str, text: String) -> Result<String, Refused> {
    let uri: Result<http::Uri, _> = text.parse();
    let is_plain = |uri: &http::Uri| uri.path().is_empty() || uri.path() == "/";
    let is_ok = uri.is_ok_and(|uri| match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(_)) => is_plain(&uri),
        // A token must not cross a network in the clear.
        (Some("http"), Some(host)) => {
            let ip = host.trim_start_matches('[').trim_end_matches(']').parse();
            is_plain(&uri) && ip.is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
        }
        _ => false,
    });
    if is_ok {
        Ok(text)
    } else {
        let expected = "https://HOST:PORT, or http:// and a loopback address as of `kubectl proxy`";
        Err(Refused::new(key, text, expected))
    }
}

/// A name as Kubernetes has them.
fn object_name(key: &str, name: String) -> Result<String, Refused> {
    let is_end = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let is_part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
    let bytes = name.as_bytes();
    let is_ok = name.len() <= 253
        && is_end(bytes.first().copied())
        && is_end(bytes.last().copied())
        && name.bytes().all(is_part);
    if is_ok {
        return Ok(name);
    }
    let expected = "1..=253 of [a-z0-9-.], first and last a letter or digit";
    Err(Refused::new(key, name, expected))
}

fn dns(key: &str, raw: RawDns) -> Result<DnsConfig, Refused> {
    let of = |name: &str| format!("{key}.{name}");
    let port = raw.port.map(|port| check::within(&of("port"), port, 1, 65_535)).transpose()?;
    let record = match (raw.record.as_str(), port) {
        ("address", Some(port)) => Record::Address { port },
        ("srv", None) => Record::Srv,
        ("address", None) => {
            return Err(Refused {
                key: of("port"),
                value: "nothing".into(),
                expected: "the port that engines listen on".into(),
            });
        }
        ("srv", Some(port)) => {
            return Err(Refused::new(of("port"), port, "nothing: SRV records have ports"));
        }
        _ => return Err(Refused::new(of("record"), raw.record, "address or srv")),
    };
    if !::discovery::dns::is_name(&raw.name) {
        let expected = "a whole name of at most 253 bytes, as no search list is used";
        return Err(Refused::new(of("name"), raw.name, expected));
    }
    let seconds: u64 =
        check::within(&of("maxIntervalSeconds"), raw.max_interval_seconds, 1, 3_600)?;
    let server = raw.server.map(|text| address::endpoint(&of("server"), &text)).transpose()?;
    Ok(DnsConfig { name: raw.name, record, server, max_interval: Duration::from_secs(seconds) })
}

fn file(key: &str, raw: RawFile, base: &Path) -> Result<FileConfig, Refused> {
    let path = address::resolve(base, &check::filled(&format!("{key}.path"), raw.path)?);
    let ms: u64 = check::within(&format!("{key}.intervalMs"), raw.interval_ms, 10, 60_000)?;
    Ok(FileConfig { path, interval: Duration::from_millis(ms) })
}

fn template(
    key: &str,
    raw: RawTemplate,
    models: &[Model],
    is_file: bool,
) -> Result<Template, Refused> {
    let of = |name: &str| format!("{key}.{name}");
    let last = 65_535 - MAX_RANKS + 1;
    let port = |name: &str, port: Option<i64>| {
        port.map(|port| check::within::<u16>(&of(name), port, 1, last)).transpose()
    };
    if !raw.metrics_path.starts_with('/') || raw.metrics_path.contains(char::is_whitespace) {
        return Err(Refused::new(of("metricsPath"), raw.metrics_path, "a path like /metrics"));
    }
    Ok(Template {
        model: match (raw.model, models.first()) {
            // Endpoints of a file say it themselves.
            (None, Some(first)) if is_file => first.name.clone(),
            (name, _) => check::model_of(key, name, models)?,
        },
        engine: check::engine_of(key, raw.engine.as_deref())?,
        kv_events_port: port("kvEventsPort", raw.kv_events_port)?,
        replay_port: port("replayPort", raw.replay_port)?,
        topic: raw.topic,
        metrics_path: raw.metrics_path,
    })
}

impl Template {
    /// The endpoint that was found at an address. Of its labels those are kept that are llm-d's or in
    /// `labels`, as many as an endpoint may have.
    pub(crate) fn endpoint(
        &self,
        socket: SocketAddr,
        found: &Found,
        labels: &[String],
    ) -> Endpoint {
        let named = found.labels.get(ENGINE_TYPE);
        let known = ENGINE_TYPES.iter().find(|(name, _)| named.is_some_and(|n| n == name));
        let engine = known.map_or(self.engine, |(_, kind)| *kind);
        let zmq = |port: Option<u16>| {
            let port = port?.checked_add(found.rank)?;
            Some(format!("tcp://{}", SocketAddr::new(socket.ip(), port)))
        };
        let kv_events = match engine {
            EngineKind::Trtllm => {
                self.kv_events_port.map(|_| format!("http://{socket}/kv_cache_events"))
            }
            EngineKind::Vllm | EngineKind::Sglang => zmq(self.kv_events_port),
        };
        let is_read = |key: &str| labels.iter().any(|label| label == key);
        let mut kept: Vec<(&String, &String)> = found.labels.iter().collect();
        kept.retain(|(key, _)| is_read(key) || key.starts_with(LABELS_PREFIX));
        // What is read goes first, should there be too many.
        kept.sort_by_key(|(key, _)| !is_read(key));
        kept.truncate(feed::MAX_LABELS);
        Endpoint {
            address: socket.to_string(),
            socket,
            model: self.model.clone(),
            engine,
            replay: zmq(self.replay_port).filter(|_| engine != EngineKind::Trtllm),
            kv_events,
            topic: self.topic.clone(),
            metrics: format!("http://{socket}{}", self.metrics_path),
            labels: kept.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            attributes: BTreeMap::new(),
        }
    }
}

/// The endpoints that a file lists, of these models.
///
/// # Errors
/// When it is no list of endpoints as `pools[].endpoints` has them, or one is not accepted.
pub(crate) fn listed(
    file: &Path,
    text: &str,
    models: &[Model],
) -> Result<Vec<Endpoint>, DiscoveryError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Listed {
        endpoints: Vec<RawEndpoint>,
    }
    let raw: Listed =
        serde_saphyr::from_str(text).map_err(|error| ConfigError::shape(file, text, &error))?;
    let endpoints = check::endpoints("endpoints", raw.endpoints, models);
    Ok(endpoints.map_err(|refused| refused.in_file(file))?)
}
