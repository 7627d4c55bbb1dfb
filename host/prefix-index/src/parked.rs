//! Stores whose parent is not known: they have no position yet, so they are never listed.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::index::{Stored, Tier};
use crate::node::EngineHash;

/// Blocks parked per endpoint at most; the oldest are given up first.
const MAX_PARKED_BLOCKS: usize = 16_384;

/// One endpoint's parked stores.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    /// In order of arrival.
    by_number: BTreeMap<u64, Stored>,
    by_parent: HashMap<EngineHash, Vec<u64>>,
    order: VecDeque<(u64, u64)>,
    next: u64,
    blocks: usize,
}

impl Parked {
    /// Parks a store at `now_ms`; returns how many blocks were given up for it.
    pub(crate) fn park(&mut self, parent: EngineHash, stored: Stored, now_ms: u64) -> u64 {
        self.blocks += stored.hashes.len();
        self.by_parent.entry(parent).or_default().push(self.next);
        self.by_number.insert(self.next, stored);
        self.order.push_back((self.next, now_ms));
        self.next += 1;
        let mut given_up = 0;
        while self.blocks > MAX_PARKED_BLOCKS
            && let Some((number, _)) = self.order.pop_front()
        {
            given_up += self.drop(number);
        }
        given_up
    }

    /// Gives up what was parked before `before_ms`; returns how many blocks.
    pub(crate) fn expire(&mut self, before_ms: u64) -> u64 {
        let mut given_up = 0;
        while self.order.front().is_some_and(|(_, at_ms)| *at_ms < before_ms)
            && let Some((number, _)) = self.order.pop_front()
        {
            given_up += self.drop(number);
        }
        given_up
    }

    fn drop(&mut self, number: u64) -> u64 {
        let Some(stored) = self.by_number.remove(&number) else { return 0 };
        self.blocks -= stored.hashes.len();
        if let Some(parent) = stored.parent
            && let Some(numbers) = self.by_parent.get_mut(&parent)
        {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.by_parent.remove(&parent);
            }
        }
        stored.hashes.len() as u64
    }

    /// Takes the stores that wait for `parent`, in order of arrival.
    pub(crate) fn take(&mut self, parent: EngineHash) -> Vec<Stored> {
        let numbers = self.by_parent.remove(&parent).unwrap_or_default();
        let stores: Vec<Stored> =
            numbers.iter().filter_map(|number| self.by_number.remove(number)).collect();
        self.blocks -= stores.iter().map(|stored| stored.hashes.len()).sum::<usize>();
        stores
    }

    /// Takes one copy of a parked block away. A block before others of its store takes them along,
    /// as they would hang in the air; true when the hash was parked.
    pub(crate) fn remove(&mut self, hash: EngineHash, tier: Tier) -> bool {
        let found = self.by_number.iter_mut().find_map(|(number, stored)| {
            let at = stored.hashes.iter().position(|other| *other == hash)?;
            (stored.tier == tier).then_some((*number, at, stored))
        });
        let Some((number, at, stored)) = found else { return false };
        let size = stored.block_size_tokens as usize;
        self.blocks -= stored.hashes.len() - at;
        stored.hashes.truncate(at);
        stored.token_ids.truncate(at * size);
        if at == 0 {
            self.drop(number);
        }
        true
    }

    /// In order of arrival, with the time.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &Stored)> {
        self.order.iter().filter_map(|(number, at_ms)| Some((*at_ms, self.by_number.get(number)?)))
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}
