//! How deep each endpoint's prefix reaches into a prompt, in few lookups.
//!
//! The set of holders shrinks as a prefix grows, so between two strides with equal sets every
//! stride has that set. Matching therefore gallops until nobody holds the stride and bisects only
//! where the set changed: about log2(n) lookups per distinct depth instead of one per stride.

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

/// Deepest match per slot over `keys`, with at most `max_lookups` calls of `lookup`.
///
/// When the budget runs out, each endpoint gets the deepest stride at which it was seen: an
/// under-count, never an over-count. Slots without a match are absent from the result.
pub fn match_prefix(
    keys: &[StrideKey],
    max_lookups: u32,
    mut lookup: impl FnMut(StrideKey) -> Option<Stride>,
) -> Vec<(u16, Depths)> {
    let mut left = max_lookups;
    let mut found: Vec<(u16, Depths)> = Vec::new();
    // (from, its stride, to, its stride): strides are 1-based, 0 is the root that everyone holds.
    let mut open: Vec<(usize, Stride, usize, Stride)> = Vec::new();

    let mut fetch = |position: usize, left: &mut u32| -> Option<Stride> {
        *left = left.checked_sub(1)?;
        let key = keys.get(position.checked_sub(1)?)?;
        Some(lookup(*key).unwrap_or_default())
    };

    let (mut from, mut from_stride) = (0usize, None::<Stride>);
    let mut step = 1usize;
    while from < keys.len() {
        let to = (from + step).min(keys.len());
        let Some(stride) = fetch(to, &mut left) else { break };
        let is_empty = stride.holders.is_empty();
        match from_stride.take() {
            None => note(&mut found, to, &stride),
            Some(previous) => {
                note(&mut found, to, &stride);
                if previous.holders != stride.holders && to - from > 1 {
                    open.push((from, previous, to, stride.clone()));
                }
            }
        }
        if is_empty {
            break;
        }
        (from, from_stride) = (to, Some(stride));
        step = step.saturating_mul(2);
    }
    // Deepest segment first: that is where the best endpoint is decided if the budget ends.
    while let Some((from, low, to, high)) = open.pop() {
        let middle = from + (to - from) / 2;
        let Some(stride) = fetch(middle, &mut left) else { break };
        note(&mut found, middle, &stride);
        if low.holders != stride.holders && middle - from > 1 {
            open.push((from, low, middle, stride.clone()));
        }
        if stride.holders != high.holders && to - middle > 1 {
            open.push((middle, stride, to, high));
        }
    }
    found.sort_unstable_by_key(|(slot, _)| *slot);
    found
}

fn note(found: &mut Vec<(u16, Depths)>, position: usize, stride: &Stride) {
    let here = (u32::try_from(position).unwrap_or(u32::MAX), stride.tokens);
    for holder in &stride.holders {
        let depths = match found.iter_mut().find(|(slot, _)| *slot == holder.slot) {
            Some((_, depths)) => depths,
            None => {
                found.push((holder.slot, Depths::default()));
                match found.last_mut() {
                    Some((_, depths)) => depths,
                    None => continue,
                }
            }
        };
        depths.any = depths.any.max(here);
        if !holder.offloaded && here >= depths.gpu {
            depths.gpu = here;
            let resume = stride.resumes.iter().find(|(slot, _)| *slot == holder.slot);
            depths.resume_tokens = resume.map(|(_, tokens)| *tokens);
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
            assert!(gets <= 18, "{depth}: {gets} lookups");
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
