//! An index of another process merged into this one.

use prefix::{KeyChain, STRIDE_BYTES, StrideKey};
use smallvec::SmallVec;

use super::export::{FORMAT, IS_FOREIGN, IS_TEXT};
use super::tree::reach_of;
use super::{Index, KeySpace, MAX_RETAINED, Presence, Stored, Tier};
use crate::codec::{ImportError, Reader};
use crate::hybrid::{Group, Hybrid, Window};
use crate::node::{Held, NIL, NodeId, Reach};

/// What an import brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Pairs of block and endpoint.
    pub held: usize,
    /// Strides that were not listed, as the limit was reached.
    pub dropped_strides: u64,
}

/// Nodes of the export, by their number there.
#[derive(Default)]
struct Nodes {
    ids: Vec<NodeId>,
    /// Made by this import; the others were there, with their strides.
    is_new: Vec<bool>,
    roots: usize,
}

impl Index {
    /// Merges what [`export`](Self::export) wrote, of an index of the same pool and model.
    /// `slots` says which endpoint of this index each endpoint there is; what the others hold is
    /// left out. Those of this index must hold nothing yet. Slots beyond `slots` are left out too.
    ///
    /// # Errors
    /// When the bytes are not an export, or not one for these endpoints. Nothing is taken then.
    pub fn import(
        &mut self,
        bytes: &[u8],
        slots: &[Option<u16>],
        now_ms: u64,
    ) -> Result<Imported, ImportError> {
        for slot in slots.iter().flatten() {
            let is_free = self.endpoints.get(usize::from(*slot)).is_some_and(|endpoint| {
                endpoint.names.iter().next().is_none() && endpoint.parked.blocks() == 0
            });
            if !is_free || slots.iter().filter(|other| **other == Some(*slot)).count() > 1 {
                return Err(ImportError::InUse { slot: *slot });
            }
        }
        let mut nodes = Nodes::default();
        let mut imported = Imported::default();
        let retained = self.retained.len();
        let read = self.read(bytes, slots, now_ms, &mut nodes, &mut imported);
        if read.is_err() {
            for slot in slots.iter().flatten() {
                self.clear(*slot, None);
                self.endpoints[usize::from(*slot)].hybrid = None;
            }
            for id in self.retained.split_off(retained.min(self.retained.len())) {
                self.release(id);
            }
        }
        // What only endpoints left out held is nobody's.
        for id in nodes.ids.iter().rev() {
            self.free_if_unused(*id);
        }
        while self.retained.len() > MAX_RETAINED
            && let Some(oldest) = self.retained.pop_front()
        {
            self.release(oldest);
        }
        self.stats.dropped_strides += imported.dropped_strides;
        read.map(|()| imported)
    }

    fn read(
        &mut self,
        bytes: &[u8],
        slots: &[Option<u16>],
        now_ms: u64,
        nodes: &mut Nodes,
        imported: &mut Imported,
    ) -> Result<(), ImportError> {
        let mut from = Reader::new(bytes);
        match from.byte("format")? {
            FORMAT => {}
            found => return Err(ImportError::Format { found, known: FORMAT }),
        }
        match (from.byte("key space")?, self.config.key_space) {
            (0, KeySpace::Text) | (1, KeySpace::TokenIds) => {}
            (0 | 1, _) => return Err(ImportError::KeySpace),
            _ => return Err(from.malformed("key space")),
        }
        let endpoints = from.count(4, "endpoints")?;
        let slot_of = |slot: usize| slots.get(slot).copied().flatten();
        for slot in 0..endpoints {
            self.read_endpoint(&mut from, slot, slot_of(slot), now_ms)?;
        }
        self.read_roots(&mut from, nodes)?;
        let count = from.count(12, "nodes")?;
        nodes.ids.reserve(count);
        nodes.is_new.reserve(count);
        for _ in 0..count {
            self.read_node(&mut from, nodes, |slot| (slot < endpoints).then(|| slot_of(slot)))?;
        }
        for _ in 0..from.count(1, "retained nodes")? {
            let number = from.u32("retained node")? as usize;
            let id = nodes.ids.get(number).filter(|_| number >= nodes.roots);
            let id = *id.ok_or_else(|| from.malformed("retained node"))?;
            if let Some(node) = self.nodes.get_mut(id)
                && !std::mem::replace(&mut node.is_retained, true)
            {
                self.retained.push_back(id);
            }
        }
        for _ in 0..from.count(11, "strides")? {
            self.read_stride(&mut from, nodes, imported)?;
        }
        if !from.is_empty() {
            return Err(from.malformed("more after the end"));
        }
        let taken: SmallVec<[u16; 16]> = slots.iter().flatten().copied().collect();
        imported.held = self.reach_imported(&nodes.ids[nodes.roots..], &taken);
        taken.iter().for_each(|slot| self.recompute_resumes(*slot));
        Ok(())
    }

    fn read_endpoint(
        &mut self,
        from: &mut Reader<'_>,
        number: usize,
        slot: Option<u16>,
        now_ms: u64,
    ) -> Result<(), ImportError> {
        let presence = match from.byte("presence")? {
            0 => Presence::Copies,
            1 => Presence::Set,
            _ => return Err(from.malformed("presence")),
        };
        let max_blocks = from.number("bound of blocks")?.checked_sub(1);
        let full_block = from.u32("block size")?;
        let groups = from.count(5, "windowed groups")?.checked_sub(1);
        let groups = groups.map(|count| (0..count).map(|_| read_group(from)).collect());
        let groups: Option<Vec<Group>> = groups.transpose()?;
        let parked = (0..from.count(14, "parked stores")?).map(|_| read_parked(from));
        let parked: Vec<(u64, Stored)> = parked.collect::<Result<_, _>>()?;
        let Some(slot) = slot else { return Ok(()) };
        let endpoint = &mut self.endpoints[usize::from(slot)];
        if endpoint.presence != presence {
            return Err(ImportError::Presence { slot: number });
        }
        // A bound that is known here is newer.
        if let (None, Some(max)) = (endpoint.max_blocks, max_blocks) {
            endpoint.max_blocks = usize::try_from(max).ok();
        }
        endpoint.hybrid = groups.map(|groups| Hybrid::of_groups(groups, full_block));
        endpoint.full_block_tokens = full_block;
        for (age_ms, stored) in parked {
            if let Some(parent) = stored.parent {
                endpoint.parked.park(parent, stored, now_ms.saturating_sub(age_ms));
            }
        }
        Ok(())
    }

    fn read_roots(&mut self, from: &mut Reader<'_>, nodes: &mut Nodes) -> Result<(), ImportError> {
        nodes.roots = from.count(2, "roots")?;
        for _ in 0..nodes.roots {
            let lora = from.text("adapter of a root")?;
            let salt = from.text("salt of a root")?;
            nodes.ids.push(self.root(lora, salt));
            nodes.is_new.push(false);
        }
        Ok(())
    }

    /// `slot_of` gives nothing for an endpoint the export does not have, and `Some(None)` for one
    /// that is left out.
    fn read_node(
        &mut self,
        from: &mut Reader<'_>,
        nodes: &mut Nodes,
        slot_of: impl Fn(usize) -> Option<Option<u16>>,
    ) -> Result<(), ImportError> {
        let below = from.u32("parent")? as usize;
        let parent = nodes.ids.len().checked_sub(below).filter(|_| below > 0);
        let parent = parent.and_then(|number| nodes.ids.get(number).copied());
        let parent = parent.ok_or_else(|| from.malformed("parent"))?;
        let flags = from.byte("flags")?;
        if flags & !(IS_TEXT | IS_FOREIGN) != 0 {
            return Err(from.malformed("flags"));
        }
        let content = from.word("content")?;
        let tokens = from.u32("tokens")?;
        let start = self.nodes.get(parent).map_or(0, |node| node.tokens);
        let end = start.checked_add(tokens).filter(|_| tokens > 0);
        let end = end.ok_or_else(|| from.malformed("tokens"))?;
        let chain = match flags & IS_TEXT {
            0 => None,
            _ => {
                let last = StrideKey(from.word("key")?);
                let len = from.count(1, "rest of a stride")?;
                if len >= STRIDE_BYTES {
                    return Err(from.malformed("rest of a stride"));
                }
                Some(KeyChain::resume(last, from.take(len, "rest of a stride")?))
            }
        };
        if chain.is_some() && self.nodes.chain(parent).is_none() {
            return Err(from.malformed("text below what is none"));
        }
        let known = self.find_child(parent, content);
        let id = known
            .unwrap_or_else(|| self.insert_child(parent, content, chain, end, SmallVec::new()));
        nodes.ids.push(id);
        nodes.is_new.push(known.is_none());
        if flags & IS_FOREIGN != 0 {
            self.set_foreign(id);
        }
        for _ in 0..from.count(11, "holders")? {
            let slot = usize::from(from.u16("holder")?);
            let slot = slot_of(slot).ok_or_else(|| from.malformed("holder"))?;
            let hash = from.hash("name of a block")?;
            let gpu = from.u16("copies")?;
            let offloaded = from.u16("copies")?;
            let Some(slot) = slot else { continue };
            self.take_held(id, Held { hash, slot, gpu, offloaded, reach: Reach::No })
                .ok_or_else(|| from.malformed("holder"))?;
        }
        Ok(())
    }

    fn set_foreign(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(id) else { return };
        if !std::mem::replace(&mut node.is_foreign, true) {
            let slots: SmallVec<[u16; 4]> = node.held.iter().map(|held| held.slot).collect();
            slots.into_iter().for_each(|slot| self.refresh(slot, id));
        }
    }

    /// `None` for a holder or a name that is there already.
    fn take_held(&mut self, id: NodeId, held: Held) -> Option<()> {
        let (slot, hash) = (held.slot, held.hash);
        let node = self.nodes.get(id)?;
        if node.held_by(slot).is_some() || self.find(slot, hash).is_some() {
            return None;
        }
        let node = self.nodes.get_mut(id)?;
        if node.held.len() == node.held.capacity() {
            node.held.reserve_exact(1 + node.held.len() / 4);
        }
        node.held.push(held);
        self.stats.held += 1;
        let endpoint = &mut self.endpoints[usize::from(slot)];
        endpoint.held_blocks += usize::from(held.is_held());
        endpoint.names.insert(hash, id);
        Some(())
    }

    fn read_stride(
        &mut self,
        from: &mut Reader<'_>,
        nodes: &Nodes,
        imported: &mut Imported,
    ) -> Result<(), ImportError> {
        let key = StrideKey(from.word("key of a stride")?);
        let tokens = from.u32("tokens of a stride")?;
        let count = from.count(1, "ends of a stride")?;
        let is_dropped =
            self.strides.len() >= self.config.max_strides && self.strides.find(key).is_none();
        imported.dropped_strides += u64::from(is_dropped);
        let mut number = 0usize;
        for i in 0..count {
            let step = from.u32("end of a stride")? as usize;
            number = number.saturating_add(step);
            let id = nodes.ids.get(number).filter(|_| number >= nodes.roots);
            let id = *id
                .filter(|_| i == 0 || step > 0)
                .ok_or_else(|| from.malformed("end of a stride"))?;
            if is_dropped || !nodes.is_new[number] {
                continue;
            }
            // A block may end strides before a token without text, which ends the text.
            let parent = self.nodes.get(id).map_or(NIL, |node| node.parent);
            let is_text = self.nodes.chain(parent).is_some();
            let node =
                self.nodes.get_mut(id).filter(|node| is_text && !node.strides.contains(&key));
            node.ok_or_else(|| from.malformed("end of a stride"))?.strides.push(key);
            self.strides.insert(key, tokens, id);
        }
        Ok(())
    }

    /// What the endpoints reach, parents first; returns how many blocks they hold.
    fn reach_imported(&mut self, ids: &[NodeId], slots: &[u16]) -> usize {
        let mut held_blocks = 0;
        for id in ids {
            let Some(node) = self.nodes.get(*id) else { continue };
            let (parent, is_foreign) = (node.parent, node.is_foreign);
            let mut is_listed = false;
            for at in 0..node.held.len() {
                let Some(held) = self.nodes.get(*id).and_then(|node| node.held.get(at)) else {
                    continue;
                };
                if !slots.contains(&held.slot) {
                    continue;
                }
                held_blocks += usize::from(held.is_held());
                let reach = reach_of(self.reach_at(parent, held.slot), held, is_foreign);
                is_listed |= reach != Reach::No;
                if let Some(node) = self.nodes.get_mut(*id) {
                    node.held[at].reach = reach;
                }
            }
            if is_listed {
                self.mark_strides(*id);
            }
        }
        held_blocks
    }
}

fn read_group(from: &mut Reader<'_>) -> Result<Group, ImportError> {
    let number = from.u32("number of a group")?;
    let window = match (from.byte("kind of a window")?, from.u32("window")?) {
        (0, tokens) => Window::Sliding(tokens),
        (1, tokens) => Window::Chunked(tokens),
        (2, 0) => Window::State,
        _ => return Err(from.malformed("kind of a window")),
    };
    let block_tokens = from.u32("block size of a group")?;
    let mut group = Group { number, window, block_tokens, copies: Default::default() };
    let count = from.count(9, "blocks of a group")?;
    group.copies.reserve(count);
    for _ in 0..count {
        let hash = from.hash("name of a block")?;
        let copies = from.u16("copies")?;
        if copies == 0 || group.copies.insert(hash, copies).is_some() {
            return Err(from.malformed("copies"));
        }
    }
    Ok(group)
}

fn read_parked(from: &mut Reader<'_>) -> Result<(u64, Stored), ImportError> {
    let age_ms = from.number("age of a parked store")?;
    let parent = from.hash("parent of a parked store")?;
    let tier = match from.byte("tier")? {
        0 => Tier::Gpu,
        1 => Tier::Offloaded,
        2 => Tier::Storage,
        _ => return Err(from.malformed("tier")),
    };
    let block_size_tokens = from.u32("block size")?;
    let blocks = from.count(8, "parked blocks")?;
    let hashes = (0..blocks).map(|_| from.hash("name of a block")).collect::<Result<_, _>>()?;
    let ids = blocks.checked_mul(block_size_tokens as usize).filter(|ids| *ids > 0);
    let ids = ids.ok_or_else(|| from.malformed("block size"))?;
    // Read one by one, so that no more is reserved than there is.
    let mut token_ids = Vec::new();
    for _ in 0..ids {
        token_ids.push(from.u32("token id")?);
    }
    let lora = from.text("adapter")?.map(str::to_owned);
    let salt = from.text("salt")?.map(str::to_owned);
    let beyond_text = (0..from.count(8, "keys beside the text")?)
        .map(|_| from.word("key beside the text"))
        .collect::<Result<_, _>>()?;
    let stored = Stored {
        hashes,
        parent: Some(parent),
        token_ids,
        block_size_tokens,
        tier,
        lora,
        salt,
        beyond_text,
    };
    Ok((age_ms, stored))
}
