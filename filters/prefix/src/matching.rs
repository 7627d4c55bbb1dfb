//! How deep each endpoint's prefix reaches into a prompt, in few lookups.
//!
//! The set of holders shrinks as a prefix grows, so between two strides with equal sets every
//! stride has that set. Matching therefore looks at the first stride, which tells whether anyone
//! holds anything, and at the last, and bisects where the sets differ: about log2(n) lookups per
//! distinct depth instead of one per stride. Galloping from the first stride saves some for shallow
//! matches only and took a third more over chats behind shared system prompts.

use std::borrow::Cow;

use crate::StrideKey;

/// One (endpoint, tier) pair that holds a stride. Sorts by slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Holder {
    /// Slot of the endpoint in the endpoint table.
    pub slot: u16,
    /// False: every ancestor is on the GPU. True: some ancestor is in another tier only.
    pub offloaded: bool,
}

/// What the index knows of one stride.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stride {
    /// Tokens that lie wholly before the stride's end.
    pub tokens: u32,
    /// Holders, sorted, each slot once.
    pub holders: Vec<Holder>,
    /// For holders with windowed KV groups: the most tokens, up to this stride, after which the
    /// engine can resume. Sorted by slot.
    pub resumes: Vec<(u16, u32)>,
}

/// How deep an endpoint's prefix reaches: `(strides, tokens)` on the GPU and in any tier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Depths {
    /// Strides and tokens whose blocks are all on the GPU.
    pub gpu: (u32, u32),
    /// Strides and tokens whose blocks are each in some tier.
    pub any: (u32, u32),
    /// Tokens after which an engine with windowed KV groups can resume within `gpu`; `None` for
    /// engines that can resume after any block.
    pub resume_tokens: Option<u32>,
}

/// A stride as a lookup found it. Matching asks mostly whether two have the same holders, which can
/// be told without reading who they are.
pub trait Listed {
    /// True when the holders, and where they hold it, are the same. False for equal ones costs
    /// lookups only.
    fn has_same_holders(&self, other: &Self) -> bool;
    /// True when nobody holds it.
    fn is_unheld(&self) -> bool;
    /// All that is known of it.
    fn read(&self) -> Cow<'_, Stride>;
}

impl Listed for Stride {
    fn has_same_holders(&self, other: &Self) -> bool {
        self.holders == other.holders
    }
    fn is_unheld(&self) -> bool {
        self.holders.is_empty()
    }
    fn read(&self) -> Cow<'_, Stride> {
        Cow::Borrowed(self)
    }
}

/// Deepest match per slot over `keys`, with at most `max_lookups` calls of `lookup`.
///
/// When the budget runs out, each endpoint gets the deepest stride at which it was seen: an
/// under-count, never an over-count. Slots without a match are absent from the result.
pub fn match_prefix<L: Listed>(
    keys: &[StrideKey],
    max_lookups: u32,
    lookup: impl FnMut(StrideKey) -> Option<L>,
) -> Vec<(u16, Depths)> {
    let mut probes = Probes { keys, left: max_lookups, lookup, list: Vec::with_capacity(32) };
    let mut found: Vec<(u16, Depths)> = Vec::new();
    let Some(first) = probes.at(1).filter(|first| probes.is_held(*first)) else { return found };
    let last = if keys.len() > 1 { probes.at(keys.len()) } else { None };
    // Pairs of probes, the first of them held. The deepest is the last, and is divided first: that
    // is where the best endpoint is decided if the budget ends.
    let mut open: Vec<(usize, usize)> = Vec::with_capacity(16);
    open.extend(last.map(|last| (first, last)));
    probes.note(&mut found, last.unwrap_or(first), None);
    while let Some((low, high)) = open.pop() {
        if probes.has_same_holders(low, high) {
            continue;
        }
        match probes.between(low, high) {
            Some(middle) if probes.is_held(middle) => open.extend([(low, middle), (middle, high)]),
            Some(middle) => open.push((low, middle)),
            // Neighbours, or as near as the budget allows: who drops out is known up to the first.
            None => probes.note(&mut found, low, Some(high)),
        }
    }
    found
}

/// Strides looked up so far, by number of the probe.
struct Probes<'k, L, F> {
    keys: &'k [StrideKey],
    left: u32,
    lookup: F,
    /// Position (the first stride's is 1) and what was found there, if anyone holds it.
    list: Vec<(usize, Option<L>)>,
}

impl<L: Listed, F: FnMut(StrideKey) -> Option<L>> Probes<'_, L, F> {
    /// Looks a position up; `None` when the budget is spent.
    fn at(&mut self, position: usize) -> Option<usize> {
        let key = self.keys.get(position.checked_sub(1)?)?;
        self.left = self.left.checked_sub(1)?;
        let stride = (self.lookup)(*key).filter(|stride| !stride.is_unheld());
        self.list.push((position, stride));
        Some(self.list.len() - 1)
    }

    fn between(&mut self, low: usize, high: usize) -> Option<usize> {
        let (from, to) = (self.list.get(low)?.0, self.list.get(high)?.0);
        let middle = from + to.checked_sub(from)? / 2;
        if middle > from { self.at(middle) } else { None }
    }

    fn stride(&self, probe: usize) -> Option<&L> {
        self.list.get(probe)?.1.as_ref()
    }

    fn is_held(&self, probe: usize) -> bool {
        self.stride(probe).is_some()
    }

    fn has_same_holders(&self, low: usize, high: usize) -> bool {
        match (self.stride(low), self.stride(high)) {
            (Some(low), Some(high)) => low.has_same_holders(high),
            (low, high) => low.is_none() && high.is_none(),
        }
    }

    /// Notes who holds the stride of `probe` and not, or not as well, that of `next`.
    fn note(&self, found: &mut Vec<(u16, Depths)>, probe: usize, next: Option<usize>) {
        let Some((position, Some(stride))) = self.list.get(probe) else { return };
        let stride = stride.read();
        let next = next.and_then(|next| self.stride(next)).map(Listed::read);
        let here = (u32::try_from(*position).unwrap_or(u32::MAX), stride.tokens);
        let mut beyond = next.iter().flat_map(|next| &next.holders).peekable();
        found.reserve(stride.holders.len());
        // All three lists are sorted by slot.
        let mut at = 0;
        for holder in &stride.holders {
            while beyond.next_if(|other| other.slot < holder.slot).is_some() {}
            let stays = beyond.peek().filter(|other| other.slot == holder.slot);
            if stays.is_some_and(|other| other.offloaded <= holder.offloaded) {
                continue;
            }
            while found.get(at).is_some_and(|(slot, _)| *slot < holder.slot) {
                at += 1;
            }
            if found.get(at).is_none_or(|(slot, _)| *slot != holder.slot) {
                found.insert(at, (holder.slot, Depths::default()));
            }
            let Some((_, depths)) = found.get_mut(at) else { continue };
            depths.any = depths.any.max(here);
            if !holder.offloaded && here >= depths.gpu {
                depths.gpu = here;
                let resume = stride.resumes.binary_search_by_key(&holder.slot, |(slot, _)| *slot);
                let resume = resume.ok().and_then(|at| stride.resumes.get(at));
                depths.resume_tokens = resume.map(|(_, tokens)| *tokens);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Odd slots have windows: they can resume after every seventh stride.
    fn resume(position: u32) -> u32 {
        position / 7 * 7 * 16
    }

    fn index(depths: &[(u16, u32, u32)], position: u32) -> Option<Stride> {
        let mut holders: Vec<Holder> = depths
            .iter()
            .filter(|(_, _, any)| *any >= position)
            .map(|(slot, gpu, _)| Holder { slot: *slot, offloaded: *gpu < position })
            .collect();
        holders.sort_unstable();
        let resumes =
            holders.iter().filter(|h| h.slot % 2 == 1).map(|h| (h.slot, resume(position)));
        let resumes = resumes.collect();
        (!holders.is_empty()).then_some(Stride { tokens: position * 16, holders, resumes })
    }

    fn run(depths: &[(u16, u32, u32)], strides: u32, budget: u32) -> (Vec<(u16, Depths)>, u32) {
        let keys: Vec<StrideKey> = (1..=u64::from(strides)).map(StrideKey).collect();
        let mut gets = 0;
        let found = match_prefix(&keys, budget, |key| {
            gets += 1;
            index(depths, key.0 as u32)
        });
        (found, gets)
    }

    fn naive(depths: &[(u16, u32, u32)], strides: u32) -> Vec<(u16, Depths)> {
        let mut all: Vec<(u16, Depths)> = depths
            .iter()
            .map(|(slot, gpu, any)| {
                let (gpu, any) = (*gpu.min(&strides), *any.min(&strides));
                let resume_tokens = (slot % 2 == 1 && gpu > 0).then(|| resume(gpu));
                (*slot, Depths { gpu: (gpu, gpu * 16), any: (any, any * 16), resume_tokens })
            })
            .filter(|(_, depths)| depths.any.0 > 0)
            .collect();
        all.sort_unstable_by_key(|(slot, _)| *slot);
        all
    }

    #[test]
    fn nothing_held_costs_one_lookup() {
        assert_eq!(run(&[], 5000, 64), (vec![], 1));
        assert_eq!(run(&[(1, 3, 3)], 0, 64), (vec![], 0));
    }

    #[test]
    fn one_depth_of_488_costs_few_lookups() {
        for depth in [1, 2, 3, 7, 100, 255, 256, 487, 488] {
            let (found, gets) = run(&[(4, depth, depth)], 488, 64);
            assert_eq!(found, naive(&[(4, depth, depth)], 488));
            assert!(gets <= 11, "{depth}: {gets} lookups");
        }
    }

    #[test]
    fn a_spent_budget_undercounts_and_the_deepest_is_exact_first() {
        let depths: Vec<(u16, u32, u32)> =
            (0..60).map(|i| (i, 30 * u32::from(i) + 1, 30 * u32::from(i) + 1)).collect();
        let (found, gets) = run(&depths, 2000, 64);
        assert_eq!(gets, 64);
        let truth = naive(&depths, 2000);
        for (slot, depths) in &found {
            let (_, exact) = truth.iter().find(|(other, _)| other == slot).unwrap();
            assert!(depths.gpu.0 <= exact.gpu.0);
        }
        assert_eq!(found.last(), truth.last());
    }

    proptest! {
        #[test]
        fn matching_agrees_with_naive(
            depths in proptest::collection::btree_map(0u16..9, (0u32..300, 0u32..80), 0..9),
            strides in 0u32..260,
        ) {
            let depths: Vec<(u16, u32, u32)> =
                depths.into_iter().map(|(slot, (gpu, more))| (slot, gpu, gpu + more)).collect();
            let (found, _) = run(&depths, strides, u32::MAX);
            prop_assert_eq!(found, naive(&depths, strides));
        }

        #[test]
        fn a_budget_is_kept_and_never_overcounts(
            depths in proptest::collection::btree_map(0u16..40, 1u32..900, 0..40),
            budget in 0u32..70,
        ) {
            let depths: Vec<(u16, u32, u32)> =
                depths.into_iter().map(|(slot, gpu)| (slot, gpu, gpu)).collect();
            let (found, gets) = run(&depths, 900, budget);
            prop_assert!(gets <= budget);
            let truth = naive(&depths, 900);
            for (slot, depths) in found {
                let exact = truth.iter().find(|(other, _)| *other == slot).unwrap().1;
                prop_assert!(depths.gpu.0 <= exact.gpu.0 && depths.any.0 <= exact.any.0);
            }
        }
    }
}
