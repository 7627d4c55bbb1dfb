//! The index: events in, dirty buckets out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

use feed::{BucketEntry, BucketWriter};
use hashbrown::HashTable;
use prefix::{Holder, KeyChain, Namespace, Seed, Stride, StrideKey};
use smallvec::SmallVec;

use crate::dirty::DirtySet;
use crate::hybrid::{Hybrid, Window};
use crate::node::{Arena, EngineHash, Held, NIL, NewNode, NodeId, Reach};
use crate::parked::Parked;
use crate::strides::{StrideEntry, StrideTable};

mod names;
use names::Names;

/// Where a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// Usable at once.
    Gpu,
    /// CPU memory, disk, remote: usable after a load.
    Offloaded,
}

/// What an engine's stores and removals count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Presence {
    /// Physical blocks: each store adds one, each removal takes one (vLLM).
    #[default]
    Copies,
    /// Presence in a tree: stores may repeat, one removal ends it (SGLang, TensorRT-LLM).
    Set,
}

/// What the keys are of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KeySpace {
    /// The text of the tokens.
    #[default]
    Text,
    /// The token ids themselves, four little-endian bytes each.
    TokenIds,
}

/// What an index is made for.
#[derive(Clone, Debug)]
pub struct IndexConfig {
    /// Canonical model name: part of every key.
    pub model: String,
    /// The pool's secret.
    pub seed: Seed,
    /// A power of two.
    pub bucket_count: u32,
    /// Strides beyond this are not listed, and counted.
    pub max_strides: usize,
    /// Text or token ids.
    pub key_space: KeySpace,
}

/// Blocks stored by one event, in chain order.
#[derive(Clone, Debug)]
pub struct StoredBlocks<'a> {
    /// One hash per block.
    pub hashes: &'a [EngineHash],
    /// Hash of the block before the first; `None` for a chain's start.
    pub parent: Option<EngineHash>,
    /// Token ids of all blocks.
    pub token_ids: &'a [u32],
    /// Tokens per block.
    pub block_size_tokens: u32,
    /// Where they are.
    pub tier: Tier,
    /// LoRA adapter by name.
    pub lora: Option<&'a str>,
    /// Cache salt of the chain.
    pub salt: Option<&'a str>,
    /// Per block: what the engine hashed beside the tokens and text does not show (media,
    /// embeddings), as a number; 0 for plain text. Empty means plain.
    pub beyond_text: &'a [u64],
}

/// [`StoredBlocks`] that outlive their event.
#[derive(Clone, Debug)]
pub struct Stored {
    pub(crate) hashes: Vec<EngineHash>,
    pub(crate) parent: Option<EngineHash>,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) block_size_tokens: u32,
    pub(crate) tier: Tier,
    lora: Option<String>,
    salt: Option<String>,
    beyond_text: Vec<u64>,
}

impl Stored {
    fn of(blocks: &StoredBlocks<'_>) -> Self {
        Self {
            hashes: blocks.hashes.to_vec(),
            parent: blocks.parent,
            token_ids: blocks.token_ids.to_vec(),
            block_size_tokens: blocks.block_size_tokens,
            tier: blocks.tier,
            lora: blocks.lora.map(str::to_owned),
            salt: blocks.salt.map(str::to_owned),
            beyond_text: blocks.beyond_text.to_vec(),
        }
    }

    fn as_blocks(&self) -> StoredBlocks<'_> {
        StoredBlocks {
            hashes: &self.hashes,
            parent: self.parent,
            token_ids: &self.token_ids,
            block_size_tokens: self.block_size_tokens,
            tier: self.tier,
            lora: self.lora.as_deref(),
            salt: self.salt.as_deref(),
            beyond_text: &self.beyond_text,
        }
    }
}

/// Counters and sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Distinct blocks.
    pub nodes: usize,
    /// Distinct strides.
    pub strides: usize,
    /// (block, endpoint) pairs.
    pub held: usize,
    /// Blocks parked now for an unknown parent.
    pub parked: usize,
    /// Blocks ever parked.
    pub orphans: u64,
    /// Parked blocks whose parent came.
    pub attached: u64,
    /// Parked blocks given up, for age or room.
    pub expired: u64,
    /// Removals of blocks that are not held.
    pub unknown_removals: u64,
    /// Blocks announced by hash alone that are not known.
    pub unknown_announcements: u64,
    /// Token ids without bytes: the chain ends there.
    pub unknown_tokens: u64,
    /// Events whose token count does not fit their blocks.
    pub malformed: u64,
    /// Distinct blocks found not to be what their text would be tokenized to.
    pub non_canonical: u64,
    /// Strides not listed for the size limit.
    pub dropped_strides: u64,
    /// Blocks not taken because their endpoint has its share already.
    pub refused_blocks: u64,
}

/// Nodes that nobody holds and that are kept for announcements by hash and for repeats.
const MAX_RETAINED: usize = 8192;

#[derive(Default)]
struct Endpoint {
    names: Names,
    presence: Presence,
    parked: Parked,
    hybrid: Option<Hybrid>,
    /// Blocks it holds in some tier.
    held_blocks: usize,
    /// Blocks it may hold here at most.
    max_blocks: Option<usize>,
    /// Hashes stored since the batch began.
    in_batch: HashSet<EngineHash>,
}

/// See the crate's documentation.
pub struct Index {
    config: IndexConfig,
    nodes: Arena,
    /// First nodes of chains by namespace.
    roots: HashMap<(Option<String>, Option<String>), NodeId>,
    /// Nodes by (parent, content); a chain's start has its namespace's root as parent.
    children: HashTable<NodeId>,
    strides: StrideTable,
    endpoints: Vec<Endpoint>,
    watchers: Vec<DirtySet>,
    retained: VecDeque<NodeId>,
    stats: IndexStats,
    hasher: RandomState,
}

impl Index {
    /// An empty index.
    pub fn new(config: IndexConfig) -> Self {
        Self {
            strides: StrideTable::new(config.bucket_count),
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

    /// Sizes and counters.
    pub fn stats(&self) -> IndexStats {
        IndexStats {
            nodes: self.nodes.len() - self.roots.len(),
            strides: self.strides.len(),
            parked: self.endpoints.iter().map(|endpoint| endpoint.parked.blocks()).sum(),
            ..self.stats
        }
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

    fn is_report(&self, slot: u16, blocks: &StoredBlocks<'_>) -> bool {
        let is_known = |hash: &EngineHash| {
            self.copies(slot, *hash).is_some_and(|(gpu, _)| gpu > 0)
                && !self.endpoints[usize::from(slot)].in_batch.contains(hash)
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
                Tier::Offloaded => &mut held.offloaded,
            };
            match (*count, presence) {
                (0, _) => self.stats.unknown_removals += 1,
                (_, Presence::Set) => *count = 0,
                (_, Presence::Copies) => *count -= 1,
            }
            let is_lost = before && !held.is_held();
            self.endpoints[usize::from(slot)].held_blocks -= usize::from(is_lost);
            self.refresh(slot, node);
            self.retain(node);
        }
    }

    /// Everything the endpoint holds in `tier` is void; in all tiers for `None`.
    pub fn clear(&mut self, slot: u16, tier: Option<Tier>) {
        let endpoint = &mut self.endpoints[usize::from(slot)];
        endpoint.parked.clear();
        endpoint.in_batch.clear();
        if tier != Some(Tier::Offloaded)
            && let Some(hybrid) = &mut endpoint.hybrid
        {
            hybrid.clear();
        }
        let all: Vec<NodeId> = endpoint.names.iter().collect();
        let mut lost = 0;
        for id in &all {
            if let Some(held) = self.nodes.get_mut(*id).and_then(|node| node.held_by_mut(slot)) {
                let before = held.is_held();
                if tier != Some(Tier::Offloaded) {
                    held.gpu = 0;
                }
                if tier != Some(Tier::Gpu) {
                    held.offloaded = 0;
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

    /// Applies a store of a windowed KV group.
    pub fn store_window(&mut self, slot: u16, group: u32, window: Window, hashes: &[EngineHash]) {
        let hybrid = self.endpoints[usize::from(slot)].hybrid.get_or_insert_default();
        let news = hybrid.store(group, window, hashes);
        self.refresh_resumes(slot, &news);
    }

    /// Applies removals of a windowed KV group; false when it is none that is known.
    pub fn remove_window(&mut self, slot: u16, group: u32, hashes: &[EngineHash]) -> bool {
        let hybrid = &mut self.endpoints[usize::from(slot)].hybrid;
        let Some(gone) = hybrid.as_mut().and_then(|hybrid| hybrid.remove(group, hashes)) else {
            return false;
        };
        self.refresh_resumes(slot, &gone);
        true
    }

    fn refresh_resumes(&mut self, slot: u16, hashes: &[EngineHash]) {
        for hash in hashes {
            if let Some(id) = self.find(slot, *hash) {
                self.refresh_resume(slot, id);
            }
        }
    }

    fn refresh_resume(&mut self, slot: u16, id: NodeId) {
        let Some(hybrid) = &mut self.endpoints[usize::from(slot)].hybrid else { return };
        for id in hybrid.refresh(&self.nodes, slot, id) {
            self.mark_strides(id);
        }
    }

    /// What is listed under a stride's key; `None` when nothing is.
    pub fn stride(&self, key: StrideKey) -> Option<Stride> {
        let stride = self.listing(self.strides.find(key)?);
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
        // Newest first, so that what does not fit is the oldest.
        for entry in self.strides.bucket(bucket).iter().rev() {
            let stride = self.listing(entry);
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

    /// Holders sorted by slot, each slot once; on the GPU wins.
    fn listing(&self, entry: &StrideEntry) -> Stride {
        let mut stride = Stride { tokens: entry.tokens, ..Stride::default() };
        for id in self.strides.nodes(entry) {
            let Some(node) = self.nodes.get(id) else { continue };
            for held in node.held.iter().filter(|held| held.reach != Reach::No) {
                let offloaded = held.reach != Reach::Gpu;
                stride.holders.push(Holder { slot: held.slot, offloaded });
                if let Some(hybrid) = &self.endpoints[usize::from(held.slot)].hybrid
                    && !offloaded
                {
                    let tokens = hybrid.resume_tokens(&self.nodes, id, entry.tokens);
                    stride.resumes.push((held.slot, tokens));
                }
            }
        }
        stride.holders.sort_unstable();
        stride.holders.dedup_by_key(|holder| holder.slot);
        stride.resumes.sort_unstable_by_key(|(slot, tokens)| (*slot, std::cmp::Reverse(*tokens)));
        stride.resumes.dedup_by_key(|(slot, _)| *slot);
        stride
    }

    fn find(&self, slot: u16, hash: EngineHash) -> Option<NodeId> {
        self.endpoints[usize::from(slot)].names.find(&self.nodes, slot, hash)
    }

    fn root(&mut self, lora: Option<&str>, salt: Option<&str>) -> NodeId {
        let name = (lora.map(str::to_owned), salt.map(str::to_owned));
        if let Some(root) = self.roots.get(&name) {
            return *root;
        }
        let root = self.nodes.insert(NewNode {
            parent: NIL,
            next_sibling: NIL,
            content: 0,
            chain: Some(KeyChain::new(self.root_key(lora, salt))),
            tokens: 0,
            strides: SmallVec::new(),
        });
        self.roots.insert(name, root);
        root
    }

    fn place(&self, parent: NodeId, content: u64) -> u64 {
        self.hasher.hash_one((parent, content))
    }

    fn child<'t>(
        &mut self,
        parent: NodeId,
        tokens: &[u32],
        beyond_text: u64,
        bytes_of: &impl Fn(u32) -> Option<&'t [u8]>,
    ) -> NodeId {
        let content = self.hasher.hash_one((tokens, beyond_text));
        let place = self.place(parent, content);
        let is_same = |id: &NodeId| {
            self.nodes.get(*id).is_some_and(|n| n.parent == parent && n.content == content)
        };
        if let Some(node) = self.children.find(place, is_same) {
            return *node;
        }
        let (start, sibling) =
            self.nodes.get(parent).map_or((0, NIL), |node| (node.tokens, node.first_child));
        let mut strides: SmallVec<[(StrideKey, u32); 4]> = SmallVec::new();
        let chain = match self.nodes.chain(parent) {
            Some(chain) if beyond_text == 0 => {
                self.extend(chain, start, tokens, bytes_of, &mut strides)
            }
            _ => None,
        };
        if self.strides.len() + strides.len() > self.config.max_strides {
            self.stats.dropped_strides += strides.len() as u64;
            strides.clear();
        }
        let id = self.nodes.insert(NewNode {
            parent,
            next_sibling: sibling,
            content,
            chain,
            tokens: start + tokens.len() as u32,
            strides: strides.iter().map(|(key, _)| *key).collect(),
        });
        if let Some(node) = self.nodes.get_mut(parent) {
            node.first_child = id;
        }
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        self.children.insert_unique(place, id, |id| {
            nodes.get(*id).map_or(0, |node| hasher.hash_one((node.parent, node.content)))
        });
        for (key, tokens) in strides {
            self.strides.insert(key, tokens, id);
        }
        id
    }

    /// Hashes the block's text onto its chain. An id without bytes ends what can be listed.
    fn extend<'t>(
        &mut self,
        mut chain: KeyChain,
        start: u32,
        tokens: &[u32],
        bytes_of: &impl Fn(u32) -> Option<&'t [u8]>,
        strides: &mut SmallVec<[(StrideKey, u32); 4]>,
    ) -> Option<KeyChain> {
        for (before, token) in (start..).zip(tokens) {
            let id_bytes = token.to_le_bytes();
            let bytes = match self.config.key_space {
                KeySpace::TokenIds => &id_bytes[..],
                KeySpace::Text => match bytes_of(*token) {
                    Some(bytes) => bytes,
                    None => {
                        self.stats.unknown_tokens += 1;
                        return None;
                    }
                },
            };
            let first = strides.len();
            chain.push(&self.config.seed, bytes, |key| strides.push((key, before)));
            // A stride that ends where the token ends has the token wholly before its end.
            if chain.pending_bytes() == 0
                && strides.len() > first
                && let Some((_, tokens)) = strides.last_mut()
            {
                *tokens = before + 1;
            }
        }
        Some(chain)
    }

    fn hold(&mut self, slot: u16, id: NodeId, hash: EngineHash, tier: Tier, is_report: bool) {
        let endpoint = &mut self.endpoints[usize::from(slot)];
        let is_repeat = match endpoint.presence {
            Presence::Set => true,
            Presence::Copies => is_report && !endpoint.in_batch.contains(&hash),
        };
        endpoint.in_batch.insert(hash);
        if let Some(other) = endpoint.names.find(&self.nodes, slot, hash).filter(|o| *o != id) {
            // One hash, other content: the engine reuses the name, so the old content is gone.
            self.drop_held(slot, other);
        }
        let Some(node) = self.nodes.get_mut(id) else { return };
        let at = node.held.iter().position(|held| held.slot == slot);
        if let Some(held) = at.map(|at| node.held[at])
            && held.hash != hash
        {
            // The engine names a text anew (restart without a clear): the old name is gone.
            self.endpoints[usize::from(slot)].names.remove(&self.nodes, slot, held.hash);
        }
        let Some(node) = self.nodes.get_mut(id) else { return };
        let is_named = at.is_some_and(|at| node.held[at].hash == hash);
        let at = at.unwrap_or_else(|| {
            if node.held.len() == node.held.capacity() {
                node.held.reserve_exact(1 + node.held.len() / 4);
            }
            node.held.push(Held { hash, slot, gpu: 0, offloaded: 0, reach: Reach::No });
            self.stats.held += 1;
            node.held.len() - 1
        });
        let held = &mut node.held[at];
        held.hash = hash;
        let is_gained = !held.is_held();
        let count = match tier {
            Tier::Gpu => &mut held.gpu,
            Tier::Offloaded => &mut held.offloaded,
        };
        *count = if is_repeat { (*count).max(1) } else { count.saturating_add(1) };
        self.endpoints[usize::from(slot)].held_blocks += usize::from(is_gained);
        if !is_named {
            self.endpoints[usize::from(slot)].names.insert(&self.nodes, slot, hash, id);
        }
        self.refresh(slot, id);
        if self.endpoints[usize::from(slot)].hybrid.is_some() {
            self.refresh_resume(slot, id);
        }
    }

    /// Recomputes what `slot` reaches from `id` downwards, as far as something changes.
    fn refresh(&mut self, slot: u16, id: NodeId) {
        let mut open: SmallVec<[NodeId; 8]> = SmallVec::from_slice(&[id]);
        while let Some(id) = open.pop() {
            let Some(node) = self.nodes.get(id) else { continue };
            let parent = match self.nodes.get(node.parent) {
                // Roots are the sentinels without a parent: everyone reaches them.
                Some(parent) if parent.parent == NIL => Reach::Gpu,
                Some(parent) => parent.reach(slot),
                None => Reach::No,
            };
            let is_foreign = node.is_foreign;
            let Some(held) = self.nodes.get_mut(id).and_then(|node| node.held_by_mut(slot)) else {
                continue;
            };
            let reach = match parent {
                _ if is_foreign => Reach::No,
                Reach::Gpu if held.gpu > 0 => Reach::Gpu,
                Reach::Gpu | Reach::Any if held.gpu > 0 || held.offloaded > 0 => Reach::Any,
                _ => Reach::No,
            };
            if std::mem::replace(&mut held.reach, reach) == reach {
                continue;
            }
            self.mark_strides(id);
            if self.endpoints[usize::from(slot)].hybrid.is_some() {
                self.refresh_resume(slot, id);
            }
            let mut child = self.nodes.get(id).map_or(NIL, |node| node.first_child);
            while let Some(node) = self.nodes.get(child) {
                open.push(child);
                child = node.next_sibling;
            }
        }
    }

    fn mark_strides(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        for key in &node.strides {
            let bucket = self.strides.bucket_of(*key);
            self.watchers.iter_mut().for_each(|watcher| watcher.mark(bucket));
        }
    }

    fn drop_held(&mut self, slot: u16, id: NodeId) {
        let Some(held) = self.nodes.get_mut(id).and_then(|node| node.held_by_mut(slot)) else {
            return;
        };
        let is_lost = held.is_held();
        (held.gpu, held.offloaded) = (0, 0);
        let hash = held.hash;
        self.endpoints[usize::from(slot)].held_blocks -= usize::from(is_lost);
        self.refresh(slot, id);
        self.endpoints[usize::from(slot)].names.remove(&self.nodes, slot, hash);
        if let Some(node) = self.nodes.get_mut(id) {
            node.held.retain(|held| held.slot != slot);
            self.stats.held -= 1;
        }
        self.free_if_unused(id);
    }

    /// Keeps a node that nobody holds any more for a while.
    fn retain(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if node.is_held() || node.is_retained {
            return;
        }
        node.is_retained = true;
        self.retained.push_back(id);
        if self.retained.len() > MAX_RETAINED
            && let Some(oldest) = self.retained.pop_front()
        {
            self.release(oldest);
        }
    }

    fn release(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(id) {
            node.is_retained = false;
            self.free_if_unused(id);
        }
    }

    /// Frees `id` and then its ancestors, as long as nobody holds them, nothing hangs below and
    /// they are not retained. A lost block with descendants stays: a later store may name it as its
    /// parent.
    fn free_if_unused(&mut self, mut id: NodeId) {
        while let Some(node) = self.nodes.get(id) {
            if node.is_held() || node.first_child != NIL || node.parent == NIL || node.is_retained {
                return;
            }
            let (parent, content, next) = (node.parent, node.content, node.next_sibling);
            let held: SmallVec<[(u16, EngineHash); 4]> =
                node.held.iter().map(|held| (held.slot, held.hash)).collect();
            for (slot, hash) in &held {
                let endpoint = &mut self.endpoints[usize::from(*slot)];
                endpoint.names.remove(&self.nodes, *slot, *hash);
                if let Some(hybrid) = &mut endpoint.hybrid {
                    hybrid.forget(id);
                }
            }
            self.stats.held -= held.len();
            let place = self.place(parent, content);
            if let Ok(entry) = self.children.find_entry(place, |other| *other == id) {
                entry.remove();
            }
            let Some(node) = self.nodes.remove(id) else { return };
            for key in &node.strides {
                self.strides.remove(*key, id);
            }
            self.unlink(parent, id, next);
            id = parent;
        }
    }

    fn unlink(&mut self, parent: NodeId, id: NodeId, next: NodeId) {
        let Some(node) = self.nodes.get_mut(parent) else { return };
        if node.first_child == id {
            node.first_child = next;
            return;
        }
        let mut at = node.first_child;
        while let Some(node) = self.nodes.get_mut(at) {
            if node.next_sibling == id {
                node.next_sibling = next;
                return;
            }
            at = node.next_sibling;
        }
    }
}

#[cfg(test)]
mod tests;
