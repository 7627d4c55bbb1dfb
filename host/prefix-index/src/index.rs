//! The index: events in, dirty buckets out.

use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;

use feed::{BucketEntry, BucketWriter};
use hashbrown::HashTable;
use prefix::{Holder, Namespace, Stride, StrideKey};
use smallvec::SmallVec;

use crate::content::ContentHasher;
use crate::dirty::DirtySet;
use crate::hybrid::Hybrid;
use crate::node::{Arena, EngineHash, NodeId, Reach};
use crate::parked::Parked;
use crate::strides::{StrideEntry, StrideTable};

mod batch;
mod export;
mod import;
mod names;
mod tree;
mod types;
mod windows;

use batch::InBatch;
pub use import::Imported;
use names::Names;
pub use types::{IndexConfig, IndexStats, KeySpace, Presence, Stored, StoredBlocks, Tier};

/// Nodes that nobody holds and that are kept for announcements by hash and for repeats.
const MAX_RETAINED: usize = 8192;

#[derive(Default)]
struct Endpoint {
    names: Names,
    presence: Presence,
    parked: Parked,
    hybrid: Option<Hybrid>,
    /// Tokens per block of full attention by its last store; 0 while unknown.
    full_block_tokens: u32,
    /// Blocks it holds in some tier.
    held_blocks: usize,
    /// Blocks it may hold here at most.
    max_blocks: Option<usize>,
    /// Hashes stored since the batch began.
    in_batch: InBatch,
}

/// See the crate's documentation.
pub struct Index {
    config: IndexConfig,
    nodes: Arena,
    /// First nodes of chains by namespace.
    roots: HashMap<(Option<String>, Option<String>), NodeId>,
    /// Nodes by (parent, content) where the parent has many children: a chain's start has its
    /// namespace's root as parent, and a system prompt goes on as many chats.
    children: HashTable<NodeId>,
    strides: StrideTable,
    endpoints: Vec<Endpoint>,
    watchers: Vec<DirtySet>,
    retained: VecDeque<NodeId>,
    stats: IndexStats,
    contents: ContentHasher,
    /// Of the tables here, which no other process sees.
    hasher: RandomState,
}

impl Index {
    /// An empty index.
    pub fn new(config: IndexConfig) -> Self {
        Self {
            strides: StrideTable::new(config.bucket_count),
            contents: ContentHasher::new(&config.seed),
            config,
            nodes: Arena::default(),
            roots: HashMap::new(),
            children: HashTable::new(),
            endpoints: Vec::new(),
            watchers: Vec::new(),
            retained: VecDeque::new(),
            stats: IndexStats::default(),
            hasher: RandomState::new(),
        }
    }

    /// Configuration it was made with.
    pub fn config(&self) -> &IndexConfig {
        &self.config
    }

    /// A slot for one more endpoint.
    pub fn add_endpoint(&mut self) -> u16 {
        self.endpoints.push(Endpoint::default());
        (self.endpoints.len() - 1) as u16
    }

    /// What the endpoint's events count.
    pub fn set_presence(&mut self, slot: u16, presence: Presence) {
        self.endpoints[usize::from(slot)].presence = presence;
    }

    /// Most blocks of the endpoint; more are refused and counted.
    pub fn set_max_blocks(&mut self, slot: u16, max_blocks: usize) {
        self.endpoints[usize::from(slot)].max_blocks = Some(max_blocks);
    }

    /// The slot becomes another endpoint's: nothing of the one that had it is left.
    pub fn reset_endpoint(&mut self, slot: u16) {
        self.clear(slot, None);
        self.endpoints[usize::from(slot)] = Endpoint::default();
    }

    /// A watcher of changed buckets. All buckets with content start as changed.
    pub fn watch(&mut self) -> usize {
        self.watchers.push(DirtySet::new(self.config.bucket_count));
        let watcher = self.watchers.len() - 1;
        self.mark_all(watcher);
        watcher
    }

    /// Marks every bucket with content as changed: a snapshot.
    pub fn mark_all(&mut self, watcher: usize) {
        for bucket in 0..self.strides.bucket_count() {
            if !self.strides.bucket(bucket).is_empty() {
                self.watchers[watcher].mark(bucket);
            }
        }
    }

    /// Marks one bucket again, for a push whose fate is unknown.
    pub fn mark(&mut self, watcher: usize, bucket: u32) {
        self.watchers[watcher].mark(bucket);
    }

    /// The next changed bucket of a watcher.
    pub fn next_dirty(&mut self, watcher: usize) -> Option<u32> {
        self.watchers[watcher].pop()
    }

    /// Changed buckets of a watcher.
    pub fn dirty_count(&self, watcher: usize) -> usize {
        self.watchers[watcher].len()
    }

    /// How many buckets the watcher has taken so far, and how many it must have taken until nothing
    /// of what is changed now waits: buckets are taken in order of first change.
    pub fn dirty_positions(&self, watcher: usize) -> (u64, u64) {
        let dirty = &self.watchers[watcher];
        (dirty.taken(), dirty.taken() + dirty.len() as u64)
    }

    /// Sizes and counters.
    pub fn stats(&self) -> IndexStats {
        IndexStats {
            nodes: self.nodes.len() - self.roots.len(),
            strides: self.strides.len(),
            parked: self.endpoints.iter().map(|endpoint| endpoint.parked.blocks()).sum(),
            ..self.stats
        }
    }

    /// LoRA adapters whose chains it knows; more than once with several salts.
    pub fn adapters(&self) -> impl Iterator<Item = &str> {
        self.roots.keys().filter_map(|(lora, _)| lora.as_deref())
    }

    /// Blocks that the endpoint holds in some tier.
    pub fn held_blocks(&self, slot: u16) -> usize {
        self.endpoints[usize::from(slot)].held_blocks
    }

    /// What the index knows of the endpoint's block: copies on the GPU and elsewhere.
    pub fn copies(&self, slot: u16, hash: EngineHash) -> Option<(u16, u16)> {
        let id = self.endpoints[usize::from(slot)].names.find(&self.nodes, slot, hash)?;
        let held = self.nodes.get(id)?.held_by(slot)?;
        Some((held.gpu, held.offloaded))
    }

    /// A batch of the endpoint's events begins. Within one, a repeated store is another copy;
    /// a chain announced again from its root later is a report of what is held already (vLLM's
    /// `kv_cache_report_mode`), as an engine does not compute a prefix twice that it holds.
    pub fn begin_batch(&mut self, slot: u16) {
        self.endpoints[usize::from(slot)].in_batch.clear();
    }

    /// Applies a store at `now_ms`. `bytes_of` gives a token's bytes.
    pub fn store<'t>(
        &mut self,
        slot: u16,
        blocks: &StoredBlocks<'_>,
        now_ms: u64,
        bytes_of: impl Fn(u32) -> Option<&'t [u8]>,
    ) {
        let size = blocks.block_size_tokens as usize;
        if size == 0 || blocks.token_ids.len() != blocks.hashes.len() * size {
            self.stats.malformed += 1;
            return;
        }
        let parent = match blocks.parent {
            None => self.root(blocks.lora, blocks.salt),
            Some(hash) => match self.find(slot, hash) {
                Some(node) => node,
                None => {
                    let count = blocks.hashes.len() as u64;
                    self.stats.orphans += count;
                    let parked = &mut self.endpoints[usize::from(slot)].parked;
                    self.stats.expired += parked.park(hash, Stored::of(blocks), now_ms);
                    return;
                }
            },
        };
        self.attach(slot, parent, blocks, &bytes_of);
        if self.endpoints[usize::from(slot)].parked.blocks() == 0 {
            return;
        }
        // What waited for these blocks, and then for what that brought.
        let mut arrived: VecDeque<EngineHash> = blocks.hashes.iter().copied().collect();
        while self.endpoints[usize::from(slot)].parked.blocks() > 0
            && let Some(hash) = arrived.pop_front()
        {
            for stored in self.endpoints[usize::from(slot)].parked.take(hash) {
                let Some(parent) = self.find(slot, hash) else { continue };
                self.stats.attached += stored.hashes.len() as u64;
                self.attach(slot, parent, &stored.as_blocks(), &bytes_of);
                arrived.extend(stored.hashes);
            }
        }
    }

    fn attach<'t>(
        &mut self,
        slot: u16,
        mut parent: NodeId,
        blocks: &StoredBlocks<'_>,
        bytes_of: &impl Fn(u32) -> Option<&'t [u8]>,
    ) {
        let is_report = self.is_report(slot, blocks);
        self.set_full_block(slot, blocks.block_size_tokens);
        let size = blocks.block_size_tokens as usize;
        for (i, (hash, tokens)) in
            blocks.hashes.iter().zip(blocks.token_ids.chunks_exact(size)).enumerate()
        {
            let beyond_text = blocks.beyond_text.get(i).copied().unwrap_or(0);
            let endpoint = &self.endpoints[usize::from(slot)];
            if endpoint.max_blocks.is_some_and(|max| endpoint.held_blocks >= max)
                && self.copies(slot, *hash).unwrap_or((0, 0)) == (0, 0)
            {
                self.stats.refused_blocks += (blocks.hashes.len() - i) as u64;
                return;
            }
            let node = self.child(parent, tokens, beyond_text, bytes_of);
            self.hold(slot, node, *hash, blocks.tier, is_report);
            parent = node;
        }
    }

    fn is_report(&mut self, slot: u16, blocks: &StoredBlocks<'_>) -> bool {
        let is_known = |hash: &EngineHash| {
            self.copies(slot, *hash).is_some_and(|(gpu, _)| gpu > 0)
                && !self.endpoints[usize::from(slot)].in_batch.contains(*hash)
        };
        blocks.parent.is_none()
            && blocks.tier == Tier::Gpu
            && blocks.hashes.len() > 1
            && blocks.hashes.first().is_some_and(is_known)
    }

    /// Applies a store that names blocks by hash alone: a copy in another tier.
    pub fn announce(&mut self, slot: u16, hashes: &[EngineHash], tier: Tier) {
        for hash in hashes {
            match self.find(slot, *hash) {
                Some(node) => self.hold(slot, node, *hash, tier, false),
                None => self.stats.unknown_announcements += 1,
            }
        }
    }

    /// Applies removals: one copy of each hash.
    pub fn remove(&mut self, slot: u16, hashes: &[EngineHash], tier: Tier) {
        for hash in hashes {
            let presence = self.endpoints[usize::from(slot)].presence;
            let found = self.find(slot, *hash);
            let held = found.and_then(|node| self.nodes.get_mut(node)?.held_by_mut(slot));
            let (Some(node), Some(held)) = (found, held) else {
                if !self.endpoints[usize::from(slot)].parked.remove(*hash, tier) {
                    self.stats.unknown_removals += 1;
                }
                continue;
            };
            let before = held.is_held();
            let count = match tier {
                Tier::Gpu => &mut held.gpu,
                Tier::Offloaded | Tier::Storage => &mut held.offloaded,
            };
            let is_there = match presence {
                Presence::Set => *count & tier.set_bit() != 0,
                Presence::Copies => *count > 0,
            };
            match presence {
                _ if !is_there => self.stats.unknown_removals += 1,
                Presence::Set => *count &= !tier.set_bit(),
                Presence::Copies => *count -= 1,
            }
            let is_lost = before && !held.is_held();
            self.endpoints[usize::from(slot)].held_blocks -= usize::from(is_lost);
            self.refresh(slot, node);
            self.retain(node);
        }
    }

    /// Everything the endpoint holds in `tier` is void; in all tiers for `None`. Tiers beside the GPU
    /// are one here.
    pub fn clear(&mut self, slot: u16, tier: Option<Tier>) {
        let endpoint = &mut self.endpoints[usize::from(slot)];
        endpoint.parked.clear();
        endpoint.in_batch.clear();
        if tier.is_none_or(|tier| tier == Tier::Gpu)
            && let Some(hybrid) = &mut endpoint.hybrid
        {
            hybrid.clear();
        }
        let all: Vec<NodeId> = endpoint.names.iter().collect();
        let mut lost = 0;
        for id in &all {
            if let Some(held) = self.nodes.get_mut(*id).and_then(|node| node.held_by_mut(slot)) {
                let before = held.is_held();
                match tier {
                    Some(Tier::Gpu) => held.gpu = 0,
                    Some(Tier::Offloaded | Tier::Storage) => held.offloaded = 0,
                    None => (held.gpu, held.offloaded) = (0, 0),
                }
                lost += usize::from(before && !held.is_held());
            }
        }
        self.endpoints[usize::from(slot)].held_blocks -= lost;
        // All are refreshed before any is freed: freeing goes on to ancestors, and what is freed
        // while still listed would never be marked as changed.
        for id in &all {
            self.refresh(slot, *id);
        }
        for id in all {
            // Nothing that is void is named again, so nothing of it is retained.
            self.free_if_unused(id);
        }
    }

    /// Says that the block's tokens are not those its text would be tokenized to: an engine will not
    /// find it, nor what follows it, for a prompt of that text. It is no longer listed.
    pub fn mark_non_canonical(&mut self, slot: u16, hash: EngineHash) {
        let Some(id) = self.find(slot, hash) else { return };
        let Some(node) = self.nodes.get_mut(id).filter(|node| !node.is_foreign) else { return };
        node.is_foreign = true;
        self.stats.non_canonical += 1;
        let slots: SmallVec<[u16; 4]> = node.held.iter().map(|held| held.slot).collect();
        slots.into_iter().for_each(|slot| self.refresh(slot, id));
    }

    /// The block before a block, as the endpoint names it; `None` at a chain's start.
    pub fn parent_of(&self, slot: u16, hash: EngineHash) -> Option<EngineHash> {
        let node = self.nodes.get(self.find(slot, hash)?)?;
        Some(self.nodes.get(node.parent)?.held_by(slot)?.hash)
    }

    /// Gives up what was parked before `before_ms`.
    pub fn expire_parked(&mut self, before_ms: u64) {
        for endpoint in &mut self.endpoints {
            self.stats.expired += endpoint.parked.expire(before_ms);
        }
    }

    /// Forgets the nodes that are only retained.
    pub fn forget_retained(&mut self) {
        while let Some(id) = self.retained.pop_front() {
            self.release(id);
        }
    }

    /// What is listed under a stride's key; `None` when nothing is.
    pub fn stride(&self, key: StrideKey) -> Option<Stride> {
        let mut stride = Stride::default();
        self.list(self.strides.find(key)?, &mut stride);
        (!stride.holders.is_empty()).then_some(stride)
    }

    /// Key before the first stride of a namespace, in this index's key space.
    pub fn root_key(&self, lora: Option<&str>, salt: Option<&str>) -> StrideKey {
        let namespace = Namespace { model: &self.config.model, lora, salt };
        match self.config.key_space {
            KeySpace::Text => namespace.root(&self.config.seed),
            KeySpace::TokenIds => namespace.root_of_token_ids(&self.config.seed),
        }
    }

    /// The bucket's value for `epoch`, and the strides that did not fit.
    pub fn encode_bucket(&self, bucket: u32, epoch: u64) -> (Vec<u8>, u32) {
        let mut writer = BucketWriter::new(epoch);
        let (mut gpu, mut offloaded) = (Vec::new(), Vec::new());
        let mut stride = Stride::default();
        let entries = self.strides.bucket(bucket);
        // Nodes are in no cache, and memory answers many loads at once if none waits for another.
        let ahead = entries.iter().filter_map(|entry| Some(self.nodes.get(entry.node)?.held.len()));
        std::hint::black_box(ahead.sum::<usize>());
        // Newest first, so that what does not fit is the oldest.
        for entry in entries.iter().rev() {
            self.list(entry, &mut stride);
            if stride.holders.is_empty() {
                continue;
            }
            gpu.clear();
            offloaded.clear();
            for holder in &stride.holders {
                if holder.offloaded { &mut offloaded } else { &mut gpu }.push(holder.slot);
            }
            writer.push(BucketEntry {
                fingerprint: prefix::fingerprint_of(entry.key),
                tokens: entry.tokens,
                gpu: &gpu,
                offloaded: &offloaded,
                resumes: &stride.resumes,
            });
        }
        let dropped = writer.dropped;
        (writer.finish(), dropped)
    }

    /// What is listed of the entry, in place of what `stride` said. Holders sorted by slot, each slot
    /// once; on the GPU wins.
    fn list(&self, entry: &StrideEntry, stride: &mut Stride) {
        stride.tokens = entry.tokens;
        stride.holders.clear();
        stride.resumes.clear();
        for id in self.strides.nodes(entry) {
            let Some(node) = self.nodes.get(id) else { continue };
            for held in node.held.iter().filter(|held| held.reach != Reach::No) {
                let offloaded = held.reach != Reach::Gpu;
                stride.holders.push(Holder { slot: held.slot, offloaded });
                if let Some(hybrid) = &self.endpoints[usize::from(held.slot)].hybrid
                    && !offloaded
                {
                    let tokens = hybrid.resume_tokens(&self.nodes, id, entry.tokens);
                    stride.resumes.extend(tokens.map(|tokens| (held.slot, tokens)));
                }
            }
        }
        stride.holders.sort_unstable();
        stride.holders.dedup_by_key(|holder| holder.slot);
        stride.resumes.sort_unstable_by_key(|(slot, tokens)| (*slot, std::cmp::Reverse(*tokens)));
        stride.resumes.dedup_by_key(|(slot, _)| *slot);
    }

    fn find(&self, slot: u16, hash: EngineHash) -> Option<NodeId> {
        self.endpoints[usize::from(slot)].names.find(&self.nodes, slot, hash)
    }
}

#[cfg(test)]
mod tests;
