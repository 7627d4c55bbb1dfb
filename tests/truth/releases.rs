//! Every release of every engine means the same.

use serde_json::{Value, json};

use crate::support::frames::{Chain, Hashes, Release};
use crate::support::text::Text;
use crate::support::twin::{Place, Space};
use crate::support::{Plan, Scene};

const VLLM: &str = "kv-events-by-version.jsonl";
const SGLANG: &str = "kv-events-sglang-by-version.jsonl";

/// Half of the history is replayed (in either framing), half is heard live.
#[tokio::test(flavor = "multi_thread")]
async fn every_vllm_release_means_the_same() {
    let plans = ["plain", "topic"].map(|framing| Plan::vllm(16).args(&["--framing", framing]));
    let Some(mut scene) = Scene::prepare(plans.into()).await else { return };
    let releases = Release::all(VLLM, Hashes::Unsigned);
    assert_eq!(releases.len(), 39);
    let texts: Vec<Text> = releases
        .iter()
        .map(|release| Text::about(&format!("vLLM {}", release.version), 90))
        .collect();
    let folder = scene.folder.path().to_owned();
    let publish = |scene: &mut Scene, range: std::ops::Range<usize>| {
        for (engine, it) in scene.engines.iter_mut().enumerate() {
            for i in range.clone() {
                let (release, text) = (&releases[i], &texts[i]);
                // The release's own bytes, which end with a clear and thus come before the rest.
                if i == range.start {
                    for release in &releases[range.clone()] {
                        it.publish_bytes(&folder, &crate::unhex(&release.payload));
                        it.twin.clear();
                    }
                }
                it.release = release.clone();
                let chain = Chain::new(text, 16).of(engine);
                it.store(&chain, 0..3);
                it.publish(&[chain.stored(3..5), chain.removed([4])]);
                it.twin.hold(text, &Space::default(), 3..4, Place::Gpu);
            }
        }
    };
    publish(&mut scene, 0..20);
    scene.serve().await;
    let all: Vec<&Text> = texts.iter().collect();
    scene.check("replayed", &all).await;
    publish(&mut scene, 20..39);
    scene.check("live", &all).await;
    for i in 0..2 {
        let address = format!("endpoint=\"{}\"", scene.engines[i].address());
        let metric = async |name: &str| scene.metric(name, &address).await;
        let events = async |kind: &str| {
            scene.metric("wasm_epp_events_total", &format!("{address} kind=\"{kind}\"")).await
        };
        // Per release: two blocks in its own bytes, five in ours; one removal and one clear.
        assert_eq!(metric("wasm_epp_blocks_stored_total").await, 39 * 7);
        assert_eq!(metric("wasm_epp_blocks_removed_total").await, 39 * 2);
        assert_eq!(events("cleared").await, 39);
        assert_eq!(metric("wasm_epp_event_batches_undecodable_total").await, 0);
        assert_eq!(events("unknown").await, 0);
        assert_eq!(metric("wasm_epp_source_resets_total").await, 0);
    }
}

/// What encoders may vary within a release.
#[tokio::test(flavor = "multi_thread")]
async fn hashes_tails_and_unknown_fields_may_vary() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(16)]).await else { return };
    let releases = Release::all(VLLM, Hashes::Unsigned);
    let array = releases.iter().rfind(|release| !release.is_map()).unwrap();
    let map = releases.last().unwrap();
    let mut texts = Vec::new();
    for form in [array, map] {
        for hashes in [Hashes::Unsigned, Hashes::Signed, Hashes::Bytes] {
            texts.push((
                form.clone().hashes(hashes),
                Text::about(&format!("{} {hashes:?}", form.version), 60),
            ));
        }
    }
    for (release, text) in &texts {
        let engine = &mut scene.engines[0];
        engine.release = release.clone();
        let chain = Chain::new(text, 16);
        engine.store(&chain, 0..3);
        // One form announces, another removes: the name is the same.
        engine.release.hashes = match release.hashes {
            Hashes::Unsigned => Hashes::Signed,
            Hashes::Signed => Hashes::Bytes,
            Hashes::Bytes => Hashes::Unsigned,
        };
        engine.evict(&chain, 2..3);
    }
    let tails = Text::about("missing tails", 60);
    let chain = Chain::new(&tails, 16);
    let mut short = array.event(&chain.stored(0..3)).as_array().unwrap().clone();
    short.truncate(5);
    let mut long = array.event(&chain.removed([2])).as_array().unwrap().clone();
    long.extend([json!({"later": [1, {"x": null}]}), json!(7), json!("y")]);
    let engine = &mut scene.engines[0];
    engine.publish_json(
        &json!([1.5, [short, long, ["LaterEvent", 1, [2]]], 0, "more", {"of": "it"}]),
    );
    engine.twin.hold(&tails, &Space::default(), 0..2, Place::Gpu);
    let fields = Text::about("unknown fields", 60);
    let chain = Chain::new(&fields, 16);
    let mut stored = map.event(&chain.stored(0..3)).as_object().unwrap().clone();
    stored.insert("later".into(), json!([{"nested": [1, 2]}]));
    stored.insert("another".into(), json!(1.25));
    engine.publish_json(&json!([2, [stored, {"later": 1, "type": "LaterEvent"}], null]));
    engine.twin.hold(&fields, &Space::default(), 0..3, Place::Gpu);
    let mut all: Vec<&Text> = texts.iter().map(|(_, text)| text).collect();
    all.extend([&tails, &fields]);
    scene.check("variants", &all).await;
    assert_eq!(scene.metric("wasm_epp_events_total", "kind=\"unknown\"").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sglang_release_means_the_same() {
    let plans = ["plain", "topic"].map(|framing| Plan::sglang(8).args(&["--framing", framing]));
    let Some(mut scene) = Scene::prepare(plans.into()).await else { return };
    let releases = Release::all(SGLANG, Hashes::Signed);
    assert_eq!(releases.len(), 6);
    let texts: Vec<Text> = releases
        .iter()
        .map(|release| Text::about(&format!("SGLang {}", release.version), 60))
        .collect();
    let folder = scene.folder.path().to_owned();
    for it in &mut scene.engines {
        for release in &releases {
            it.publish_bytes(&folder, &crate::unhex(&release.payload));
        }
    }
    scene.serve().await;
    for (engine, it) in scene.engines.iter_mut().enumerate() {
        for (release, text) in releases.iter().zip(&texts) {
            it.release = release.clone();
            let chain = Chain::new(text, 8).of(engine);
            // A page an event, as it splits its nodes; told again after a split, which adds nothing.
            for page in [0, 1, 2, 3, 4, 2, 3] {
                it.publish(&[chain.stored(page..page + 1)]);
            }
            it.publish(&[chain.removed([4, 3])]);
            it.twin.hold(text, &Space::default(), 0..3, Place::Gpu);
        }
    }
    let all: Vec<&Text> = texts.iter().collect();
    scene.check("SGLang", &all).await;
    assert_eq!(scene.metric("wasm_epp_event_batches_undecodable_total", "").await, 0);
}

/// SGLang under EAGLE announces pairs of tokens, of which the first is the block's.
#[tokio::test(flavor = "multi_thread")]
async fn pairs_of_tokens_are_their_first_ones() {
    let Some(mut scene) = Scene::start(vec![Plan::sglang(8)]).await else { return };
    let text = Text::about("pairs", 60);
    let chain = Chain::new(&text, 8);
    let pairs: Vec<Value> = (0..24).map(|i| json!([text.ids[i], text.ids[i + 1]])).collect();
    let engine = &mut scene.engines[0];
    engine.release = Release::all(SGLANG, Hashes::Signed).pop().unwrap();
    engine.publish(&[chain.stored(0..3).with("token_ids", Value::Array(pairs))]);
    engine.twin.hold(&text, &Space::default(), 0..3, Place::Gpu);
    scene.check("pairs", &[&text]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tensorrt_llms_list_means_the_same() {
    let Some(mut scene) = Scene::start(vec![Plan::trtllm(16)]).await else { return };
    let (first, second) = (Text::about("lists", 100), Text::about("other lists", 70));
    let chains = [&first, &second].map(|text| Chain::new(text, 16));
    let mut id = 0;
    let mut event = |data: Value| {
        id += 1;
        json!({"event_id": id - 1, "data": data})
    };
    let stored = |chain: &Chain<'_>, blocks: std::ops::Range<usize>| {
        let parent = blocks.start.checked_sub(1).map(|block| chain.hash(block));
        let block = |i: usize| {
            let tokens: Vec<Value> = chain.text.ids[i * 16..(i + 1) * 16]
                .iter()
                .map(|id| json!({"type": "unique_token", "token_id": id, "token_extra_id": 0}))
                .collect();
            json!({"type": "stored_block", "block_hash": chain.hash(i), "tokens": tokens,
                   "cache_level": 0, "priority": 35})
        };
        let blocks: Vec<Value> = blocks.map(block).collect();
        json!({"type": "stored", "parent_hash": parent, "blocks": blocks})
    };
    let moved = |chain: &Chain<'_>, block: usize, old: u8, new: u8| {
        json!({"type": "updated", "block_hash": chain.hash(block),
               "cache_level": {"type": "event_diff", "new_value": new, "old_value": old}, "priority": null})
    };
    let plain = Space::default();
    let list = [
        event(json!({"type": "created", "num_blocks_per_cache_level": [100, 50]})),
        event(stored(&chains[0], 0..4)),
        event(stored(&chains[0], 4..6)),
        event(stored(&chains[1], 0..4)),
        event(json!({"type": "removed", "block_hashes": [chains[1].hash(3)]})),
        event(moved(&chains[0], 5, 0, 1)),
    ];
    let engine = &mut scene.engines[0];
    engine.pages.list(list);
    engine.batches = 1;
    engine.twin.hold(&first, &plain, 0..5, Place::Gpu);
    engine.twin.hold(&first, &plain, 5..6, Place::Cpu);
    engine.twin.hold(&second, &plain, 0..3, Place::Gpu);
    scene.check("stored, removed, moved", &[&first, &second]).await;
    let engine = &mut scene.engines[0];
    engine.pages.list([event(moved(&chains[0], 5, 1, 0)), event(moved(&chains[1], 0, 0, 1))]);
    engine.batches += 1;
    engine.twin.hold(&first, &plain, 5..6, Place::Gpu);
    engine.twin.drop(&first, &plain, 5..6, Place::Cpu);
    engine.twin.drop(&second, &plain, 0..1, Place::Gpu);
    engine.twin.hold(&second, &plain, 0..1, Place::Cpu);
    scene.check("moved back and away", &[&first, &second]).await;
    // Numbers that start over are another process.
    let engine = &mut scene.engines[0];
    engine.pages.list([
        json!({"event_id": 0, "data": {"type": "created", "num_blocks_per_cache_level": [1, 1]}}),
        json!({"event_id": 1, "data": stored(&chains[1], 0..2)}),
    ]);
    engine.batches += 1;
    engine.twin.restart();
    engine.twin.hold(&second, &plain, 0..2, Place::Gpu);
    scene.check("restarted", &[&first, &second]).await;
}
