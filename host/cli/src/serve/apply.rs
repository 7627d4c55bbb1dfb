//! From an engine's events to the index.

use kv_events::{BlockStored, EngineKey, KvEvent, SourceState as EventState, SourceUpdate};
use prefix_index::{EngineHash, StoredBlocks, Tier};
use routing::SourceState;

use super::scope::{Live, Scope};

/// Applies one update of a source.
pub(crate) fn apply(scope: &Scope, slot: u16, update: SourceUpdate) {
    match update {
        SourceUpdate::Batch { batch, .. } => {
            let mut live = scope.live();
            counters(&mut live, slot).batches += 1;
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
            live.index.clear(slot);
            counters(&mut live, slot).resets += 1;
            drop(live);
            scope.changed();
        }
        SourceUpdate::State(state) => {
            let address = &scope.endpoints[usize::from(slot)].address;
            tracing::info!(endpoint = address, ?state, "prefix source");
            scope.update(slot, |engine| engine.source = source_state(state));
        }
        SourceUpdate::Undecodable { sequence, error } => {
            let address = &scope.endpoints[usize::from(slot)].address;
            tracing::warn!(endpoint = address, sequence, %error, "batch of events not understood");
            scope.update(slot, |engine| {
                engine.counters.undecodable += 1;
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
        KvEvent::Stored(stored) if !is_full_attention(stored) => {
            // The full-attention match of a hybrid model is an upper bound only.
            counters(live, slot).other_groups += 1;
            degrade(live, slot);
        }
        KvEvent::Stored(stored) => store(scope, live, slot, stored),
        KvEvent::Removed(removed) => {
            counters(live, slot).removed_blocks += removed.block_hashes.len() as u64;
            let hashes = hashes(&removed.block_hashes);
            live.index.remove(slot, &hashes, tier(removed.medium.as_deref()));
        }
        KvEvent::AllBlocksCleared => {
            counters(live, slot).cleared += 1;
            live.index.clear(slot);
        }
        KvEvent::Unknown(_) => counters(live, slot).unknown_events += 1,
    }
}

fn degrade(live: &mut Live, slot: u16) {
    let engine = &mut live.engines[usize::from(slot)];
    if engine.source == SourceState::Live {
        engine.source = SourceState::Degraded;
        live.load_version += 1;
    }
}

/// Kinds of vLLM's `kv_cache_spec_kind` in which every block of the prefix stays cached; engines
/// that do not say have one group.
fn is_full_attention(stored: &BlockStored) -> bool {
    match stored.kv_cache_spec_kind.as_deref() {
        Some(kind) => matches!(kind, "full_attention" | "mla_attention" | "sink_full_attention"),
        None => stored.group_idx.unwrap_or(0) == 0,
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
    let blocks = StoredBlocks {
        hashes: &hashes(&stored.block_hashes),
        parent: stored.parent_block_hash.map(|EngineKey(hash)| EngineHash(hash)),
        token_ids: &stored.token_ids,
        block_size_tokens: stored.block_size,
        tier: tier(stored.medium.as_deref()),
        lora: lora.as_deref(),
        salt: stored.salt(),
        beyond_text: &beyond_text,
    };
    live.index.store(slot, &blocks, |id| scope.tokens.bytes(id));
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
