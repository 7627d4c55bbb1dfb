//! Engines with windowed KV groups: where they can resume.

use std::ops::Range;

use serde_json::{Value, json};
use testbed::root;

use crate::support::frames::{Chain, Event, cleared};
use crate::support::text::Text;
use crate::support::twin::{Place, Space};
use crate::support::{Plan, Scene};
use routing::SourceState;

const SESSION: &str = "tests/golden/kv-events/session-hybrid.jsonl";
/// Tokens per block of the recorded engine.
const BLOCK: u32 = 32;

/// A real engine's session: before each request, what is listed is what it then said it had cached.
/// A shared system prompt is worth 0 to the second user and 576 tokens to the third; a cut is worth 0
/// once and 256 the next time.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_engines_session_resumes_where_it_did() {
    let plan = Plan::vllm(32).args(&[&root().join(SESSION).display().to_string()]);
    let Some(mut scene) = Scene::start(vec![plan]).await else { return };
    let address = scene.engines[0].address();
    let session = std::fs::read_to_string(root().join(SESSION)).unwrap();
    let mut truths = Vec::new();
    for line in session.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line.get("event").is_some() {
            scene.engines[0].tell("send 1");
            scene.engines[0].batches += 1;
            continue;
        }
        scene.settled().await;
        let ids: Vec<u32> = serde_json::from_value(line["request"]["prompt"].clone()).unwrap();
        let depth =
            scene.gateway.depths(&Text::of_ids(ids.iter().copied()), &Space::default())[&address];
        // The engine computes the last token of a prompt anew.
        let usable = depth.gpu.1.min(ids.len() as u32 - 1) / BLOCK * BLOCK;
        let found = depth.resume_tokens.map_or(usable, |resume| resume.min(usable));
        let truth = line["cached_tokens"].as_u64().unwrap() as u32;
        assert_eq!(found, truth, "{}: {depth:?}", line["label"]);
        truths.push(truth);
    }
    assert_eq!((truths.len(), truths[2], truths[3]), (25, 0, 576));
    assert_eq!((truths[9], truths[10]), (0, 256));
    assert_eq!(scene.source_now(0), SourceState::Live);
}

/// What a windowed group stores of a prompt: its tokens, and the hashes that it kept.
fn windowed(
    chain: &Chain<'_>,
    group: u32,
    (window, block): (u32, usize),
    tokens: Range<usize>,
    ends: &[usize],
) -> Event {
    let hashes: Vec<u64> = ends.iter().map(|end| chain.hash_at(*end)).collect();
    let parent = (tokens.start > 0).then(|| chain.hash_at(tokens.start));
    Event::new("BlockStored")
        .with("block_hashes", json!(hashes))
        .with("parent_block_hash", json!(parent))
        .with("token_ids", json!(chain.text.ids[tokens]))
        .with("block_size", json!(block))
        .with("medium", json!("GPU"))
        .with("group_idx", json!(group))
        .with("kv_cache_spec_kind", json!("sliding_window"))
        .with("kv_cache_spec_sliding_window", json!(window))
}

fn full(chain: &Chain<'_>, blocks: Range<usize>) -> Event {
    chain.stored(blocks).with("group_idx", json!(1))
}

fn removed(chain: &Chain<'_>, group: u32, end: usize) -> Event {
    Event::new("BlockRemoved")
        .with("block_hashes", json!([chain.hash_at(end)]))
        .with("medium", json!("GPU"))
        .with("group_idx", json!(group))
}

/// A windowed group's blocks may be longer than those of full attention: a hash names the place
/// where its block ends, and that is the same in every group.
#[tokio::test(flavor = "multi_thread")]
async fn windows_of_longer_blocks_resume_at_their_ends() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(16)]).await else { return };
    // Token ids, as their strides end where blocks do.
    let text = Text::of_ids(300..700);
    let chain = Chain::new(&text, 16);
    let engine = &mut scene.engines[0];
    engine.twin.add_group(96, 32);
    // 320 tokens: the group keeps its last three blocks, and those before token 160.
    let ends = [96, 128, 160, 256, 288, 320];
    engine.publish(&[windowed(&chain, 0, (96, 32), 0..320, &ends), full(&chain, 0..20)]);
    engine.twin.hold(&text, &Space::default(), 0..20, Place::Gpu);
    engine.twin.hold_window(0, &text, &ends);
    scene.check("stored", &[&text]).await;
    assert_eq!(scene.engines[0].twin.depth(&text, &Space::default()).resume_tokens, Some(320));
    let engine = &mut scene.engines[0];
    engine.publish(&[removed(&chain, 0, 288)]);
    engine.twin.drop_window(0, &text, 288);
    scene.check("a block of the last window is gone", &[&text]).await;
    assert_eq!(scene.engines[0].twin.depth(&text, &Space::default()).resume_tokens, Some(160));
    let engine = &mut scene.engines[0];
    engine.publish(&[removed(&chain, 0, 96)]);
    engine.twin.drop_window(0, &text, 96);
    scene.check("and one of the window before", &[&text]).await;
    let engine = &mut scene.engines[0];
    engine.publish(&[windowed(&chain, 0, (96, 32), 64..96, &[96])]);
    engine.twin.hold_window(0, &text, &[96]);
    scene.check("which comes back", &[&text]).await;
    assert_eq!(scene.source_now(0), SourceState::Live);
    let engine = &mut scene.engines[0];
    engine.publish(&[cleared()]);
    engine.twin.clear();
    scene.check("cleared", &[&text]).await;
}

/// Shorter blocks end between those of full attention, where no text is known: nobody can tell what
/// the engine can use, and that is said.
#[tokio::test(flavor = "multi_thread")]
async fn windows_of_shorter_blocks_are_doubted() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(32), Plan::vllm(32)]).await else { return };
    let text = Text::about("short windows", 400);
    let chain = Chain::new(&text, 32);
    // Full attention's ends only: taken for whole blocks of 32 they would promise a resume at 320.
    let ends = [256, 288, 320];
    let [first, second] = &mut scene.engines[..] else { unreachable!() };
    first.publish(&[windowed(&chain, 0, (64, 16), 0..320, &ends), full(&chain, 0..10)]);
    // Full attention first, and the other group in another step.
    second.publish(&[full(&chain, 0..10)]);
    second.publish(&[windowed(&chain, 0, (64, 16), 0..320, &ends)]);
    for engine in [first, second] {
        engine.twin.hold(&text, &Space::default(), 0..10, Place::Gpu);
    }
    // No resume is listed, and what is listed is discounted.
    scene.check("doubted", &[&text]).await;
    for engine in 0..2 {
        scene.source(engine, SourceState::Degraded).await;
        assert_eq!(scene.endpoint(engine, "doubts").await, json!(["hybrid"]));
    }
}

/// A group of a kind that is not known, or a second one of full attention, leaves doubts; its
/// removals are not those of the group that is listed.
#[tokio::test(flavor = "multi_thread")]
async fn groups_that_are_not_understood_are_doubted() {
    let Some(mut scene) = Scene::prepare(vec![Plan::vllm(16), Plan::vllm(16)]).await else {
        return;
    };
    let text = Text::about("odd groups", 200);
    let chain = Chain::new(&text, 16);
    let other = |kind: &str| {
        chain.stored(0..10).with("group_idx", json!(3)).with("kv_cache_spec_kind", json!(kind))
    };
    for (engine, kind) in scene.engines.iter_mut().zip(["quantum_attention", "full_attention"]) {
        // Replayed, before the source is live.
        engine.publish(&[full(&chain, 0..10), other(kind)]);
        engine.publish(&[removed(&chain, 3, 160), removed(&chain, 3, 144)]);
        engine.twin.hold(&text, &Space::default(), 0..10, Place::Gpu);
    }
    scene.serve().await;
    scene.check("other groups", &[&text]).await;
    for engine in 0..2 {
        scene.source(engine, SourceState::Degraded).await;
        assert_eq!(scene.endpoint(engine, "doubts").await, json!(["hybrid"]));
        // A clear empties the cache, and its groups are what they are.
        scene.engines[engine].publish(&[cleared()]);
        scene.engines[engine].twin.clear();
    }
    scene.check("cleared", &[&text]).await;
    assert_eq!(scene.source_now(0), SourceState::Degraded);
    assert_eq!(scene.source_now(1), SourceState::Degraded);
}

/// A windowed group's blocks elsewhere are nothing to resume from on the GPU.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_elsewhere_is_no_window() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(16)]).await else { return };
    let text = Text::about("windows elsewhere", 200);
    let chain = Chain::new(&text, 16);
    let engine = &mut scene.engines[0];
    engine.twin.add_group(32, 16);
    engine.publish(&[windowed(&chain, 0, (32, 16), 0..160, &[64, 80]), full(&chain, 0..10)]);
    engine.publish(&[windowed(&chain, 0, (32, 16), 0..160, &[144, 160]).medium("CPU")]);
    engine.publish(&[removed(&chain, 0, 80).medium("CPU")]);
    engine.twin.hold(&text, &Space::default(), 0..10, Place::Gpu);
    engine.twin.hold_window(0, &text, &[64, 80]);
    scene.check("elsewhere", &[&text]).await;
    assert_eq!(scene.engines[0].twin.depth(&text, &Space::default()).resume_tokens, Some(80));
}
