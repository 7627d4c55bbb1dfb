//! Plugin configurations of the two filters, written by `wasm-epp render`.

use routing::{Profile, SCORER_TYPES, WeightedScorer, scorer_of_type};
use serde::Deserialize;

use crate::modules::{MAX_MODULES, ModuleScorer};
use crate::needs::{Needs, Objective};
use crate::pools::{PoolConfig, Pools};
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
}

/// Configuration of `intake`.
pub struct IntakeConfig {
    /// Longer bodies are not read; the proxy's own policy routes them.
    pub max_body_bytes: usize,
    /// State older than this is not used.
    pub max_state_age_ms: u64,
    /// Pools this listener serves.
    pub pools: Pools,
    /// What plugins read beyond what is always published.
    pub needs: Needs,
    /// How requests say which session they are of, if anybody asks.
    pub session: Option<SessionAffinity>,
    /// Whether a body that cannot be read is refused.
    pub refuses: bool,
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
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawPicker {
    scorers: Vec<RawScorer>,
    destinations: usize,
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
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawScorer {
    r#type: String,
    weight: f32,
    name: Option<String>,
    shadow: Option<bool>,
}

/// Type of the scorers that are filters of their own.
const MODULE: &str = "module";

/// Configuration of `picker`.
pub struct PickerConfig {
    /// The profile it runs.
    pub profile: Profile,
    /// Whether a meter stands behind it, which it tells what it expects and believes.
    pub has_meter: bool,
    /// Whether answers say which endpoint they are from.
    pub has_served_header: bool,
    /// How requests say which session they are of, if anybody asks.
    pub session: Option<SessionAffinity>,
    /// Whether a request is refused where llm-d does.
    pub refuses: bool,
    /// Scorers that run as filters of their own, before it.
    pub(crate) modules: Vec<ModuleScorer>,
    /// Hash of the configuration's bytes, reported in the worker's row.
    pub hash: u64,
}

impl PickerConfig {
    /// Parses and checks.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let raw: RawPicker = serde_json::from_slice(json)
            .map_err(|source| ConfigError::Json { filter: "picker", source })?;
        let range = |key, value: String, accepted: String| ConfigError::Range {
            filter: "picker",
            key,
            value,
            accepted,
        };
        if !(1..=MAX_DESTINATIONS).contains(&raw.destinations) {
            let accepted = format!("1 to {MAX_DESTINATIONS}");
            return Err(range("destinations", raw.destinations.to_string(), accepted));
        }
        let (mut scorers, mut modules) = (Vec::new(), Vec::<ModuleScorer>::new());
        for RawScorer { r#type, weight, name, shadow } in raw.scorers {
            if !(weight.is_finite() && (0.0..=1000.0).contains(&weight)) {
                return Err(range("scorers[].weight", weight.to_string(), "0 to 1000".into()));
            }
            if r#type == MODULE {
                let name = name.unwrap_or_default();
                if !is_scorer_name(&name) || modules.iter().any(|module| module.name() == name) {
                    let accepted = "1 to 64 of a-z, 0-9 and -, each once".into();
                    return Err(range("scorers[].name", name, accepted));
                }
                modules.push(ModuleScorer::new(name, weight, shadow.unwrap_or(false)));
                continue;
            }
            if name.is_some() || shadow.is_some() {
                let accepted = format!("none but for type {MODULE}");
                return Err(range("scorers[].name or .shadow", r#type, accepted));
            }
            let scorer = scorer_of_type(&r#type).ok_or_else(|| {
                let accepted = format!("{}, {MODULE}", SCORER_TYPES.join(", "));
                range("scorers[].type", r#type, accepted)
            })?;
            scorers.push(WeightedScorer { weight, scorer });
        }
        if modules.len() > MAX_MODULES {
            let accepted = format!("at most {MAX_MODULES} of type {MODULE}");
            return Err(range("scorers", modules.len().to_string(), accepted));
        }
        let profile = Profile { scorers, destinations: raw.destinations };
        Ok(Self {
            profile,
            modules,
            has_meter: raw.meter,
            has_served_header: raw.served_header,
            session: raw.session.map(|raw| SessionAffinity::new("picker", raw)).transpose()?,
            refuses: raw.refuse,
            hash: fnv1a(json),
        })
    }
}

/// A name that is part of a property's, a counter's and a filter's.
fn is_scorer_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
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
    fn errors_name_filter_key_value_and_range() {
        let picker = |json: &str| PickerConfig::parse(json.as_bytes()).err().unwrap().to_string();
        assert_eq!(
            picker(r#"{"scorers":[{"type":"queu","weight":1}],"destinations":3}"#),
            "configuration of picker: scorers[].type is queu, accepted is prefix-cache, queue, kv-cache-utilization, no-hit-lru, module"
        );
        assert!(
            picker(r#"{"scorers":[{"type":"queue","weight":-1}],"destinations":3}"#)
                .contains("0 to 1000")
        );
        assert!(
            picker(r#"{"scorers":[],"destinations":0}"#)
                .contains("destinations is 0, accepted is 1 to 16")
        );
        assert!(picker(r#"{"scorers":[],"destinations":1,"x":1}"#).contains("unknown field `x`"));
        let scorers = |list: &str| picker(&format!(r#"{{"scorers":[{list}],"destinations":1}}"#));
        let mine = r#"{"type":"module","weight":1,"name":"mine"}"#;
        assert!(scorers(&format!("{mine},{mine}")).contains("scorers[].name is mine, accepted"));
        assert!(
            scorers(r#"{"type":"module","weight":1}"#).contains("scorers[].name is , accepted")
        );
        assert!(scorers(r#"{"type":"module","weight":1,"name":"A.b"}"#).contains("is A.b"));
        assert!(scorers(r#"{"type":"queue","weight":1,"shadow":true}"#).contains("is queue"));
        let many: Vec<String> = (0..17).map(|i| mine.replace("mine", &format!("m{i}"))).collect();
        assert!(scorers(&many.join(",")).contains("scorers is 17, accepted is at most 16"));
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
    fn fnv_reference_vectors() {
        // From the FNV reference's test suite (Noll).
        assert_eq!(fnv1a(b""), 0xcbf29ce484222325);
        assert_eq!(fnv1a(b"foobar"), 0x85944171f73967e8);
    }
}
