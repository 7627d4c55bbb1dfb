//! Snapshots: the envelope, what a section holds, and an exported index. The latter two are sealed,
//! so that only daemons of the pool write them; they are read as carefully all the same.

use prefix::Seed;
use prefix_index::{EngineHash, Index, IndexConfig, KeySpace, Presence, StoredBlocks, Tier};
use snapshot::{Content, Snapshots};

/// The first byte says what the rest is.
pub fn read(bytes: &[u8]) {
    match bytes.split_first() {
        Some((b'e', rest)) => envelope(rest),
        Some((b'c', rest)) => content(rest),
        Some((_, rest)) => exported(rest),
        None => {}
    }
}

/// The seed of the seeds: none of a pool.
pub fn seed() -> Seed {
    Seed([7; 64])
}

fn envelope(bytes: &[u8]) {
    let Ok(mut snapshots) = Snapshots::open(bytes) else { return };
    while let Ok(Some(section)) = snapshots.next_section(|_, _| Some(seed())) {
        if let Ok(opened) = section.content {
            assert!(opened.len() <= bytes.len());
        }
    }
}

fn content(bytes: &[u8]) {
    if let Ok(content) = Content::read(bytes) {
        assert!(content.indexes.iter().map(|index| index.len()).sum::<usize>() <= bytes.len());
        assert!(!format!("{:?}", content.engines).is_empty());
    }
}

/// An index as the seeds were exported from: two endpoints, the second a tree.
pub fn index() -> Index {
    let mut index = Index::new(IndexConfig {
        model: "m".into(),
        seed: seed(),
        bucket_count: 8,
        max_strides: 1 << 16,
        key_space: KeySpace::Text,
    });
    index.add_endpoint();
    let tree = index.add_endpoint();
    index.set_presence(tree, Presence::Set);
    index
}

/// What is taken is an index like any other: it can be exported and taken again, goes on with
/// events, and is freed to the last block. What is refused leaves nothing behind.
fn exported(bytes: &[u8]) {
    let mut taken = index();
    let slots = [Some(0), Some(1)];
    if taken.import(bytes, &slots, 5_000).is_ok() {
        let mut again = Vec::new();
        taken.export(5_000, &mut again);
        let mut copy = index();
        copy.import(&again, &slots, 5_000).expect("our own export");
        for bucket in 0..8 {
            assert_eq!(copy.encode_bucket(bucket, 1), taken.encode_bucket(bucket, 1));
        }
        let hashes = [EngineHash(1), EngineHash(2)];
        let blocks = StoredBlocks {
            hashes: &hashes,
            parent: None,
            token_ids: &[1, 2, 3, 4],
            block_size_tokens: 2,
            tier: Tier::Gpu,
            lora: None,
            salt: None,
            beyond_text: &[],
        };
        taken.begin_batch(0);
        taken.store(0, &blocks, 6_000, |_| Some(b"some text of a token, thirty-two"));
        taken.remove(0, &hashes, Tier::Gpu);
    }
    for slot in [0, 1] {
        taken.clear(slot, None);
    }
    taken.forget_retained();
    let stats = taken.stats();
    assert_eq!((stats.nodes, stats.strides, stats.held, stats.parked), (0, 0, 0, 0));
}
