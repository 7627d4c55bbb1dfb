//! What goes wrong between an engine and the daemon, and what is left in the index afterwards.

use routing::SourceState;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::documents::{BLOCK, BLOCKS, Documents};
use crate::support::frames::{Chain, cleared};
use crate::support::text::Text;
use crate::support::twin::{Place, Space};
use crate::support::{Plan, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_joiner_has_what_it_heard_and_says_so() {
    let plan = Plan::vllm(BLOCK).args(&["--no-replay"]);
    let Some(mut scene) = Scene::prepare(vec![plan]).await else { return };
    let documents = Documents::new(8);
    scene.send(&documents, 0..5);
    scene.serve().await;
    scene.source(0, SourceState::Degraded).await;
    scene.send_until_heard(&documents, 5).await;
    scene.send(&documents, 6..8);
    scene.holds(&documents, 5..8);
    scene.check("heard", &documents.all()).await;
    assert_eq!(scene.endpoint(0, "doubts").await, json!(["history"]));
    // A child of what was missed has no place, and is listed nowhere; the rest is.
    let missed = Chain::new(&documents.0[0], BLOCK);
    let engine = &mut scene.engines[0];
    engine.publish(&[missed.stored(1..2)]);
    scene.check("an orphan", &documents.all()).await;
    // An engine that clears its cache leaves nothing to be missed.
    let engine = &mut scene.engines[0];
    engine.publish(&[cleared(), documents.event(0)]);
    engine.twin.clear();
    scene.holds(&documents, [0]);
    scene.check("cleared", &documents.all()).await;
    scene.source(0, SourceState::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_is_filled_by_a_replay() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(BLOCK)]).await else { return };
    let documents = Documents::new(9);
    scene.send(&documents, 0..3);
    scene.settled().await;
    scene.withhold(&documents, 3..6);
    scene.send(&documents, 6..7);
    scene.holds(&documents, 0..7);
    scene.check("filled", &documents.all()).await;
    scene.source(0, SourceState::Live).await;
    assert_eq!(scene.resets().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_cut_short_by_the_engine_is_asked_for_again() {
    cut_short("plain").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_cut_short_with_topics_is_asked_for_again() {
    cut_short("topic").await;
}

/// Of each replay four answers arrive, and no end.
async fn cut_short(framing: &str) {
    let plan = Plan::vllm(BLOCK).args(&["--pieces", "4", "--framing", framing]);
    let Some(mut scene) = Scene::prepare(vec![plan]).await else { return };
    let documents = Documents::new(13);
    scene.send(&documents, 0..8);
    scene.serve().await;
    scene.holds(&documents, 0..8);
    scene.check("history", &documents.all()).await;
    scene.withhold(&documents, 8..12);
    scene.send(&documents, 12..13);
    scene.holds(&documents, 8..13);
    scene.check("gap", &documents.all()).await;
    scene.source(0, SourceState::Live).await;
    assert_eq!(scene.resets().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap_beyond_the_buffer_voids_what_was_known_and_is_said() {
    let plan = Plan::vllm(BLOCK).args(&["--buffer", "3"]);
    let Some(mut scene) = Scene::start(vec![plan]).await else { return };
    let documents = Documents::new(20);
    scene.send(&documents, 0..5);
    scene.holds(&documents, 0..5);
    scene.check("before", &documents.all()).await;
    scene.withhold(&documents, 5..15);
    scene.send(&documents, 15..16);
    scene.wait_listed(&documents.0[15]).await;
    scene.source(0, SourceState::Degraded).await;
    assert_eq!(scene.resets().await, 1);
    // What the buffer held when it was asked: the last three, or those and one before.
    let kept = scene.endpoint(0, "event_batches").await.as_u64().unwrap() as usize - 5;
    assert!((3..=4).contains(&kept), "{kept}");
    scene.engines[0].batches = 5 + kept as u64;
    scene.engines[0].twin.restart();
    scene.holds(&documents, 16 - kept..16);
    scene.check("after", &documents.all()).await;
    assert_eq!(scene.endpoint(0, "doubts").await, json!(["history"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_before_its_parent_waits_and_is_attached() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(BLOCK)]).await else { return };
    let text = Text::about("orphans", 130);
    let chain = Chain::new(&text, BLOCK);
    let engine = &mut scene.engines[0];
    engine.publish(&[chain.stored(6..8)]);
    engine.publish(&[chain.stored(3..6)]);
    scene.check("parked", &[&text]).await;
    let parked = r#"keys="text""#;
    assert_eq!(scene.metric("wasm_epp_index_parked", parked).await, 5);
    let engine = &mut scene.engines[0];
    engine.store(&chain, 0..3);
    engine.twin.hold(&text, &Space::default(), 3..8, Place::Gpu);
    scene.check("attached", &[&text]).await;
    assert_eq!(scene.metric("wasm_epp_index_parked", parked).await, 0);
    // One that is removed while it waits does not come back with its parent.
    let late = Text::about("late parents", 130);
    let chain = Chain::new(&late, BLOCK);
    let engine = &mut scene.engines[0];
    engine.publish(&[chain.stored(4..8)]);
    engine.publish(&[chain.removed([7, 6])]);
    engine.store(&chain, 0..4);
    engine.twin.hold(&late, &Space::default(), 4..6, Place::Gpu);
    scene.check("removed while it waited", &[&text, &late]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_and_reordered_batches_count_once_and_in_order() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(BLOCK)]).await else { return };
    let documents = Documents::new(12);
    scene.send(&documents, 0..6);
    scene.settled().await;
    scene.engines[0].tell("live 3 5 5 0");
    scene.withhold(&documents, 6..10);
    scene.engines[0].tell("live 8 7 9 6 6 9");
    scene.send(&documents, 10..11);
    scene.holds(&documents, 0..11);
    scene.check("once", &documents.all()).await;
    // Counted twice, one removal would not do.
    let engine = &mut scene.engines[0];
    for i in [0, 5, 6, 9] {
        engine.evict(&Chain::new(&documents.0[i], BLOCK), 0..BLOCKS);
    }
    scene.check("removed once", &documents.all()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_garbage_costs_that_batch_and_is_not_forgotten() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(BLOCK)]).await else { return };
    let documents = Documents::new(12);
    let folder = scene.folder.path().to_owned();
    scene.send(&documents, 0..2);
    scene.engines[0].publish_bytes(&folder, b"\xff\x00garbage");
    scene.send(&documents, 2..4);
    scene.holds(&documents, 0..4);
    scene.check("around it", &documents.all()).await;
    scene.source(0, SourceState::Degraded).await;
    assert_eq!(scene.endpoint(0, "doubts").await, json!(["events"]));
    // A gap and its replay bring the source back to life, but not what was lost.
    scene.withhold(&documents, 4..6);
    scene.send(&documents, 6..7);
    scene.holds(&documents, 4..7);
    scene.check("a gap later", &documents.all()).await;
    assert_eq!(scene.source_now(0), SourceState::Degraded);
    // A store whose tokens do not fit its blocks is not understood either.
    scene.engines[0].publish(&[cleared()]);
    scene.engines[0].twin.clear();
    scene.source(0, SourceState::Live).await;
    scene.engines[0]
        .publish(&[documents.event(7).with("block_size", json!(7)), documents.event(8)]);
    scene.holds(&documents, [8]);
    scene.check("a store that does not fit", &documents.all()).await;
    scene.source(0, SourceState::Degraded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_100_megabytes_is_passed_over() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(BLOCK)]).await else { return };
    let documents = Documents::new(4);
    scene.send(&documents, 0..2);
    scene.engines[0].tell("big 100000000");
    scene.engines[0].batches += 1;
    scene.send(&documents, 2..4);
    scene.holds(&documents, 0..4);
    scene.check("around it", &documents.all()).await;
    scene.source(0, SourceState::Degraded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_events_in_one_batch_all_count() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(4)]).await else { return };
    let texts: Vec<Text> = (0..40).map(|i| Text::about(&format!("part {i}"), 1001)).collect();
    let mut events = Vec::new();
    for text in &texts {
        let chain = Chain::new(text, 4);
        events.extend((0..250).map(|block| chain.stored(block..block + 1)));
        scene.engines[0].twin.hold(text, &Space::default(), 0..250, Place::Gpu);
    }
    assert_eq!(events.len(), 10_000);
    scene.engines[0].publish(&events);
    scene.check("10 000 stores", &texts.iter().collect::<Vec<_>>()).await;
    for text in &texts {
        scene.engines[0].twin.drop(text, &Space::default(), 100..250, Place::Gpu);
    }
    let removed = texts
        .iter()
        .flat_map(|text| (100..250).rev().map(|block| Chain::new(text, 4).removed([block])));
    scene.engines[0].publish(&removed.collect::<Vec<_>>());
    scene.check("6 000 removals", &texts.iter().collect::<Vec<_>>()).await;
}

/// Forwards connections until told to fall silent; those it has then stay open and get nothing.
async fn proxy() -> (u16, watch::Sender<u64>, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (to, target) = watch::channel(0);
    let (silence, silent) = watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (mut silent, target) = (silent.clone(), *target.borrow());
            silent.mark_unchanged();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(format!("127.0.0.1:{target}")).await.unwrap();
                let (mut far_read, mut far_write) = far.split();
                let (mut near_read, mut near_write) = near.split();
                let back = async {
                    let mut piece = vec![0; 1 << 16];
                    while let Ok(len @ 1..) = far_read.read(&mut piece).await {
                        if near_write.write_all(&piece[..len]).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = back => {}
                    _ = copy(&mut near_read, &mut far_write) => {}
                    _ = silent.changed() => std::future::pending().await,
                }
            });
        }
    });
    (port, to, silence)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_connection_costs_nothing_but_time() {
    let (port, to, silence) = proxy().await;
    let plan = Plan { proxy_port: Some(port), ..Plan::vllm(BLOCK) };
    let Some(mut scene) = Scene::prepare(vec![plan]).await else { return };
    to.send_replace(scene.engines[0].publisher.as_ref().unwrap().pub_port);
    let documents = Documents::new(8);
    scene.serve().await;
    scene.send(&documents, 0..3);
    scene.holds(&documents, 0..3);
    scene.check("before", &documents.all()).await;
    silence.send_replace(true);
    scene.send(&documents, 3..6);
    scene.holds(&documents, 3..6);
    scene.check("found out by asking", &documents.all()).await;
    scene.send(&documents, 6..8);
    scene.holds(&documents, 6..8);
    scene.check("found out again", &documents.all()).await;
    scene.source(0, SourceState::Live).await;
    assert_eq!(scene.resets().await, 0);
}

/// Scorers are told of each state, and a match of a doubtful source is worth half of one that is
/// certain: neither trusted silently nor silently nothing.
#[tokio::test(flavor = "multi_thread")]
async fn states_reach_scorers_and_doubt_halves_a_match() {
    let plans =
        vec![Plan::vllm(BLOCK), Plan::vllm(BLOCK), Plan::vllm(BLOCK).args(&["--delay", "1"])];
    let Some(mut scene) = Scene::prepare(plans).await else { return };
    let text = Text::about("states", 130);
    let folder = scene.folder.path().to_owned();
    let publish = |scene: &mut Scene, from: usize, to: usize| {
        for (i, engine) in scene.engines.iter_mut().enumerate() {
            engine.store(&Chain::new(&text, BLOCK).of(i), from..to);
        }
    };
    publish(&mut scene, 0, 4);
    scene.serve().await;
    publish(&mut scene, 4, 8);
    scene.check("all hold it", &[&text]).await;
    for engine in 0..3 {
        scene.source(engine, SourceState::Live).await;
    }
    let addresses: Vec<String> = scene.engines.iter().map(|engine| engine.address()).collect();
    let scores = |scene: &Scene| {
        let scores = scene.gateway.prefix_scores(&text.bytes);
        addresses.iter().map(|address| scores[address]).collect::<Vec<f32>>()
    };
    let depth = scene.engines[0].twin.depth(&text, &Space::default()).gpu.0;
    let whole = depth as f32 / (text.bytes.len() / 64) as f32;
    assert_eq!(scores(&scene), [whole; 3]);
    scene.engines[1].publish_bytes(&folder, b"garbage");
    scene.source(1, SourceState::Degraded).await;
    assert_eq!(scores(&scene), [whole, whole / 2.0, whole]);
    // A gap whose replay takes its time.
    let engine = &mut scene.engines[2];
    engine.keep(&[]);
    engine.publish(&[]);
    engine.batches += 1;
    scene.source(2, SourceState::Resyncing).await;
    assert_eq!(scores(&scene), [whole, whole / 2.0, whole / 2.0]);
    scene.source(2, SourceState::Live).await;
    scene.engines[0].publisher = None;
    scene.source(0, SourceState::Lost).await;
    assert_eq!(scores(&scene), [whole / 2.0, whole / 2.0, whole]);
    scene.compare("what is listed is as it was", &[&text], &Space::default());
}
