//! The index against a naive twin that keeps every chain as tokens and counts by hand.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// One block of one endpoint: the tokens from the root, its share of them, and copies.
#[derive(Clone, Debug)]
pub(super) struct Block {
    parent: Option<u64>,
    chain: Vec<u32>,
    size: usize,
    gpu: u32,
    offloaded: u32,
}

impl Block {
    fn copies(&mut self, offloaded: bool) -> &mut u32 {
        if offloaded { &mut self.offloaded } else { &mut self.gpu }
    }

    fn is_held(&self) -> bool {
        self.gpu + self.offloaded > 0
    }
}

/// One event as an engine would send it.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Store { parent: Option<u64>, hashes: Vec<u64>, tokens: Vec<u32>, size: usize, offloaded: bool },
    Announce(u64),
    Remove(u64, bool),
    Clear(Option<bool>),
}

pub(super) struct Naive {
    pub(super) blocks: Vec<BTreeMap<u64, Block>>,
}

impl Naive {
    fn text(tokens: &[u32]) -> Vec<u8> {
        tokens.iter().flat_map(|token| bytes_of(*token).unwrap()).copied().collect()
    }

    /// What the events mean, one batch each. The events come in an order that makes sense.
    pub(super) fn apply(&mut self, slot: u16, event: &Event) {
        let is_set = presence(slot) == Presence::Set;
        let blocks = &mut self.blocks[usize::from(slot)];
        match event {
            Event::Store { parent, hashes, tokens, size, offloaded } => {
                let mut chain = parent.map(|hash| blocks[&hash].chain.clone()).unwrap_or_default();
                let mut last = *parent;
                // A chain told again from its root is a report: it changes no count.
                let is_report = parent.is_none()
                    && !offloaded
                    && hashes.len() > 1
                    && blocks.get(&hashes[0]).is_some_and(|block| block.gpu > 0);
                for (hash, tokens) in hashes.iter().zip(tokens.chunks_exact(*size)) {
                    chain.extend(tokens);
                    let block = blocks.entry(*hash).or_insert_with(|| Block {
                        parent: last,
                        chain: chain.clone(),
                        size: *size,
                        gpu: 0,
                        offloaded: 0,
                    });
                    let copies = block.copies(*offloaded);
                    *copies = if is_set || is_report { (*copies).max(1) } else { *copies + 1 };
                    last = Some(*hash);
                }
            }
            Event::Announce(hash) => {
                let block = blocks.get_mut(hash).unwrap();
                block.offloaded = if is_set { 1 } else { block.offloaded + 1 };
            }
            Event::Remove(hash, offloaded) => {
                let copies = blocks.get_mut(hash).unwrap().copies(*offloaded);
                *copies = if is_set { 0 } else { *copies - 1 };
            }
            Event::Clear(tier) => {
                for block in blocks.values_mut() {
                    if *tier != Some(true) {
                        block.gpu = 0;
                    }
                    if *tier != Some(false) {
                        block.offloaded = 0;
                    }
                }
            }
        }
        // What is not held and has no descendant here may or may not be known to the index still,
        // so the test does not name it again.
        loop {
            let parents: BTreeSet<u64> = blocks.values().filter_map(|block| block.parent).collect();
            let before = blocks.len();
            blocks.retain(|hash, block| block.is_held() || parents.contains(hash));
            if blocks.len() == before {
                break;
            }
        }
    }

    fn reaches(&self, slot: usize, hash: u64, held: fn(&Block) -> bool) -> bool {
        let Some(block) = self.blocks[slot].get(&hash) else { return false };
        held(block) && block.parent.is_none_or(|parent| self.reaches(slot, parent, held))
    }

    /// All strides with their holders (and whether they are offloaded), by prefix text.
    fn strides(&self) -> BTreeMap<Vec<u8>, BTreeMap<u16, bool>> {
        let mut all: BTreeMap<Vec<u8>, BTreeMap<u16, bool>> = BTreeMap::new();
        for (slot, blocks) in self.blocks.iter().enumerate() {
            for (hash, block) in blocks {
                if !self.reaches(slot, *hash, Block::is_held) {
                    continue;
                }
                let gpu = self.reaches(slot, *hash, |block| block.gpu > 0);
                let text = Self::text(&block.chain);
                let from = Self::text(&block.chain[..block.chain.len() - block.size]).len();
                for end in (from / 64 + 1..=text.len() / 64).map(|j| j * 64) {
                    let holders = all.entry(text[..end].to_vec()).or_default();
                    *holders.entry(slot as u16).or_insert(true) &= !gpu;
                }
            }
        }
        all
    }
}

/// What to do next; indices choose among what is possible then.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Store { parent: usize, tokens: Vec<u32>, size: usize, offloaded: bool, is_late: bool },
    Again(usize),
    Report(usize),
    Announce(usize),
    Remove(usize, bool),
    Clear(Option<bool>),
}

pub(super) fn any_op() -> impl Strategy<Value = (u16, Op)> {
    let token = prop::sample::select(vec![0u32, 1, 2, 4, 5]);
    let op = prop_oneof![
        6 => (any::<usize>(), proptest::collection::vec(token, 4..16), 1usize..5, any::<bool>(), any::<bool>())
            .prop_map(|(parent, tokens, size, offloaded, is_late)| Op::Store { parent, tokens, size, offloaded, is_late }),
        1 => any::<usize>().prop_map(Op::Again),
        1 => any::<usize>().prop_map(Op::Report),
        2 => any::<usize>().prop_map(Op::Announce),
        5 => (any::<usize>(), any::<bool>()).prop_map(|(block, offloaded)| Op::Remove(block, offloaded)),
        1 => any::<Option<bool>>().prop_map(Op::Clear),
    ];
    (0u16..3, op)
}

/// An engine's own block hash: of parent hash and tokens, different per endpoint.
fn hash_of(slot: u16, parent: Option<u64>, block: &[u32]) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (slot, parent, block).hash(&mut hasher);
    hasher.finish()
}

/// The events of an operation, in the order in which they make sense, and whether the index is
/// sent them in reverse.
pub(super) fn events(naive: &Naive, slot: u16, op: &Op) -> (Vec<Event>, bool) {
    let blocks = &naive.blocks[usize::from(slot)];
    let pick = |i: usize, is_possible: &dyn Fn(&Block) -> bool| {
        let possible: Vec<u64> =
            blocks.iter().filter(|(_, block)| is_possible(block)).map(|(hash, _)| *hash).collect();
        (!possible.is_empty()).then(|| possible[i % possible.len()])
    };
    let store_again = |hash: u64| {
        let block = &blocks[&hash];
        Event::Store {
            parent: block.parent,
            hashes: vec![hash],
            tokens: block.chain[block.chain.len() - block.size..].to_vec(),
            size: block.size,
            offloaded: false,
        }
    };
    match op {
        Op::Store { parent, tokens, size, offloaded, is_late } => {
            let parent = if parent % 3 == 0 { None } else { pick(*parent, &|_| true) };
            let tokens = &tokens[..tokens.len() / size * size];
            let mut last = parent;
            let hashes: Vec<u64> = tokens
                .chunks_exact(*size)
                .map(|block| *last.insert(hash_of(slot, last, block)))
                .collect();
            let is_new = hashes.iter().all(|hash| !blocks.contains_key(hash));
            if *is_late && is_new && hashes.len() > 1 {
                let cut = hashes.len() / 2;
                let half = |parent, hashes: &[u64], tokens: &[u32]| Event::Store {
                    parent,
                    hashes: hashes.to_vec(),
                    tokens: tokens.to_vec(),
                    size: *size,
                    offloaded: *offloaded,
                };
                let first = half(parent, &hashes[..cut], &tokens[..cut * size]);
                let second = half(Some(hashes[cut - 1]), &hashes[cut..], &tokens[cut * size..]);
                return (vec![first, second], true);
            }
            let tokens = tokens.to_vec();
            (
                vec![Event::Store { parent, hashes, tokens, size: *size, offloaded: *offloaded }],
                false,
            )
        }
        Op::Again(i) => (pick(*i, &|b| b.gpu > 0).map(store_again).into_iter().collect(), false),
        Op::Report(i) => {
            let mut path = Vec::new();
            let mut at = pick(*i, &|block| block.gpu > 0);
            while let Some(hash) = at {
                path.insert(0, hash);
                at = blocks[&hash].parent;
            }
            let sizes: BTreeSet<usize> = path.iter().map(|hash| blocks[hash].size).collect();
            let is_whole = path.iter().all(|hash| blocks[hash].gpu > 0) && sizes.len() == 1;
            let report = |last: &u64| Event::Store {
                parent: None,
                hashes: path.clone(),
                tokens: blocks[last].chain.clone(),
                size: blocks[last].size,
                offloaded: false,
            };
            let last = path.last().filter(|_| is_whole && path.len() > 1);
            (last.map(report).into_iter().collect(), false)
        }
        Op::Announce(i) => {
            (pick(*i, &Block::is_held).map(Event::Announce).into_iter().collect(), false)
        }
        Op::Remove(i, offloaded) => {
            let is_there = |block: &Block| block.clone().copies(*offloaded) > &mut 0;
            let remove = |hash| Event::Remove(hash, *offloaded);
            (pick(*i, &is_there).map(remove).into_iter().collect(), false)
        }
        Op::Clear(tier) => (vec![Event::Clear(*tier)], false),
    }
}

pub(super) fn send(index: &mut Index, slot: u16, event: &Event) {
    let tier = |offloaded: bool| if offloaded { Tier::Offloaded } else { Tier::Gpu };
    index.begin_batch(slot);
    match event {
        Event::Store { parent, hashes, tokens, size, offloaded } => {
            let hashes: Vec<EngineHash> = hashes.iter().map(|hash| EngineHash(*hash)).collect();
            let blocks = StoredBlocks {
                parent: parent.map(EngineHash),
                tier: tier(*offloaded),
                ..blocks(&hashes, tokens, *size as u32)
            };
            index.store(slot, &blocks, 0, bytes_of);
        }
        Event::Announce(hash) => index.announce(slot, &[EngineHash(*hash)], Tier::Offloaded),
        Event::Remove(hash, offloaded) => {
            index.remove(slot, &[EngineHash(*hash)], tier(*offloaded));
        }
        Event::Clear(of) => index.clear(slot, of.map(tier)),
    }
}

pub(super) fn compare(index: &Index, naive: &Naive) -> Result<(), TestCaseError> {
    let expected = naive.strides();
    let root = index.root_key(None, None);
    for (text, holders) in &expected {
        let key = *KeyChain::keys_of(root, &seed(), text).last().unwrap();
        let got = index.stride(key).unwrap_or_default();
        let got: BTreeMap<u16, bool> = got.holders.iter().map(|h| (h.slot, h.offloaded)).collect();
        prop_assert_eq!(&got, holders, "holders of {:?}", String::from_utf8_lossy(text));
    }
    let listed = (0..BUCKETS).flat_map(|bucket| index.strides.bucket(bucket));
    let listed = listed.filter(|entry| index.stride(entry.key).is_some()).count();
    prop_assert_eq!(listed, expected.len(), "more strides are listed than held");
    for (slot, blocks) in naive.blocks.iter().enumerate() {
        let held = blocks.values().filter(|block| block.is_held()).count();
        prop_assert_eq!(index.held_blocks(slot as u16), held);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_index_agrees_with_the_naive_twin(ops in proptest::collection::vec(any_op(), 1..50)) {
        let mut index = index(3);
        let watcher = index.watch();
        let mut naive = Naive { blocks: vec![BTreeMap::new(); 3] };
        let mut copy: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for (slot, op) in &ops {
            let (events, is_reversed) = events(&naive, *slot, op);
            events.iter().for_each(|event| naive.apply(*slot, event));
            let order: Vec<&Event> =
                if is_reversed { events.iter().rev().collect() } else { events.iter().collect() };
            order.into_iter().for_each(|event| send(&mut index, *slot, event));
            compare(&index, &naive)?;
            // A watcher that takes only what is dirty ends with what a snapshot would give.
            while let Some(bucket) = index.next_dirty(watcher) {
                copy.insert(bucket, index.encode_bucket(bucket, 7).0);
            }
        }
        let empty = BucketWriter::new(7).finish();
        for bucket in 0..BUCKETS {
            let held = copy.get(&bucket).unwrap_or(&empty);
            prop_assert_eq!(held, &index.encode_bucket(bucket, 7).0);
        }
        let stats = index.stats();
        prop_assert_eq!(stats.orphans, stats.attached);
        prop_assert_eq!(stats.malformed + stats.unknown_removals + stats.unknown_announcements + stats.expired, 0);
        for slot in 0..3 {
            index.clear(slot, None);
        }
        index.forget_retained();
        let stats = index.stats();
        prop_assert_eq!((stats.nodes, stats.strides, stats.held, stats.parked), (0, 0, 0, 0), "all is freed");
    }
}
