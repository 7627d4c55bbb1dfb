//! The tasks that follow one engine: its events and its metrics.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use kv_events::trtllm::{self, TrtllmConfig};
use kv_events::{
    Counters, Directory, EventListener, ListenConfig, Resume, SourceConfig, Timing, Topic,
    follow_with,
};
use pod_metrics::{EngineLoad, Scraper};
use routing::Load;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::scope::{Engine, Scope};
use super::verify;
use super::{apply, carried};
use crate::config::{EngineKind, Metrics};

/// Batches that may wait between socket and index; beyond it the engine's own queue fills.
const QUEUE: usize = 1024;

/// Starts the tasks of a scope, and of the endpoints that it has from the start; without those that follow
/// engines whose events come by a carrier.
pub(crate) fn start(
    scope: &Arc<Scope>,
    metrics: &Metrics,
    has_carrier: bool,
    tasks: &mut JoinSet<()>,
) {
    tasks.spawn(expire(Arc::clone(scope)));
    if scope.is_discovered {
        return;
    }
    for (slot, _) in scope.roster.listed() {
        follow(scope, slot, metrics, has_carrier, tasks);
    }
}

/// Starts the tasks that follow the endpoint of a slot.
pub(crate) fn follow(
    scope: &Arc<Scope>,
    slot: u16,
    metrics: &Metrics,
    has_carrier: bool,
    tasks: &mut JoinSet<()>,
) -> Vec<AbortHandle> {
    let endpoint = scope.roster.endpoint(slot);
    let mut handles = Vec::new();
    let is_carried = has_carrier && carried::can_carry(&endpoint);
    if let Some(events) = endpoint.kv_events.as_ref().filter(|_| !is_carried) {
        let (sender, mut updates) = mpsc::channel(QUEUE);
        let counters = scope.roster.reader(slot);
        let source = match endpoint.engine {
            EngineKind::Trtllm => {
                let config = TrtllmConfig::new(events.clone());
                tasks.spawn(trtllm::follow(config, counters, sender))
            }
            EngineKind::Vllm | EngineKind::Sglang => {
                let config = SourceConfig {
                    endpoint: events.clone(),
                    replay: endpoint.replay.clone(),
                    topic: endpoint.topic.clone(),
                    resume: scope.live().engines[usize::from(slot)].resume(),
                };
                tasks.spawn(follow_with(config, Timing::default(), counters, sender))
            }
        };
        handles.push(source);
        let scope = Arc::clone(scope);
        handles.push(tasks.spawn(async move {
            while let Some(update) = updates.recv().await {
                apply::apply(&scope, slot, update);
            }
        }));
    }
    handles.push(tasks.spawn(verify::watch(Arc::clone(scope), slot)));
    let url = endpoint.metrics.clone();
    handles.push(tasks.spawn(scrape(Arc::clone(scope), slot, url, metrics.clone())));
    handles
}

/// Listens for engines that connect. Their topic names the endpoint: by its address, or by the IP
/// alone where the model has one endpoint there.
pub(crate) async fn listen(
    scopes: &[Arc<Scope>],
    endpoint: &str,
    counts: &Arc<ListenerCounts>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let listener = EventListener::bind(ListenConfig::new(endpoint))
        .await
        .with_context(|| format!("kvEventsListen: bind {endpoint}"))?;
    tracing::info!(endpoint = listener.endpoint(), "listening for KV events");
    let (sender, mut updates) = mpsc::channel(QUEUE);
    let known = Arc::new(Known { scopes: scopes.to_vec(), resumed: Mutex::default() });
    let readers = scopes.to_vec();
    let listener = listener.counting(Arc::new(move |topic: &Topic| {
        let (scope, slot) = endpoint_of(&readers, topic)?;
        Some(scope.roster.reader(slot))
    }));
    let counters = Arc::clone(&counts.counters);
    tasks.spawn(listener.run(Timing::default(), counters, known, sender));
    let counts = Arc::clone(counts);
    let scopes = scopes.to_vec();
    tasks.spawn(async move {
        let mut strangers = HashSet::new();
        while let Some(heard) = updates.recv().await {
            let mut update = Some(heard.update);
            for scope in &scopes {
                // The slot that is found is the endpoint's until the update is applied.
                let _kept = scope.comings.read().unwrap_or_else(PoisonError::into_inner);
                if let Some(slot) = slot_of(scope, &heard.topic)
                    && let Some(update) = update.take()
                {
                    apply::apply(scope, slot, update);
                }
            }
            if update.is_some() {
                counts.strangers.fetch_add(1, Ordering::Relaxed);
                let is_news =
                    strangers.len() < MAX_STRANGERS && strangers.insert(heard.topic.clone());
                if is_news {
                    tracing::warn!(topic = %heard.topic, "KV events of no configured endpoint");
                }
            }
        }
    });
    Ok(())
}

/// What the listener counts that is of no configured endpoint.
#[derive(Default)]
pub(crate) struct ListenerCounts {
    /// Of its connections.
    pub(crate) counters: Arc<Counters>,
    /// Updates of publishers that are no configured endpoint.
    pub(crate) strangers: AtomicU64,
}

/// The endpoints, as the listener asks about them.
struct Known {
    scopes: Vec<Arc<Scope>>,
    /// Those whose restored place was given already.
    resumed: Mutex<HashSet<(u16, u16)>>,
}

impl Directory for Known {
    fn replay(&self, topic: &Topic) -> Option<String> {
        let (scope, slot) = endpoint_of(&self.scopes, topic)?;
        scope.roster.endpoint(slot).replay.clone()
    }

    fn resume(&self, topic: &Topic) -> Option<Resume> {
        let (scope, slot) = endpoint_of(&self.scopes, topic)?;
        let is_followed = scope.roster.endpoint(slot).kv_events.is_some();
        let mut resumed = self.resumed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = !is_followed && resumed.insert((scope.number, slot));
        scope.live().engines[usize::from(slot)].resume().filter(|_| is_first)
    }
}

/// Topics that are reported as unknown, once each.
const MAX_STRANGERS: usize = 1024;

fn endpoint_of<'s>(scopes: &'s [Arc<Scope>], topic: &Topic) -> Option<(&'s Arc<Scope>, u16)> {
    scopes.iter().find_map(|scope| Some((scope, slot_of(scope, topic)?)))
}

fn slot_of(scope: &Scope, topic: &Topic) -> Option<u16> {
    let Topic { pod, model, .. } = topic;
    if scope.model.name != *model && !scope.model.aliases.contains(model) {
        return None;
    }
    let by_address = scope.roster.only(|endpoint| endpoint.address == *pod);
    by_address.or_else(|| scope.roster.only(|e| e.socket.ip().to_string() == *pod))
}

async fn scrape(scope: Arc<Scope>, slot: u16, url: String, config: Metrics) {
    let scraper = Scraper::new(Duration::from_millis(config.timeout_ms));
    let mut ticks = tokio::time::interval(Duration::from_millis(config.interval_ms));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let scraped = scraper.scrape(&url).await;
        let mut adapters = None;
        if let Ok(load) = &scraped {
            fence(&scope, slot, load);
            adapters = load.lora.as_ref().map(|lora| scope.live().number_adapters(lora));
        }
        scope.update(slot, |engine| {
            engine.counters.scrapes += 1;
            match scraped {
                Ok(load) => {
                    answered(engine, &load);
                    engine.adapters = adapters;
                }
                Err(error) => {
                    let text = match std::error::Error::source(&error) {
                        Some(source) => format!("{error}: {source}"),
                        None => error.to_string(),
                    };
                    failed(engine, text, config.down_after_failures);
                }
            }
        });
    }
}

/// Blocks an endpoint may have per block of its GPU cache: copies elsewhere outlive those on the GPU.
const BLOCKS_PER_GPU_BLOCK: u64 = 4;
/// Two readings of one process's start may differ by rounding.
const SAME_START_SECONDS: f64 = 1.0;

/// Takes what a page says of the process: its cache bounds what we keep of it, and another start is
/// another process, whose predecessor's blocks are void even if no event has said so yet.
fn fence(scope: &Scope, slot: u16, load: &EngineLoad) {
    let mut live = scope.live();
    if let Some(blocks) = load.num_gpu_blocks {
        let max_blocks = blocks.saturating_mul(BLOCKS_PER_GPU_BLOCK) as usize;
        live.each().for_each(|index| index.set_max_blocks(slot, max_blocks));
    }
    let Some(start) = load.process_start_seconds else { return };
    let engine = &mut live.engines[usize::from(slot)];
    let resets = engine.counters.resets();
    match engine.process_start {
        Some(known) if (known - start).abs() <= SAME_START_SECONDS => {
            engine.resets_at_start = resets;
        }
        known => {
            engine.process_start = Some(start);
            // The source may have noticed the restart before the page showed it.
            let is_noticed = resets > engine.resets_at_start;
            engine.resets_at_start = resets;
            // The page may be the last to know: what the new process has stored is not void.
            let is_older = engine.first_batch_at.is_some_and(|at| at <= start);
            if known.is_some() && !is_noticed && is_older {
                engine.counters.fenced += 1;
                engine.is_void();
                // What the new process stored before now is void as well, and not told again.
                engine.doubts.restart = true;
                live.load_version += 1;
                live.each().for_each(|index| index.clear(slot, None));
                drop(live);
                scope.changed();
                let endpoint = scope.roster.endpoint(slot);
                tracing::warn!(endpoint = endpoint.address, "the engine is another process");
            }
        }
    }
}

/// A parked block whose parent has not come by then will not come.
const PARKED_MS: u64 = 60_000;

/// Gives up blocks that waited too long for their parents.
async fn expire(scope: Arc<Scope>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        let now_ms = scope.started.elapsed().as_millis() as u64;
        let before_ms = now_ms.saturating_sub(PARKED_MS);
        scope.live().each().for_each(|index| index.expire_parked(before_ms));
    }
}

fn answered(engine: &mut Engine, load: &EngineLoad) {
    engine.failures = 0;
    engine.scrape_error = None;
    engine.load = Load {
        is_ready: true,
        waiting: load.waiting,
        running: load.running,
        kv_usage_ratio: load.kv_usage_ratio.map(|ratio| ratio as f32),
    };
    engine.metrics_block_size_tokens = load.block_size_tokens;
    engine.cache_tokens = match (load.block_size_tokens, load.num_gpu_blocks) {
        (Some(size), Some(blocks)) => {
            u32::try_from(blocks.saturating_mul(u64::from(size))).unwrap_or(u32::MAX)
        }
        _ => 0,
    };
    engine.prompt_tokens = load.prompt_tokens.map(|now| match engine.prompt_tokens {
        Some((first, before)) if now >= before => (first, now),
        // Fewer than before: another process.
        _ => (now, now),
    });
    if engine.block_size_tokens == 0 {
        engine.block_size_tokens = load.block_size_tokens.unwrap_or(0);
    }
}

/// A failed scrape keeps the last reading; several in a row mean that the endpoint is down.
fn failed(engine: &mut Engine, error: String, down_after: u32) {
    engine.counters.scrape_failures += 1;
    engine.failures = engine.failures.saturating_add(1);
    engine.scrape_error = Some(error);
    if engine.failures >= down_after {
        (engine.load, engine.adapters) = (Load::default(), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_of_a_cache_is_known_only_by_both_its_numbers() {
        let check = |block_size_tokens, num_gpu_blocks, expected: u32| {
            let mut engine = Engine { process_start: Some(1_700_000_000.4), ..Engine::default() };
            let load = EngineLoad { block_size_tokens, num_gpu_blocks, ..EngineLoad::default() };
            answered(&mut engine, &load);
            let record = crate::serve::scope::record(0, &engine);
            assert_eq!((record.cache_tokens, record.started_s), (expected, 1_700_000_000));
        };
        check(Some(16), Some(400), 6_400);
        check(Some(16), None, 0);
        check(None, Some(400), 0);
        check(Some(u32::MAX), Some(u64::MAX), u32::MAX);
        let record = crate::serve::scope::record(0, &Engine::default());
        assert_eq!((record.cache_tokens, record.started_s), (0, 0));
    }

    #[test]
    fn an_engine_is_down_after_failures_in_a_row_and_up_with_one_answer() {
        let mut engine = Engine::default();
        assert!(!engine.load.is_ready, "an engine never seen is not ready");
        let load = EngineLoad { waiting: Some(3), ..EngineLoad::default() };
        answered(&mut engine, &load);
        failed(&mut engine, "refused".into(), 3);
        failed(&mut engine, "refused".into(), 3);
        assert_eq!((engine.load.is_ready, engine.load.waiting), (true, Some(3)));
        failed(&mut engine, "refused".into(), 3);
        assert_eq!((engine.load.is_ready, engine.load.waiting), (false, None));
        answered(&mut engine, &load);
        assert!(engine.load.is_ready && engine.scrape_error.is_none());
    }
}
