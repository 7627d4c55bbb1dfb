//! Built into the router, in wasmtime.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use feed::{EXPLANATION_PROPERTY, FEATURES_PROPERTY};
use serde_json::Value;
use testbed::root;
use wasm_host::{ChainConfig, ChainId, Engine, HeaderMap, Host, HostOptions, Module, PluginConfig};

use super::fed::{Fed, Filters, VM_ID, untold_to_router};
use super::gateway::by_scorer;
use super::packaging::{Packaging, Scores, Situation, Which};

/// `router.wasm`, with a picker for each scorer with its parameters.
pub(crate) struct WasmtimeRouter {
    host: Host,
    router: Module,
    chains: BTreeMap<Filters, ChainId>,
}

impl WasmtimeRouter {
    pub(crate) fn new() -> Result<Self> {
        let engine = Engine::new()?;
        let router = Module::from_file(&engine, root().join("target/wasm/router.wasm"))?;
        let host = Host::new(&engine, HostOptions::default());
        Ok(Self { host, router, chains: BTreeMap::new() })
    }

    fn chain(&mut self, filters: &Filters) -> Result<ChainId> {
        if let Some(chain) = self.chains.get(filters) {
            return Ok(*chain);
        }
        let mut config = PluginConfig::new(format!("picker {}", self.chains.len()), &self.router);
        config.root_id = "picker".into();
        config.vm_id = VM_ID.into();
        config.configuration = filters.of_picker().into_bytes();
        let plugin = self.host.add_plugin(config)?;
        let chain = self.host.add_chain(ChainConfig::new([plugin]))?;
        self.chains.insert(filters.clone(), chain);
        Ok(chain)
    }
}

impl Packaging for WasmtimeRouter {
    fn name(&self) -> &'static str {
        "wasmtime-built-in"
    }

    fn scores(&mut self, which: Which, situation: &Situation) -> Result<Scores> {
        if untold_to_router(situation).is_some() {
            return Ok(None);
        }
        let mut filters = Filters::new(which, situation);
        filters.module = None;
        let chain = self.chain(&filters)?;
        let fed = Fed::new(situation);
        for (key, value) in &fed.shared {
            self.host.set_shared_data(VM_ID, key, value);
        }
        let stream = self.host.open(chain, 0)?;
        let read = format!("wasm.{FEATURES_PROPERTY}");
        self.host.set_filter_state(stream, &read, fed.features.encode())?;
        let headers = HeaderMap::from([(":method", "POST"), (":path", "/v1/completions")]);
        self.host.request_headers(stream, headers, true)?;
        let outcome = self.host.close(stream)?;
        let told = outcome.filter_state.get(format!("wasm.{EXPLANATION_PROPERTY}").as_bytes());
        let told = told.with_context(|| format!("{}: no explanation", situation.about))?;
        let told: Value = serde_json::from_slice(told)?;
        let mut all = by_scorer(&told["scorers"], &fed.features)?;
        let scores = all.remove(&filters.built_in);
        Ok(Some(scores.with_context(|| format!("{}: no scores in {told}", situation.about))?))
    }
}
