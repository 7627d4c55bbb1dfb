//! The block cache: vLLM's BlockPool and single-type KV cache manager, for full attention.
//!
//! What a router must get right is here on purpose: physical copies are never merged, so one hash
//! may be registered several times and is removed once per copy; a registered block that nobody
//! uses stays until it is the least recently freed one.

use std::collections::{BTreeMap, HashMap};

use crate::chain::{BlockHash, Chain};
use crate::events::{KvEvent, Stored};

#[derive(Clone, Debug, Default)]
struct Block {
    users: usize,
    hash: Option<BlockHash>,
    /// Key in `free` while there are no users.
    free_turn: Option<i64>,
}

/// See the module.
pub(crate) struct BlockCache {
    block_size: usize,
    root: BlockHash,
    blocks: Vec<Block>,
    /// Blocks without users by turn: the first is taken next.
    free: BTreeMap<i64, usize>,
    clock: i64,
    /// Physical copies of each hash, oldest registration first.
    registered: HashMap<BlockHash, Vec<usize>>,
    events: Vec<KvEvent>,
}

impl BlockCache {
    /// A cache of `num_blocks` blocks, one of which (vLLM's null block) is never used.
    pub(crate) fn new(block_size: usize, num_blocks: usize, hash_seed: u64) -> BlockCache {
        let mut cache = BlockCache {
            block_size,
            root: BlockHash::root(hash_seed),
            blocks: vec![Block::default(); num_blocks.saturating_sub(1)],
            free: BTreeMap::new(),
            clock: 0,
            registered: HashMap::new(),
            events: Vec::new(),
        };
        for block in 0..cache.blocks.len() {
            cache.push_free(block);
        }
        cache
    }

    /// Gives `chain` blocks for all its tokens, the leading ones from the cache where `read_cache`.
    /// Returns the number of cached tokens, or `None` when too few blocks are free.
    pub(crate) fn admit(&mut self, chain: &mut Chain, read_cache: bool) -> Option<usize> {
        chain.hash_full_blocks(self.root, self.block_size);
        let hits = if read_cache { self.hits(chain) } else { Vec::new() };
        let free_hits = hits.iter().filter(|&&block| self.blocks[block].users == 0).count();
        let new = chain.tokens.len().div_ceil(self.block_size) - hits.len();
        if new > self.free.len() - free_hits {
            return None;
        }
        for &block in &hits {
            self.use_block(block);
        }
        chain.registered = hits.len();
        let cached_tokens = hits.len() * self.block_size;
        chain.blocks = hits;
        self.grow(chain, new);
        self.register_full(chain);
        Some(cached_tokens)
    }

    /// Makes room for the tokens appended since, and registers blocks that became full. `false`
    /// when no block is free; the chain is unchanged then.
    pub(crate) fn extend(&mut self, chain: &mut Chain) -> bool {
        let new = chain.tokens.len().div_ceil(self.block_size) - chain.blocks.len();
        if new > self.free.len() {
            return false;
        }
        self.grow(chain, new);
        chain.hash_full_blocks(self.root, self.block_size);
        self.register_full(chain);
        true
    }

    /// Frees the chain's blocks, the tail first, so that it is evicted first.
    pub(crate) fn release(&mut self, chain: &mut Chain) {
        for block in chain.blocks.drain(..).rev() {
            self.blocks[block].users -= 1;
            if self.blocks[block].users == 0 {
                self.push_free(block);
            }
        }
        chain.registered = 0;
    }

    /// Forgets every hash. Refused, as in vLLM, while a block is in use.
    pub(crate) fn clear(&mut self) -> bool {
        if self.used_blocks() > 0 {
            return false;
        }
        for block in &mut self.blocks {
            block.hash = None;
        }
        self.registered.clear();
        self.events.push(KvEvent::Cleared);
        true
    }

    /// The events since the last call.
    pub(crate) fn take_events(&mut self) -> Vec<KvEvent> {
        std::mem::take(&mut self.events)
    }

    pub(crate) fn used_blocks(&self) -> usize {
        self.blocks.len() - self.free.len()
    }

    pub(crate) fn usable_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// How many physical copies of each hash are held.
    #[cfg(test)]
    pub(crate) fn held(&self) -> BTreeMap<u64, usize> {
        let mut held = BTreeMap::new();
        for hash in self.blocks.iter().filter_map(|block| block.hash) {
            *held.entry(hash.wire()).or_default() += 1;
        }
        held
    }

    /// The leading registered blocks. At least one token is always left to compute.
    fn hits(&self, chain: &Chain) -> Vec<usize> {
        let most = chain.tokens.len().saturating_sub(1) / self.block_size;
        let leading = chain.hashes.iter().take(most);
        leading.map_while(|hash| self.registered.get(hash)?.first().copied()).collect()
    }

    fn grow(&mut self, chain: &mut Chain, new: usize) {
        for _ in 0..new {
            let Some((_, block)) = self.free.pop_first() else { return };
            self.blocks[block].free_turn = None;
            self.evict(block);
            self.blocks[block].users = 1;
            chain.blocks.push(block);
        }
    }

    fn evict(&mut self, block: usize) {
        let Some(hash) = self.blocks[block].hash.take() else { return };
        if let Some(copies) = self.registered.get_mut(&hash) {
            copies.retain(|&copy| copy != block);
            if copies.is_empty() {
                self.registered.remove(&hash);
            }
        }
        self.events.push(KvEvent::Removed(hash.wire()));
    }

    fn register_full(&mut self, chain: &mut Chain) {
        let (from, to) = (chain.registered, chain.hashes.len());
        if from >= to {
            return;
        }
        for index in from..to {
            let (hash, block) = (chain.hashes[index], chain.blocks[index]);
            self.blocks[block].hash = Some(hash);
            self.registered.entry(hash).or_default().push(block);
        }
        chain.registered = to;
        self.events.push(KvEvent::Stored(Stored {
            hashes: chain.hashes[from..to].iter().map(|hash| hash.wire()).collect(),
            parent: from.checked_sub(1).map(|parent| chain.hashes[parent].wire()),
            token_ids: chain.tokens[from * self.block_size..to * self.block_size].to_vec(),
            block_size_tokens: self.block_size,
            lora_name: chain.namespace.lora_name.clone(),
            extra_keys: (from..to).map(|index| chain.namespace.extra_keys(index)).collect(),
        }));
    }

    fn use_block(&mut self, block: usize) {
        if let Some(free_turn) = self.blocks[block].free_turn.take() {
            self.free.remove(&free_turn);
        }
        self.blocks[block].users += 1;
    }

    fn push_free(&mut self, block: usize) {
        self.clock += 1;
        // What holds no registered tokens is taken before anything that does, as vLLM 0.32 does
        // in the recorded session.
        let turn = if self.blocks[block].hash.is_some() { self.clock } else { -self.clock };
        self.blocks[block].free_turn = Some(turn);
        self.free.insert(turn, block);
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
