//! The index: events in, dirty buckets out.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use feed::{BucketEntry, BucketWriter};
use prefix::{Holder, KeyChain, Namespace, Seed, Stride, StrideKey};

use crate::dirty::DirtySet;
use crate::node::{Arena, EngineHash, Held, NIL, Node, NodeId};
use crate::strides::StrideTable;

/// Where a block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tier {
    /// Usable at once.
    Gpu,
    /// CPU memory, disk, remote: usable after a load.
    Offloaded,
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

/// Counters and sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStats {
    /// Distinct blocks.
    pub nodes: usize,
    /// Distinct strides.
    pub strides: usize,
    /// (block, endpoint) pairs.
    pub held: usize,
    /// Stored blocks whose parent is not known: never listed.
    pub orphans: u64,
    /// Removals of blocks that are not held.
    pub unknown_removals: u64,
    /// Token ids without bytes: the chain ends there.
    pub unknown_tokens: u64,
    /// Events whose token count does not fit their blocks.
    pub malformed: u64,
    /// Strides not listed for the size limit.
    pub dropped_strides: u64,
}

/// See the crate's documentation.
pub struct Index {
    config: IndexConfig,
    nodes: Arena,
    /// First nodes of chains by namespace.
    roots: HashMap<(Option<String>, Option<String>), NodeId>,
    /// (parent, content) to node; `parent` is a root's sentinel node.
    children: HashMap<(NodeId, u64), NodeId>,
    strides: StrideTable,
    endpoints: Vec<HashMap<EngineHash, NodeId>>,
    watchers: Vec<DirtySet>,
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
            children: HashMap::new(),
            endpoints: Vec::new(),
            watchers: Vec::new(),
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
        self.endpoints.push(HashMap::new());
        (self.endpoints.len() - 1) as u16
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
            ..self.stats
        }
    }

    /// Blocks that the endpoint holds or has just lost while others need them.
    pub fn known_blocks(&self, slot: u16) -> usize {
        self.endpoints[usize::from(slot)].len()
    }

    /// Applies a store. `bytes_of` gives a token's bytes.
    pub fn store<'t>(
        &mut self,
        slot: u16,
        blocks: &StoredBlocks<'_>,
        bytes_of: impl Fn(u32) -> Option<&'t [u8]>,
    ) {
        let size = blocks.block_size_tokens as usize;
        if size == 0 || blocks.token_ids.len() != blocks.hashes.len() * size {
            self.stats.malformed += 1;
            return;
        }
        let mut parent = match blocks.parent {
            None => self.root(blocks.lora, blocks.salt),
            Some(hash) => match self.endpoints[usize::from(slot)].get(&hash) {
                Some(node) => *node,
                None => {
                    self.stats.orphans += blocks.hashes.len() as u64;
                    return;
                }
            },
        };
        for (i, (hash, tokens)) in
            blocks.hashes.iter().zip(blocks.token_ids.chunks_exact(size)).enumerate()
        {
            let beyond_text = blocks.beyond_text.get(i).copied().unwrap_or(0);
            let node = self.child(parent, tokens, beyond_text, &bytes_of);
            self.hold(slot, node, *hash, blocks.tier);
            parent = node;
        }
    }

    /// Applies removals: one copy of each hash.
    pub fn remove(&mut self, slot: u16, hashes: &[EngineHash], tier: Tier) {
        for hash in hashes {
            let found = self.endpoints[usize::from(slot)].get(hash).copied();
            let held = found.and_then(|node| self.nodes.get_mut(node)?.held_by_mut(slot));
            let (Some(node), Some(held)) = (found, held) else {
                self.stats.unknown_removals += 1;
                continue;
            };
            let count = match tier {
                Tier::Gpu => &mut held.gpu,
                Tier::Offloaded => &mut held.offloaded,
            };
            match count.checked_sub(1) {
                Some(fewer) => *count = fewer,
                None => self.stats.unknown_removals += 1,
            }
            self.refresh(slot, node);
            self.free_if_unused(node);
        }
    }

    /// Everything the endpoint holds is void.
    pub fn clear(&mut self, slot: u16) {
        let all: Vec<NodeId> = self.endpoints[usize::from(slot)].values().copied().collect();
        for id in &all {
            if let Some(held) = self.nodes.get_mut(*id).and_then(|node| node.held_by_mut(slot)) {
                (held.gpu, held.offloaded) = (0, 0);
            }
        }
        // All are refreshed before any is freed: freeing goes on to ancestors, and what is freed
        // while still listed would never be marked as changed.
        for id in &all {
            self.refresh(slot, *id);
        }
        for id in all {
            if self.nodes.get(id).is_some_and(|node| node.held_by(slot).is_some()) {
                self.free_if_unused(id);
            }
        }
    }

    /// What is listed under a stride's key; `None` when nothing is.
    pub fn stride(&self, key: StrideKey) -> Option<Stride> {
        let entry = self.strides.find(key)?;
        let holders = self.holders(entry.nodes.as_slice());
        (!holders.is_empty()).then_some(Stride { tokens: entry.tokens, holders })
    }

    /// The bucket's value for `epoch`, and the strides that did not fit.
    pub fn encode_bucket(&self, bucket: u32, epoch: u64) -> (Vec<u8>, u32) {
        let mut writer = BucketWriter::new(epoch);
        // Newest first, so that what does not fit is the oldest.
        for entry in self.strides.bucket(bucket).iter().rev() {
            let holders = self.holders(entry.nodes.as_slice());
            if holders.is_empty() {
                continue;
            }
            let slots = |offloaded| {
                let of_kind = holders.iter().filter(move |holder| holder.offloaded == offloaded);
                of_kind.map(|holder| holder.slot).collect::<Vec<u16>>()
            };
            writer.push(BucketEntry {
                fingerprint: prefix::fingerprint_of(entry.key),
                tokens: entry.tokens,
                gpu: &slots(false),
                offloaded: &slots(true),
            });
        }
        let dropped = writer.dropped;
        (writer.finish(), dropped)
    }

    /// Sorted by slot, each slot once; on the GPU wins.
    fn holders(&self, nodes: &[NodeId]) -> Vec<Holder> {
        let mut holders: Vec<Holder> = nodes
            .iter()
            .filter_map(|id| self.nodes.get(*id))
            .flat_map(|node| &node.held)
            .filter(|held| held.reaches_any)
            .map(|held| Holder { slot: held.slot, offloaded: !held.reaches_gpu })
            .collect();
        holders.sort_unstable();
        holders.dedup_by_key(|holder| holder.slot);
        holders
    }

    fn root(&mut self, lora: Option<&str>, salt: Option<&str>) -> NodeId {
        let name = (lora.map(str::to_owned), salt.map(str::to_owned));
        if let Some(root) = self.roots.get(&name) {
            return *root;
        }
        let key = Namespace { model: &self.config.model, lora, salt }.root(&self.config.seed);
        let root = self.nodes.insert(Node {
            parent: NIL,
            first_child: NIL,
            next_sibling: NIL,
            content: 0,
            chain: Some(KeyChain::new(key)),
            tokens: 0,
            strides: Box::default(),
            held: Vec::new(),
        });
        self.roots.insert(name, root);
        root
    }

    fn child<'t>(
        &mut self,
        parent: NodeId,
        tokens: &[u32],
        beyond_text: u64,
        bytes_of: &impl Fn(u32) -> Option<&'t [u8]>,
    ) -> NodeId {
        let content = self.hasher.hash_one((tokens, beyond_text));
        if let Some(node) = self.children.get(&(parent, content)) {
            return *node;
        }
        let (chain, start, sibling) = match self.nodes.get(parent) {
            Some(node) => (node.chain.clone(), node.tokens, node.first_child),
            None => (None, 0, NIL),
        };
        let mut strides = Vec::new();
        let chain = match chain {
            Some(chain) if beyond_text == 0 => {
                self.extend(chain, start, tokens, bytes_of, &mut strides)
            }
            _ => None,
        };
        let is_full = self.strides.len() + strides.len() > self.config.max_strides;
        if is_full {
            self.stats.dropped_strides += strides.len() as u64;
            strides.clear();
        }
        let id = self.nodes.insert(Node {
            parent,
            first_child: NIL,
            next_sibling: sibling,
            content,
            chain,
            tokens: start + tokens.len() as u32,
            strides: strides.into_boxed_slice(),
            held: Vec::new(),
        });
        if let Some(node) = self.nodes.get_mut(parent) {
            node.first_child = id;
        }
        self.children.insert((parent, content), id);
        if let Some(node) = self.nodes.get(id) {
            for (key, tokens) in &node.strides {
                self.strides.insert(*key, *tokens, id);
            }
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
        strides: &mut Vec<(StrideKey, u32)>,
    ) -> Option<KeyChain> {
        for (before, token) in (start..).zip(tokens) {
            let Some(bytes) = bytes_of(*token) else {
                self.stats.unknown_tokens += 1;
                return None;
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

    fn hold(&mut self, slot: u16, id: NodeId, hash: EngineHash, tier: Tier) {
        // The engine may name a text anew (restart without a clear): the old name must not keep it.
        let known = self.endpoints[usize::from(slot)].insert(hash, id);
        let Some(node) = self.nodes.get_mut(id) else { return };
        let held = match node.held.iter().position(|held| held.slot == slot) {
            Some(at) => &mut node.held[at],
            None => {
                node.held.push(Held {
                    slot,
                    gpu: 0,
                    offloaded: 0,
                    reaches_gpu: false,
                    reaches_any: false,
                    hash,
                });
                self.stats.held += 1;
                let last = node.held.len() - 1;
                &mut node.held[last]
            }
        };
        let renamed = (held.hash != hash).then_some(held.hash);
        held.hash = hash;
        match tier {
            Tier::Gpu => held.gpu = held.gpu.saturating_add(1),
            Tier::Offloaded => held.offloaded = held.offloaded.saturating_add(1),
        }
        if let Some(old) = renamed {
            self.endpoints[usize::from(slot)].remove(&old);
        }
        if let Some(old) = known.filter(|old| *old != id) {
            // One hash, other content: the engine reuses the name, so the old content is gone.
            if let Some(held) = self.nodes.get_mut(old).and_then(|node| node.held_by_mut(slot)) {
                (held.gpu, held.offloaded) = (0, 0);
                self.refresh(slot, old);
                self.drop_held(slot, old);
                self.free_if_unused(old);
            }
        }
        self.refresh(slot, id);
    }

    /// Recomputes what `slot` reaches from `id` downwards, as far as something changes.
    fn refresh(&mut self, slot: u16, id: NodeId) {
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            let Some(node) = self.nodes.get(id) else { continue };
            let (parent_gpu, parent_any) = match self.nodes.get(node.parent) {
                // Roots are the sentinels without a parent: everyone reaches them.
                Some(parent) if parent.parent == NIL => (true, true),
                Some(parent) => parent
                    .held_by(slot)
                    .map_or((false, false), |held| (held.reaches_gpu, held.reaches_any)),
                None => (false, false),
            };
            let Some(held) = self.nodes.get_mut(id).and_then(|node| node.held_by_mut(slot)) else {
                continue;
            };
            let reaches_gpu = parent_gpu && held.gpu > 0;
            let reaches_any = parent_any && (held.gpu > 0 || held.offloaded > 0);
            if (held.reaches_gpu, held.reaches_any) == (reaches_gpu, reaches_any) {
                continue;
            }
            (held.reaches_gpu, held.reaches_any) = (reaches_gpu, reaches_any);
            let Some(node) = self.nodes.get(id) else { continue };
            for (key, _) in &node.strides {
                let bucket = self.strides.bucket_of(*key);
                self.watchers.iter_mut().for_each(|watcher| watcher.mark(bucket));
            }
            let mut child = node.first_child;
            while let Some(node) = self.nodes.get(child) {
                open.push(child);
                child = node.next_sibling;
            }
        }
    }

    fn drop_held(&mut self, slot: u16, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(id) {
            let before = node.held.len();
            node.held.retain(|held| held.slot != slot);
            self.stats.held -= before - node.held.len();
        }
    }

    /// Frees `id` and then its ancestors, as long as nobody holds them and nothing hangs below.
    /// A lost block with descendants stays: a later store may name it as its parent.
    fn free_if_unused(&mut self, mut id: NodeId) {
        while let Some(node) = self.nodes.get(id) {
            let is_held = node.held.iter().any(|held| held.gpu > 0 || held.offloaded > 0);
            if is_held || node.first_child != NIL || node.parent == NIL {
                return;
            }
            let Some(node) = self.nodes.remove(id) else { return };
            self.stats.held -= node.held.len();
            for held in &node.held {
                let names = &mut self.endpoints[usize::from(held.slot)];
                if names.get(&held.hash) == Some(&id) {
                    names.remove(&held.hash);
                }
            }
            for (key, _) in &node.strides {
                self.strides.remove(*key, id);
            }
            self.children.remove(&(node.parent, node.content));
            self.unlink(node.parent, id, node.next_sibling);
            id = node.parent;
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
