//! From an engine's events to the index.

use kv_events::{
    BlockStored, EngineKey, KvEvent, Position, SourceState as EventState, SourceUpdate,
};
use prefix_index::{EngineHash, StoredBlocks, Tier, Window};
use routing::SourceState;

use super::scope::{Live, Scope};
use crate::config::EngineKind;

/// Applies one update of a source.
pub(crate) fn apply(scope: &Scope, slot: u16, update: SourceUpdate) {
    match update {
        SourceUpdate::Batch { sequence, fingerprint, batch, .. } => {
            let mut live = scope.live();
            counters(&mut live, slot).batches += 1;
            let engine = &mut live.engines[usize::from(slot)];
            engine.last_batch = Some(std::time::Instant::now());
            engine.position = Some(Position { sequence, fingerprint });
            live.each().for_each(|index| index.begin_batch(slot));
            for event in &batch.events {
                apply_event(scope, &mut live, slot, event);
            }
            drop(live);
            scope.changed();
        }
        SourceUpdate::Reset { reason } => {
            tracing::warn!(
                endpoint = scope.endpoints[usize::from(slot)].address,
                ?reason,
                "prefix state of the engine is void"
            );
            let mut live = scope.live();
            live.each().for_each(|index| index.clear(slot, None));
            counters(&mut live, slot).resets += 1;
            live.engines[usize::from(slot)].forget();
            drop(live);
            scope.changed();
        }
        SourceUpdate::State(state) => {
            let address = &scope.endpoints[usize::from(slot)].address;
            tracing::info!(endpoint = address, ?state, "prefix source");
            scope.update(slot, |engine| {
                engine.source = source_state(state);
                if let EventState::Live { partial } = state {
                    engine.is_partial = partial;
                }
            });
        }
        SourceUpdate::Undecodable { sequence, fingerprint, error } => {
            let address = &scope.endpoints[usize::from(slot)].address;
            tracing::warn!(endpoint = address, sequence, %error, "batch of events not understood");
            scope.update(slot, |engine| {
                engine.counters.undecodable += 1;
                engine.position = Some(Position { sequence, fingerprint });
                engine.has_losses = true;
                engine.source = SourceState::Degraded;
            });
        }
    }
}

fn source_state(state: EventState) -> SourceState {
    match state {
        EventState::Connecting | EventState::Lost => SourceState::Lost,
        EventState::Resyncing => SourceState::Resyncing,
        EventState::Live { partial: false } => SourceState::Live,
        // What was cached before the history we got is missing: an under-count, said openly.
        EventState::Live { partial: true } => SourceState::Degraded,
    }
}

fn counters(live: &mut Live, slot: u16) -> &mut super::scope::EngineCounters {
    &mut live.engines[usize::from(slot)].counters
}

fn apply_event(scope: &Scope, live: &mut Live, slot: u16, event: &KvEvent) {
    match event {
        KvEvent::Stored(stored) => match group(stored) {
            Group::Full => store(scope, live, slot, stored),
            Group::Windowed(number, window) => {
                let hashes = hashes(&stored.block_hashes);
                live.each().for_each(|index| index.store_window(slot, number, window, &hashes));
            }
            Group::Unknown => {
                // What such a group keeps decides what the engine can reuse.
                counters(live, slot).other_groups += 1;
                degrade(live, slot);
            }
        },
        KvEvent::Removed(removed) => {
            counters(live, slot).removed_blocks += removed.block_hashes.len() as u64;
            let (hashes, tier) = (hashes(&removed.block_hashes), tier(removed.medium.as_deref()));
            for index in live.each() {
                let group = removed.group_idx.unwrap_or(0);
                if !index.remove_window(slot, group, &hashes) {
                    index.remove(slot, &hashes, tier);
                }
            }
        }
        KvEvent::AllBlocksCleared => {
            counters(live, slot).cleared += 1;
            // It is the GPU pool's reset and says nothing of other tiers.
            live.each().for_each(|index| index.clear(slot, Some(Tier::Gpu)));
        }
        KvEvent::Unknown(_) => counters(live, slot).unknown_events += 1,
    }
}

fn degrade(live: &mut Live, slot: u16) {
    let engine = &mut live.engines[usize::from(slot)];
    engine.has_losses = true;
    if engine.source == SourceState::Live {
        engine.source = SourceState::Degraded;
        live.load_version += 1;
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
fn group(stored: &BlockStored) -> Group {
    let number = stored.group_idx.unwrap_or(0);
    let windowed = |window: fn(u32) -> Window| match stored.sliding_window {
        Some(tokens) => Group::Windowed(number, window(tokens)),
        None => Group::Unknown,
    };
    match stored.kv_cache_spec_kind.as_deref() {
        None if number == 0 => Group::Full,
        Some("full_attention" | "mla_attention" | "sink_full_attention") => Group::Full,
        Some("sliding_window" | "sliding_window_mla") => windowed(Window::Sliding),
        Some("chunked_local_attention") => windowed(Window::Chunked),
        Some("mamba") => Group::Windowed(number, Window::State),
        _ => Group::Unknown,
    }
}

fn store(scope: &Scope, live: &mut Live, slot: u16, stored: &BlockStored) {
    counters(live, slot).stored_blocks += stored.block_hashes.len() as u64;
    let engine = &mut live.engines[usize::from(slot)];
    if stored.block_size > 0 && engine.block_size_tokens != stored.block_size {
        engine.block_size_tokens = stored.block_size;
        live.load_version += 1;
    }
    // Before vLLM 0.14 an adapter has only a number, which means nothing elsewhere: a namespace of
    // its own that no request names.
    let by_number = stored.lora_id.filter(|_| stored.lora_name.is_none());
    let lora = by_number.map(|id| format!("lora_id:{id}")).or_else(|| stored.lora_name.clone());
    let beyond_text: Vec<u64> = stored
        .extra_keys
        .iter()
        .zip(&stored.block_hashes)
        .map(|(keys, hash)| if keys.multimodal || keys.embeds { hash.0 | 1 } else { 0 })
        .collect();
    let (hashes, tier) = (hashes(&stored.block_hashes), tier(stored.medium.as_deref()));
    if stored.token_ids.is_empty() {
        // Offloading connectors name blocks by hash alone.
        live.each().for_each(|index| index.announce(slot, &hashes, tier));
        return;
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
    let is_generated = match scope.endpoints[usize::from(slot)].engine {
        EngineKind::Vllm => hashes.len() == 1 && blocks.parent.is_some(),
        EngineKind::Sglang | EngineKind::Trtllm => true,
    };
    let size = stored.block_size.max(1) as usize;
    if let Some(asker) = &mut live.asker {
        let tokens: Vec<&[u32]> = stored.token_ids.chunks_exact(size).collect();
        asker.stored(slot, blocks.parent, &hashes, &tokens, is_generated);
    }
    let now_ms = scope.started.elapsed().as_millis() as u64;
    for index in live.each() {
        index.store(slot, &blocks, now_ms, |id| scope.tokens.bytes(id));
    }
}

fn hashes(keys: &[EngineKey]) -> Vec<EngineHash> {
    keys.iter().map(|EngineKey(hash)| EngineHash(*hash)).collect()
}

/// Engines without a medium have only the GPU; spellings differ in case.
fn tier(medium: Option<&str>) -> Tier {
    match medium {
        Some(medium) if !medium.eq_ignore_ascii_case("gpu") => Tier::Offloaded,
        _ => Tier::Gpu,
    }
}
