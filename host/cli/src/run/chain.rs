//! The file of a chain: any modules, in the order of requests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value as Json;
use wasm_host::{FailurePolicy, GuestLimits};

use super::error::{RunError, parse};
use super::layout::{Layout, PluginSpec, RELOAD_BACKOFF};
use super::routes::Routes;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawChain {
    modules: Vec<RawModule>,
    buffer_limit_bytes: Option<i64>,
    #[serde(default)]
    attributes: BTreeMap<String, Json>,
    #[serde(default)]
    upstreams: Vec<String>,
    retries: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawModule {
    path: String,
    name: Option<String>,
    #[serde(default)]
    root_id: String,
    #[serde(default)]
    vm_id: String,
    configuration: Option<Json>,
    vm_configuration: Option<Json>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    failure_policy: Option<String>,
    reload_backoff_ms: Option<i64>,
    #[serde(default)]
    allow_on_headers_stop_iteration: bool,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    limits: RawLimits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct RawLimits {
    fuel: Option<i64>,
    memory_bytes: Option<i64>,
    table_entries: Option<i64>,
    wall_time_ms: Option<i64>,
}

const POLICIES: [(&str, FailurePolicy); 4] = [
    ("fail-closed", FailurePolicy::FailClosed),
    ("fail-open", FailurePolicy::FailOpen),
    ("fail-reload", FailurePolicy::FailReload { backoff: RELOAD_BACKOFF }),
    ("fail-open-legacy", FailurePolicy::LegacyFailOpen),
];

/// Reads a chain's file. Relative paths are relative to its folder.
pub(super) fn read(file: &Path, text: &str) -> Result<Layout, RunError> {
    let raw: RawChain = parse(file, text)?;
    let base = file.parent().unwrap_or(Path::new(""));
    if raw.modules.is_empty() {
        return Err(RunError::value(file, "modules", Vec::<u8>::new(), "at least one module"));
    }
    let mut plugins: Vec<PluginSpec> = Vec::new();
    let mut watched = vec![file.to_owned()];
    for (number, module) in raw.modules.into_iter().enumerate() {
        let path = base.join(&module.path);
        let plugin = plugin(file, number, &path, module)?;
        if plugins.iter().any(|other| other.name == plugin.name) {
            let key = format!("modules[{number}].name");
            return Err(RunError::value(file, key, &plugin.name, "a name of its own"));
        }
        plugins.push(plugin);
        watched.push(path);
    }
    let limit = number(file, "bufferLimitBytes", raw.buffer_limit_bytes, 1, 1 << 30)?;
    let retries = number(file, "retries", raw.retries, 0, 100)?.unwrap_or(0);
    let mut hosts: Vec<(String, SocketAddr)> = Vec::new();
    for (n, text) in raw.upstreams.iter().enumerate() {
        let address: SocketAddr = text.parse().map_err(|_| {
            RunError::value(file, format!("upstreams[{n}]"), text, "ip:port, no host name")
        })?;
        hosts.push((address.to_string(), address));
    }
    let mut attributes = Vec::new();
    for (path, value) in raw.attributes {
        let value = match &value {
            Json::String(text) => text.as_str().into(),
            Json::Bool(is) => (*is).into(),
            Json::Number(n) if n.as_i64().is_some() => n.as_i64().unwrap_or_default().into(),
            other => {
                let key = format!("attributes.{path}");
                return Err(RunError::value(
                    file,
                    key,
                    other,
                    "text, true, false or a whole number",
                ));
            }
        };
        attributes.push((path.split('.').map(str::to_owned).collect(), value));
    }
    Ok(Layout {
        file: file.to_owned(),
        watched,
        inference: (0..plugins.len()).collect(),
        plugins,
        metered: None,
        feed: None,
        probe: None,
        buffer_limit_bytes: limit.map_or(1 << 20, |n| usize::try_from(n).unwrap_or(usize::MAX)),
        routes: Arc::new(Routes::to_hosts("upstreams", hosts, retries as u32)),
        attributes,
        own: None,
    })
}

fn plugin(file: &Path, n: usize, path: &PathBuf, raw: RawModule) -> Result<PluginSpec, RunError> {
    let key = |name: &str| format!("modules[{n}].{name}");
    let bytes = std::fs::read(path).map_err(|reason| RunError::Read {
        file: path.clone(),
        what: "the module",
        reason,
    })?;
    let stem = path.file_stem().map_or_else(|| raw.path.clone(), |s| s.display().to_string());
    let backoff = number(file, &key("reloadBackoffMs"), raw.reload_backoff_ms, 1, 3_600_000)?;
    let named = raw.failure_policy.as_deref().unwrap_or("fail-closed");
    let policy = POLICIES.iter().find(|(name, _)| *name == named).ok_or_else(|| {
        let names: Vec<&str> = POLICIES.iter().map(|(name, _)| *name).collect();
        RunError::value(file, key("failurePolicy"), named, format!("one of {}", names.join(", ")))
    })?;
    let failure_policy = match (policy.1, backoff) {
        (FailurePolicy::FailReload { .. }, Some(ms)) => {
            FailurePolicy::FailReload { backoff: Duration::from_millis(ms) }
        }
        (policy, None) => policy,
        (_, Some(ms)) => {
            let expected = "no back-off without failurePolicy: fail-reload";
            return Err(RunError::value(file, key("reloadBackoffMs"), ms, expected));
        }
    };
    let mut limits = GuestLimits::default();
    let RawLimits { fuel, memory_bytes, table_entries, wall_time_ms } = raw.limits;
    let most = i64::MAX as u64;
    limits.fuel = number(file, &key("limits.fuel"), fuel, 1, most)?;
    let memory = number(file, &key("limits.memoryBytes"), memory_bytes, 65_536, 1 << 32)?;
    limits.memory_bytes = memory.map_or(limits.memory_bytes, |n| n as usize);
    let entries = number(file, &key("limits.tableEntries"), table_entries, 1, 1 << 32)?;
    limits.table_entries = entries.map_or(limits.table_entries, |n| n as usize);
    let wall = number(file, &key("limits.wallTimeMs"), wall_time_ms, 1, 3_600_000)?;
    limits.wall_time = wall.map(Duration::from_millis);
    Ok(PluginSpec {
        key: key("path"),
        name: raw.name.unwrap_or_else(|| stem.clone()),
        root_id: raw.root_id,
        vm_id: raw.vm_id,
        module: (stem, bytes.into()),
        configuration: bytes_of(raw.configuration),
        vm_configuration: bytes_of(raw.vm_configuration),
        environment: raw.environment.into_iter().collect(),
        failure_policy,
        allow_on_headers_stop_iteration: raw.allow_on_headers_stop_iteration,
        allowed: raw.allow,
        limits,
    })
}

/// Text as it is; anything else as JSON.
fn bytes_of(value: Option<Json>) -> Vec<u8> {
    match value {
        None => Vec::new(),
        Some(Json::String(text)) => text.into_bytes(),
        Some(other) => other.to_string().into_bytes(),
    }
}

fn number(
    file: &Path,
    key: &str,
    value: Option<i64>,
    least: u64,
    most: u64,
) -> Result<Option<u64>, RunError> {
    let Some(value) = value else { return Ok(None) };
    let refused = || RunError::value(file, key, value, format!("{least} to {most}"));
    let number = u64::try_from(value).map_err(|_| refused())?;
    if (least..=most).contains(&number) { Ok(Some(number)) } else { Err(refused()) }
}
