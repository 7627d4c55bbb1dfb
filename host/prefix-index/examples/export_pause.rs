//! How long an export and an import take per million blocks, and how large they are:
//! `cargo run --release -p prefix-index --example export_pause -- [BLOCKS] [HOLDERS]`.

use std::time::Instant;

use prefix_index::{EngineHash, Index, IndexConfig, KeySpace, StoredBlocks, Tier};

/// Blocks of a chain, and how many of them all chains share.
const CHAIN: u64 = 200;
const SHARED: u64 = 40;
const BLOCK: usize = 16;
/// Spreads numbers over the token ids (Fibonacci hashing, Knuth 6.4).
const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

fn index(blocks: u64, holders: u16) -> Index {
    let mut index = Index::new(IndexConfig {
        model: "m".into(),
        seed: prefix::Seed([7; 64]),
        bucket_count: (blocks as u32 / 12).next_power_of_two(),
        max_strides: 2 * blocks as usize,
        key_space: KeySpace::Text,
    });
    for _ in 0..holders {
        index.add_endpoint();
    }
    index
}

fn main() {
    let argument = |at: usize, default: u64| {
        std::env::args().nth(at).map_or(default, |text| text.parse().expect("a number"))
    };
    let (blocks, holders) = (argument(1, 1_000_000), argument(2, 1) as u16);
    let words: Vec<[u8; 4]> =
        (0..65_536u32).map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut filled = index(blocks, holders);
    for chat in 0..blocks / (CHAIN - SHARED) {
        let number = |at: u64| if at < SHARED { at } else { (chat + 1) << 32 | at };
        let hashes: Vec<EngineHash> = (0..CHAIN).map(|at| EngineHash(number(at))).collect();
        let tokens: Vec<u32> = (0..CHAIN * BLOCK as u64)
            .map(|at| (number(at / BLOCK as u64).wrapping_add(at).wrapping_mul(MIX) >> 48) as u32)
            .collect();
        let stored = StoredBlocks {
            hashes: &hashes,
            parent: None,
            token_ids: &tokens,
            block_size_tokens: BLOCK as u32,
            tier: Tier::Gpu,
            lora: None,
            salt: None,
            beyond_text: &[],
        };
        for slot in 0..holders {
            filled.begin_batch(slot);
            filled.store(slot, &stored, 0, |id| words.get(id as usize).map(|word| &word[..]));
        }
    }
    let stats = filled.stats();
    let started = Instant::now();
    let mut bytes = Vec::new();
    filled.export(0, &mut bytes);
    let export = started.elapsed();
    let mut copy = index(blocks, holders);
    let slots: Vec<Option<u16>> = (0..holders).map(Some).collect();
    let started = Instant::now();
    copy.import(&bytes, &slots, 0).expect("an export");
    let import = started.elapsed();
    assert_eq!((copy.stats().nodes, copy.stats().held), (stats.nodes, stats.held));
    let millions = stats.nodes as f64 / 1e6;
    println!(
        "{{\"blocks\": {}, \"holdings\": {}, \"export_ms_per_million\": {:.0}, \"import_ms_per_million\": {:.0}, \"bytes_per_block\": {:.1}}}",
        stats.nodes,
        stats.held,
        export.as_secs_f64() * 1e3 / millions,
        import.as_secs_f64() * 1e3 / millions,
        bytes.len() as f64 / stats.nodes as f64
    );
}
