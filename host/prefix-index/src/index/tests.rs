//! Small cases; the properties against naive twins are in the modules below.

use prefix::{KeyChain, Seed};

use super::*;

mod exported;
mod twin;
mod windows;

const BUCKETS: u32 = 8;
const VOCABULARY: [&str; 7] =
    ["a", "bb", "ccc ddd", "", "naïve ", "0123456789abcdefghijklmnopqrstuvwxyz", "ten bytes "];

fn bytes_of(token: u32) -> Option<&'static [u8]> {
    VOCABULARY.get(token as usize).map(|text| text.as_bytes())
}

fn seed() -> Seed {
    Seed(std::array::from_fn(|i| i as u8 * 3 + 1))
}

/// The third endpoint is a tree: presence, not copies.
fn presence(slot: u16) -> Presence {
    if slot == 2 { Presence::Set } else { Presence::Copies }
}

fn config() -> IndexConfig {
    IndexConfig {
        model: "m".into(),
        seed: seed(),
        bucket_count: BUCKETS,
        max_strides: 100_000,
        key_space: KeySpace::Text,
    }
}

fn index(endpoints: u16) -> Index {
    let mut index = Index::new(config());
    for slot in 0..endpoints {
        assert_eq!(index.add_endpoint(), slot);
        index.set_presence(slot, presence(slot));
    }
    index
}

/// Blocks on the GPU at a chain's start.
fn blocks<'a>(
    hashes: &'a [EngineHash],
    token_ids: &'a [u32],
    block_size_tokens: u32,
) -> StoredBlocks<'a> {
    StoredBlocks {
        hashes,
        parent: None,
        token_ids,
        block_size_tokens,
        tier: Tier::Gpu,
        lora: None,
        salt: None,
        beyond_text: &[],
    }
}

fn store(index: &mut Index, slot: u16, parent: Option<u64>, hash: u64, tokens: &[u32]) {
    let hashes = [EngineHash(hash)];
    let parent = parent.map(EngineHash);
    let blocks = StoredBlocks { parent, ..blocks(&hashes, tokens, tokens.len() as u32) };
    index.store(slot, &blocks, 0, bytes_of);
}

fn depth(index: &Index, slot: u16, text: &str) -> usize {
    let root = Namespace { model: "m", lora: None, salt: None }.root(&seed());
    KeyChain::keys_of(root, &seed(), text.as_bytes())
        .into_iter()
        .take_while(|key| {
            index.stride(*key).is_some_and(|s| s.holders.iter().any(|h| h.slot == slot))
        })
        .count()
}

#[test]
fn a_lost_parent_hides_its_children_until_it_is_back() {
    let mut index = index(1);
    let text = VOCABULARY[5].repeat(16);
    store(&mut index, 0, None, 1, &[5, 5, 5, 5]);
    store(&mut index, 0, Some(1), 2, &[5, 5, 5, 5]);
    store(&mut index, 0, Some(2), 3, &[5, 5, 5, 5]);
    assert_eq!(depth(&index, 0, &text), 12 * 36 / 64);
    index.remove(0, &[EngineHash(1)], Tier::Gpu);
    assert_eq!(depth(&index, 0, &text), 0);
    store(&mut index, 0, None, 1, &[5, 5, 5, 5]);
    assert_eq!(depth(&index, 0, &text), 12 * 36 / 64);
}

#[test]
fn orphans_unknown_tokens_and_wrong_sizes_are_counted_and_never_listed() {
    let mut index = index(1);
    store(&mut index, 0, Some(99), 1, &[5, 5]);
    store(&mut index, 0, None, 2, &[5, 77, 5, 5, 5, 5]);
    index.store(0, &blocks(&[EngineHash(3)], &[5, 5, 5], 2), 0, bytes_of);
    index.remove(0, &[EngineHash(4)], Tier::Gpu);
    let stats = index.stats();
    assert_eq!(
        (stats.orphans, stats.unknown_tokens, stats.malformed, stats.unknown_removals),
        (1, 1, 1, 1)
    );
    assert_eq!(stats.strides, 0);
}

#[test]
fn tokens_before_a_strides_end_are_counted_whole() {
    let tokens_of_first_stride = |token: u32, count: usize| {
        let mut index = index(1);
        store(&mut index, 0, None, 1, &vec![token; count]);
        let root = Namespace { model: "m", lora: None, salt: None }.root(&seed());
        let text = VOCABULARY[token as usize].repeat(count);
        let key = KeyChain::keys_of(root, &seed(), text.as_bytes())[0];
        index.stride(key).unwrap().tokens
    };
    // 32 tokens of 2 bytes end with the stride; of 36 bytes the second reaches over its end.
    assert_eq!(tokens_of_first_stride(1, 40), 32);
    assert_eq!(tokens_of_first_stride(5, 4), 1);
}

#[test]
fn a_block_removed_more_often_than_stored_is_counted() {
    let mut index = index(1);
    store(&mut index, 0, None, 1, &[5, 5]);
    store(&mut index, 0, Some(1), 2, &[5, 5]);
    index.remove(0, &[EngineHash(1)], Tier::Gpu);
    index.remove(0, &[EngineHash(1)], Tier::Gpu);
    assert_eq!(index.stats().unknown_removals, 1);
    store(&mut index, 0, None, 1, &[5, 5]);
    assert!(depth(&index, 0, &VOCABULARY[5].repeat(4)) > 0, "and does not go below zero");
}

#[test]
fn what_text_does_not_show_stops_the_listing() {
    let mut index = index(1);
    let hashes = [EngineHash(1), EngineHash(2), EngineHash(3)];
    let blocks = StoredBlocks { beyond_text: &[0, 17, 0], ..blocks(&hashes, &[5; 6], 2) };
    index.store(0, &blocks, 0, bytes_of);
    assert_eq!(depth(&index, 0, &VOCABULARY[5].repeat(6)), 1);
}

#[test]
fn strides_beyond_the_limit_are_dropped_and_counted() {
    let mut index = Index::new(IndexConfig { max_strides: 3, ..config() });
    index.add_endpoint();
    store(&mut index, 0, None, 1, &[5, 5, 5, 5]);
    store(&mut index, 0, Some(1), 2, &[5, 5, 5, 5]);
    assert_eq!(index.stats().strides, 2);
    assert_eq!(index.stats().dropped_strides, 2);
}

#[test]
fn an_endpoint_that_has_its_share_gets_no_more_and_it_is_counted() {
    let mut index = index(1);
    index.set_max_blocks(0, 2);
    let hashes = [1, 2, 3].map(EngineHash);
    index.store(0, &blocks(&hashes, &[5; 6], 2), 0, bytes_of);
    assert_eq!((index.held_blocks(0), index.stats().refused_blocks), (2, 1));
    index.remove(0, &[EngineHash(2)], Tier::Gpu);
    store(&mut index, 0, Some(1), 4, &[5, 4]);
    assert_eq!((index.held_blocks(0), index.stats().refused_blocks), (2, 1));
}

#[test]
fn orphans_are_attached_with_their_own_orphans_or_expire() {
    let mut index = index(1);
    let text = VOCABULARY[5].repeat(6);
    store(&mut index, 0, Some(2), 3, &[5, 5]);
    store(&mut index, 0, Some(1), 2, &[5, 5]);
    assert_eq!((index.stats().parked, depth(&index, 0, &text)), (2, 0));
    store(&mut index, 0, None, 1, &[5, 5]);
    assert_eq!((index.stats().parked, index.stats().attached), (0, 2));
    assert_eq!(depth(&index, 0, &text), 6 * 36 / 64);
    let late =
        StoredBlocks { parent: Some(EngineHash(9)), ..blocks(&[EngineHash(10)], &[5, 5], 2) };
    index.store(0, &late, 1_000, bytes_of);
    index.expire_parked(1_000);
    assert_eq!(index.stats().parked, 1, "not yet");
    index.expire_parked(1_001);
    assert_eq!((index.stats().parked, index.stats().expired), (0, 1));
}

#[test]
fn a_parked_block_may_be_removed_again() {
    let mut index = index(1);
    store(&mut index, 0, Some(1), 2, &[5, 5]);
    index.remove(0, &[EngineHash(2)], Tier::Gpu);
    assert_eq!((index.stats().parked, index.stats().unknown_removals), (0, 0));
    store(&mut index, 0, None, 1, &[5, 5]);
    assert_eq!(depth(&index, 0, &VOCABULARY[5].repeat(4)), 1);
}

#[test]
fn a_name_that_moves_to_an_ancestor_does_not_take_the_ancestor_along() {
    let mut index = index(1);
    let hashes = [EngineHash(1), EngineHash(2)];
    index.store(0, &blocks(&hashes, &[5, 5, 4, 4], 2), 0, bytes_of);
    index.remove(0, &[EngineHash(1)], Tier::Gpu);
    index.forget_retained();
    // The lost first block is stored again, under the name of the one below it.
    index.begin_batch(0);
    let hashes = [EngineHash(2), EngineHash(3)];
    index.store(0, &blocks(&hashes, &[5, 5, 5, 5], 2), 0, bytes_of);
    assert_eq!(depth(&index, 0, &VOCABULARY[5].repeat(4)), 4 * 36 / 64);
    assert_eq!((index.held_blocks(0), index.stats().nodes), (2, 2));
    assert_eq!(index.parent_of(0, EngineHash(3)), Some(EngineHash(2)));
}

#[test]
fn a_block_lost_on_the_gpu_may_be_announced_elsewhere_by_its_hash() {
    let mut index = index(1);
    store(&mut index, 0, None, 1, &[5, 5]);
    index.remove(0, &[EngineHash(1)], Tier::Gpu);
    index.announce(0, &[EngineHash(1), EngineHash(7)], Tier::Offloaded);
    assert_eq!(index.copies(0, EngineHash(1)), Some((0, 1)));
    assert_eq!(depth(&index, 0, &VOCABULARY[5].repeat(2)), 1);
    assert_eq!(index.stats().unknown_announcements, 1);
}

#[test]
fn in_a_set_each_tier_has_the_block_or_not() {
    let mut index = index(1);
    index.set_presence(0, Presence::Set);
    for tier in [Tier::Gpu, Tier::Offloaded, Tier::Storage, Tier::Storage] {
        index.store(0, &StoredBlocks { tier, ..blocks(&[EngineHash(1)], &[5, 5], 2) }, 0, bytes_of);
    }
    let hash = [EngineHash(1)];
    index.remove(0, &hash, Tier::Gpu);
    index.remove(0, &hash, Tier::Offloaded);
    index.remove(0, &hash, Tier::Offloaded);
    assert_eq!(index.stats().unknown_removals, 1, "it was there once");
    assert_eq!((depth(&index, 0, &VOCABULARY[5].repeat(2)), index.held_blocks(0)), (1, 1));
    index.remove(0, &hash, Tier::Storage);
    assert_eq!((depth(&index, 0, &VOCABULARY[5].repeat(2)), index.held_blocks(0)), (0, 0));
}

#[test]
fn token_ids_are_a_key_space_of_their_own() {
    let mut index = Index::new(IndexConfig { key_space: KeySpace::TokenIds, ..config() });
    index.add_endpoint();
    let ids: Vec<u32> = (1000..1040).collect();
    store(&mut index, 0, None, 1, &ids);
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let namespace = Namespace { model: "m", lora: None, salt: None };
    let keys = KeyChain::keys_of(namespace.root_of_token_ids(&seed()), &seed(), &bytes);
    let tokens: Vec<u32> = keys.iter().map(|key| index.stride(*key).unwrap().tokens).collect();
    assert_eq!(tokens, [16, 32]);
    assert_eq!(index.stats().unknown_tokens, 0, "ids need no bytes");
}

#[test]
fn ten_thousand_chats_behind_one_system_prompt_fit_their_buckets() {
    let (chats, system, turn) = (10_000u32, 40usize, 20usize);
    let buckets = (chats * turn as u32 / 16).next_power_of_two();
    let mut index =
        Index::new(IndexConfig { bucket_count: buckets, max_strides: 1 << 20, ..config() });
    // All hold the system prompt, each its share of the chats.
    let endpoints = 64;
    for _ in 0..endpoints {
        index.add_endpoint();
    }
    let slot_of = |chat: u32| (chat % endpoints) as u16;
    let words: Vec<[u8; 4]> = (0..65_536u32).map(u32::to_le_bytes).collect();
    let of = |id: u32| words.get(id as usize).map(|word| &word[..]);
    let hashes = |chat: u32| -> Vec<EngineHash> {
        let hash = |block: usize| match block < system {
            true => EngineHash(block as u64 + 1),
            false => EngineHash((u64::from(chat) + 1) << 32 | block as u64),
        };
        (0..system + turn).map(hash).collect()
    };
    let tokens = |chat: u32| -> Vec<u32> {
        let token = |at: usize| match at < system * 16 {
            true => at as u32,
            false => (chat.wrapping_mul(2_654_435_761).wrapping_add(at as u32 * 97)) % 65_536,
        };
        (0..(system + turn) * 16).map(token).collect()
    };
    for chat in 0..chats {
        index.begin_batch(slot_of(chat));
        index.store(slot_of(chat), &blocks(&hashes(chat), &tokens(chat), 16), 0, of);
    }
    let mut values = Vec::new();
    for bucket in 0..buckets {
        let (value, dropped) = index.encode_bucket(bucket, 1);
        assert!(dropped == 0 && value.len() < 2048, "bucket {bucket} has {} bytes", value.len());
        values.push(value);
    }
    for chat in [0, 1, 5_000, chats - 1] {
        let text: Vec<u8> = tokens(chat).iter().flat_map(|id| words[*id as usize]).collect();
        let keys = KeyChain::keys_of(index.root_key(None, None), &seed(), &text);
        let mut gets = 0;
        let found = prefix::match_prefix(&keys, 64, |key| {
            gets += 1;
            let value = &values[prefix::bucket_of(key, buckets) as usize];
            feed::find_stride(value, prefix::fingerprint_of(key)).unwrap()
        });
        let depths: Vec<(u16, usize)> =
            found.iter().map(|(slot, depths)| (*slot, depths.gpu.0 as usize)).collect();
        let depth = |slot| if slot == slot_of(chat) { system + turn } else { system };
        let expected: Vec<(u16, usize)> =
            (0..endpoints as u16).map(|slot| (slot, depth(slot))).collect();
        assert_eq!(depths, expected);
        assert!(gets <= 20, "{gets} gets");
    }
}

#[test]
fn a_non_canonical_block_and_what_follows_it_is_unlisted_for_every_holder() {
    let mut index = index(2);
    let text = VOCABULARY[5].repeat(6);
    for slot in [0, 1] {
        store(&mut index, slot, None, 1, &[5, 5]);
        store(&mut index, slot, Some(1), 2, &[5, 5]);
        store(&mut index, slot, Some(2), 3, &[5, 5]);
    }
    let watcher = index.watch();
    while index.next_dirty(watcher).is_some() {}
    index.mark_non_canonical(0, EngineHash(2));
    assert_eq!((depth(&index, 0, &text), depth(&index, 1, &text)), (1, 1));
    assert!(index.dirty_count(watcher) > 0);
    store(&mut index, 0, Some(3), 4, &[5, 5]);
    assert_eq!(
        depth(&index, 0, &VOCABULARY[5].repeat(8)),
        1,
        "what comes later is not listed either"
    );
    assert_eq!(index.parent_of(0, EngineHash(2)), Some(EngineHash(1)));
    assert_eq!((index.parent_of(0, EngineHash(1)), index.stats().non_canonical), (None, 1));
}

#[test]
fn what_is_changed_now_is_taken_when_a_watcher_reaches_its_position() {
    let mut index = index(1);
    let watcher = index.watch();
    assert_eq!(index.dirty_positions(watcher), (0, 0));
    store(&mut index, 0, None, 1, &[5, 5, 5, 5]);
    let changed: Vec<u32> = {
        let mut other = super::Index::new(index.config().clone());
        other.add_endpoint();
        let watcher = other.watch();
        store(&mut other, 0, None, 1, &[5, 5, 5, 5]);
        std::iter::from_fn(|| other.next_dirty(watcher)).collect()
    };
    let (taken, end) = index.dirty_positions(watcher);
    assert_eq!((taken, end), (0, changed.len() as u64));
    // What changes later waits behind it, also where it changes the same bucket again.
    store(&mut index, 0, Some(1), 2, &[6, 6, 6, 6, 6, 6, 6, 6]);
    let mut seen = Vec::new();
    while index.dirty_positions(watcher).0 < end {
        seen.extend(index.next_dirty(watcher));
    }
    assert_eq!(seen, changed);
    index.mark(watcher, seen[0]);
    let (taken, after) = index.dirty_positions(watcher);
    assert!(taken == end && after > end, "a bucket marked again is to be taken again");
}
