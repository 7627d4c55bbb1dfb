//! Engines that connect to the daemon: one socket for all, told apart by their topics.

use routing::SourceState;
use testbed::port;

use crate::support::frames::{Chain, cleared};
use crate::support::text::Text;
use crate::support::twin::{Place, Space};
use crate::support::{Plan, Scene};

/// Nothing says when a publisher's connection is made, so that its first batches may be lost; with
/// replay they are asked for.
#[tokio::test(flavor = "multi_thread")]
async fn engines_that_connect_are_told_apart_and_replayed() {
    let plans = vec![Plan::vllm(16), Plan::vllm(32)];
    let listen = port().unwrap();
    let Some(mut scene) = Scene::prepare_with(plans, Some(listen)).await else { return };
    let text = Text::about("connecting", 300);
    let chains = [Chain::new(&text, 16).of(0), Chain::new(&text, 32).of(1)];
    let store = |scene: &mut Scene, engine: usize, blocks: std::ops::Range<usize>| {
        scene.engines[engine].store(&chains[engine], blocks);
    };
    store(&mut scene, 0, 0..4);
    store(&mut scene, 1, 0..3);
    scene.serve().await;
    // A source is known from its first message on.
    for (engine, from) in [(0, 4), (1, 3)] {
        let mut block = from;
        while scene.source_now(engine) == SourceState::None {
            store(&mut scene, engine, block..block + 1);
            block += 1;
            tokio::time::timeout(
                std::time::Duration::from_millis(50),
                scene.source(engine, SourceState::Live),
            )
            .await
            .ok();
        }
    }
    scene.check("history and all", &[&text]).await;
    scene.source(0, SourceState::Live).await;
    scene.source(1, SourceState::Live).await;
    // A gap, a clear, a duplicate.
    let engine = &mut scene.engines[0];
    engine.keep(&[cleared()]);
    engine.twin.clear();
    engine.batches += 1;
    engine.keep(&[chains[0].stored(0..3)]);
    engine.batches += 1;
    engine.publish(&[chains[0].stored(3..5)]);
    engine.twin.hold(&text, &Space::default(), 0..5, Place::Gpu);
    let last = engine.tell("look")["next"].as_u64().unwrap() - 1;
    engine.tell(&format!("live {last} {} {last}", last - 1));
    scene.check("a gap", &[&text]).await;
    let resets = scene.endpoint(0, "resets").await;
    assert_eq!(resets, 0);
    // A restart: the numbers start over, over another connection.
    let engine = &mut scene.engines[1];
    engine.tell("restart");
    engine.twin.restart();
    let mut block = 0;
    while scene.endpoint(1, "resets").await == 0 {
        store(&mut scene, 1, block..block + 1);
        block += 1;
    }
    scene.check("a restart", &[&text]).await;
    scene.source(1, SourceState::Live).await;
    // One that nobody configured changes nothing.
    let stranger = [
        scene.engines[0].session(),
        "--connect".to_owned(),
        format!("tcp://127.0.0.1:{listen}"),
        "--topic".to_owned(),
        "kv@10.9.8.7@tiny".to_owned(),
    ];
    let mut stranger = crate::support::engine::Publisher::start(&stranger).unwrap();
    stranger.tell("send 3");
    store(&mut scene, 0, 5..7);
    scene.check("a stranger", &[&text]).await;
}
