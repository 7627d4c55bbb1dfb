//! An index and its copy by way of an export: the same to see, and the same after whatever follows.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::twin::{Naive, any_op, compare, events, send};
use super::*;
use crate::Window;

fn exported(index: &Index, now_ms: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    index.export(now_ms, &mut bytes);
    bytes
}

const ALL: [Option<u16>; 3] = [Some(0), Some(1), Some(2)];

fn copy_of(original: &Index, now_ms: u64) -> Index {
    let mut copy = index(3);
    copy.import(&exported(original, now_ms), &ALL, now_ms).expect("an export");
    copy
}

/// Sizes; counters are each index's own.
fn sizes(index: &Index) -> (usize, usize, usize, usize, Vec<usize>) {
    let stats = index.stats();
    let held = (0..3).map(|slot| index.held_blocks(slot)).collect();
    (stats.nodes, stats.strides, stats.held, stats.parked, held)
}

/// Everything that can be asked of an index.
fn assert_same(copy: &Index, original: &Index, hashes: &[u64]) -> Result<(), TestCaseError> {
    prop_assert_eq!(sizes(copy), sizes(original));
    for bucket in 0..BUCKETS {
        prop_assert_eq!(copy.encode_bucket(bucket, 7), original.encode_bucket(bucket, 7));
    }
    for hash in hashes.iter().map(|hash| EngineHash(*hash)) {
        for slot in 0..3 {
            prop_assert_eq!(copy.copies(slot, hash), original.copies(slot, hash));
            prop_assert_eq!(copy.parent_of(slot, hash), original.parent_of(slot, hash));
        }
    }
    let retained = |index: &Index| index.retained.len();
    prop_assert_eq!(retained(copy), retained(original));
    Ok(())
}

/// An event as it may come, sensible or not. Hashes and texts are few, so that they meet.
#[derive(Clone, Debug)]
enum Raw {
    Store {
        parent: Option<u64>,
        first: u64,
        tokens: Vec<u32>,
        size: u32,
        offloaded: bool,
        lora: bool,
        salt: bool,
        beyond_text: bool,
    },
    Announce(u64),
    Remove(u64, bool),
    Clear(Option<bool>),
    NonCanonical(u64),
    StoreWindow(u32, Window, Vec<u64>),
    RemoveWindow(u32, u64),
    MaxBlocks(usize),
    ForgetRetained,
    Later,
}

fn any_raw() -> impl Strategy<Value = (u16, Raw)> {
    let hash = 0u64..24;
    let window = prop_oneof![
        (1u32..30).prop_map(Window::Sliding),
        (1u32..20).prop_map(Window::Chunked),
        Just(Window::State),
    ];
    // 77 has no bytes.
    let token = prop::sample::select(vec![1u32, 4, 5, 5, 5, 6, 77]);
    let raw = prop_oneof![
        8 => (
            (prop::option::of(hash.clone()), hash.clone(), proptest::collection::vec(token, 4..13)),
            (1u32..5, any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.2)),
            prop::bool::weighted(0.1),
        )
            .prop_map(|((parent, first, tokens), (size, offloaded, lora, salt), beyond_text)| {
                Raw::Store { parent, first, tokens, size, offloaded, lora, salt, beyond_text }
            }),
        2 => hash.clone().prop_map(Raw::Announce),
        4 => (hash.clone(), any::<bool>()).prop_map(|(hash, offloaded)| Raw::Remove(hash, offloaded)),
        1 => any::<Option<bool>>().prop_map(Raw::Clear),
        1 => hash.clone().prop_map(Raw::NonCanonical),
        3 => (0u32..3, window, proptest::collection::vec(hash.clone(), 0..6))
            .prop_map(|(group, window, hashes)| Raw::StoreWindow(group, window, hashes)),
        1 => (0u32..3, hash).prop_map(|(group, hash)| Raw::RemoveWindow(group, hash)),
        1 => (1usize..12).prop_map(Raw::MaxBlocks),
        1 => Just(Raw::ForgetRetained),
        1 => Just(Raw::Later),
    ];
    (0u16..3, raw)
}

fn send_raw(index: &mut Index, slot: u16, raw: &Raw, now_ms: &mut u64) {
    let tier = |offloaded: bool| if offloaded { Tier::Offloaded } else { Tier::Gpu };
    index.begin_batch(slot);
    match raw {
        Raw::Store { parent, first, tokens, size, offloaded, lora, salt, beyond_text } => {
            let count = tokens.len() / *size as usize;
            let hashes: Vec<EngineHash> =
                (0..count as u64).map(|i| EngineHash((first + i) % 24)).collect();
            let media: Vec<u64> = (0..count as u64).map(|i| if i == 1 { 9 } else { 0 }).collect();
            let store = StoredBlocks {
                parent: parent.map(EngineHash),
                tier: tier(*offloaded),
                lora: lora.then_some("adapter"),
                salt: salt.then_some("salt"),
                beyond_text: if *beyond_text { &media } else { &[] },
                ..blocks(&hashes, &tokens[..count * *size as usize], *size)
            };
            index.store(slot, &store, *now_ms, bytes_of);
        }
        Raw::Announce(hash) => index.announce(slot, &[EngineHash(*hash)], Tier::Offloaded),
        Raw::Remove(hash, offloaded) => index.remove(slot, &[EngineHash(*hash)], tier(*offloaded)),
        Raw::Clear(of) => index.clear(slot, of.map(tier)),
        Raw::NonCanonical(hash) => index.mark_non_canonical(slot, EngineHash(*hash)),
        Raw::StoreWindow(group, window, hashes) => {
            let hashes: Vec<EngineHash> = hashes.iter().map(|hash| EngineHash(*hash)).collect();
            let block_tokens = if *group % 2 == 0 { 0 } else { 4 * group };
            index.store_window(slot, *group, *window, block_tokens, &hashes);
        }
        Raw::RemoveWindow(group, hash) => {
            index.remove_window(slot, *group, &[EngineHash(*hash)]);
        }
        Raw::MaxBlocks(max) => index.set_max_blocks(slot, *max),
        Raw::ForgetRetained => index.forget_retained(),
        Raw::Later => {
            *now_ms += 1_000;
            index.expire_parked(now_ms.saturating_sub(2_000));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_copy_agrees_with_the_naive_twin(
        ops in proptest::collection::vec(any_op(), 1..50),
        copied_at in 0usize..50,
    ) {
        let mut index = index(3);
        let mut naive = Naive { blocks: vec![BTreeMap::new(); 3] };
        for (i, (slot, op)) in ops.iter().enumerate() {
            if i == copied_at {
                index = copy_of(&index, 0);
                compare(&index, &naive)?;
            }
            let (events, is_reversed) = events(&naive, *slot, op);
            events.iter().for_each(|event| naive.apply(*slot, event));
            let order: Vec<_> =
                if is_reversed { events.iter().rev().collect() } else { events.iter().collect() };
            order.into_iter().for_each(|event| send(&mut index, *slot, event));
            compare(&index, &naive)?;
        }
        let stats = index.stats();
        prop_assert_eq!(stats.unknown_removals + stats.unknown_announcements, 0);
    }

    #[test]
    fn a_copy_is_the_same_and_goes_on_the_same(
        before in proptest::collection::vec(any_raw(), 0..40),
        after in proptest::collection::vec(any_raw(), 0..25),
    ) {
        let hashes: Vec<u64> = (0..24).collect();
        let mut original = index(3);
        let mut now_ms = 10_000;
        for (slot, raw) in &before {
            send_raw(&mut original, *slot, raw, &mut now_ms);
        }
        let mut copy = copy_of(&original, now_ms);
        assert_same(&copy, &original, &hashes)?;
        let watcher = copy.watch();
        while copy.next_dirty(watcher).is_some() {}
        let mut seen: Vec<_> = (0..BUCKETS).map(|bucket| copy.encode_bucket(bucket, 7)).collect();
        let (mut now_of_copy, stats) = (now_ms, (copy.stats(), original.stats()));
        for (slot, raw) in &after {
            send_raw(&mut original, *slot, raw, &mut now_ms);
            send_raw(&mut copy, *slot, raw, &mut now_of_copy);
            assert_same(&copy, &original, &hashes)?;
            while let Some(bucket) = copy.next_dirty(watcher) {
                seen[bucket as usize] = copy.encode_bucket(bucket, 7);
            }
        }
        for (bucket, seen) in (0..BUCKETS).zip(seen) {
            prop_assert_eq!(copy.encode_bucket(bucket, 7), seen, "changed unmarked");
        }
        // What was counted since.
        let since = |now: IndexStats, then: IndexStats| [
            now.orphans - then.orphans,
            now.attached - then.attached,
            now.expired - then.expired,
            now.unknown_removals - then.unknown_removals,
            now.unknown_announcements - then.unknown_announcements,
            now.non_canonical - then.non_canonical,
            now.refused_blocks - then.refused_blocks,
        ];
        prop_assert_eq!(since(copy.stats(), stats.0), since(original.stats(), stats.1));
        for slot in 0..3 {
            copy.clear(slot, None);
        }
        copy.forget_retained();
        let left = copy.stats();
        prop_assert_eq!((left.nodes, left.strides, left.held, left.parked), (0, 0, 0, 0));
    }

    /// Endpoints taken one after the other, in other places, and one not at all.
    #[test]
    fn endpoints_are_taken_apart_and_put_together(
        events in proptest::collection::vec(any_raw(), 0..40),
    ) {
        let mut whole = index(3);
        let mut now_ms = 10_000;
        for (slot, raw) in &events {
            send_raw(&mut whole, *slot, raw, &mut now_ms);
        }
        let bytes = exported(&whole, now_ms);
        let mut parts = Index::new(config());
        for _ in 0..3 {
            parts.add_endpoint();
        }
        // Slot 2 is the tree; it comes to slot 0.
        parts.set_presence(0, Presence::Set);
        parts.import(&bytes, &[None, None, Some(0)], now_ms).expect("a part");
        parts.import(&bytes, &[Some(2), None, None], now_ms).expect("another part");
        for hash in (0..24).map(EngineHash) {
            // A lost block stays known for as long as another endpoint holds it.
            let copies = |index: &Index, slot| index.copies(slot, hash).filter(|c| *c != (0, 0));
            prop_assert_eq!(copies(&parts, 0), copies(&whole, 2));
            prop_assert_eq!(copies(&parts, 2), copies(&whole, 0));
            prop_assert_eq!(parts.copies(1, hash), None);
        }
        for bucket in 0..BUCKETS {
            for entry in whole.strides.bucket(bucket) {
                let slots = |index: &Index, of: [u16; 2]| -> Vec<Option<(bool, Option<u32>)>> {
                    let stride = index.stride(entry.key).unwrap_or_default();
                    let resume = |slot| {
                        stride.resumes.iter().find(|(s, _)| *s == slot).map(|(_, tokens)| *tokens)
                    };
                    let found = |slot| stride.holders.iter().find(|holder| holder.slot == slot);
                    of.map(|slot| found(slot).map(|h| (h.offloaded, resume(slot)))).into()
                };
                prop_assert_eq!(slots(&parts, [0, 2]), slots(&whole, [2, 0]));
            }
        }
        parts.clear(0, None);
        parts.clear(2, None);
        parts.forget_retained();
        let left = parts.stats();
        prop_assert_eq!((left.nodes, left.strides, left.held, left.parked), (0, 0, 0, 0));
    }

    /// Whatever is cut off or changed: taken or refused, and in the latter case nothing is left.
    #[test]
    fn a_damaged_export_leaves_nothing_behind(
        events in proptest::collection::vec(any_raw(), 1..30),
        at in any::<prop::sample::Index>(),
        bit in 0u32..8,
        is_cut in any::<bool>(),
    ) {
        let mut original = index(3);
        let mut now_ms = 10_000;
        for (slot, raw) in &events {
            send_raw(&mut original, *slot, raw, &mut now_ms);
        }
        let mut bytes = exported(&original, now_ms);
        let at = at.index(bytes.len());
        match is_cut {
            true => bytes.truncate(at),
            false => bytes[at] ^= 1 << bit,
        }
        let mut copy = index(3);
        let taken = copy.import(&bytes, &ALL, now_ms);
        prop_assert!(!is_cut || taken.is_err());
        if taken.is_err() {
            prop_assert_eq!(sizes(&copy), (0, 0, 0, 0, vec![0; 3]));
            prop_assert!(copy.retained.is_empty());
            // And the right one is taken afterwards.
            let right = exported(&original, now_ms);
            copy.import(&right, &ALL, now_ms).expect("an export");
            let hashes: Vec<u64> = (0..24).collect();
            assert_same(&copy, &original, &hashes)?;
        }
    }
}

#[test]
fn a_block_stored_again_after_an_import_is_the_same_node() {
    let mut original = index(1);
    store(&mut original, 0, None, 1, &[5, 5, 5, 5]);
    let mut copy = index(2);
    copy.import(&exported(&original, 0), &[Some(0)], 0).expect("an export");
    store(&mut copy, 1, None, 71, &[5, 5, 5, 5]);
    assert_eq!(copy.stats().nodes, 1);
    let other_seed = IndexConfig { seed: Seed([9; 64]), ..config() };
    let (ours, theirs) = (ContentHasher::new(&seed()), ContentHasher::new(&other_seed.seed));
    assert_ne!(ours.hash(&[1, 2], 0), theirs.hash(&[1, 2], 0), "contents are the pool's secret");
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let mut original = index(3);
    store(&mut original, 0, None, 1, &[5, 5, 5, 5]);
    let bytes = exported(&original, 0);
    let refused = |index: &mut Index, bytes: &[u8]| {
        index.import(bytes, &ALL, 0).expect_err("refused").to_string()
    };
    let mut other = bytes.clone();
    other[0] = 9;
    assert_eq!(refused(&mut index(3), &other), "format 9 of an index is not known, only 1");
    assert_eq!(
        refused(&mut index(3), &bytes[..bytes.len() - 1]),
        format!("ends at byte {}, within strides", bytes.len() - 1)
    );
    let mut ids = Index::new(IndexConfig { key_space: KeySpace::TokenIds, ..config() });
    for _ in 0..3 {
        ids.add_endpoint();
    }
    assert_eq!(refused(&mut ids, &bytes), "keys are of another kind");
    let mut copies = Index::new(config());
    for _ in 0..3 {
        copies.add_endpoint();
    }
    assert_eq!(refused(&mut copies, &bytes), "endpoint 2 counts its blocks in another way");
    let mut twice = index(3);
    twice.import(&bytes, &ALL, 0).expect("the first time");
    assert_eq!(refused(&mut twice, &bytes), "endpoint 0 is in use");
    assert_eq!(refused(&mut index(2), &bytes), "endpoint 2 is in use");
}

#[test]
fn a_smaller_limit_of_strides_drops_the_rest_and_counts_it() {
    let mut original = index(1);
    store(&mut original, 0, None, 1, &[5; 8]);
    let strides = original.stats().strides;
    let mut small = Index::new(IndexConfig { max_strides: 3, ..config() });
    small.add_endpoint();
    let imported = small.import(&exported(&original, 0), &[Some(0)], 0).expect("an export");
    assert_eq!((imported.held, imported.dropped_strides), (1, strides as u64 - 3));
    assert_eq!((small.stats().strides, small.stats().dropped_strides), (3, strides as u64 - 3));
}
