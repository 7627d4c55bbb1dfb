//! Windowed KV groups of the endpoints: what they store, and what that makes of resume points.

use super::Index;
use crate::hybrid::{Hybrid, Window};
use crate::node::{EngineHash, NodeId};

impl Index {
    /// Applies a store of a windowed KV group whose blocks have `block_tokens` tokens, 0 if unknown.
    pub fn store_window(
        &mut self,
        slot: u16,
        group: u32,
        window: Window,
        block_tokens: u32,
        hashes: &[EngineHash],
    ) {
        let endpoint = &mut self.endpoints[usize::from(slot)];
        let full_block = endpoint.full_block_tokens;
        let hybrid = endpoint.hybrid.get_or_insert_with(|| Hybrid::new(full_block));
        let is_other_rule = hybrid.set_window(group, window, block_tokens);
        let news = hybrid.store(group, hashes);
        match is_other_rule {
            // Where a group that nobody knew of held nothing, nothing can be resumed.
            true => self.recompute_resumes(slot),
            false => self.refresh_resumes(slot, &news),
        }
    }

    /// Whether it can be told after which blocks the endpoint can resume; it can where no group is
    /// windowed. A group whose blocks end between those of full attention cannot be followed: the
    /// text at its blocks' ends is not known. It is left out, which makes resume points an upper
    /// bound.
    pub fn knows_resumes(&self, slot: u16) -> bool {
        self.endpoints[usize::from(slot)].hybrid.as_ref().is_none_or(Hybrid::is_clear)
    }

    /// Takes the size of the endpoint's blocks of full attention.
    pub(super) fn set_full_block(&mut self, slot: u16, tokens: u32) {
        let endpoint = &mut self.endpoints[usize::from(slot)];
        if std::mem::replace(&mut endpoint.full_block_tokens, tokens) == tokens {
            return;
        }
        if let Some(hybrid) = &mut endpoint.hybrid {
            hybrid.set_full_block(tokens);
            self.recompute_resumes(slot);
        }
    }

    /// For a change of the rules by which the endpoint resumes: every block's answer may be another.
    pub(super) fn recompute_resumes(&mut self, slot: u16) {
        let endpoint = &mut self.endpoints[usize::from(slot)];
        let Some(hybrid) = &mut endpoint.hybrid else { return };
        let mut held: Vec<NodeId> = endpoint.names.iter().collect();
        // Parents come before their children, as they end at fewer tokens.
        held.sort_unstable_by_key(|id| self.nodes.get(*id).map(|node| node.tokens));
        hybrid.recompute(&self.nodes, slot, &held);
        // Whether anything is said at all may have changed where no resume point has.
        held.into_iter().for_each(|id| self.mark_strides(id));
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

    pub(super) fn refresh_resume(&mut self, slot: u16, id: NodeId) {
        let Some(hybrid) = &mut self.endpoints[usize::from(slot)].hybrid else { return };
        for id in hybrid.refresh(&self.nodes, slot, id) {
            self.mark_strides(id);
        }
    }
}
