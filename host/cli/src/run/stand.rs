//! A host with a layout's plugins and chains.

use std::collections::BTreeMap;
use std::sync::Arc;

use wasm_host::{
    ChainConfig, ChainId, Engine, Host, HostOptions, LogLevel, Module, PluginConfig, PluginId,
    StreamId,
};

use super::error::RunError;
use super::layout::{Layout, PluginSpec};

/// How a host is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct StandOptions {
    pub(super) workers: usize,
    pub(super) seed: u64,
    pub(super) log_level: LogLevel,
    /// Where the guests' clock starts, ns since 1970; `None` for the host's own default.
    pub(super) start_ns: Option<u64>,
}

/// Compiled modules, which a change of the configuration leaves as they are.
pub(super) struct Modules {
    engine: Engine,
    compiled: BTreeMap<String, (Arc<[u8]>, Module)>,
}

impl Modules {
    pub(super) fn new() -> Result<Self, RunError> {
        let engine = Engine::new().map_err(|error| RunError::Runtime(Box::new(error)))?;
        Ok(Self { engine, compiled: BTreeMap::new() })
    }

    fn get(&mut self, layout: &Layout, plugin: &PluginSpec) -> Result<Module, RunError> {
        let (name, bytes) = &plugin.module;
        // Two modules of one file name are told apart by their plugin.
        let key = format!("{name}\n{}", plugin.name);
        let same = |held: &&(Arc<[u8]>, Module)| held.0 == *bytes;
        let others = self.compiled.values().find(|held| held.0 == *bytes && held.1.name() == name);
        if let Some((_, module)) = self.compiled.get(&key).filter(same).or(others) {
            return Ok(module.clone());
        }
        let module = Module::new(&self.engine, name.as_str(), bytes)
            .map_err(|source| load_error(layout, plugin, source))?;
        self.compiled.insert(key, (Arc::clone(bytes), module.clone()));
        Ok(module)
    }
}

/// The chains of a stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chains {
    pub(super) inference: ChainId,
    /// With the share of the requests that it takes, 0..=1.
    pub(super) metered: Option<(ChainId, f64)>,
    pub(super) feed: Option<ChainId>,
    pub(super) probe: Option<ChainId>,
}

/// A host that is ready for streams.
pub(super) struct Stand {
    pub(super) host: Host,
    pub(super) chains: Chains,
    /// In the order of the layout.
    pub(super) plugins: Vec<PluginId>,
    pub(super) layout: Arc<Layout>,
}

fn load_error(layout: &Layout, plugin: &PluginSpec, reason: wasm_host::LoadError) -> RunError {
    RunError::Load { file: layout.file.clone(), key: plugin.key.clone(), reason: Box::new(reason) }
}

impl Stand {
    pub(super) fn new(
        layout: Arc<Layout>,
        modules: &mut Modules,
        options: StandOptions,
    ) -> Result<Self, RunError> {
        let mut host_options = HostOptions {
            workers: options.workers,
            seed: options.seed,
            log_level: options.log_level,
            ..HostOptions::default()
        };
        if let Some(start_ns) = options.start_ns {
            host_options.start_ns = start_ns;
        }
        let mut host = Host::new(&modules.engine, host_options);
        let mut plugins = Vec::new();
        for spec in &layout.plugins {
            let module = modules.get(&layout, spec)?;
            let mut config = PluginConfig::new(spec.name.as_str(), &module);
            config.root_id.clone_from(&spec.root_id);
            config.vm_id.clone_from(&spec.vm_id);
            config.configuration.clone_from(&spec.configuration);
            config.vm_configuration.clone_from(&spec.vm_configuration);
            config.environment = spec.environment.iter().cloned().collect();
            config.failure_policy = spec.failure_policy;
            config.allow_on_headers_stop_iteration = spec.allow_on_headers_stop_iteration;
            config.allowed_capabilities = spec.allowed.iter().cloned().collect();
            config.limits = spec.limits.clone();
            plugins
                .push(host.add_plugin(config).map_err(|source| load_error(&layout, spec, source))?);
        }
        let chain = |numbers: &[usize], route| {
            let ids: Vec<PluginId> =
                numbers.iter().filter_map(|number| plugins.get(*number).copied()).collect();
            let mut config = ChainConfig::new(ids);
            config.buffer_limit_bytes = layout.buffer_limit_bytes;
            config.route = route;
            config
        };
        let inference = host.add_chain(chain(&layout.inference, Some(layout.route_choice())))?;
        let metered = match &layout.metered {
            None => None,
            Some((numbers, share)) => {
                Some((host.add_chain(chain(numbers, Some(layout.route_choice())))?, *share))
            }
        };
        let feed = match &layout.feed {
            None => None,
            Some(numbers) => Some(host.add_chain(chain(numbers, None))?),
        };
        let probe = match &layout.probe {
            None => None,
            Some(numbers) => {
                let routes = Arc::clone(&layout.routes);
                let route: wasm_host::RouteChoice =
                    Arc::new(move |headers: &wasm_host::HeaderMap| routes.of_probe(headers));
                Some(host.add_chain(chain(numbers, Some(route)))?)
            }
        };
        let chains = Chains { inference, metered, feed, probe };
        Ok(Self { host, chains, plugins, layout })
    }

    /// Opens a stream, with the layout's attributes.
    pub(super) fn open(&mut self, chain: ChainId, worker: usize) -> Result<StreamId, RunError> {
        let stream = self.host.open(chain, worker)?;
        for (path, value) in &self.layout.attributes {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            self.host.set_attribute(stream, &path, value.clone())?;
        }
        Ok(stream)
    }

    /// How the machines that failed did, once each.
    pub(super) fn failures(&self, workers: usize) -> Vec<String> {
        let mut failures = Vec::new();
        for plugin in &self.plugins {
            for worker in 0..workers {
                if let Ok(Some(failure)) = self.host.failure(*plugin, worker) {
                    let text = failure.to_string();
                    if !failures.contains(&text) {
                        failures.push(text);
                    }
                }
            }
        }
        failures
    }
}
