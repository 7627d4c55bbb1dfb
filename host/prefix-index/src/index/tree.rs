//! The content tree below the index: where blocks hang, who reaches them, when they go.

use std::hash::BuildHasher;

use prefix::{KeyChain, STRIDE_BYTES, StrideKey};
use smallvec::SmallVec;

use super::{Index, KeySpace, MAX_RETAINED, Presence, Tier};
use crate::node::{Arena, EngineHash, Held, NIL, NewNode, NodeId, Reach};

/// What is reached of a node, from what is reached of its parent.
pub(super) fn reach_of(parent: Reach, held: &Held, is_foreign: bool) -> Reach {
    match parent {
        _ if is_foreign => Reach::No,
        Reach::Gpu if held.gpu > 0 => Reach::Gpu,
        Reach::Gpu | Reach::Any if held.is_held() => Reach::Any,
        _ => Reach::No,
    }
}

/// Children that are looked for one after the other. Nearly all nodes have one; those of more are
/// in a table. Tests come by the table sooner.
const FEW_CHILDREN: usize = if cfg!(test) { 2 } else { 8 };

impl Index {
    pub(super) fn root(&mut self, lora: Option<&str>, salt: Option<&str>) -> NodeId {
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

    pub(super) fn child<'t>(
        &mut self,
        parent: NodeId,
        tokens: &[u32],
        beyond_text: u64,
        bytes_of: &impl Fn(u32) -> Option<&'t [u8]>,
    ) -> NodeId {
        let content = self.contents.hash(tokens, beyond_text);
        if let Some(node) = self.find_child(parent, content) {
            return node;
        }
        let start = self.nodes.get(parent).map_or(0, |node| node.tokens);
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
        let keys = strides.iter().map(|(key, _)| *key).collect();
        let id = self.insert_child(parent, content, chain, start + tokens.len() as u32, keys);
        for (key, tokens) in strides {
            self.strides.insert(key, tokens, id);
        }
        id
    }

    pub(super) fn find_child(&self, parent: NodeId, content: u64) -> Option<NodeId> {
        let parent_node = self.nodes.get(parent)?;
        if parent_node.has_many_children {
            let is_same = |id: &NodeId| {
                self.nodes.get(*id).is_some_and(|n| n.parent == parent && n.content == content)
            };
            return self.children.find(self.place(parent, content), is_same).copied();
        }
        let mut id = parent_node.first_child;
        while let Some(node) = self.nodes.get(id) {
            if node.content == content {
                return Some(id);
            }
            id = node.next_sibling;
        }
        None
    }

    /// A node that is none yet, first among its siblings; its strides are the caller's to list.
    pub(super) fn insert_child(
        &mut self,
        parent: NodeId,
        content: u64,
        chain: Option<KeyChain>,
        tokens: u32,
        strides: SmallVec<[StrideKey; 1]>,
    ) -> NodeId {
        let next_sibling = self.nodes.get(parent).map_or(NIL, |node| node.first_child);
        let id =
            self.nodes.insert(NewNode { parent, next_sibling, content, chain, tokens, strides });
        if let Some(next) = self.nodes.get_mut(next_sibling) {
            next.prev_sibling = id;
        }
        let Some(node) = self.nodes.get_mut(parent) else { return id };
        node.first_child = id;
        if node.has_many_children {
            self.insert_place(id);
            return id;
        }
        let mut children: SmallVec<[NodeId; FEW_CHILDREN + 1]> = SmallVec::new();
        let mut child = id;
        while let Some(node) = self.nodes.get(child) {
            children.push(child);
            child = node.next_sibling;
        }
        if children.len() > FEW_CHILDREN {
            children.into_iter().for_each(|child| self.insert_place(child));
            if let Some(node) = self.nodes.get_mut(parent) {
                node.has_many_children = true;
            }
        }
        id
    }

    /// Puts a child into the table of children.
    fn insert_place(&mut self, id: NodeId) {
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        let place = |id: &NodeId| {
            nodes.get(*id).map_or(0, |node| hasher.hash_one((node.parent, node.content)))
        };
        self.children.insert_unique(place(&id), id, place);
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
        let mut text: SmallVec<[u8; 256]> = SmallVec::new();
        // Where each token ends in the text.
        let mut ends: SmallVec<[usize; 64]> = SmallVec::new();
        let mut is_known = true;
        for token in tokens {
            match self.config.key_space {
                KeySpace::TokenIds => text.extend_from_slice(&token.to_le_bytes()),
                KeySpace::Text => match bytes_of(*token) {
                    Some(bytes) => text.extend_from_slice(bytes),
                    None => {
                        self.stats.unknown_tokens += 1;
                        is_known = false;
                        break;
                    }
                },
            }
            ends.push(text.len());
        }
        let mut end = STRIDE_BYTES - chain.pending_bytes();
        let mut before = 0;
        chain.push(&self.config.seed, &text, |key| {
            while ends.get(before).is_some_and(|token| *token < end) {
                before += 1;
            }
            // A token that ends where the stride does lies wholly before its end.
            let is_whole = ends.get(before) == Some(&end);
            strides.push((key, start + before as u32 + u32::from(is_whole)));
            end += STRIDE_BYTES;
        });
        is_known.then_some(chain)
    }

    pub(super) fn hold(
        &mut self,
        slot: u16,
        id: NodeId,
        hash: EngineHash,
        tier: Tier,
        is_report: bool,
    ) {
        let endpoint = &mut self.endpoints[usize::from(slot)];
        let presence = endpoint.presence;
        let is_again = is_report && endpoint.in_batch.contains(hash);
        endpoint.in_batch.push(hash);
        if let Some(other) = endpoint.names.find(&self.nodes, slot, hash).filter(|o| *o != id) {
            // One hash, other content: the engine reuses the name, so the old content is gone. It
            // may be all that hangs below this node, which must not go with it.
            let keep = |nodes: &mut Arena, keep: bool| match nodes.get_mut(id) {
                Some(node) => std::mem::replace(&mut node.is_retained, keep),
                None => false,
            };
            let was_kept = keep(&mut self.nodes, true);
            self.drop_held(slot, other);
            keep(&mut self.nodes, was_kept);
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
            Tier::Offloaded | Tier::Storage => &mut held.offloaded,
        };
        *count = match presence {
            Presence::Set => *count | tier.set_bit(),
            Presence::Copies if is_report && !is_again => (*count).max(1),
            Presence::Copies => count.saturating_add(1),
        };
        self.endpoints[usize::from(slot)].held_blocks += usize::from(is_gained);
        if !is_named {
            self.endpoints[usize::from(slot)].names.insert(hash, id);
        }
        self.refresh(slot, id);
        if self.endpoints[usize::from(slot)].hybrid.is_some() {
            self.refresh_resume(slot, id);
        }
    }

    /// What `slot` reaches of a node or root.
    pub(super) fn reach_at(&self, id: NodeId, slot: u16) -> Reach {
        match self.nodes.get(id) {
            // Roots are the sentinels without a parent: everyone reaches them.
            Some(node) if node.parent == NIL => Reach::Gpu,
            Some(node) => node.reach(slot),
            None => Reach::No,
        }
    }

    /// Recomputes what `slot` reaches from `id` downwards, as far as something changes.
    pub(super) fn refresh(&mut self, slot: u16, id: NodeId) {
        let mut open: SmallVec<[NodeId; 8]> = SmallVec::from_slice(&[id]);
        while let Some(id) = open.pop() {
            let Some(node) = self.nodes.get(id) else { continue };
            let parent = self.reach_at(node.parent, slot);
            let is_foreign = node.is_foreign;
            let Some(held) = self.nodes.get_mut(id).and_then(|node| node.held_by_mut(slot)) else {
                continue;
            };
            let reach = reach_of(parent, held, is_foreign);
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

    pub(super) fn mark_strides(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        for key in &node.strides {
            let bucket = self.strides.bucket_of(*key);
            self.watchers.iter_mut().for_each(|watcher| watcher.mark(bucket));
        }
    }

    pub(super) fn drop_held(&mut self, slot: u16, id: NodeId) {
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
        if let Some(hybrid) = &mut self.endpoints[usize::from(slot)].hybrid {
            hybrid.forget(id);
        }
        self.free_if_unused(id);
    }

    /// Keeps a node that nobody holds any more for a while.
    pub(super) fn retain(&mut self, id: NodeId) {
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

    pub(super) fn release(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(id) {
            node.is_retained = false;
            self.free_if_unused(id);
        }
    }

    /// Frees `id` and then its ancestors, as long as nobody holds them, nothing hangs below and
    /// they are not retained. A lost block with descendants stays: a later store may name it as its
    /// parent.
    pub(super) fn free_if_unused(&mut self, mut id: NodeId) {
        while let Some(node) = self.nodes.get(id) {
            if node.is_held() || node.first_child != NIL || node.parent == NIL || node.is_retained {
                return;
            }
            let (parent, content) = (node.parent, node.content);
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
            if self.nodes.get(parent).is_some_and(|parent| parent.has_many_children) {
                let place = self.place(parent, content);
                if let Ok(entry) = self.children.find_entry(place, |other| *other == id) {
                    entry.remove();
                }
            }
            let Some(node) = self.nodes.remove(id) else { return };
            for key in &node.strides {
                self.strides.remove(*key, id);
            }
            self.unlink(parent, node.prev_sibling, node.next_sibling);
            id = parent;
        }
    }

    /// Joins the siblings of a node that is gone.
    fn unlink(&mut self, parent: NodeId, before: NodeId, after: NodeId) {
        if let Some(node) = self.nodes.get_mut(after) {
            node.prev_sibling = before;
        }
        if let Some(node) = self.nodes.get_mut(before) {
            node.next_sibling = after;
        } else if let Some(node) = self.nodes.get_mut(parent) {
            node.first_child = after;
            node.has_many_children &= after != NIL;
        }
    }
}
