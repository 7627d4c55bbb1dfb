//! The index against a naive twin that keeps every chain as text.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const VOCABULARY: [&str; 6] =
    ["a", "bb", "ccc ddd", "", "naïve ", "0123456789abcdefghijklmnopqrstuvwxyz"];

fn bytes_of(token: u32) -> Option<&'static [u8]> {
    VOCABULARY.get(token as usize).map(|text| text.as_bytes())
}

fn seed() -> Seed {
    Seed(std::array::from_fn(|i| i as u8 * 3 + 1))
}

fn index(endpoints: u16) -> Index {
    let mut index = Index::new(IndexConfig {
        model: "m".into(),
        seed: seed(),
        bucket_count: 8,
        max_strides: 100_000,
    });
    for slot in 0..endpoints {
        assert_eq!(index.add_endpoint(), slot);
    }
    index
}

/// One chain per block: the tokens from the root, the block's share of them, and counts.
#[derive(Clone, Debug)]
struct NaiveBlock {
    parent: Option<u64>,
    chain: Vec<u32>,
    size: usize,
    gpu: u32,
    offloaded: u32,
}

#[derive(Default)]
struct Naive {
    blocks: Vec<BTreeMap<u64, NaiveBlock>>,
}

impl Naive {
    fn text(tokens: &[u32]) -> Vec<u8> {
        tokens.iter().flat_map(|token| bytes_of(*token).unwrap()).copied().collect()
    }

    fn reaches(&self, slot: usize, hash: u64, held: fn(&NaiveBlock) -> bool) -> bool {
        let Some(block) = self.blocks[slot].get(&hash) else { return false };
        held(block) && block.parent.is_none_or(|parent| self.reaches(slot, parent, held))
    }

    /// All strides with their holders, by prefix text.
    fn strides(&self) -> BTreeMap<Vec<u8>, (u32, BTreeMap<u16, bool>)> {
        let mut all: BTreeMap<Vec<u8>, (u32, BTreeMap<u16, bool>)> = BTreeMap::new();
        for (slot, blocks) in self.blocks.iter().enumerate() {
            for (hash, block) in blocks {
                let any = self.reaches(slot, *hash, |b| b.gpu + b.offloaded > 0);
                let gpu = self.reaches(slot, *hash, |b| b.gpu > 0);
                if !any {
                    continue;
                }
                let text = Self::text(&block.chain);
                let from = Self::text(&block.chain[..block.chain.len() - block.size]).len();
                for end in (from / 64 + 1..=text.len() / 64).map(|j| j * 64) {
                    let tokens = (0..=block.chain.len())
                        .filter(|n| Self::text(&block.chain[..*n]).len() <= end)
                        .max()
                        .unwrap();
                    let entry =
                        all.entry(text[..end].to_vec()).or_insert((tokens as u32, BTreeMap::new()));
                    let offloaded = entry.1.entry(slot as u16).or_insert(true);
                    *offloaded &= !gpu;
                }
            }
        }
        all
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// Stores `blocks` blocks of one size under a known block (or the root).
    Store {
        slot: u16,
        parent: usize,
        tokens: Vec<u32>,
        size: usize,
        offloaded: bool,
    },
    /// Stores a known block again: a duplicate.
    Again {
        slot: u16,
        block: usize,
    },
    Remove {
        slot: u16,
        block: usize,
        offloaded: bool,
    },
    Clear {
        slot: u16,
    },
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u16..3, any::<usize>(), proptest::collection::vec(prop::sample::select(vec![0u32, 1, 2, 4, 5]), 4..16), 1usize..5, any::<bool>())
            .prop_map(|(slot, parent, tokens, size, offloaded)| Op::Store { slot, parent, tokens, size, offloaded }),
        1 => (0u16..3, any::<usize>()).prop_map(|(slot, block)| Op::Again { slot, block }),
        4 => (0u16..3, any::<usize>(), any::<bool>()).prop_map(|(slot, block, offloaded)| Op::Remove { slot, block, offloaded }),
        1 => (0u16..3).prop_map(|slot| Op::Clear { slot }),
    ]
}

/// An engine's own block hash: of parent hash and tokens, different per endpoint.
fn hash_of(slot: u16, parent: Option<u64>, block: &[u32]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (slot, parent, block).hash(&mut hasher);
    hasher.finish()
}

fn tier(offloaded: bool) -> Tier {
    if offloaded { Tier::Offloaded } else { Tier::Gpu }
}

fn apply(index: &mut Index, naive: &mut Naive, op: &Op) {
    match op {
        Op::Store { slot, parent, tokens, size, offloaded } => {
            let blocks = &mut naive.blocks[usize::from(*slot)];
            let known: Vec<u64> = blocks.keys().copied().collect();
            let parent = match parent % (known.len() + 1) {
                0 => None,
                n => Some(known[n - 1]),
            };
            let mut chain = parent.map(|hash| blocks[&hash].chain.clone()).unwrap_or_default();
            let mut last = parent;
            let mut hashes = Vec::new();
            let tokens = &tokens[..tokens.len() / size * size];
            for block in tokens.chunks_exact(*size) {
                chain.extend(block);
                let hash = hash_of(*slot, last, block);
                let entry = blocks.entry(hash).or_insert(NaiveBlock {
                    parent: last,
                    chain: chain.clone(),
                    size: *size,
                    gpu: 0,
                    offloaded: 0,
                });
                if *offloaded {
                    entry.offloaded += 1
                } else {
                    entry.gpu += 1
                }
                hashes.push(EngineHash(hash));
                last = Some(hash);
            }
            index.store(
                *slot,
                &StoredBlocks {
                    hashes: &hashes,
                    parent: parent.map(EngineHash),
                    token_ids: tokens,
                    block_size_tokens: *size as u32,
                    tier: tier(*offloaded),
                    lora: None,
                    salt: None,
                    beyond_text: &[],
                },
                bytes_of,
            );
        }
        Op::Again { slot, block } => {
            let blocks = &mut naive.blocks[usize::from(*slot)];
            let known: Vec<u64> =
                blocks.iter().filter(|(_, b)| b.gpu > 0).map(|(hash, _)| *hash).collect();
            if known.is_empty() {
                return;
            }
            let hash = known[block % known.len()];
            let block = blocks.get_mut(&hash).unwrap();
            block.gpu += 1;
            index.store(
                *slot,
                &StoredBlocks {
                    hashes: &[EngineHash(hash)],
                    parent: block.parent.map(EngineHash),
                    token_ids: &block.chain[block.chain.len() - block.size..],
                    block_size_tokens: block.size as u32,
                    tier: Tier::Gpu,
                    lora: None,
                    salt: None,
                    beyond_text: &[],
                },
                bytes_of,
            );
        }
        Op::Remove { slot, block, offloaded } => {
            let blocks = &mut naive.blocks[usize::from(*slot)];
            let known: Vec<u64> = blocks
                .iter()
                .filter(|(_, b)| if *offloaded { b.offloaded > 0 } else { b.gpu > 0 })
                .map(|(hash, _)| *hash)
                .collect();
            if known.is_empty() {
                return;
            }
            let hash = known[block % known.len()];
            let block = blocks.get_mut(&hash).unwrap();
            if *offloaded {
                block.offloaded -= 1
            } else {
                block.gpu -= 1
            }
            index.remove(*slot, &[EngineHash(hash)], tier(*offloaded));
            forget_unused(blocks);
        }
        Op::Clear { slot } => {
            naive.blocks[usize::from(*slot)].clear();
            index.clear(*slot);
        }
    }
}

/// A block that is not held and has no held descendant of this endpoint is no parent for later:
/// the index may or may not still know it, so the test does not use it.
fn forget_unused(blocks: &mut BTreeMap<u64, NaiveBlock>) {
    loop {
        let parents: BTreeSet<u64> = blocks.values().filter_map(|block| block.parent).collect();
        let unused: Vec<u64> = blocks
            .iter()
            .filter(|(hash, block)| block.gpu + block.offloaded == 0 && !parents.contains(hash))
            .map(|(hash, _)| *hash)
            .collect();
        if unused.is_empty() {
            return;
        }
        for hash in unused {
            blocks.remove(&hash);
        }
    }
}

fn compare(index: &Index, naive: &Naive) -> Result<(), TestCaseError> {
    let expected = naive.strides();
    let root = Namespace { model: "m", lora: None, salt: None }.root(&seed());
    for (text, (tokens, holders)) in &expected {
        let key = *KeyChain::keys_of(root, &seed(), text).last().unwrap();
        let got = index.stride(key).unwrap_or_default();
        let got_holders: BTreeMap<u16, bool> =
            got.holders.iter().map(|h| (h.slot, h.offloaded)).collect();
        prop_assert_eq!(&got_holders, holders, "holders of {:?}", String::from_utf8_lossy(text));
        // Two tokenizations of one text may count tokens differently; the first one listed stands.
        prop_assert!(got.tokens.abs_diff(*tokens) <= 64);
    }
    let listed = (0..8u32)
        .flat_map(|bucket| index.strides.bucket(bucket))
        .filter(|entry| index.stride(entry.key).is_some())
        .count();
    prop_assert_eq!(listed, expected.len(), "more strides are listed than held");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_index_agrees_with_the_naive_twin(ops in proptest::collection::vec(any_op(), 1..40)) {
        let mut index = index(3);
        let watcher = index.watch();
        let mut naive = Naive { blocks: vec![BTreeMap::new(); 3] };
        let mut copy: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for op in &ops {
            apply(&mut index, &mut naive, op);
            compare(&index, &naive)?;
            // A watcher that takes only what is dirty ends with what a snapshot would give.
            while let Some(bucket) = index.next_dirty(watcher) {
                copy.insert(bucket, index.encode_bucket(bucket, 7).0);
            }
        }
        let empty = BucketWriter::new(7).finish();
        for bucket in 0..8 {
            let held = copy.get(&bucket).unwrap_or(&empty);
            prop_assert_eq!(held, &index.encode_bucket(bucket, 7).0);
        }
        for slot in 0..3 {
            index.clear(slot);
        }
        let stats = index.stats();
        prop_assert_eq!((stats.nodes, stats.strides, stats.held), (0, 0, 0), "all is freed");
        prop_assert_eq!(stats.orphans + stats.malformed + stats.unknown_removals, 0);
    }
}

fn store(index: &mut Index, slot: u16, parent: Option<u64>, hash: u64, tokens: &[u32]) {
    index.store(
        slot,
        &StoredBlocks {
            hashes: &[EngineHash(hash)],
            parent: parent.map(EngineHash),
            token_ids: tokens,
            block_size_tokens: tokens.len() as u32,
            tier: Tier::Gpu,
            lora: None,
            salt: None,
            beyond_text: &[],
        },
        bytes_of,
    );
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
    index.store(
        0,
        &StoredBlocks {
            hashes: &[EngineHash(3)],
            parent: None,
            token_ids: &[5, 5, 5],
            block_size_tokens: 2,
            tier: Tier::Gpu,
            lora: None,
            salt: None,
            beyond_text: &[],
        },
        bytes_of,
    );
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
    index.store(
        0,
        &StoredBlocks {
            hashes: &[EngineHash(1), EngineHash(2), EngineHash(3)],
            parent: None,
            token_ids: &[5; 6],
            block_size_tokens: 2,
            tier: Tier::Gpu,
            lora: None,
            salt: None,
            beyond_text: &[0, 17, 0],
        },
        bytes_of,
    );
    assert_eq!(depth(&index, 0, &VOCABULARY[5].repeat(6)), 1);
}

#[test]
fn strides_beyond_the_limit_are_dropped_and_counted() {
    let mut index = Index::new(IndexConfig {
        model: "m".into(),
        seed: seed(),
        bucket_count: 8,
        max_strides: 3,
    });
    index.add_endpoint();
    store(&mut index, 0, None, 1, &[5, 5, 5, 5]);
    store(&mut index, 0, Some(1), 2, &[5, 5, 5, 5]);
    assert_eq!(index.stats().strides, 2);
    assert_eq!(index.stats().dropped_strides, 2);
}
