//! As a proxy-wasm module in wasmtime, with the bytes that cross between filters.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use feed::{FEATURES_PROPERTY, Features, SCORE_PROPERTY_PREFIX, Scores as Record};
use serde_json::json;
use testbed::root;
use wasm_host::{ChainConfig, ChainId, Engine, HeaderMap, Host, HostOptions, Module, PluginConfig};

use super::fed::{NAME, untold_to_module};
use super::packaging::{Packaging, Scores, Situation, Which};

const EPOCH: u64 = 7;

/// The modules of `target/wasm`.
pub(crate) struct WasmtimeModule {
    engine: Engine,
    host: Host,
    modules: BTreeMap<String, Module>,
    /// By module and configuration.
    chains: BTreeMap<(String, String), ChainId>,
}

impl WasmtimeModule {
    pub(crate) fn new() -> Result<Self> {
        let engine = Engine::new()?;
        let host = Host::new(&engine, HostOptions::default());
        Ok(Self { engine, host, modules: BTreeMap::new(), chains: BTreeMap::new() })
    }

    fn chain(&mut self, scorer: &str, configuration: &str) -> Result<ChainId> {
        let key = (scorer.to_owned(), configuration.to_owned());
        if let Some(chain) = self.chains.get(&key) {
            return Ok(*chain);
        }
        if !self.modules.contains_key(scorer) {
            let file = root().join(format!("target/wasm/{scorer}-scorer.wasm"));
            let module = Module::from_file(&self.engine, &file)?;
            self.modules.insert(scorer.to_owned(), module);
        }
        let module = self.modules.get(scorer).context("just loaded")?;
        let mut config = PluginConfig::new(format!("{scorer} {}", self.chains.len()), module);
        config.configuration = configuration.as_bytes().to_vec();
        let plugin = self.host.add_plugin(config)?;
        let chain = self.host.add_chain(ChainConfig::new([plugin]))?;
        self.chains.insert(key, chain);
        Ok(chain)
    }
}

impl Packaging for WasmtimeModule {
    fn name(&self) -> &'static str {
        "wasmtime-module"
    }

    fn scores(&mut self, which: Which, situation: &Situation) -> Result<Scores> {
        let Situation { request, candidates, .. } = situation;
        // What is not on the wire between filters.
        if untold_to_module(situation).is_some() {
            return Ok(None);
        }
        let (scorer, parameters) = match which {
            Which::Right => (situation.scorer.as_str(), json!(situation.parameters)),
            Which::Skewed => ("skewed", json!({})),
        };
        let configuration = json!({"name": NAME, "parameters": parameters}).to_string();
        let chain = self.chain(scorer, &configuration)?;
        // Slots tell candidates apart on the wire; in a scenario they are its order.
        let features = Features {
            epoch: EPOCH,
            request: request.clone(),
            candidates: candidates.clone(),
            ..Features::default()
        };
        let stream = self.host.open(chain, 0)?;
        let read = format!("wasm.{FEATURES_PROPERTY}");
        self.host.set_filter_state(stream, &read, features.encode())?;
        let headers = HeaderMap::from([(":method", "POST"), (":path", "/v1/completions")]);
        self.host.request_headers(stream, headers, true)?;
        let written = format!("wasm.{SCORE_PROPERTY_PREFIX}{NAME}");
        let outcome = self.host.close(stream)?;
        let bytes = outcome.filter_state.get(written.as_bytes());
        let bytes = bytes.with_context(|| format!("{}: no scores", situation.about))?;
        let record = Record::decode(bytes)?;
        let score = |slot: u16| record.scores.iter().find(|(of, _)| *of == slot).map(|(_, s)| *s);
        let scores = candidates.iter().map(|c| score(c.slot).filter(|score| score.is_finite()));
        Ok(Some(scores.collect()))
    }
}
