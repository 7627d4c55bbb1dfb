//! A gateway in wasmtime: the modules that Envoy loads, on `wasm-host`, with a state put into their
//! shared data.

mod state;

use anyhow::{Context, Result};
use serde_json::Value;
use wasm_host::{
    ChainConfig, ChainId, Engine, FailurePolicy, Host, HostLimits, HostOptions, LogLevel, Module,
    PluginConfig, PluginId,
};

pub use state::{Held, POOL, State};

/// What the modules of a gateway share.
pub const VM_ID: &str = "wasm-epp";

/// Compiled modules of `target/wasm`.
pub struct Modules {
    /// What they were compiled with.
    pub engine: Engine,
    router: Module,
    feeder: Module,
    meter: Module,
    scorer: Module,
}

impl Modules {
    /// Reads and compiles them.
    ///
    /// # Errors
    /// If one is not built.
    pub fn load() -> Result<Self> {
        let engine = Engine::new()?;
        let module = |name: &str| {
            let path = crate::root().join(format!("target/wasm/{name}.wasm"));
            Module::from_file(&engine, &path)
                .with_context(|| format!("{name}.wasm: scripts/build-modules makes it"))
        };
        let (router, feeder) = (module("router")?, module("feeder")?);
        let (meter, scorer) = (module("meter")?, module("load-aware-scorer")?);
        Ok(Self { engine, router, feeder, meter, scorer })
    }
}

/// How the filters of a gateway are configured.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    /// Of intake.
    pub intake: Value,
    /// Of the picker.
    pub picker: Value,
    /// Of a scorer between them, if there is one.
    pub scorer: Option<Value>,
    /// Of the meter, if there is one.
    pub meter: Option<Value>,
}

/// A gateway of some workers.
pub struct Gateway {
    /// Where it runs.
    pub host: Host,
    /// What requests pass.
    pub requests: ChainId,
    /// What batches are posted to.
    pub feed: ChainId,
    /// All plugins, by name.
    pub plugins: Vec<(&'static str, PluginId)>,
}

impl Gateway {
    /// Loads and configures the modules.
    ///
    /// # Errors
    /// If a configuration is refused.
    pub fn new(modules: &Modules, filters: &Filters, workers: usize, seed: u64) -> Result<Self> {
        let limits = HostLimits { log_lines: 64, call_records: 4_096, ..HostLimits::default() };
        let log_level = LogLevel::Info;
        let options = HostOptions { workers, seed, limits, log_level, ..HostOptions::default() };
        let mut host = Host::new(&modules.engine, options);
        let mut plugins = Vec::new();
        let mut add = |name: &'static str, module: &Module, configuration: &Value| -> Result<_> {
            let mut config = PluginConfig::new(name, module);
            config.root_id = name.to_owned();
            config.vm_id = if name == "scorer" { format!("{VM_ID}-{name}") } else { VM_ID.into() };
            config.configuration = configuration.to_string().into_bytes();
            config.allow_on_headers_stop_iteration = true;
            config.failure_policy = FailurePolicy::LegacyFailOpen;
            config.canary = false;
            let plugin = host.add_plugin(config).with_context(|| format!("{name} is refused"))?;
            plugins.push((name, plugin));
            Ok(plugin)
        };
        let mut chain = Vec::new();
        if let Some(meter) = &filters.meter {
            chain.push(add("meter", &modules.meter, meter)?);
        }
        chain.push(add("intake", &modules.router, &filters.intake)?);
        if let Some(scorer) = &filters.scorer {
            chain.push(add("scorer", &modules.scorer, scorer)?);
        }
        chain.push(add("picker", &modules.router, &filters.picker)?);
        let feeder = add("feeder", &modules.feeder, &Value::Null)?;
        let config = ChainConfig { buffer_limit_bytes: 16 << 20, ..ChainConfig::new(chain) };
        let requests = host.add_chain(config)?;
        let feed = host.add_chain(ChainConfig::new([feeder]))?;
        Ok(Self { host, requests, feed, plugins })
    }

    /// Puts a state into the shared data, as the feeder would that just received it.
    pub fn put(&mut self, state: &[(feed::Key, Vec<u8>)]) {
        for (key, value) in state {
            self.host.set_shared_data(VM_ID, key.encode(), value);
        }
        let head = state::head(self.host.monotonic_ns());
        self.host.set_shared_data(VM_ID, feed::Key::Head.encode(), head.encode());
    }

    /// The first machine that died, in words.
    ///
    /// # Errors
    /// Never for plugins of this gateway.
    pub fn death(&self) -> Result<Option<String>> {
        for (name, plugin) in &self.plugins {
            for worker in 0..self.host.workers() {
                if let Some(failure) = self.host.failure(*plugin, worker)? {
                    return Ok(Some(format!("{name}: {failure:#?}")));
                }
            }
        }
        Ok(None)
    }
}
