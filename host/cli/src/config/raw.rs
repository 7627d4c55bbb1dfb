//! The configuration file as written: names, types and defaults, nothing checked yet.
//!
//! Numbers are wider than their ranges, so that a value out of range is refused by the check that
//! knows the key and the range, not by the YAML reader.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The whole file. Only `pools` is required; a section with nothing under it is the default one.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Raw {
    #[serde(default = "default_data_dir")]
    pub(super) data_dir: String,
    #[serde(default = "default_admin")]
    pub(super) admin: String,
    pub(super) kv_events_listen: Option<String>,
    pub(super) gateways: Option<Vec<RawGateway>>,
    pub(super) feed_tls: Option<RawFeedTls>,
    pub(super) pools: Vec<RawPool>,
    pub(super) metrics: Option<RawMetrics>,
    pub(super) snapshot: Option<RawSnapshot>,
    /// Left out it is off, so nothing under it must be told apart from that.
    #[serde(default, deserialize_with = "section")]
    pub(super) carrier: Option<RawCarrier>,
    #[serde(default)]
    pub(super) objectives: Vec<RawObjective>,
    pub(super) routing: Option<RawRouting>,
    #[serde(default)]
    pub(super) model_rewrites: Vec<RawModelRewrite>,
    /// Left out it is off, so nothing under it must be told apart from that.
    #[serde(default, deserialize_with = "section")]
    pub(super) meter: Option<RawMeter>,
    pub(super) envoy: Option<RawEnvoy>,
    pub(super) istio: Option<super::istio::RawIstio>,
    pub(super) envoy_gateway: Option<super::envoy_gateway::RawEnvoyGateway>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawGateway {
    pub(super) name: String,
    pub(super) feed: String,
    pub(super) admin: Option<String>,
    pub(super) resources: Option<String>,
}

/// The daemon's side.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawFeedTls {
    pub(super) ca: String,
    pub(super) certificate: String,
    pub(super) key: String,
    pub(super) server_name: Option<String>,
}

/// The gateway's side.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawListenerTls {
    pub(super) ca: String,
    pub(super) certificate: String,
    pub(super) key: String,
    pub(super) client_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawPool {
    pub(super) name: String,
    pub(super) models: Vec<RawModel>,
    #[serde(default)]
    pub(super) endpoints: Vec<RawEndpoint>,
    pub(super) discovery: Option<super::discovery::RawDiscovery>,
    pub(super) route_prefix: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawModel {
    pub(super) name: String,
    #[serde(default)]
    pub(super) aliases: Vec<String>,
    #[serde(default)]
    pub(super) adapters: Vec<String>,
    pub(super) folder: Option<String>,
    pub(super) hub: Option<String>,
    pub(super) revision: Option<String>,
    #[serde(default = "default_max_strides")]
    pub(super) max_strides: i64,
    #[serde(default)]
    pub(super) token_id_prompts: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawEndpoint {
    pub(super) address: String,
    pub(super) model: Option<String>,
    pub(super) engine: Option<String>,
    pub(super) kv_events: Option<String>,
    pub(super) replay: Option<String>,
    #[serde(default)]
    pub(super) topic: String,
    pub(super) metrics: Option<String>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) attributes: BTreeMap<String, f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct RawMetrics {
    pub(super) interval_ms: i64,
    pub(super) timeout_ms: i64,
    pub(super) down_after_failures: i64,
}

impl Default for RawMetrics {
    fn default() -> Self {
        Self { interval_ms: 100, timeout_ms: 1_000, down_after_failures: 3 }
    }
}

/// Off unless the section is there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawSnapshot {
    #[serde(default = "default_snapshot_interval")]
    pub(super) interval_seconds: i64,
}

/// Off unless the section is there.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct RawCarrier {
    pub(super) server: Option<String>,
    pub(super) username: Option<String>,
    pub(super) password_file: Option<String>,
    pub(super) name: Option<String>,
    pub(super) max_entries: Option<i64>,
    pub(super) lease_ms: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct RawRouting {
    pub(super) scorers: Option<Vec<RawPlugin>>,
    pub(super) filters: Option<Vec<RawPlugin>>,
    pub(super) picker: Option<RawPlugin>,
    pub(super) profiles: Option<Vec<RawProfile>>,
    pub(super) profile_handler: Option<RawPlugin>,
    pub(super) max_state_age_ms: i64,
    pub(super) max_body_bytes: i64,
    pub(super) retries: i64,
    pub(super) module_places: i64,
    pub(super) served_header: bool,
    pub(super) approximate_prefix: RawApproximatePrefix,
    pub(super) refuse: bool,
    pub(super) conformance: bool,
    pub(super) features: RawFeatures,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct RawFeatures {
    pub(super) headers: Vec<String>,
    pub(super) labels: Vec<String>,
    pub(super) attributes: Vec<String>,
    pub(super) request_control: bool,
    pub(super) rates: bool,
    pub(super) session: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawObjective {
    pub(super) name: String,
    #[serde(default)]
    pub(super) priority: i64,
    pub(super) pool: Option<String>,
}

impl Default for RawRouting {
    fn default() -> Self {
        Self {
            scorers: None,
            filters: None,
            picker: None,
            profiles: None,
            profile_handler: None,
            max_state_age_ms: 5_000,
            max_body_bytes: 15_728_640,
            retries: 2,
            module_places: 4,
            served_header: true,
            approximate_prefix: RawApproximatePrefix::default(),
            refuse: false,
            conformance: false,
            features: RawFeatures::default(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawModelRewrite {
    #[serde(default)]
    pub(super) r#match: Vec<RawMatch>,
    pub(super) targets: Vec<RawTarget>,
    pub(super) pool: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawMatch {
    pub(super) model: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawTarget {
    pub(super) model: String,
    #[serde(default = "default_target_weight")]
    pub(super) weight: i64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct RawApproximatePrefix {
    pub(super) enabled: bool,
    pub(super) auto_tune: bool,
    pub(super) lru_capacity_per_server: i64,
    pub(super) block_size_tokens: i64,
    pub(super) max_prefix_tokens_to_match: i64,
}

impl Default for RawApproximatePrefix {
    /// llm-d's.
    fn default() -> Self {
        Self {
            enabled: true,
            auto_tune: true,
            lru_capacity_per_server: 31_250,
            block_size_tokens: 64,
            max_prefix_tokens_to_match: 131_072,
        }
    }
}

/// The scorers of a configuration that names none. The weights are llm-d's, so that a user's weights
/// can be moved over.
pub(super) fn default_scorers() -> Vec<RawPlugin> {
    [("prefix-cache", 3.0), ("queue", 2.0), ("kv-cache-utilization", 2.0), ("no-hit-lru", 2.0)]
        .map(|(kind, weight)| RawPlugin {
            kind: kind.to_owned(),
            weight: Some(weight),
            ..RawPlugin::default()
        })
        .into()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawProfile {
    pub(super) name: String,
    pub(super) filters: Option<Vec<RawPlugin>>,
    pub(super) scorers: Option<Vec<RawPlugin>>,
    pub(super) picker: Option<RawPlugin>,
}

/// A scorer, filter, picker or handler of profiles.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawPlugin {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) weight: Option<f64>,
    pub(super) name: Option<String>,
    pub(super) module: Option<String>,
    pub(super) parameters: Option<serde_json::Map<String, serde_json::Value>>,
    pub(super) shadow: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct RawMeter {
    pub(super) share: f64,
    pub(super) include_usage: bool,
}

impl Default for RawMeter {
    fn default() -> Self {
        Self { share: 0.1, include_usage: false }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct RawEnvoy {
    pub(super) listen: String,
    pub(super) admin: String,
    pub(super) feed: String,
    pub(super) feed_mode: String,
    pub(super) feed_tls: Option<RawListenerTls>,
    pub(super) modules: String,
    pub(super) log_level: String,
}

impl Default for RawEnvoy {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            admin: "127.0.0.1:9901".to_owned(),
            feed: "unix:run/feed.sock".to_owned(),
            feed_mode: "0660".to_owned(),
            feed_tls: None,
            modules: "target/wasm".to_owned(),
            log_level: "info".to_owned(),
        }
    }
}

/// A section that is there, if only by its name.
fn section<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::<T>::deserialize(deserializer).map(|section| Some(section.unwrap_or_default()))
}

fn default_data_dir() -> String {
    "data".to_owned()
}

fn default_admin() -> String {
    "127.0.0.1:9400".to_owned()
}

fn default_snapshot_interval() -> i64 {
    60
}

fn default_max_strides() -> i64 {
    1_000_000
}

fn default_target_weight() -> i64 {
    1
}
