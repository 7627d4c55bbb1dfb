//! What runs: modules with their configuration, the chains they stand in, and the routes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use wasm_host::{FailurePolicy, GuestLimits, HeaderMap, Value};

use super::error::RunError;
use super::routes::Routes;
use crate::config::{BUFFER_LIMIT_BYTES, Config};
use crate::render;

/// A plugin as the host is to load it.
#[derive(Clone, Debug)]
pub(super) struct PluginSpec {
    /// Path of the key in the chain's file, for messages.
    pub(super) key: String,
    /// Unique within the layout.
    pub(super) name: String,
    pub(super) root_id: String,
    pub(super) vm_id: String,
    /// Name of the module, for tables, and its bytes.
    pub(super) module: (String, Arc<[u8]>),
    pub(super) configuration: Vec<u8>,
    pub(super) vm_configuration: Vec<u8>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) failure_policy: FailurePolicy,
    pub(super) allow_on_headers_stop_iteration: bool,
    /// Names of imports and callbacks; empty is all.
    pub(super) allowed: Vec<String>,
    pub(super) limits: GuestLimits,
}

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    /// The file it was read from.
    pub(super) file: PathBuf,
    /// Files whose change changes it.
    pub(super) watched: Vec<PathBuf>,
    pub(super) plugins: Vec<PluginSpec>,
    /// Positions in `plugins`, in the order of requests.
    pub(super) inference: Vec<usize>,
    /// The chain of the share of requests that is measured, and that share, 0..=1.
    pub(super) metered: Option<(Vec<usize>, f64)>,
    /// The feeder's own chain.
    pub(super) feed: Option<Vec<usize>>,
    /// The chain that only says what it would decide.
    pub(super) probe: Option<Vec<usize>>,
    pub(super) buffer_limit_bytes: usize,
    pub(super) routes: Arc<Routes>,
    /// Attributes of every stream.
    pub(super) attributes: Vec<(Vec<String>, Value)>,
    /// Our own configuration, if that is where this is from.
    pub(super) own: Option<Arc<Config>>,
}

/// What our own configuration file makes of a gateway: the filters that `render` would write, with
/// its very configurations, in the order of its listeners.
pub(super) fn of_config(config: Config) -> Result<Layout, RunError> {
    let loaded = render::loaded(&config)?;
    let mut plugins = Vec::new();
    for (name, filter) in &loaded.filters {
        // A place without a scorer holds a filter that does nothing.
        if filter.get("config").is_some() {
            plugins.push(of_filter(&config, name, filter, &loaded)?);
        }
    }
    let at = |name: &str| plugins.iter().position(|plugin| plugin.name == name);
    let places = (0..config.routing.module_places).filter_map(|n| at(&format!("scorer-{n}")));
    let decide: Vec<usize> = at("intake").into_iter().chain(places).chain(at("picker")).collect();
    // Envoy makes the restorer for marked streams only, to spare the others its callbacks; without
    // the mark it does nothing.
    let restorer = at("restorer");
    let inference: Vec<usize> = decide.iter().copied().chain(restorer).collect();
    let metered = config.meter.zip(at("meter")).map(|(meter, number)| {
        let chain = decide.iter().copied().chain([number]).chain(restorer);
        (chain.collect(), meter.share_ratio)
    });
    let modules = loaded.files.clone();
    let watched = std::iter::once(config.file.clone()).chain(modules).collect();
    Ok(Layout {
        file: config.file.clone(),
        watched,
        feed: at("feeder").map(|feeder| vec![feeder]),
        probe: Some(decide),
        inference,
        metered,
        plugins,
        buffer_limit_bytes: usize::try_from(BUFFER_LIMIT_BYTES).unwrap_or(usize::MAX),
        routes: Arc::new(Routes::of_config(&config)),
        attributes: Vec::new(),
        own: Some(Arc::new(config)),
    })
}

/// Reads a filter as Envoy would.
fn of_filter(
    config: &Config,
    name: &str,
    filter: &Json,
    loaded: &render::LoadedFilters,
) -> Result<PluginSpec, RunError> {
    let text = |pointer: &str| filter.pointer(pointer).and_then(Json::as_str).unwrap_or_default();
    let file = PathBuf::from(text("/config/vm_config/code/local/filename"));
    let bytes = loaded.modules.get(&file).cloned().ok_or_else(|| {
        RunError::value(&config.file, name, file.display().to_string(), "a module that is loaded")
    })?;
    let failure_policy = match (
        filter.pointer("/config/fail_open").and_then(Json::as_bool),
        text("/config/failure_policy"),
    ) {
        (Some(true), _) => FailurePolicy::LegacyFailOpen,
        (_, "FAIL_RELOAD") => FailurePolicy::FailReload { backoff: RELOAD_BACKOFF },
        (_, "FAIL_OPEN") => FailurePolicy::FailOpen,
        _ => FailurePolicy::FailClosed,
    };
    let allowed = filter.pointer("/config/capability_restriction_config/allowed_capabilities");
    let allowed = allowed.and_then(Json::as_object).into_iter().flatten();
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or(name);
    // The name without the hash of its content.
    let module = stem.rsplit_once('-').map_or(stem, |(stem, _)| stem).to_owned();
    Ok(PluginSpec {
        key: format!("filter {name}"),
        name: name.to_owned(),
        root_id: text("/config/root_id").to_owned(),
        vm_id: text("/config/vm_config/vm_id").to_owned(),
        module: (module, bytes),
        configuration: text("/config/configuration/value").as_bytes().to_vec(),
        vm_configuration: Vec::new(),
        environment: Vec::new(),
        failure_policy,
        allow_on_headers_stop_iteration: filter
            .pointer("/config/allow_on_headers_stop_iteration")
            .and_then(Json::as_bool)
            .unwrap_or(false),
        allowed: allowed.map(|(name, _)| name.clone()).collect(),
        limits: GuestLimits::default(),
    })
}

/// Envoy's default back-off of `FAIL_RELOAD`.
pub(super) const RELOAD_BACKOFF: Duration = Duration::from_secs(1);

impl Layout {
    /// Whether a chain has a plugin that may look at bodies of responses.
    pub(super) fn reads_response_bodies(&self, chain: &[usize]) -> bool {
        chain.iter().filter_map(|at| self.plugins.get(*at)).any(|plugin| {
            let callback = "proxy_on_response_body";
            plugin.allowed.is_empty() || plugin.allowed.iter().any(|name| name == callback)
        })
    }

    /// How requests of the inference chains find their route.
    pub(super) fn route_choice(&self) -> wasm_host::RouteChoice {
        let routes = Arc::clone(&self.routes);
        Arc::new(move |headers: &HeaderMap| routes.attributes(headers))
    }
}
