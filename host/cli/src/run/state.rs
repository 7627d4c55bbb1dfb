//! The state of a one-shot run: a fixture of what engines say and hold, put into the gateway by the
//! daemon's own batches through the feeder's own chain.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use feed::{Ack, AckStatus, BatchBuilder, BatchHeader};
use feed_push::{Fill, StateSource};
use prefix_index::{EngineHash, StoredBlocks, Tier};
use prompt::{Api, Request};
use routing::{Load, SourceState};
use serde::Deserialize;
use serde_json::Value as Json;
use wasm_host::Request as HostRequest;

use super::error::{RunError, parse, read};
use super::stand::Stand;
use crate::config::Config;
use crate::serve::gateway::GatewayFeed;
use crate::serve::in_flight::InFlight;
use crate::serve::scope::{self, Scope};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawState {
    endpoints: Vec<RawEndpoint>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawEndpoint {
    address: String,
    pool: Option<String>,
    #[serde(default = "yes")]
    ready: bool,
    waiting: Option<i64>,
    running: Option<i64>,
    kv_usage_ratio: Option<f64>,
    source: Option<String>,
    block_size_tokens: Option<i64>,
    cache_tokens: Option<i64>,
    #[serde(default)]
    holds: Vec<RawHeld>,
}

/// A request whose prompt the endpoint has in its cache.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawHeld {
    path: String,
    body: Json,
    adapter: Option<String>,
}

fn yes() -> bool {
    true
}

const SOURCES: [(&str, SourceState); 5] = [
    ("none", SourceState::None),
    ("live", SourceState::Live),
    ("resyncing", SourceState::Resyncing),
    ("degraded", SourceState::Degraded),
    ("lost", SourceState::Lost),
];

/// Bytes of a token of a held prompt: what the daemon takes until usage teaches better.
const TOKEN_BYTES: usize = 4;
const BLOCK_SIZE_TOKENS: i64 = 16;

/// A fixture that was read, with the scopes that it describes.
pub(super) struct State {
    scopes: Vec<Arc<Scope>>,
}

impl State {
    /// Reads a fixture for this configuration.
    pub(super) fn load(file: &Path, config: &Config) -> Result<Self, RunError> {
        let raw: RawState = parse(file, &read(file, "the state")?)?;
        let failed = |message: String| RunError::State { file: file.to_owned(), message };
        // Seeds are a pool's secret, and this gateway is nobody's: it has its own.
        let data = std::env::temp_dir().join(format!("wasm-epp-run-{}", std::process::id()));
        let own = Config { data_dir: data.clone(), ..config.clone() };
        let scopes = scope::load(&own, &[Arc::default()]);
        // What is left of it is in nobody's way.
        let _ = std::fs::remove_dir_all(&data);
        let scopes = scopes.map_err(|error| failed(format!("{error:#}")))?;
        let mut hashes = 0;
        for (n, endpoint) in raw.endpoints.into_iter().enumerate() {
            apply(file, n, endpoint, &scopes, &mut hashes)?;
        }
        Ok(Self { scopes })
    }

    /// Pushes all of it, as the daemon would.
    pub(super) fn push(&self, file: &Path, stand: &mut Stand) -> Result<Beats, RunError> {
        let mut source =
            GatewayFeed::new(0, &self.scopes, &Arc::new(InFlight::new(&[Arc::default()])));
        // An instance of 0 asks for the gateway's own.
        let asked = post(stand, BatchBuilder::new(BatchHeader::default()).finish())
            .map_err(|message| RunError::State { file: file.to_owned(), message })?;
        let epoch = asked.head.epoch.saturating_add(1);
        let header =
            BatchHeader { instance: asked.head.instance, epoch, sequence: 0, completes: false };
        let mut beats = Beats { file: file.to_owned(), header };
        source.begin_snapshot();
        loop {
            let mut batch = beats.next();
            let fill =
                source.fill(epoch, &mut batch, feed::MAX_BATCH_BYTES / 2, feed::MAX_BATCH_ENTRIES);
            let is_last = fill == Fill::Drained;
            let bytes = if is_last { batch.finish_completing() } else { batch.finish() };
            beats.apply(stand, bytes)?;
            source.applied();
            if is_last {
                return Ok(beats);
            }
        }
    }
}

/// What the daemon goes on with: an empty batch each second, without which state grows old.
pub(super) struct Beats {
    file: PathBuf,
    header: BatchHeader,
}

impl Beats {
    /// As the daemon's.
    pub(super) const INTERVAL: Duration = Duration::from_secs(1);

    pub(super) fn beat(&mut self, stand: &mut Stand) -> Result<(), RunError> {
        let batch = self.next().finish();
        self.apply(stand, batch)
    }

    fn next(&mut self) -> BatchBuilder {
        self.header.sequence += 1;
        BatchBuilder::new(self.header)
    }

    fn apply(&self, stand: &mut Stand, batch: Vec<u8>) -> Result<(), RunError> {
        let failed = |message: String| RunError::State { file: self.file.clone(), message };
        let ack = post(stand, batch).map_err(failed)?;
        if ack.status == AckStatus::Applied {
            return Ok(());
        }
        Err(failed(format!("the feeder answers {:?} to a batch: {}", ack.status, ack.reason)))
    }
}

fn post(stand: &mut Stand, batch: Vec<u8>) -> Result<Ack, String> {
    let chain = stand.chains.feed.ok_or("the chain has no feeder")?;
    let request = HostRequest::post("/feed", batch);
    let none = |_: &wasm_host::Message| wasm_host::Response::new(503, "");
    let outcome =
        stand.host.exchange(chain, 0, request, none).map_err(|error| error.to_string())?;
    Ack::decode(&outcome.downstream.body).map_err(|error| {
        let status = outcome.downstream.status().unwrap_or_default();
        format!("the feeder answers {status}, which is no ack: {error}")
    })
}

fn apply(
    file: &Path,
    n: usize,
    raw: RawEndpoint,
    scopes: &[Arc<Scope>],
    hashes: &mut u64,
) -> Result<(), RunError> {
    let key = |name: &str| format!("endpoints[{n}].{name}");
    let number = |name: &str, value: Option<i64>, least: i64, most: i64| match value {
        Some(value) if !(least..=most).contains(&value) => {
            Err(RunError::value(file, key(name), value, format!("{least} to {most}")))
        }
        value => Ok(value.map(|value| value as u32)),
    };
    let mut found = scopes
        .iter()
        .filter(|scope| raw.pool.as_ref().is_none_or(|pool| *pool == scope.pool))
        .filter_map(|scope| {
            let slot = scope.roster.only(|endpoint| endpoint.address == raw.address)?;
            Some((scope, slot))
        });
    let (Some((scope, slot)), None) = (found.next(), found.next()) else {
        let expected =
            "the address of one endpoint of the configuration (with pool, where several have it)";
        return Err(RunError::value(file, key("address"), &raw.address, expected));
    };
    let most = i64::from(u32::MAX);
    let load = Load {
        is_ready: raw.ready,
        waiting: number("waiting", raw.waiting, 0, most)?,
        running: number("running", raw.running, 0, most)?,
        kv_usage_ratio: match raw.kv_usage_ratio {
            Some(ratio) if !(0.0..=1.0).contains(&ratio) => {
                return Err(RunError::value(file, key("kvUsageRatio"), ratio, "0 to 1"));
            }
            ratio => ratio.map(|ratio| ratio as f32),
        },
    };
    let follows = scope.roster.endpoint(slot).kv_events.is_some();
    let default = if follows || !raw.holds.is_empty() { "live" } else { "none" };
    let named = raw.source.as_deref().unwrap_or(default);
    let source = SOURCES.iter().find(|(name, _)| *name == named).ok_or_else(|| {
        let names: Vec<&str> = SOURCES.iter().map(|(name, _)| *name).collect();
        RunError::value(file, key("source"), named, format!("one of {}", names.join(", ")))
    })?;
    let block = raw.block_size_tokens.or(Some(BLOCK_SIZE_TOKENS));
    let block = number("blockSizeTokens", block, 1, 65_536)?.unwrap_or_default();
    let cache_tokens = number("cacheTokens", raw.cache_tokens, 0, most)?.unwrap_or(0);
    scope.update(slot, |engine| {
        engine.load = load;
        engine.block_size_tokens = block;
        engine.cache_tokens = cache_tokens;
        match source.1 {
            SourceState::Degraded => {
                engine.stream = SourceState::Live;
                engine.doubts.events = true;
            }
            state => engine.stream = state,
        }
    });
    for (m, held) in raw.holds.into_iter().enumerate() {
        hold(file, &format!("endpoints[{n}].holds[{m}]"), held, scope, slot, block, hashes)?;
    }
    Ok(())
}

/// Announces a prompt's blocks as the engine would, with tokens of four bytes each.
fn hold(
    file: &Path,
    key: &str,
    held: RawHeld,
    scope: &Scope,
    slot: u16,
    block_size_tokens: u32,
    hashes: &mut u64,
) -> Result<(), RunError> {
    let api = Api::from_path(held.path.as_bytes()).ok_or_else(|| {
        RunError::value(file, format!("{key}.path"), &held.path, "the path of an API with prompts")
    })?;
    let body = match held.body {
        Json::String(text) => text,
        json => json.to_string(),
    };
    let refused = |why: String| {
        RunError::value(
            file,
            format!("{key}.body"),
            &body,
            format!("a prompt that can be held: {why}"),
        )
    };
    let request =
        Request::parse(api, body.as_bytes()).map_err(|error| refused(error.to_string()))?;
    let renderer = scope.renderer.as_ref().map_err(|error| refused(error.to_string()))?;
    let prompt = renderer.render(&request).map_err(|error| refused(error.to_string()))?;
    let tokens: Vec<&[u8]> = prompt.bytes.chunks_exact(TOKEN_BYTES).collect();
    let blocks = tokens.len() / block_size_tokens as usize;
    let token_ids: Vec<u32> = (0..(blocks as u32) * block_size_tokens).collect();
    let block_hashes: Vec<EngineHash> =
        (0..blocks as u64).map(|i| EngineHash(*hashes + i)).collect();
    *hashes += blocks as u64;
    if blocks == 0 {
        return Ok(());
    }
    let stored = StoredBlocks {
        hashes: &block_hashes,
        parent: None,
        token_ids: &token_ids,
        block_size_tokens,
        tier: Tier::Gpu,
        lora: held.adapter.as_deref(),
        salt: request.cache_salt(),
        beyond_text: &[],
    };
    let mut live = scope.live();
    if let Some(adapter) = &held.adapter {
        live.learn_adapter(adapter);
    }
    let Some((_, index)) = live.indexes.first_mut() else { return Ok(()) };
    index.begin_batch(slot);
    index.store(slot, &stored, 0, |id| tokens.get(id as usize).copied());
    Ok(())
}
