//! Resume points of engines with windowed KV groups, against a naive twin.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::Window;

const BLOCK: u32 = 4;
/// Ten bytes per token, so that a stride ends about every second block.
const TOKEN: u32 = 6;

/// One chain of `count` blocks: block i has hash i + 1.
fn store_chain(index: &mut Index, from: u32, count: u32) {
    let hashes: Vec<EngineHash> =
        (from..from + count).map(|i| EngineHash(u64::from(i) + 1)).collect();
    let tokens = vec![TOKEN; (BLOCK * count) as usize];
    let parent = from.checked_sub(1).map(|i| EngineHash(u64::from(i) + 1));
    index.begin_batch(0);
    index.store(0, &StoredBlocks { parent, ..blocks(&hashes, &tokens, BLOCK) }, 0, bytes_of);
}

fn hash(i: u32) -> EngineHash {
    EngineHash(u64::from(i) + 1)
}

/// A windowed group: its window, how many blocks of full attention one of its blocks is long, and
/// the blocks of full attention with whose ends its own end.
type Group = (Window, u32, BTreeSet<u32>);

/// Tokens after which the engine can resume, for a prompt of `tokens` tokens of the chain: the
/// largest block end within the full match before which each group holds its window.
fn naive(full: &BTreeSet<u32>, groups: &[Group], tokens: u32) -> u32 {
    let depth = (0..).take_while(|i| full.contains(i)).count() as u32;
    let usable = |blocks: &u32| {
        groups.iter().all(|(window, longer, held)| {
            let end = blocks * BLOCK;
            let first = match window {
                Window::Sliding(window) => (end + 1).saturating_sub(*window),
                Window::Chunked(window) => end / window * window,
                Window::State => end - BLOCK,
            };
            let mut own = (1..=*blocks).filter(|b| b % longer == 0 && b * BLOCK > first);
            blocks.is_multiple_of(*longer) && own.all(|block| held.contains(&(block - 1)))
        })
    };
    (1..=depth.min(tokens / BLOCK)).rev().find(usable).map_or(0, |blocks| blocks * BLOCK)
}

fn compare(index: &Index, full: &BTreeSet<u32>, groups: &[Group]) -> Result<(), TestCaseError> {
    let text = String::from_utf8(bytes_of(TOKEN).unwrap().to_vec()).unwrap().repeat(400);
    let keys = KeyChain::keys_of(index.root_key(None, None), &seed(), text.as_bytes());
    for key in keys {
        let Some(stride) = index.stride(key) else { break };
        if stride.holders[0].offloaded {
            break;
        }
        let resume = stride.resumes.iter().find(|(slot, _)| *slot == 0).map(|(_, tokens)| *tokens);
        prop_assert_eq!(
            resume,
            Some(naive(full, groups, stride.tokens)),
            "at {} tokens",
            stride.tokens
        );
    }
    Ok(())
}

fn any_window() -> impl Strategy<Value = Window> {
    prop_oneof![
        (1u32..30).prop_map(Window::Sliding),
        (1u32..6).prop_map(|blocks| Window::Chunked(blocks * BLOCK)),
        Just(Window::State),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn resume_points_agree_with_the_naive_twin(
        windows in proptest::collection::vec((any_window(), 1u32..4), 1..3),
        ops in proptest::collection::vec((0u8..5, 0u32..24, 1u32..8, 0usize..2), 1..40),
    ) {
        let mut index = index(1);
        let mut full = BTreeSet::new();
        // A state is at a place and has no length.
        let of = |(window, longer)| (window, if window == Window::State { 1 } else { longer }, BTreeSet::new());
        let mut groups: Vec<Group> = windows.into_iter().map(of).collect();
        for (number, (window, longer, _)) in groups.iter().enumerate() {
            index.store_window(0, number as u32, *window, longer * BLOCK, &[]);
        }
        let mut next = 0;
        for (op, at, count, group) in ops {
            let group = group % groups.len();
            let (window, longer) = (groups[group].0, groups[group].1);
            match op {
                0 | 1 if next < 24 => {
                    // The windowed groups of new blocks are announced before full attention, as vLLM does.
                    for (number, (window, longer, held)) in groups.iter_mut().enumerate() {
                        let news = (next..next + count).filter(|i| (i + 1) % *longer == 0 && held.insert(*i));
                        let hashes: Vec<EngineHash> = news.map(hash).collect();
                        index.store_window(0, number as u32, *window, *longer * BLOCK, &hashes);
                    }
                    store_chain(&mut index, next, count);
                    full.extend(next..next + count);
                    next += count;
                }
                2 if !groups[group].2.is_empty() => {
                    let held: Vec<u32> = groups[group].2.iter().copied().collect();
                    let block = held[at as usize % held.len()];
                    index.remove_window(0, group as u32, &[hash(block)]);
                    groups[group].2.remove(&block);
                }
                3 if next > 0 => {
                    let block = at % next;
                    if (block + 1) % longer == 0 && groups[group].2.insert(block) {
                        index.store_window(0, group as u32, window, longer * BLOCK, &[hash(block)]);
                    }
                }
                4 if next > 0 && full.contains(&(next - 1)) => {
                    // Full attention evicts from the tail.
                    next -= 1;
                    index.remove(0, &[hash(next)], Tier::Gpu);
                    full.remove(&next);
                }
                _ => {}
            }
            compare(&index, &full, &groups)?;
        }
    }
}

#[test]
fn a_pool_of_plain_and_hybrid_engines_resumes_each_in_its_way() {
    let mut index = index(2);
    store_chain(&mut index, 0, 8);
    let hashes: Vec<EngineHash> = (0..8).map(hash).collect();
    index.store(1, &blocks(&hashes, &[TOKEN; 32], BLOCK), 0, bytes_of);
    index.store_window(0, 3, Window::Sliding(8), BLOCK, &[hash(1), hash(2), hash(3)]);
    let text = String::from_utf8(bytes_of(TOKEN).unwrap().to_vec()).unwrap().repeat(40);
    let keys = KeyChain::keys_of(index.root_key(None, None), &seed(), text.as_bytes());
    let resumes: BTreeMap<u32, Vec<(u16, u32)>> = keys
        .iter()
        .filter_map(|key| index.stride(*key))
        .map(|stride| (stride.tokens, stride.resumes))
        .collect();
    // 64 bytes are 6 tokens and a bit; blocks 1 to 3 in the window group allow 12 and 16.
    let expected = [(6, 0), (12, 12), (19, 16), (25, 16), (32, 16)];
    assert_eq!(resumes, expected.map(|(tokens, resume)| (tokens, vec![(0, resume)])).into());
}

#[test]
fn a_group_whose_blocks_end_elsewhere_is_left_out_and_said() {
    let mut index = index(1);
    let text = String::from_utf8(bytes_of(TOKEN).unwrap().to_vec()).unwrap().repeat(40);
    let keys = KeyChain::keys_of(index.root_key(None, None), &seed(), text.as_bytes());
    let resumes = |index: &Index| index.stride(keys[4]).unwrap().resumes;
    // Nothing is known of full attention yet, and nothing is listed.
    index.store_window(0, 1, Window::Sliding(4), BLOCK / 2, &[hash(0), hash(7)]);
    assert!(index.knows_resumes(0));
    store_chain(&mut index, 0, 8);
    assert!(!index.knows_resumes(0));
    assert_eq!(resumes(&index), []);
    // The other groups still bound what can be used, everywhere.
    let watcher = index.watch();
    while index.next_dirty(watcher).is_some() {}
    index.store_window(0, 2, Window::Sliding(4), BLOCK, &[hash(2)]);
    assert!(!index.knows_resumes(0));
    assert_eq!(resumes(&index), [(0, 12)]);
    let first = prefix::bucket_of(keys[0], BUCKETS);
    assert!(std::iter::from_fn(|| index.next_dirty(watcher)).any(|bucket| bucket == first));
    // So they are when a group is understood after all.
    index.store_window(0, 1, Window::Sliding(4), BLOCK * 2, &[hash(3)]);
    assert!(index.knows_resumes(0));
    assert_eq!(resumes(&index), [(0, 0)]);
    assert!(std::iter::from_fn(|| index.next_dirty(watcher)).any(|bucket| bucket == first));
}
