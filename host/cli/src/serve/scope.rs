//! One (pool, model) pair: its index, its endpoints, what gateways must know of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Instant;

use anyhow::{Context, ensure};
use canonical::Checker;
use feed::{
    EndpointEntry, EngineAdapters, LoadRecord, MAX_ADAPTERS, MAX_ENGINE_ADAPTERS,
    MAX_SINGLETON_BYTES, ModelValue, Table,
};
use kv_events::{Encoding, Position, Resume};
use model::{ModelFolder, TokenTable};
use pod_metrics::LoraAdapters;
use prefix_index::{Index, IndexConfig, KeySpace, Presence};
use prompt::{Renderer, TemplateError};
use routing::{Load, SourceState};
use tokio::sync::Notify;

use super::canonicality::{self, Asker, Checks};
use super::lag::Applied;
use super::roster::{MAX_SLOTS, Place, Roster};
use super::seed;
use super::snapshot::{Origin, digest_of};
use super::verify::Rendering;
use crate::config::{Config, Endpoint, EngineKind, Model};
use crate::model_files;

/// Most strides per bucket when the index is full; at least half of it, as bucket counts are powers
/// of two. A bucket's key and header cost about 110 bytes in the gateway, a stride of one holder 10:
/// with 8 to 16 that is 24 to 17 bytes per stride (`scripts/bench memory`).
const STRIDES_PER_BUCKET: u64 = 16;
/// Bytes of text per token until usage teaches better (measured spread 1.0 to 9.5).
const BYTES_PER_TOKEN: f32 = 4.0;

/// Longest name of an adapter that is learned from events; file systems allow no longer folder.
const MAX_ADAPTER_NAME_BYTES: usize = 255;

/// A (pool, model) pair.
pub(crate) struct Scope {
    /// Number in keys of the feed.
    pub(crate) number: u16,
    /// Number of the buckets over token ids, where the model has them.
    pub(crate) token_ids_number: Option<u16>,
    pub(crate) pool: String,
    pub(crate) model: Model,
    /// Its endpoints come and go.
    pub(crate) is_discovered: bool,
    /// Who is in which slot.
    pub(crate) roster: Roster,
    /// Held to read while an update is brought to the slot that was found for it, and to write while a slot is
    /// emptied.
    pub(crate) comings: RwLock<()>,
    pub(crate) tokens: TokenTable,
    /// Digest of `tokens`: with another table the same text is other tokens.
    pub(crate) tokens_digest: [u8; 32],
    /// Renders as the gateways do.
    pub(crate) renderer: Result<Renderer, TemplateError>,
    pub(crate) seed: prefix::Seed,
    spec_json: Vec<u8>,
    bucket_count: u32,
    live: Mutex<Live>,
    wakers: Vec<Arc<Notify>>,
    pub(crate) checks: Arc<Checks>,
    /// Batches whose way to the gateways is timed.
    pub(crate) applied: Applied,
    start_checks: Mutex<Option<StartChecks>>,
    /// Zero of the times that parked blocks are aged by.
    pub(crate) started: Instant,
}

/// Starts the checker's thread, once the scope is where it stays.
type StartChecks = Box<dyn FnOnce(Weak<Scope>) + Send>;

/// What changes.
pub(crate) struct Live {
    /// The index over text, then the one over token ids if there is one; with their numbers.
    pub(crate) indexes: Vec<(u16, Index)>,
    /// By slot, also of those that are not in use.
    pub(crate) engines: Vec<Engine>,
    /// Moves with every change of a load record.
    pub(crate) load_version: u64,
    /// Moves with every change of the roster that gateways are told of.
    pub(crate) table_version: u64,
    /// Slots that were emptied so far.
    pub(crate) retirements: u64,
    /// Asks whether generated blocks are canonical; `None` where the tokenizer has no checker.
    pub(crate) asker: Option<Asker>,
    /// LoRA adapters, configured ones first, then those that events have named.
    pub(crate) adapters: Vec<String>,
    /// Moves with [`Live::adapters`].
    pub(crate) adapters_version: u64,
    /// Strides that did not fit their bucket, by push.
    pub(crate) overflow: u64,
}

/// What is known of one engine.
#[derive(Clone, Debug, Default)]
pub(crate) struct Engine {
    pub(crate) load: Load,
    /// Whoever told of it says that it takes no requests now.
    pub(crate) is_withdrawn: bool,
    /// Its LoRA adapters by its metrics.
    pub(crate) adapters: Option<EngineAdapters>,
    /// State of the stream of its events.
    pub(crate) stream: SourceState,
    /// The stream does not go back to the engine's start.
    pub(crate) is_partial: bool,
    /// Why what is known of it may be wrong although the stream is live.
    pub(crate) doubts: Doubts,
    /// What its KV cache groups are.
    pub(crate) groups: Groups,
    /// Its cache was cleared since its source was reset, so that history is nothing to miss.
    pub(crate) is_cleared: bool,
    /// Rank of its batches.
    pub(crate) rank: Option<u32>,
    /// The engine's clock at the first batch that is not void, in seconds since the Unix epoch.
    pub(crate) first_batch_at: Option<f64>,
    /// Tokens per block by its events, else by its metrics; 0 while unknown.
    pub(crate) block_size_tokens: u32,
    /// Tokens its KV cache has room for, by its metrics; 0 while unknown.
    pub(crate) cache_tokens: u32,
    /// Tokens per block by its metrics alone.
    pub(crate) metrics_block_size_tokens: Option<u32>,
    /// When the last batch of events was applied.
    pub(crate) last_batch: Option<Instant>,
    /// How the events since the last restart are written.
    pub(crate) encoding: Encoding,
    /// Timestamp and receipt of the last batch that lags are taken from.
    pub(crate) last_published: Option<(f64, tokio::time::Instant)>,
    pub(crate) counters: EngineCounters,
    /// Prompt tokens it has read, by its metrics: when its process was first seen, and now.
    pub(crate) prompt_tokens: Option<(u64, u64)>,
    /// The process that the last scrape reached, by its start in seconds since the Unix epoch.
    pub(crate) process_start: Option<f64>,
    /// Resets of the source when that process was first seen.
    pub(crate) resets_at_start: u64,
    /// The last batch of its events that was applied, since its state was void.
    pub(crate) position: Option<Position>,
    /// Where its state was taken from, while that is not void.
    pub(crate) restored: Option<Restored>,
    /// Scrapes that failed since the last good one.
    pub(crate) failures: u32,
    /// Why the last scrape failed.
    pub(crate) scrape_error: Option<String>,
    /// How its prompts compare with ours.
    pub(crate) rendering: Rendering,
}

impl Engine {
    /// How far its prefix state can be trusted.
    pub(crate) fn source(&self) -> SourceState {
        match self.stream {
            SourceState::Live if self.doubts != Doubts::default() => SourceState::Degraded,
            stream => stream,
        }
    }

    /// Whether it may be picked.
    pub(crate) fn is_ready(&self) -> bool {
        self.load.is_ready && !self.is_withdrawn
    }

    /// Nothing that was announced so far counts any more.
    pub(crate) fn is_void(&mut self) {
        self.doubts = Doubts { history: self.is_partial, ..Doubts::default() };
        (self.position, self.restored) = (None, None);
        self.groups = Groups::default();
        self.is_cleared = false;
        self.rank = None;
        self.first_batch_at = None;
    }
}

/// Why what is known of an engine may be wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doubts {
    /// What was cached before the history that we got is missing.
    pub(crate) history: bool,
    /// Its metrics say that it is another process, and its events do not.
    pub(crate) restart: bool,
    /// Its connection broke, and what was published meanwhile cannot be asked for; the number of its
    /// next batch tells whether there was anything.
    pub(crate) connection: bool,
    /// Events were not understood.
    pub(crate) events: bool,
    /// A KV cache group is not understood.
    pub(crate) hybrid: bool,
    /// Batches of several ranks came from one source.
    pub(crate) ranks: bool,
}

impl Doubts {
    /// One bit each, for snapshots: places are never used anew.
    pub(crate) fn bits(self) -> u8 {
        let all =
            [self.history, self.restart, self.connection, self.events, self.hybrid, self.ranks];
        all.iter().rev().fold(0, |bits, is| bits << 1 | u8::from(*is))
    }

    pub(crate) fn of_bits(bits: u8) -> Self {
        let is = |place: u8| bits >> place & 1 == 1;
        let [history, restart, connection, events, hybrid, ranks] = [0, 1, 2, 3, 4, 5].map(is);
        Self { history, restart, connection, events, hybrid, ranks }
    }

    /// Their names.
    pub(crate) fn names(self) -> Vec<&'static str> {
        let all = [
            ("history", self.history),
            ("restart", self.restart),
            ("connection", self.connection),
            ("events", self.events),
            ("hybrid", self.hybrid),
            ("ranks", self.ranks),
        ];
        all.into_iter().filter_map(|(name, is)| is.then_some(name)).collect()
    }
}

/// KV cache groups of one engine, by number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups {
    /// The group of full attention that is indexed.
    pub(crate) full: Option<u32>,
    /// Windowed groups.
    pub(crate) windowed: BTreeSet<u32>,
}

/// State of an engine that another process has applied.
#[derive(Clone, Debug)]
pub(crate) struct Restored {
    pub(crate) origin: Origin,
    /// Blocks held in some tier.
    pub(crate) blocks: usize,
}

impl Engine {
    /// Where its source is taken up, if its state is another process's.
    pub(crate) fn resume(&self) -> Option<Resume> {
        let position = self.position.filter(|_| self.restored.is_some())?;
        Some(Resume { position, partial: self.is_partial })
    }
}

/// Counters of one engine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EngineCounters {
    pub(crate) batches: u64,
    pub(crate) stored_blocks: u64,
    pub(crate) removed_blocks: u64,
    pub(crate) stored_events: u64,
    pub(crate) removed_events: u64,
    pub(crate) cleared_events: u64,
    pub(crate) unknown_events: u64,
    /// Resets because the engine restarted.
    pub(crate) restarts: u64,
    /// Resets because batches are missing.
    pub(crate) gaps: u64,
    pub(crate) undecodable: u64,
    pub(crate) other_groups: u64,
    /// Blocks that may be of generated text, which is checked.
    pub(crate) generated_blocks: u64,
    /// Token ids without bytes in blocks that nobody had announced before.
    pub(crate) unknown_tokens: u64,
    pub(crate) fenced: u64,
    pub(crate) scrapes: u64,
    pub(crate) scrape_failures: u64,
}

impl EngineCounters {
    /// Times the source said that its state is void.
    pub(crate) fn resets(&self) -> u64 {
        self.restarts + self.gaps
    }
}

/// Reads models and seeds.
pub(crate) fn load(config: &Config, wakers: &[Arc<Notify>]) -> anyhow::Result<Vec<Arc<Scope>>> {
    let mut scopes = Vec::new();
    let mut next_number = 0;
    for pool in &config.pools {
        let seed = seed::of_pool(&config.data_dir, &pool.name)?;
        for model in &pool.models {
            let name = format!("pools[{}].models[{}]", pool.name, model.name);
            let path = model_files::folder(model).with_context(|| name.clone())?;
            let folder = ModelFolder::load(&path)
                .with_context(|| format!("{name}: read {}", path.display()))?;
            let spec_json = serde_json::to_vec(&folder.spec)?;
            ensure!(
                spec_json.len() + 256 <= MAX_SINGLETON_BYTES,
                "{name}: chat template and special tokens take {} bytes, at most {} fit the feed",
                spec_json.len(),
                MAX_SINGLETON_BYTES - 256
            );
            let renderer = Renderer::new(&folder.spec);
            match &renderer {
                Ok(_) if folder.spec.chat_template.is_none() => {
                    tracing::warn!(model = model.name, folder = %path.display(), "no chat template: chats are routed by load");
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(model = model.name, folder = %path.display(), %error, "the chat template cannot be used: prompts are routed by load");
                }
            }
            let endpoints: Vec<Endpoint> =
                pool.endpoints.iter().filter(|e| e.model == model.name).cloned().collect();
            let table_bytes = table_of((0..).zip(&endpoints), 0).encode().len();
            ensure!(
                table_bytes <= MAX_SINGLETON_BYTES,
                "{name}: addresses, labels and attributes of the endpoints take {table_bytes} bytes, \
                 at most {MAX_SINGLETON_BYTES} fit the feed"
            );
            let buckets = (model.max_strides / STRIDES_PER_BUCKET).clamp(64, 1 << 24);
            let bucket_count = (buckets as u32).next_power_of_two();
            let number = next_number;
            let token_ids_number = model.token_id_prompts.then_some(number + 1);
            next_number += 1 + u16::from(model.token_id_prompts);
            let text = std::iter::once((number, KeySpace::Text));
            let indexes = text.chain(token_ids_number.map(|n| (n, KeySpace::TokenIds)));
            let indexes = indexes.map(|(number, key_space)| {
                let config = IndexConfig {
                    model: model.name.clone(),
                    seed: seed.clone(),
                    bucket_count,
                    max_strides: model.max_strides as usize,
                    key_space,
                };
                (number, index_for(config, &endpoints))
            });
            let indexes = indexes.collect();
            let slots = if pool.discovery.is_some() { MAX_SLOTS } else { endpoints.len() };
            let (asker, checks, start_checks) = match Checker::load(&path) {
                Ok(checker) => {
                    let (asker, checks, start) = canonicality::start(checker, slots);
                    (Some(asker), checks, Some(Box::new(start) as StartChecks))
                }
                Err(error) => {
                    // Only generated text is affected, and by what was generated at most.
                    tracing::warn!(model = model.name, error = %anyhow::Error::new(error), "generated blocks are not checked");
                    (None, Arc::default(), None)
                }
            };
            let engines = vec![Engine::default(); endpoints.len()];
            scopes.push(Arc::new(Scope {
                number,
                token_ids_number,
                pool: pool.name.clone(),
                model: model.clone(),
                is_discovered: pool.discovery.is_some(),
                roster: Roster::new(endpoints, wakers.len()),
                comings: RwLock::default(),
                tokens_digest: digest_of(&folder.tokens),
                tokens: folder.tokens,
                renderer,
                seed: seed.clone(),
                spec_json,
                bucket_count,
                live: Mutex::new(Live {
                    indexes,
                    engines,
                    load_version: 1,
                    table_version: 1,
                    retirements: 0,
                    asker,
                    adapters: model.adapters.clone(),
                    adapters_version: 1,
                    overflow: 0,
                }),
                checks,
                applied: Applied::new(wakers.len()),
                start_checks: Mutex::new(start_checks),
                wakers: wakers.to_vec(),
                started: Instant::now(),
            }));
        }
    }
    Ok(scopes)
}

fn index_for(config: IndexConfig, endpoints: &[Endpoint]) -> Index {
    let mut index = Index::new(config);
    for endpoint in endpoints {
        let slot = index.add_endpoint();
        index.set_presence(slot, presence(endpoint.engine));
    }
    index
}

fn presence(kind: EngineKind) -> Presence {
    match kind {
        EngineKind::Vllm => Presence::Copies,
        EngineKind::Sglang | EngineKind::Trtllm => Presence::Set,
    }
}

impl Live {
    /// The indexes without their numbers.
    pub(crate) fn each(&mut self) -> impl Iterator<Item = &mut Index> {
        self.indexes.iter_mut().map(|(_, index)| index)
    }

    /// What a page says of adapters, by their numbers. Those that have none count for the room alone.
    pub(crate) fn number_adapters(&mut self, lora: &LoraAdapters) -> EngineAdapters {
        let mut numbers = |names: &BTreeSet<String>| -> Vec<u16> {
            names.iter().for_each(|name| self.learn_adapter(name));
            let places = names.iter().filter_map(|name| {
                let place = self.adapters.iter().position(|known| known == name)?;
                u16::try_from(place).ok()
            });
            places.take(MAX_ENGINE_ADAPTERS).collect()
        };
        EngineAdapters {
            has_room: lora.has_room(),
            running: numbers(&lora.running),
            waiting: numbers(&lora.waiting),
        }
    }

    /// Takes note of an adapter that an event or a page names. Beyond the limit it stays unknown to gateways,
    /// and its requests are routed by load.
    pub(crate) fn learn_adapter(&mut self, name: &str) {
        let has_room = self.adapters.len() < MAX_ADAPTERS && name.len() <= MAX_ADAPTER_NAME_BYTES;
        if has_room && !self.adapters.iter().any(|known| known == name) {
            tracing::info!(adapter = name, "LoRA adapter seen");
            self.adapters.push(name.to_owned());
            self.adapters_version += 1;
        }
    }

    /// A watcher's [`Index::dirty_positions`] in each index.
    pub(crate) fn dirty_positions(&self, watcher: usize) -> impl Iterator<Item = (u64, u64)> {
        self.indexes.iter().map(move |(_, index)| index.dirty_positions(watcher))
    }

    /// Changed buckets of a gateway's watcher, which has the same number in every index.
    pub(crate) fn dirty_count(&self, watcher: usize) -> usize {
        self.indexes.iter().map(|(_, index)| index.dirty_count(watcher)).sum()
    }
}

impl Scope {
    /// Starts the checker of generated blocks.
    pub(crate) fn start_checks(self: &Arc<Self>) {
        let start = self.start_checks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(start) = start {
            start(Arc::downgrade(self));
        }
    }

    /// What changes, locked. Never held across an await.
    pub(crate) fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the gateways' pushers that something changed.
    pub(crate) fn changed(&self) {
        self.wakers.iter().for_each(|waker| waker.notify_one());
    }

    /// Changes one engine; gateways hear of it if its load record is another then.
    pub(crate) fn update(&self, slot: u16, change: impl FnOnce(&mut Engine)) {
        let mut live = self.live();
        let Some(engine) = live.engines.get_mut(usize::from(slot)) else { return };
        let before = record(slot, engine);
        change(engine);
        let is_changed = before != record(slot, engine);
        if is_changed {
            live.load_version += 1;
            drop(live);
            self.changed();
        }
    }

    /// Takes in one more endpoint; gateways hear of it. `None` when there is no room for it.
    pub(crate) fn add(&self, endpoint: Endpoint) -> Option<u16> {
        let mut live = self.live();
        let listed = self.roster.listed();
        let all = listed.iter().map(|(slot, endpoint)| (*slot, &**endpoint));
        let table_bytes = table_of(all.chain([(0, &endpoint)]), 0).encode().len();
        if table_bytes > MAX_SINGLETON_BYTES {
            return None;
        }
        let kind = endpoint.engine;
        let (slot, place) = self.roster.add(endpoint)?;
        if place == Place::New {
            live.each().for_each(|index| {
                index.add_endpoint();
            });
            live.engines.push(Engine::default());
        }
        live.each().for_each(|index| index.set_presence(slot, presence(kind)));
        live.table_version += 1;
        live.load_version += 1;
        drop(live);
        self.changed();
        Some(slot)
    }

    /// The endpoint of the slot has other labels or attributes.
    pub(crate) fn relabel(&self, slot: u16, endpoint: Endpoint) {
        let mut live = self.live();
        self.roster.replace(slot, endpoint);
        live.table_version += 1;
        drop(live);
        self.changed();
    }

    /// Gateways are to forget the endpoint of the slot.
    pub(crate) fn unlist(&self, slot: u16) {
        let mut live = self.live();
        self.roster.unlist(slot);
        live.table_version += 1;
        live.load_version += 1;
        drop(live);
        self.changed();
    }

    /// Empties the slot of an endpoint that is not listed and that no task follows any more.
    pub(crate) fn retire(&self, slot: u16) {
        let _alone = self.comings.write().unwrap_or_else(PoisonError::into_inner);
        let mut live = self.live();
        live.each().for_each(|index| index.reset_endpoint(slot));
        if let Some(asker) = &mut live.asker {
            asker.forget(slot);
        }
        live.engines[usize::from(slot)] = Engine::default();
        live.retirements += 1;
        self.roster.rest(slot, live.retirements);
        drop(live);
        self.changed();
    }

    pub(crate) fn table(&self, epoch: u64) -> Table {
        let listed = self.roster.listed();
        table_of(listed.iter().map(|(slot, endpoint)| (*slot, &**endpoint)), epoch)
    }

    pub(crate) fn model_value(&self, epoch: u64) -> ModelValue {
        ModelValue {
            epoch,
            seed: self.seed.clone(),
            bucket_count: self.bucket_count,
            bytes_per_token: BYTES_PER_TOKEN,
            spec_json: self.spec_json.clone(),
        }
    }
}

fn table_of<'e>(endpoints: impl Iterator<Item = (u16, &'e Endpoint)>, epoch: u64) -> Table {
    let entries = endpoints.map(|(slot, endpoint)| EndpointEntry {
        slot,
        address: endpoint.address.clone(),
        labels: endpoint.labels.clone().into_iter().collect(),
        attributes: endpoint.attributes.clone().into_iter().collect(),
    });
    Table { epoch, endpoints: entries.collect() }
}

/// The engine's record of the load table.
pub(crate) fn record(slot: u16, engine: &Engine) -> LoadRecord {
    LoadRecord {
        slot,
        load: Load { is_ready: engine.is_ready(), ..engine.load },
        source: engine.source(),
        block_size_tokens: engine.block_size_tokens,
        cache_tokens: engine.cache_tokens,
        // Saturating: what is no such time is unknown.
        started_s: engine.process_start.map_or(0, |seconds| seconds as u32),
        adapters: engine.adapters.clone(),
    }
}
