//! Who holds what: copies, places, reports, ranks, block sizes.

use serde_json::json;
use testbed::root;

use crate::support::frames::{Chain, Event, Hashes, Release, cleared};
use crate::support::text::Text;
use crate::support::twin::{Place, Space};
use crate::support::{Plan, Scene};

fn plain() -> Space {
    Space::default()
}

/// vLLM announces each physical copy, and takes each back.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_with_two_copies_outlives_one_of_them() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(16)]).await else { return };
    let text = Text::about("copies", 130);
    let chain = Chain::new(&text, 16);
    let engine = &mut scene.engines[0];
    engine.store(&chain, 0..8);
    // A prompt that is held whole has its last block computed again.
    engine.store(&chain, 7..8);
    engine.evict(&chain, 7..8);
    scene.check("a copy is left", &[&text]).await;
    scene.engines[0].evict(&chain, 6..8);
    scene.check("none is left", &[&text]).await;
    // Two requests in one step store the same chain; one batch, two copies.
    let engine = &mut scene.engines[0];
    engine.publish(&[chain.stored(6..8), chain.stored(6..8)]);
    engine.twin.hold(&text, &plain(), [6, 7, 6, 7], Place::Gpu);
    engine.evict(&chain, 6..8);
    scene.check("a copy of two of a batch is left", &[&text]).await;
    // A parent goes first: what follows it is held, and cannot be reached.
    let engine = &mut scene.engines[0];
    engine.evict(&chain, 2..3);
    scene.check("a hole", &[&text]).await;
    scene.engines[0].store(&chain, 2..3);
    scene.check("a hole mended", &[&text]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_has_each_block_once() {
    let Some(mut scene) = Scene::start(vec![Plan::sglang(4)]).await else { return };
    let text = Text::about("trees", 60);
    let chain = Chain::new(&text, 4);
    let engine = &mut scene.engines[0];
    for _ in 0..3 {
        engine.store(&chain, 0..10);
    }
    engine.evict(&chain, 8..10);
    scene.check("one removal ends it", &[&text]).await;
    let engine = &mut scene.engines[0];
    let branch = text.branch(20, "branches", 30);
    let other = Chain::new(&branch, 4);
    engine.store(&other, 0..9);
    engine.evict(&chain, 5..8);
    scene.check("a branch", &[&text, &branch]).await;
}

/// Places and how engines spell them, for blocks that a connector names by hash alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_elsewhere_counts_as_held_somewhere() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(16)]).await else { return };
    let spellings = ["CPU", "cpu", "CPU_PINNED", "STORAGE", "storage", "DISK", "fs"];
    let texts = spellings.map(|medium| Text::about(&format!("medium {medium}"), 100));
    for (i, (medium, text)) in spellings.iter().zip(&texts).enumerate() {
        let engine = &mut scene.engines[0];
        let chain = Chain::new(text, 16);
        engine.store(&chain, 0..6);
        // Placeholders have no block size since 0.18; before that they have the real one.
        let size = if i % 2 == 0 { 0 } else { 16 };
        engine.publish(&[chain.announced(1..5, medium).with("block_size", json!(size))]);
        engine.twin.hold(text, &plain(), 1..5, Place::Cpu);
    }
    let texts: Vec<&Text> = texts.iter().collect();
    scene.check("in both places", &texts).await;
    for text in &texts {
        scene.engines[0].evict(&Chain::new(text, 16), 2..6);
    }
    scene.check("off the GPU", &texts).await;
    for text in &texts {
        scene.engines[0].evict(&Chain::new(text, 16), 0..1);
    }
    scene.check("the first is nowhere", &texts).await;
    for text in &texts {
        scene.engines[0].store(&Chain::new(text, 16), 0..4);
    }
    scene.check("back on the GPU", &texts).await;
    for (medium, text) in spellings.iter().zip(&texts) {
        let engine = &mut scene.engines[0];
        engine.publish(&[Chain::new(text, 16).removed([4, 3]).medium(&medium.to_lowercase())]);
        engine.twin.drop(text, &plain(), 3..5, Place::Cpu);
    }
    scene.check("gone elsewhere", &texts).await;
    assert_eq!(scene.metric("wasm_epp_index_unknown_announcements_total", "").await, 0);
}

/// A block that left the GPU before its copy elsewhere was announced has no tokens any more but in
/// the daemon's memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_may_be_announced_elsewhere_after_it_left_the_gpu() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(16)]).await else { return };
    let text = Text::about("late copies", 100);
    let chain = Chain::new(&text, 16);
    let engine = &mut scene.engines[0];
    engine.store(&chain, 0..6);
    engine.evict(&chain, 0..6);
    engine.publish(&[chain.announced(0..5, "CPU")]);
    engine.twin.hold(&text, &plain(), 0..5, Place::Cpu);
    scene.check("only elsewhere", &[&text]).await;
    // Connectors may also describe their blocks (self_describing_kv_events).
    let told = Text::about("described copies", 100);
    let chain = Chain::new(&told, 16);
    let engine = &mut scene.engines[0];
    engine.publish(&[chain.stored(0..6).medium("CPU")]);
    engine.twin.hold(&told, &plain(), 0..6, Place::Cpu);
    scene.check("described", &[&text, &told]).await;
    // The GPU's pool is reset, which says nothing of other places.
    let engine = &mut scene.engines[0];
    engine.store(&chain, 0..3);
    engine.publish(&[cleared()]);
    engine.twin.clear();
    scene.check("cleared", &[&text, &told]).await;
}

/// SGLang's hierarchical cache: a block in host memory and on disk is gone only when both say so.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_in_two_other_places_outlives_one_of_them() {
    let Some(mut scene) = Scene::start(vec![Plan::sglang(8)]).await else { return };
    let text = Text::about("hierarchies", 70);
    let chain = Chain::new(&text, 8);
    let engine = &mut scene.engines[0];
    engine.store(&chain, 0..8);
    for (medium, place) in [("CPU_PINNED", Place::Cpu), ("DISK", Place::Disk)] {
        engine.publish(&[chain.stored(0..8).medium(medium)]);
        engine.twin.hold(&text, &plain(), 0..8, place);
    }
    engine.evict(&chain, 0..8);
    scene.check("in host memory and on disk", &[&text]).await;
    let engine = &mut scene.engines[0];
    engine.publish(&[chain.removed([7, 6, 5]).medium("CPU_PINNED")]);
    engine.twin.drop(&text, &plain(), 5..8, Place::Cpu);
    scene.check("on disk", &[&text]).await;
    let engine = &mut scene.engines[0];
    engine.publish(&[chain.removed([7, 6]).medium("DISK")]);
    engine.twin.drop(&text, &plain(), 6..8, Place::Disk);
    scene.check("some nowhere", &[&text]).await;
    let engine = &mut scene.engines[0];
    engine.store(&chain, 0..7);
    scene.check("loaded", &[&text]).await;
}

/// vLLM's `kv_cache_report_mode: full` tells a chain again from its root: no copy is added.
#[tokio::test(flavor = "multi_thread")]
async fn a_report_adds_no_copies() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(16)]).await else { return };
    let text = Text::about("reports", 130);
    let chain = Chain::new(&text, 16);
    let engine = &mut scene.engines[0];
    engine.store(&chain, 0..6);
    for _ in 0..3 {
        // What is held, then what is new, in one step.
        engine.publish(&[chain.stored(0..6)]);
    }
    engine.publish(&[chain.stored(0..6), chain.stored(6..8)]);
    engine.twin.hold(&text, &plain(), 6..8, Place::Gpu);
    scene.check("reported", &[&text]).await;
    scene.engines[0].evict(&chain, 3..8);
    scene.check("one removal each ends it", &[&text]).await;
    // A report of blocks that were missed brings them.
    let engine = &mut scene.engines[0];
    engine.publish(&[chain.stored(0..7)]);
    engine.twin.hold(&text, &plain(), 3..7, Place::Gpu);
    scene.check("reported after a loss", &[&text]).await;
    scene.engines[0].evict(&chain, 0..7);
    scene.check("all is gone", &[&text]).await;
}

/// vLLM's ranks publish on neighbouring ports, each with numbers and a cache of its own.
#[tokio::test(flavor = "multi_thread")]
async fn ranks_are_endpoints_of_their_own() {
    // Two that are neighbours and were given to nobody else.
    let mut base = testbed::port().unwrap();
    loop {
        match testbed::port().unwrap() {
            next if next == base + 1 => break,
            next => base = next,
        }
    }
    let plan = |rank: u16| Plan::vllm(32).args(&["--pub-port", &(base + rank).to_string()]);
    let Some(mut scene) = Scene::start(vec![plan(0), plan(1)]).await else { return };
    // What two ranks of a real vLLM sent: a prompt, the same again, a longer one.
    let file = root().join("tests/golden/kv-events/payloads-dp2.hex");
    let folder = scene.folder.path().to_owned();
    for (i, line) in std::fs::read_to_string(file).unwrap().lines().enumerate() {
        scene.engines[i / 3].publish_bytes(&folder, &crate::unhex(line));
    }
    let extended = Text::of_ids((300..364).chain([7; 32]));
    for engine in &mut scene.engines {
        engine.twin.hold(&extended, &plain(), [0, 1, 1, 2], Place::Gpu);
    }
    scene.check("both ranks", &[&extended]).await;
    let text = Text::about("ranks", 130);
    scene.engines[1].rank = 1;
    let chains = [0, 1].map(|rank| Chain::new(&text, 32).of(rank));
    scene.engines[0].store(&chains[0], 0..2);
    scene.engines[1].store(&chains[1], 0..4);
    scene.check("each for itself", &[&text]).await;
    scene.source(0, routing::SourceState::Live).await;
    // Another rank's batch on this port: two publishers behind one address.
    let engine = &mut scene.engines[0];
    engine.rank = 1;
    engine.publish(&[]);
    scene.source(0, routing::SourceState::Degraded).await;
    assert_eq!(scene.endpoint(0, "doubts").await, json!(["ranks"]));
    assert_eq!(scene.source_now(1), routing::SourceState::Live);
}

#[tokio::test(flavor = "multi_thread")]
async fn block_sizes_share_one_index() {
    let sizes = [16, 32, 64, 16];
    let Some(mut scene) = Scene::start(sizes.map(Plan::vllm).into()).await else { return };
    let text = Text::about("sizes", 400);
    let branch = text.branch(192, "another end", 150);
    let chains: Vec<Chain<'_>> = (0..4).map(|i| Chain::new(&text, sizes[i]).of(i)).collect();
    let branches: Vec<Chain<'_>> = (0..4).map(|i| Chain::new(&branch, sizes[i]).of(i)).collect();
    for i in 0..4 {
        let engine = &mut scene.engines[i];
        engine.store(&chains[i], 0..320 / sizes[i]);
        engine.store(&branches[i], 192 / sizes[i]..branches[i].len());
    }
    scene.check("stored", &[&text, &branch]).await;
    for i in 0..3 {
        let held = 320 / sizes[i];
        scene.engines[i].evict(&chains[i], held - 1 - i..held);
    }
    let held = branches[3].len();
    scene.engines[3].evict(&branches[3], 10..held);
    scene.check("evicted", &[&text, &branch]).await;
}

/// What a real vLLM sent for a LoRA adapter, the same with a salt, and none.
#[tokio::test(flavor = "multi_thread")]
async fn adapters_and_salts_of_a_real_engine_are_spaces() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(32)]).await else { return };
    let file = root().join("tests/golden/kv-events/payloads-lora.hex");
    let folder = scene.folder.path().to_owned();
    for line in std::fs::read_to_string(file).unwrap().lines() {
        scene.engines[0].publish_bytes(&folder, &crate::unhex(line));
    }
    let prompt = Text::of_ids(300..380);
    let space = |lora: Option<&str>, salt: Option<&str>| Space {
        lora: lora.map(str::to_owned),
        salt: salt.map(str::to_owned),
    };
    let held = [space(Some("sql"), None), space(Some("sql"), Some("s1")), plain()];
    for space in &held {
        scene.engines[0].twin.hold(&prompt, space, 0..2, Place::Gpu);
    }
    scene.settled().await;
    let others =
        [space(None, Some("s1")), space(None, Some("sql")), space(Some("s1"), Some("sql"))];
    for space in held.iter().chain(&others) {
        scene.compare("a real engine", &[&prompt], space);
    }
}

/// vLLM's extra keys: adapter, media, salt, embeddings, in this order. Media and embeddings are what
/// no text shows, so a block with them, and what follows it, is listed for no text.
#[tokio::test(flavor = "multi_thread")]
async fn extra_keys_are_read_in_their_order() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(16)]).await else { return };
    let image = |offset: u32| json!(["a1b2c3", offset]);
    let old_image = json!("8f14e45fceea167a5a36dedd4bea2543");
    let embeds = json!({"bin": "00ff".repeat(16)});
    // Adapter, salt, keys per block, blocks that text shows.
    type Case = (Option<&'static str>, Option<&'static str>, Vec<serde_json::Value>, usize);
    let null = json!(null);
    let cases: Vec<Case> = vec![
        (
            Some("sql"),
            None,
            vec![json!(["sql"]), json!(["sql"]), json!(["sql"]), json!(["sql"])],
            4,
        ),
        (
            Some("sql"),
            Some("s1"),
            vec![json!(["sql", "s1"]), json!(["sql"]), json!(["sql"]), json!(["sql"])],
            4,
        ),
        (
            Some("sql"),
            Some("sql"),
            vec![json!(["sql", "sql"]), json!(["sql"]), json!(["sql"]), json!(["sql"])],
            4,
        ),
        (None, Some("s1"), vec![json!(["s1"]), null.clone(), null.clone(), null.clone()], 4),
        (
            None,
            Some("s1"),
            vec![json!(["s1"]), null.clone(), json!([image(3)]), json!([image(-1i32 as u32)])],
            2,
        ),
        (
            None,
            Some("s1"),
            vec![json!([image(0), "s1"]), json!([image(16)]), null.clone(), null.clone()],
            0,
        ),
        (
            None,
            None,
            vec![null.clone(), json!([image(0), ["d4", 9]]), null.clone(), null.clone()],
            1,
        ),
        (None, None, vec![null.clone(), null.clone(), null.clone(), json!([embeds])], 3),
        (
            Some("sql"),
            Some("s1"),
            vec![
                json!(["sql", image(2), "s1", embeds]),
                json!(["sql"]),
                json!(["sql"]),
                json!(["sql"]),
            ],
            0,
        ),
        (
            Some("sql"),
            Some("s1"),
            vec![json!(["sql", "s1"]), json!(["sql", image(2)]), json!(["sql"]), json!(["sql"])],
            1,
        ),
        // Up to 0.18 media were bare strings.
        (None, None, vec![null.clone(), null.clone(), json!([old_image]), null.clone()], 2),
        (
            Some("sql"),
            None,
            vec![json!(["sql"]), json!(["sql", old_image]), json!(["sql"]), json!(["sql"])],
            1,
        ),
        (
            Some("sql"),
            Some("s1"),
            vec![json!(["sql", old_image, "s1"]), json!(["sql"]), json!(["sql"]), json!(["sql"])],
            0,
        ),
        (
            None,
            Some("s1"),
            vec![json!([old_image, "s1"]), null.clone(), null.clone(), null.clone()],
            0,
        ),
    ];
    let texts: Vec<Text> =
        (0..cases.len()).map(|i| Text::about(&format!("keys of case {i}"), 100)).collect();
    for ((lora, salt, keys, shown), text) in cases.iter().zip(&texts) {
        let mut chain = Chain::new(text, 16);
        if let Some(lora) = lora {
            chain = chain.lora(lora);
        }
        if let Some(salt) = salt {
            chain = chain.salt(salt);
        }
        let engine = &mut scene.engines[0];
        engine.publish(&[chain.stored(0..4).with("extra_keys", json!(keys))]);
        // What continues the chain has the adapter's name and no salt.
        engine.publish(&[chain.stored(4..6)]);
        let held = if *shown == 4 { 6 } else { *shown };
        engine.twin.hold(text, &chain.space, 0..held, Place::Gpu);
    }
    scene.settled().await;
    let texts: Vec<&Text> = texts.iter().collect();
    for lora in [None, Some("sql")] {
        for salt in [None, Some("s1"), Some("sql"), old_image.as_str()] {
            let space = Space { lora: lora.map(str::to_owned), salt: salt.map(str::to_owned) };
            scene.compare("extra keys", &texts, &space);
        }
    }
}

/// SGLang has fields of their own for salt and adapter.
#[tokio::test(flavor = "multi_thread")]
async fn sglangs_fields_are_spaces_too() {
    let Some(mut scene) = Scene::start(vec![Plan::sglang(8)]).await else { return };
    let text = Text::about("fields", 70);
    let engine = &mut scene.engines[0];
    let releases = Release::all("kv-events-sglang-by-version.jsonl", Hashes::Signed);
    engine.release = releases.into_iter().rfind(|release| release.knows("cache_salt")).unwrap();
    let mut spaces = vec![plain()];
    for (i, (lora, salt)) in
        [(None, Some("s1")), (Some("sql"), None), (Some("sql"), Some("s1"))].into_iter().enumerate()
    {
        let space = Space { lora: lora.map(str::to_owned), salt: salt.map(str::to_owned) };
        let chain = Chain { space: space.clone(), ..Chain::new(&text, 8) };
        let event: Event = chain.stored(0..3 + i).with("cache_salt", json!(salt));
        engine.publish(&[event]);
        engine.twin.hold(&text, &space, 0..3 + i, Place::Gpu);
        spaces.push(space);
    }
    scene.settled().await;
    for space in &spaces {
        scene.compare("fields", &[&text], space);
    }
}

/// Before vLLM 0.14 an adapter is a number of that server's: no prompt names it.
#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_without_a_name_is_nobodys() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(16)]).await else { return };
    let text = Text::about("numbers", 70);
    let engine = &mut scene.engines[0];
    let releases = Release::all("kv-events-by-version.jsonl", Hashes::Unsigned);
    engine.release = releases.into_iter().rfind(|release| !release.knows("lora_name")).unwrap();
    engine.publish(&[Chain::new(&text, 16).stored(0..4).with("lora_id", json!(1))]);
    scene.check("an adapter", &[&text]).await;
    scene.engines[0].store(&Chain::new(&text, 16).of(9), 0..2);
    scene.check("none", &[&text]).await;
}
