//! Plugin configurations of the two filters, written by `wasm-epp render`.

use routing::Profiles;
use scorers::spec::{PluginSpec, ProfileSpec, RoutingSpec, SpecError};
use serde::Deserialize;

use crate::modules::Module;
use crate::needs::{Needs, Objective};
use crate::pools::{PoolConfig, Pools};
use crate::rewrites::Rewrite;
use crate::session::{RawSession, SessionAffinity};
use crate::subset::MAX_DESTINATIONS;

/// Why a configuration was refused. The gateway then keeps the one it has.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the JSON object this build reads; the message names the key.
    #[error("configuration of {filter}: {source}")]
    Json {
        /// Which filter.
        filter: &'static str,
        /// The parser's message.
        source: serde_json::Error,
    },
    /// A plugin that is not known, or refuses its parameters.
    #[error("configuration of {filter}: {source}")]
    Plugin {
        /// Which filter.
        filter: &'static str,
        /// Plugin, key, value and range.
        source: SpecError,
    },
    /// A value outside its range.
    #[error("configuration of {filter}: {key} is {value}, accepted is {accepted}")]
    Range {
        /// Which filter.
        filter: &'static str,
        /// The key.
        key: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        accepted: String,
    },
}

/// Longest body that may ever be configured: the buffer limit of the route is 16 MiB.
const MAX_BODY_BYTES: usize = (16 << 20) - 1;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawIntake {
    max_body_bytes: usize,
    max_state_age_ms: u64,
    pools: Vec<PoolConfig>,
    by_model: Option<String>,
    approximate_prefix: Option<ApproximatePrefix>,
    #[serde(default)]
    rewrites: Vec<Rewrite>,
    /// A number that is another one when the filter was only to be loaded again.
    #[serde(default, rename = "revision")]
    _revision: u32,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    labels: Vec<String>,
    #[serde(default)]
    attributes: Vec<String>,
    #[serde(default)]
    request_control: bool,
    #[serde(default)]
    rates: bool,
    #[serde(default)]
    objectives: Vec<Objective>,
    session: Option<RawSession>,
    #[serde(default)]
    refuse: bool,
    #[serde(default)]
    conformance: bool,
}

/// How prompts are remembered for endpoints that announce nothing.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApproximatePrefix {
    /// Tokens that an endpoint is believed to hold.
    pub capacity_tokens: u32,
    /// Whether the size of the engine's cache, where its metrics tell, takes the place of that.
    pub auto_tune: bool,
    /// Tokens of a prompt that are remembered.
    pub max_prefix_tokens: u32,
}

/// Configuration of `intake`.
pub struct IntakeConfig {
    /// Longer bodies are not read; the proxy's own policy routes them.
    pub max_body_bytes: usize,
    /// State older than this is not used.
    pub max_state_age_ms: u64,
    /// Pools this listener serves.
    pub pools: Pools,
    /// `None`: endpoints that announce nothing have no prefix state.
    pub approximate_prefix: Option<ApproximatePrefix>,
    /// Models that are rewritten, by order of the rules.
    pub rewrites: Vec<Rewrite>,
    /// What plugins read beyond what is always published.
    pub needs: Needs,
    /// How requests say which session they are of, if anybody asks.
    pub session: Option<SessionAffinity>,
    /// Whether a body that cannot be read is refused.
    pub refuses: bool,
    /// Whether a request may choose its endpoints.
    pub is_conformance: bool,
}

impl IntakeConfig {
    /// Parses and checks.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let raw: RawIntake = serde_json::from_slice(json)
            .map_err(|source| ConfigError::Json { filter: "intake", source })?;
        let range =
            |key, value, accepted| ConfigError::Range { filter: "intake", key, value, accepted };
        if !(1..=MAX_BODY_BYTES).contains(&raw.max_body_bytes) {
            let accepted = format!("1 to {MAX_BODY_BYTES}");
            return Err(range("maxBodyBytes", raw.max_body_bytes.to_string(), accepted));
        }
        if let Some(pool) = &raw.by_model
            && !raw.pools.iter().any(|known| known.name == *pool)
        {
            let known: Vec<&str> = raw.pools.iter().map(|pool| pool.name.as_str()).collect();
            return Err(range("byModel", pool.clone(), known.join(", ")));
        }
        Ok(Self {
            max_body_bytes: raw.max_body_bytes,
            max_state_age_ms: raw.max_state_age_ms,
            pools: Pools::new(raw.pools, raw.by_model),
            approximate_prefix: raw.approximate_prefix,
            rewrites: raw.rewrites,
            needs: Needs {
                headers: raw.headers,
                labels: raw.labels,
                attributes: raw.attributes,
                request_control: raw.request_control,
                rates: raw.rates,
                objectives: raw.objectives,
            }
            .check()?,
            session: raw.session.map(|raw| SessionAffinity::new("intake", raw)).transpose()?,
            refuses: raw.refuse,
            is_conformance: raw.conformance,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawPicker {
    destinations: usize,
    // One profile in the short form ...
    #[serde(default)]
    filters: Vec<PluginSpec>,
    #[serde(default)]
    scorers: Vec<PluginSpec>,
    #[serde(default)]
    picker: Option<PluginSpec>,
    // ... or several, instead of it.
    #[serde(default)]
    profiles: Option<Vec<ProfileSpec>>,
    #[serde(default)]
    profile_handler: Option<PluginSpec>,
    #[serde(default)]
    meter: bool,
    /// As intake's; it is in the configuration's hash.
    #[serde(default, rename = "revision")]
    _revision: u32,
    #[serde(default)]
    served_header: bool,
    session: Option<RawSession>,
    #[serde(default)]
    refuse: bool,
    #[serde(default)]
    conformance: bool,
}

/// Configuration of `picker`.
pub struct PickerConfig {
    /// The profiles it runs.
    pub profiles: Profiles,
    /// Whether a meter stands behind it, which it tells what it expects and believes.
    pub has_meter: bool,
    /// Whether answers say which endpoint they are from.
    pub has_served_header: bool,
    /// How requests say which session they are of, if anybody asks.
    pub session: Option<SessionAffinity>,
    /// Whether a request is refused where llm-d does.
    pub refuses: bool,
    /// Whether answers say to a conformance suite where they are from.
    pub is_conformance: bool,
    /// Plugins that run as filters of their own, before it.
    pub(crate) modules: Vec<Module>,
    /// Hash of the configuration's bytes, reported in the worker's row.
    pub hash: u64,
}

impl PickerConfig {
    /// Parses and checks.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let raw: RawPicker = serde_json::from_slice(json)
            .map_err(|source| ConfigError::Json { filter: "picker", source })?;
        if !(1..=MAX_DESTINATIONS).contains(&raw.destinations) {
            return Err(ConfigError::Range {
                filter: "picker",
                key: "destinations",
                value: raw.destinations.to_string(),
                accepted: format!("1 to {MAX_DESTINATIONS}"),
            });
        }
        let mut spec = match raw.profiles {
            Some(profiles) => RoutingSpec { profiles, ..RoutingSpec::default() },
            None => RoutingSpec::short(raw.filters, raw.scorers, raw.picker),
        };
        spec.profile_handler = raw.profile_handler;
        let built = spec
            .build(raw.destinations)
            .map_err(|source| ConfigError::Plugin { filter: "picker", source })?;
        let modules = built.modules.into_iter();
        Ok(Self {
            profiles: built.profiles,
            modules: modules.map(|module| Module::new(module.name, module.is_shadow)).collect(),
            has_meter: raw.meter,
            has_served_header: raw.served_header,
            session: raw.session.map(|raw| SessionAffinity::new("picker", raw)).transpose()?,
            refuses: raw.refuse,
            is_conformance: raw.conformance,
            hash: fnv1a(json),
        })
    }
}

/// FNV-1a 64 (offset 0xcbf29ce484222325, prime 0x100000001b3).
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_filter_plugin_key_value_and_range() {
        let picker = |json: &str| PickerConfig::parse(json.as_bytes()).err().unwrap().to_string();
        let scorers = |list: &str| picker(&format!(r#"{{"scorers":[{list}],"destinations":1}}"#));
        assert_eq!(
            scorers(r#"{"type":"load-aware","parameters":{"threshold":-1}}"#),
            "configuration of picker: scorers[0].parameters.threshold of load-aware: -1 is not accepted: expected 1 to 1000000"
        );
        assert!(scorers(r#"{"type":"queu","weight":1}"#).contains("is queue meant?"));
        assert!(scorers(r#"{"type":"queue","weight":-1}"#).contains("0 to 1000"));
        assert!(
            picker(r#"{"scorers":[],"destinations":0}"#)
                .contains("destinations is 0, accepted is 1 to 16")
        );
        assert!(picker(r#"{"scorers":[],"destinations":1,"x":1}"#).contains("unknown field `x`"));
        let intake = |json: &str| IntakeConfig::parse(json.as_bytes()).err().unwrap().to_string();
        assert!(
            intake(r#"{"maxBodyBytes":99999999,"maxStateAgeMs":1,"pools":[]}"#)
                .contains("maxBodyBytes is 99999999")
        );
        assert!(intake("").contains("configuration of intake"));
        assert_eq!(
            intake(
                r#"{"maxBodyBytes":9,"maxStateAgeMs":1,"pools":[{"name":"a"},{"name":"b"}],"byModel":"c"}"#
            ),
            "configuration of intake: byModel is c, accepted is a, b"
        );
        let needs = |more: &str| {
            intake(&format!(r#"{{"maxBodyBytes":9,"maxStateAgeMs":1,"pools":[],{more}}}"#))
        };
        let many: Vec<String> = (0..17).map(|i| format!("\"x-{i}\"")).collect();
        assert_eq!(
            needs(&format!(r#""headers":[{}]"#, many.join(","))),
            "configuration of intake: headers is 17 names, accepted is at most 16"
        );
        assert!(needs(r#""headers":["X-A"]"#).contains("headers[] is X-A, accepted is a header"));
        assert!(needs(r#""labels":[""]"#).contains("labels[] is , accepted is 1 to 317 bytes"));
        assert!(needs(r#""objectives":[{"name":"a"}]"#).contains("missing field `priority`"));
    }

    #[test]
    fn intake_is_told_what_plugins_read() {
        let json = r#"{"maxBodyBytes":9,"maxStateAgeMs":1,"pools":[],"headers":["x-a"],"labels":["l"],
            "attributes":["a"],"session":{"strategy":"session_id","headers":["x-b","x-c"],"ttlMs":9}}"#;
        let config = IntakeConfig::parse(json.as_bytes()).unwrap();
        let Needs { headers, labels, attributes, .. } = config.needs;
        assert_eq!([headers, labels, attributes], [["x-a"], ["l"], ["a"]]);
        let headers = vec!["x-b".to_owned(), "x-c".to_owned()];
        assert_eq!(config.session, Some(SessionAffinity::SessionId { headers, ttl_ns: 9_000_000 }));
    }

    #[test]
    fn fnv_reference_vectors() {
        // From the FNV reference's test suite (Noll).
        assert_eq!(fnv1a(b""), 0xcbf29ce484222325);
        assert_eq!(fnv1a(b"foobar"), 0x85944171f73967e8);
    }
}
