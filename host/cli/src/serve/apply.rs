//! From an engine's events to the index.

use std::cell::Cell;

use kv_events::{
    BlockRemoved, BlockStored, Encoding, EngineKey, EventBatch, KvEvent, Position, ResetReason,
    SourceState as EventState, SourceUpdate,
};
use prefix_index::{EngineHash, StoredBlocks, Tier, Window};
use routing::SourceState;

use super::scope::{Engine, Groups, Live, Scope, record};
use crate::config::EngineKind;

/// Applies one update of a source.
pub(crate) fn apply(scope: &Scope, slot: u16, update: SourceUpdate) {
    match update {
        SourceUpdate::Batch { sequence, fingerprint, batch, received_at } => {
            let mut live = scope.live();
            let before = record(slot, &live.engines[usize::from(slot)]);
            let engine = &mut live.engines[usize::from(slot)];
            engine.position = Some(Position { sequence, fingerprint });
            begin(engine, &batch);
            live.each().for_each(|index| index.begin_batch(slot));
            for event in &batch.events {
                apply_event(scope, &mut live, slot, event);
            }
            // With the scope locked: a fill that sees the number sees the buckets.
            let published = scope.applied.push(batch.ts, received_at);
            let knows_resumes = live.each().all(|index| index.knows_resumes(slot));
            let engine = &mut live.engines[usize::from(slot)];
            if let Some(ts) = published {
                engine.last_published = Some((ts, received_at));
            }
            engine.doubts.hybrid |= !knows_resumes;
            live.load_version += u64::from(before != record(slot, engine));
            drop(live);
            scope.changed();
        }
        SourceUpdate::Reset { reason } => {
            tracing::warn!(
                endpoint = scope.roster.endpoint(slot).address,
                ?reason,
                "prefix state of the engine is void"
            );
            let mut live = scope.live();
            live.each().for_each(|index| index.clear(slot, None));
            match reason {
                ResetReason::Restart => {
                    counters(&mut live, slot).restarts += 1;
                    // Another process may be of another release.
                    live.engines[usize::from(slot)].encoding = Encoding::default();
                }
                ResetReason::Gap => counters(&mut live, slot).gaps += 1,
            }
            let engine = &mut live.engines[usize::from(slot)];
            let before = record(slot, engine);
            engine.is_void();
            live.load_version += u64::from(before != record(slot, engine));
            drop(live);
            scope.changed();
        }
        SourceUpdate::State(state) => {
            let endpoint = scope.roster.endpoint(slot);
            tracing::info!(endpoint = endpoint.address, ?state, "prefix source");
            // TensorRT-LLM keeps its events until they are fetched.
            let is_kept = endpoint.replay.is_some() || endpoint.engine == EngineKind::Trtllm;
            scope.update(slot, |engine| {
                engine.stream = stream_state(state);
                engine.doubts.connection |=
                    state == EventState::Lost && !is_kept && engine.first_batch_at.is_some();
                if let EventState::Live { partial } = state {
                    engine.is_partial = partial;
                    engine.doubts.history = partial && !engine.is_cleared;
                }
            });
        }
        SourceUpdate::Undecodable { sequence, fingerprint, error } => {
            let endpoint = scope.roster.endpoint(slot);
            tracing::warn!(endpoint = endpoint.address, sequence, %error, "batch of events not understood");
            scope.update(slot, |engine| {
                engine.counters.undecodable += 1;
                engine.position = Some(Position { sequence, fingerprint });
                engine.doubts.events = true;
            });
        }
    }
}

fn stream_state(state: EventState) -> SourceState {
    match state {
        EventState::Connecting | EventState::Lost => SourceState::Lost,
        EventState::Resyncing => SourceState::Resyncing,
        EventState::Live { .. } => SourceState::Live,
    }
}

/// Takes what a batch says of itself.
fn begin(engine: &mut Engine, batch: &EventBatch) {
    engine.counters.batches += 1;
    engine.last_batch = Some(std::time::Instant::now());
    engine.encoding.merge(&batch.encoding);
    engine.first_batch_at.get_or_insert(batch.ts);
    // Batches come in order without holes, or a reset comes before them.
    engine.doubts.connection = false;
    if let Some(rank) = batch.data_parallel_rank {
        // Ranks have a cache each, and an address that stands for several promises none of them.
        engine.doubts.ranks |= *engine.rank.get_or_insert(rank) != rank;
    }
}

fn counters(live: &mut Live, slot: u16) -> &mut super::scope::EngineCounters {
    &mut live.engines[usize::from(slot)].counters
}

fn apply_event(scope: &Scope, live: &mut Live, slot: u16, event: &KvEvent) {
    match event {
        KvEvent::Stored(stored) => {
            counters(live, slot).stored_events += 1;
            store_in_group(scope, live, slot, stored);
        }
        KvEvent::Removed(removed) => {
            counters(live, slot).removed_events += 1;
            remove(live, slot, removed);
        }
        KvEvent::AllBlocksCleared => {
            counters(live, slot).cleared_events += 1;
            let engine = &mut live.engines[usize::from(slot)];
            // Nothing of what was missed or not understood is in the cache any more.
            engine.is_cleared = true;
            (engine.doubts.history, engine.doubts.restart) = (false, false);
            engine.doubts.events = false;
            // It is the GPU pool's reset and says nothing of other tiers.
            live.each().for_each(|index| index.clear(slot, Some(Tier::Gpu)));
        }
        KvEvent::Unknown(_) => counters(live, slot).unknown_events += 1,
    }
}

fn store_in_group(scope: &Scope, live: &mut Live, slot: u16, stored: &BlockStored) {
    match group(stored, &mut live.engines[usize::from(slot)].groups) {
        Group::Full => store(scope, live, slot, stored),
        // What lies elsewhere is nothing to resume from before it is loaded.
        Group::Windowed(..) if tier(stored.medium.as_deref()) != Tier::Gpu => {}
        Group::Windowed(number, window) => {
            let hashes = hashes(&stored.block_hashes);
            for index in live.each() {
                index.store_window(slot, number, window, stored.block_size, &hashes);
            }
        }
        Group::Unknown => {
            // What such a group keeps decides what the engine can reuse.
            counters(live, slot).other_groups += 1;
            live.engines[usize::from(slot)].doubts.hybrid = true;
        }
    }
}

/// The same hash names a block in every group, so a removal concerns its own group alone.
fn remove(live: &mut Live, slot: u16, removed: &BlockRemoved) {
    counters(live, slot).removed_blocks += removed.block_hashes.len() as u64;
    let (hashes, tier) = (hashes(&removed.block_hashes), tier(removed.medium.as_deref()));
    let groups = &live.engines[usize::from(slot)].groups;
    match removed.group_idx {
        Some(number) if groups.windowed.contains(&number) => {
            if tier == Tier::Gpu {
                for index in live.each() {
                    index.remove_window(slot, number, &hashes);
                }
            }
        }
        Some(number) if groups.full.is_some_and(|full| full != number) => {}
        _ => live.each().for_each(|index| index.remove(slot, &hashes, tier)),
    }
}

/// How an engine uses the blocks of a KV cache group.
enum Group {
    /// Every block of the prefix is needed, and stays cached.
    Full,
    /// Only a window of the past is needed.
    Windowed(u32, Window),
    /// A kind this build does not know, or one without its numbers.
    Unknown,
}

/// By vLLM's `kv_cache_spec_kind`; engines that do not say have one group.
fn group(stored: &BlockStored, groups: &mut Groups) -> Group {
    let number = stored.group_idx.unwrap_or(0);
    let mut windowed = |window: Option<Window>| match window {
        Some(window) => {
            groups.windowed.insert(number);
            Group::Windowed(number, window)
        }
        None => Group::Unknown,
    };
    let tokens = stored.sliding_window;
    match stored.kv_cache_spec_kind.as_deref() {
        // Placeholders of connectors name no group.
        None if stored.group_idx.is_none() => Group::Full,
        None if number != 0 => Group::Unknown,
        // A second group of full attention has copies of its own, and a prefix is usable only where
        // all have it: more than the index keeps.
        None | Some("full_attention" | "mla_attention" | "sink_full_attention") => {
            match *groups.full.get_or_insert(number) == number {
                true => Group::Full,
                false => Group::Unknown,
            }
        }
        Some("sliding_window" | "sliding_window_mla") => windowed(tokens.map(Window::Sliding)),
        Some("chunked_local_attention") => windowed(tokens.map(Window::Chunked)),
        Some("mamba") => windowed(Some(Window::State)),
        _ => Group::Unknown,
    }
}

fn store(scope: &Scope, live: &mut Live, slot: u16, stored: &BlockStored) {
    counters(live, slot).stored_blocks += stored.block_hashes.len() as u64;
    let engine = &mut live.engines[usize::from(slot)];
    if stored.block_size > 0 {
        engine.block_size_tokens = stored.block_size;
    }
    // Before vLLM 0.14 an adapter has only a number, which means nothing elsewhere: a namespace of
    // its own that no request names.
    let by_number = stored.lora_id.filter(|_| stored.lora_name.is_none());
    let lora = by_number.map(|id| format!("{LORA_ID}{id}")).or_else(|| stored.lora_name.clone());
    if let Some(name) = &stored.lora_name {
        live.learn_adapter(name);
    }
    // Nothing allocated for plain text, which says nothing beside its tokens.
    let keyed = stored.block_hashes.iter().take(stored.extra_keys.len()).enumerate();
    let beyond_text: Vec<u64> = keyed
        .map(|(block, hash)| if stored.is_beyond_text(block) { hash.0 | 1 } else { 0 })
        .collect();
    let (hashes, tier) = (hashes(&stored.block_hashes), tier(stored.medium.as_deref()));
    if stored.token_ids.is_empty() {
        // Offloading connectors name blocks by hash alone.
        live.each().for_each(|index| index.announce(slot, &hashes, tier));
        return;
    }
    if stored.token_ids.len() as u64 != hashes.len() as u64 * u64::from(stored.block_size) {
        // The index refuses and counts it.
        live.engines[usize::from(slot)].doubts.events = true;
    }
    let blocks = StoredBlocks {
        hashes: &hashes,
        parent: stored.parent_block_hash.map(|EngineKey(hash)| EngineHash(hash)),
        token_ids: &stored.token_ids,
        block_size_tokens: stored.block_size,
        tier,
        lora: lora.as_deref(),
        salt: stored.salt(),
        beyond_text: &beyond_text,
    };
    // vLLM announces blocks that fill while it generates one by one; SGLang does not say.
    let is_generated = match scope.roster.kind(slot) {
        EngineKind::Vllm => hashes.len() == 1 && blocks.parent.is_some(),
        EngineKind::Sglang | EngineKind::Trtllm => true,
    };
    let size = stored.block_size.max(1) as usize;
    if is_generated {
        counters(live, slot).generated_blocks += hashes.len() as u64;
    }
    if let Some(asker) = &mut live.asker {
        let tokens = stored.token_ids.chunks_exact(size);
        asker.stored(slot, blocks.parent, &hashes, tokens, is_generated);
    }
    let now_ms = scope.started.elapsed().as_millis() as u64;
    let unknown_tokens = Cell::new(0);
    let bytes_of = |id| {
        let bytes = scope.tokens.bytes(id);
        if bytes.is_none() {
            unknown_tokens.set(unknown_tokens.get() + 1);
        }
        bytes
    };
    for index in live.each() {
        index.store(slot, &blocks, now_ms, bytes_of);
    }
    counters(live, slot).unknown_tokens += unknown_tokens.get();
}

/// Before the number of an adapter that an engine does not name.
const LORA_ID: &str = "lora_id:";

/// Whether an adapter of the index stands for a number, by which no request calls it.
pub(crate) fn is_number(adapter: &str) -> bool {
    adapter.starts_with(LORA_ID)
}

fn hashes(keys: &[EngineKey]) -> Vec<EngineHash> {
    keys.iter().map(|EngineKey(hash)| EngineHash(*hash)).collect()
}

/// Engines without a medium have only the GPU; spellings differ in case. What is neither the GPU
/// nor memory of the host (`CPU`, `CPU_PINNED`) is storage of some kind.
fn tier(medium: Option<&str>) -> Tier {
    let is = |name: &str| medium.is_some_and(|medium| medium.eq_ignore_ascii_case(name));
    match medium {
        None => Tier::Gpu,
        Some(_) if is("gpu") => Tier::Gpu,
        Some(_) if is("cpu") || is("cpu_pinned") => Tier::Offloaded,
        Some(_) => Tier::Storage,
    }
}
