//! The content tree below the index: where blocks hang, who reaches them, when they go.

use std::hash::BuildHasher;

use prefix::{KeyChain, StrideKey};
use smallvec::SmallVec;

use super::{Index, KeySpace, MAX_RETAINED, Presence, Tier};
use crate::node::{EngineHash, Held, NIL, NewNode, NodeId, Reach};

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
        let is_again = !endpoint.in_batch.insert(hash);
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
            Tier::Offloaded | Tier::Storage => &mut held.offloaded,
        };
        *count = match presence {
            Presence::Set => *count | tier.set_bit(),
            Presence::Copies if is_report && !is_again => (*count).max(1),
            Presence::Copies => count.saturating_add(1),
        };
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
    pub(super) fn refresh(&mut self, slot: u16, id: NodeId) {
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
