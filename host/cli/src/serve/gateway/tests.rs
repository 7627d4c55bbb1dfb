use std::collections::BTreeSet;

use feed::{BatchHeader, EngineAdapters, LoadRecord};
use prefix_index::{EngineHash, StoredBlocks, Tier};

use super::*;
use crate::serve::scope;

#[test]
fn adapters_that_do_not_fit_are_left_out_and_loads_are_not() {
    let table = |endpoints: u16, adapters: u16| {
        let numbers: Vec<u16> = (0..adapters).collect();
        let told = EngineAdapters { running: numbers.clone(), waiting: numbers, has_room: true };
        let record = |slot| LoadRecord {
            slot,
            block_size_tokens: 16,
            adapters: Some(told.clone()),
            ..LoadRecord::default()
        };
        LoadTable { epoch: 1, records: (0..endpoints).map(record).collect() }
    };
    let fits = table(200, 64);
    assert_eq!(LoadTable::decode(&load_value(fits.clone())), Ok(fits));
    let value = load_value(table(400, 64));
    assert!(value.len() <= MAX_SINGLETON_BYTES);
    let held = LoadTable::decode(&value).unwrap().records;
    let is_plain =
        |record: &LoadRecord| record.adapters.is_none() && record.block_size_tokens == 16;
    assert!(held.len() == 400 && held.iter().all(is_plain));
}

/// An engine, and prompts of text and of token ids: two indexes of one scope.
fn scopes() -> Vec<Arc<Scope>> {
    let folder = tempfile::tempdir().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny-model");
    let text = format!(
        "dataDir: data\npools:\n- name: pool\n  \
         models: [{{name: tiny, folder: '{model}', tokenIdPrompts: true}}]\n  \
         endpoints: [{{address: '127.0.0.1:8000', kvEvents: 'tcp://127.0.0.1:5557'}}]\n"
    );
    let file = folder.path().join("wasm-epp.yaml");
    std::fs::write(&file, text).unwrap();
    scope::load(&crate::config::load(&file).unwrap(), &[Arc::default()]).unwrap()
}

/// Stores a chain of 32 blocks that shares nothing with any other into both indexes.
fn store(scope: &Scope, chain: u64) {
    let hashes: Vec<EngineHash> = (0..32).map(|block| EngineHash(chain << 8 | block)).collect();
    let tokens: Vec<u32> = (0..32 * 16).map(|token| chain as u32 * 1000 + token).collect();
    let blocks = StoredBlocks {
        hashes: &hashes,
        parent: None,
        token_ids: &tokens,
        block_size_tokens: 16,
        tier: Tier::Gpu,
        lora: None,
        salt: None,
        beyond_text: &[],
    };
    for index in scope.live().each() {
        index.begin_batch(0);
        let word = |id: u32| Some(&b"abcdefghijklmnop"[id as usize % 9..][..4]);
        index.store(0, &blocks, 0, word);
    }
}

/// What a watcher that is new has to get: every bucket with content.
fn all_buckets(scope: &Scope) -> BTreeSet<(usize, u32)> {
    let mut live = scope.live();
    let mut all = BTreeSet::new();
    for (at, index) in live.each().enumerate() {
        let watcher = index.watch();
        all.extend(std::iter::from_fn(|| index.next_dirty(watcher)).map(|bucket| (at, bucket)));
    }
    all
}

#[test]
fn a_snapshot_is_whole_once_all_it_began_with_is_out_however_much_changes() {
    let scopes = scopes();
    (0..20).for_each(|chain| store(&scopes[0], chain));
    let mut feed = GatewayFeed::new(0, &scopes, &Arc::new(Reservations::new(&[])));
    let mut missing = all_buckets(&scopes[0]);
    assert!(missing.len() > 600, "{}", missing.len());
    feed.begin_snapshot();
    let fill = |feed: &mut GatewayFeed, step: u64| {
        // More than a batch has room for.
        store(&scopes[0], 100 + step);
        let fill = feed.fill(1, &mut BatchBuilder::new(BatchHeader::default()), usize::MAX, 30);
        let buckets = feed.in_flight.buckets.iter().map(|&(_, at, bucket)| (at, bucket));
        (fill, buckets.collect::<BTreeSet<_>>())
    };
    let mut indexes = BTreeSet::new();
    for step in 0..1000 {
        let (said, sent) = fill(&mut feed, step);
        missing.retain(|place| !sent.contains(place));
        indexes.extend(sent.iter().map(|(at, _)| *at));
        assert!(step == 0 || indexes.len() == 2, "an index without a place in a batch");
        if step == 7 {
            // Lost: what it had is to be sent again, and may be whole no earlier.
            feed.unknown();
            missing.extend(sent);
            continue;
        }
        feed.applied();
        match said {
            Fill::Newer => {
                assert!(missing.is_empty(), "{} are missing", missing.len());
                assert!(step > 20);
                return;
            }
            other => assert_eq!(other, Fill::More, "step {step}"),
        }
    }
    panic!("{} are missing after all", missing.len());
}
