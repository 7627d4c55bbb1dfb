//! From lists of events to the updates that other engines' events give. No I/O.

use std::collections::HashMap;

use tokio::time::Instant;

use super::TrtllmError;
use super::list::{self, Block, Data, Event};
use crate::cursor::{ResetReason, SourceState};
use crate::event::{BlockRemoved, BlockStored, EngineKey, EventBatch, ExtraKeys, KvEvent};
use crate::release::Encoding;
use crate::source::SourceUpdate;

/// Most blocks of one engine that are kept track of. More, and everything starts over.
const MAX_BLOCKS: usize = 1 << 22;
/// Most ranks with numbers of their own. More, and everything starts over.
const MAX_RANKS: usize = 256;

/// Cache level 0 is the GPU; the rest is memory of the host.
fn medium(level: u8) -> Option<String> {
    Some(if level == 0 { "GPU" } else { "CPU" }.to_owned())
}

/// Attention data-parallel rank.
type Rank = Option<u32>;

/// What a list came to.
#[derive(Debug, Default)]
pub struct Taken {
    /// In order.
    pub updates: Vec<SourceUpdate>,
    /// Events that could not be read. Their place in the numbers is empty, so that a reset
    /// follows.
    pub unreadable: usize,
}

/// Follows the lists of one engine.
///
/// TensorRT-LLM's blocks form a tree: each hash is there once, at one cache level, and moves
/// between levels. The updates say it as other engines do: stored in a medium, removed from a
/// medium. A block that moves is stored without tokens, as vLLM's connectors announce blocks that
/// are known already.
#[derive(Debug, Default)]
pub struct Adapter {
    configured_block_size: Option<u32>,
    block_size: Option<u32>,
    /// Number of the next event of each rank.
    next: HashMap<Rank, u64>,
    /// Where each block is.
    levels: HashMap<(Rank, EngineKey), u8>,
    /// The largest attention window, which is the one of full attention.
    window: Option<u64>,
    partial: bool,
    /// Events may have been lost.
    doubted: bool,
    batch: Vec<KvEvent>,
}

impl Adapter {
    /// Of an engine about which nothing is known yet.
    pub fn new(block_size_tokens: Option<u32>) -> Self {
        let block_size = block_size_tokens.filter(|size| *size > 0);
        Self { configured_block_size: block_size, block_size, ..Self::default() }
    }

    /// What the lists so far are worth.
    pub fn state(&self) -> SourceState {
        if self.doubted {
            return SourceState::Resyncing;
        }
        SourceState::Live { partial: self.partial || self.next.is_empty() }
    }

    /// An answer was lost. The numbers of the next events tell whether there was anything in it.
    pub fn doubt(&mut self) {
        self.doubted = !self.next.is_empty();
    }

    /// Takes the next list.
    pub fn take(&mut self, list: &[u8], received_at: Instant) -> Result<Taken, TrtllmError> {
        let mut taken = Taken::default();
        let mut last: Option<(Rank, u64)> = None;
        for raw in list::split(list).map_err(TrtllmError::List)? {
            let Some(event) = list::read(raw) else {
                taken.unreadable += 1;
                continue;
            };
            let place = (event.attention_dp_rank, event.event_id);
            if last.is_some_and(|(rank, _)| rank != place.0) {
                self.flush(&mut taken, last, received_at);
            }
            if let Some(reason) = self.follows(place) {
                self.flush(&mut taken, last, received_at);
                self.reset(reason, place, &mut taken);
            }
            if self.next.len() < MAX_RANKS || self.next.contains_key(&place.0) {
                self.next.insert(place.0, place.1.saturating_add(1));
            }
            self.doubted = false;
            if self.is_full_attention(&event, &mut taken) && !self.apply(event) {
                self.flush(&mut taken, last, received_at);
                self.reset(ResetReason::Gap, place, &mut taken);
            }
            last = Some(place);
        }
        self.flush(&mut taken, last, received_at);
        Ok(taken)
    }

    /// Why the event does not follow on what is known.
    fn follows(&mut self, (rank, id): (Rank, u64)) -> Option<ResetReason> {
        match self.next.get(&rank) {
            Some(next) if id == *next => None,
            Some(next) if id < *next => Some(ResetReason::Restart),
            Some(_) => Some(ResetReason::Gap),
            None => {
                self.partial |= id > 0;
                (self.next.len() >= MAX_RANKS).then_some(ResetReason::Gap)
            }
        }
    }

    fn reset(&mut self, reason: ResetReason, (_, id): (Rank, u64), taken: &mut Taken) {
        if !self.next.is_empty() {
            taken.updates.push(SourceUpdate::Reset { reason });
        }
        let block_size = self.configured_block_size;
        *self = Self { partial: id > 0, window: self.window, ..Self::new(block_size) };
    }

    fn flush(&mut self, taken: &mut Taken, last: Option<(Rank, u64)>, received_at: Instant) {
        let events = std::mem::take(&mut self.batch);
        if let (Some((rank, sequence)), false) = (last, events.is_empty()) {
            // The list has no time.
            let batch = EventBatch {
                ts: 0.0,
                events,
                data_parallel_rank: rank,
                encoding: Encoding::list(),
            };
            let fingerprint = 0;
            taken.updates.push(SourceUpdate::Batch { sequence, fingerprint, batch, received_at });
        }
    }

    /// Whether the event is of the pool whose blocks make up prefixes. Engines with one window do
    /// not always name it.
    fn is_full_attention(&mut self, event: &Event, taken: &mut Taken) -> bool {
        let Some(window) = event.window_size else { return true };
        match self.window {
            Some(known) if window < known => return false,
            Some(known) if window > known && !self.levels.is_empty() => {
                // What was taken for full attention was not.
                self.batch.clear();
                self.levels.clear();
                taken.updates.push(SourceUpdate::Reset { reason: ResetReason::Gap });
                self.partial = true;
            }
            _ => {}
        }
        self.window = Some(window);
        true
    }

    /// False if there are too many blocks.
    fn apply(&mut self, event: Event) -> bool {
        let rank = event.attention_dp_rank;
        match event.data {
            // The first word of a new cache, so that it holds nothing yet.
            Data::Created => {
                if self.levels.keys().any(|(of, _)| *of == rank) {
                    self.levels.retain(|(of, _), _| *of != rank);
                    self.batch.push(KvEvent::AllBlocksCleared);
                }
            }
            Data::Stored { parent_hash, blocks } => {
                self.stored(rank, parent_hash.map(|hash| hash.0), blocks);
            }
            Data::Removed { block_hashes } => {
                for hash in block_hashes {
                    if let Some(level) = self.levels.remove(&(rank, hash.0)) {
                        self.removed(hash.0, level);
                    }
                }
            }
            Data::Updated { block_hash, cache_level: Some(diff) } => {
                self.moved(rank, block_hash.0, diff.new_value);
            }
            Data::Updated { cache_level: None, .. } => {}
            Data::Unknown => self.batch.push(KvEvent::Unknown("trtllm".to_owned())),
        }
        self.levels.len() <= MAX_BLOCKS
    }

    fn stored(&mut self, rank: Rank, mut parent: Option<EngineKey>, blocks: Vec<Block>) {
        self.learn_block_size(&blocks);
        let mut run: Option<BlockStored> = None;
        for block in blocks {
            let key = block.block_hash.0;
            let tokens = u32::try_from(block.tokens.len()).unwrap_or(u32::MAX);
            if tokens == 0 || Some(tokens) != self.block_size {
                // The end of a prompt, which no block can follow.
                break;
            }
            if self.levels.contains_key(&(rank, key)) {
                self.batch.extend(run.take().map(KvEvent::Stored));
                parent = Some(key);
                continue;
            }
            self.levels.insert((rank, key), block.cache_level);
            let medium = medium(block.cache_level);
            if run.as_ref().is_some_and(|run| run.medium != medium) {
                self.batch.extend(run.take().map(KvEvent::Stored));
            }
            let run = run.get_or_insert_with(|| BlockStored {
                parent_block_hash: parent,
                block_size: tokens,
                medium,
                ..BlockStored::default()
            });
            let beyond_text = !block.mm_keys.is_empty()
                || block.tokens.iter().any(|token| token.token_extra_id != 0);
            run.block_hashes.push(key);
            run.token_ids.extend(block.tokens.iter().map(|token| token.token_id));
            run.extra_keys.push(ExtraKeys { multimodal: beyond_text, ..ExtraKeys::default() });
            parent = Some(key);
        }
        self.batch.extend(run.map(KvEvent::Stored));
    }

    /// A block that another one follows is full. Until there was one, a block alone counts as
    /// full if its size can be a block's, which is a power of two.
    fn learn_block_size(&mut self, blocks: &[Block]) {
        if self.configured_block_size.is_some() {
            return;
        }
        let sizes = blocks.iter().filter_map(|block| u32::try_from(block.tokens.len()).ok());
        let largest = sizes.filter(|size| size.is_power_of_two()).max();
        self.block_size = self.block_size.max(largest);
    }

    fn removed(&mut self, key: EngineKey, level: u8) {
        let medium = medium(level);
        match self.batch.last_mut() {
            Some(KvEvent::Removed(last)) if last.medium == medium => last.block_hashes.push(key),
            _ => self.batch.push(KvEvent::Removed(BlockRemoved {
                block_hashes: vec![key],
                medium,
                group_idx: None,
            })),
        }
    }

    /// Stored in the new place before it is removed from the old one, so that it is never nowhere.
    fn moved(&mut self, rank: Rank, key: EngineKey, new: u8) {
        let Some(level) = self.levels.get_mut(&(rank, key)) else { return };
        let old = std::mem::replace(level, new);
        if medium(old) == medium(new) {
            return;
        }
        self.batch.push(KvEvent::Stored(BlockStored {
            block_hashes: vec![key],
            medium: medium(new),
            ..BlockStored::default()
        }));
        self.removed(key, old);
    }
}
