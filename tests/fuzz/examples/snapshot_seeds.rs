//! Writes the seeds of the `snapshot` target into a folder:
//! `cargo run --example snapshot_seeds -- FOLDER`. They are inputs, not goldens.

use fuzz::snapshots::{index, seed};
use prefix_index::{EngineHash, Index, StoredBlocks, Tier, Window};
use snapshot::{Engine, Position, Sealed, begin, begin_content, push_index};

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    let write = |name: &str, kind: u8, bytes: &[u8]| {
        std::fs::write(format!("{folder}/{name}"), [&[kind], bytes].concat())
    };
    let mut exported = Vec::new();
    filled().export(5_000, &mut exported);
    write("index", b'i', &exported)?;
    let mut empty = Vec::new();
    index().export(5_000, &mut empty);
    write("index-empty", b'i', &empty)?;

    let engine = |address: &str, position| Engine {
        address: address.into(),
        kind: 0,
        is_partial: false,
        is_cleared: false,
        doubts: 1,
        rank: Some(2),
        full_group: Some(0),
        windowed_groups: vec![1],
        block_size_tokens: 16,
        process_start: Some(1.5),
        first_batch_at: Some(2.5),
        position,
    };
    let position = Some(Position { sequence: 3, fingerprint: 4 });
    let engines = [engine("10.0.0.1:8000", position), engine("10.0.0.2:8000", None)];
    let mut content = begin_content(&[1; 32], &engines, 1);
    push_index(&mut content, |out| out.extend_from_slice(&exported));
    write("content", b'c', &content)?;

    let start = begin(1);
    let sealed = Sealed::new(&start, 0, ("pool", "m"), &seed(), content);
    let sealed = sealed.expect("random bytes");
    let bytes = sealed.fold(start.clone(), |bytes, piece| [bytes, piece].concat());
    write("envelope", b'e', &bytes)
}

/// Something of everything.
fn filled() -> Index {
    let mut index = index();
    let text = |id: u32| {
        Some(if id == 9 { &b"."[..] } else { b"forty bytes of text, give or take some. " })
    };
    let store = |index: &mut Index, slot, parent: Option<u64>, hashes: &[u64], lora, salt| {
        let hashes: Vec<EngineHash> = hashes.iter().map(|hash| EngineHash(*hash)).collect();
        let token_ids: Vec<u32> = (0..hashes.len() as u32 * 2).map(|i| 9 - i % 3).collect();
        let blocks = StoredBlocks {
            hashes: &hashes,
            parent: parent.map(EngineHash),
            token_ids: &token_ids,
            block_size_tokens: 2,
            tier: Tier::Gpu,
            lora,
            salt,
            beyond_text: &[],
        };
        index.begin_batch(slot);
        index.store(slot, &blocks, 4_000, text);
    };
    store(&mut index, 0, None, &[1, 2, 3], None, None);
    store(&mut index, 1, None, &[11, 12, 13, 14], None, None);
    store(&mut index, 0, Some(2), &[4], None, None);
    store(&mut index, 0, None, &[5], Some("adapter"), Some("salt"));
    store(&mut index, 0, Some(99), &[6, 7], None, None);
    index.announce(0, &[EngineHash(1)], Tier::Offloaded);
    index.remove(0, &[EngineHash(5)], Tier::Gpu);
    index.mark_non_canonical(1, EngineHash(14));
    index.store_window(0, 1, Window::Sliding(3), 2, &[EngineHash(1), EngineHash(2)]);
    index.set_max_blocks(1, 100);
    index
}
