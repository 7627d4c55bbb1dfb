//! An engine that starts anew has an empty cache, whether or not it says so.

use routing::SourceState;
use serde_json::json;

use crate::support::documents::{BLOCK, Documents};
use crate::support::frames::cleared;
use crate::support::{Plan, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_voids_what_was_known_whatever_the_numbers_say() {
    // The new run is shorter than the old one, as long, and longer.
    for new in [2, 5, 8] {
        let Some(mut scene) = Scene::start(vec![Plan::vllm(BLOCK)]).await else { return };
        let documents = Documents::new(20);
        scene.send(&documents, 0..5);
        scene.holds(&documents, 0..5);
        scene.check("first run", &documents.all()).await;
        scene.engines[0].tell("restart");
        scene.withhold(&documents, 5..5 + new);
        scene.engines[0].twin.restart();
        scene.holds(&documents, 5..5 + new);
        scene.check(&format!("second run of {new}"), &documents.all()).await;
        scene.source(0, SourceState::Live).await;
        assert_eq!(scene.resets().await, 1);
        scene.send(&documents, 15..16);
        scene.holds(&documents, 15..16);
        scene.check("goes on", &documents.all()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_replay_a_number_below_the_watermark_is_a_restart() {
    let plan = Plan::vllm(BLOCK).args(&["--no-replay"]);
    let Some(mut scene) = Scene::start(vec![plan]).await else { return };
    let documents = Documents::new(104);
    scene.send_until_heard(&documents, 0).await;
    scene.send(&documents, 1..100);
    scene.holds(&documents, 0..100);
    scene.check("first run", &documents.all()).await;
    scene.engines[0].tell("restart");
    scene.source(0, SourceState::Lost).await;
    scene.source(0, SourceState::Degraded).await;
    let doubts = scene.endpoint(0, "doubts").await;
    assert!(doubts.as_array().unwrap().contains(&json!("connection")), "{doubts}");
    // So few numbers that they stay below those of the first run.
    scene.send_until_heard(&documents, 100).await;
    scene.send(&documents, 101..104);
    scene.engines[0].twin.restart();
    scene.holds(&documents, 100..104);
    scene.check("second run", &documents.all()).await;
    assert_eq!(scene.resets().await, 1);
}

/// The metrics page tells a restart that no event does: here the new run's first numbers were missed
/// and it goes on exactly where the old one ended, so that the stream alone looks whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_that_no_number_shows_is_found_by_the_metrics_page() {
    let plan = Plan::vllm(BLOCK).args(&["--no-replay"]);
    let Some(mut scene) = Scene::start(vec![plan]).await else { return };
    let documents = Documents::new(6);
    scene.send_until_heard(&documents, 0).await;
    scene.send(&documents, [1]);
    scene.holds(&documents, [0, 1]);
    scene.check("first run", &documents.all()).await;
    let next = scene.engines[0].tell("look")["next"].as_u64().unwrap();
    scene.engines[0].tell("restart");
    for _ in 0..next {
        scene.engines[0].keep(&[documents.event(2)]);
    }
    // The same batch again until the new subscription hears it.
    scene.engines[0].publish(&[documents.event(3)]);
    let batches = json!(scene.engines[0].batches);
    while scene.endpoint(0, "event_batches").await != batches {
        scene.engines[0].tell(&format!("live {next}"));
    }
    // The hole: what the old run held is still listed, and the stream cannot know better.
    scene.holds(&documents, [3]);
    scene.check("the stream alone", &documents.all()).await;
    assert_eq!(scene.resets().await, 0);
    scene.engines[0].pages.restart(2e9);
    scene.engines[0].twin.restart();
    while scene.metric("wasm_epp_source_resets_total", "reason=\"process\"").await == 0 {}
    scene.check("fenced", &documents.all()).await;
    // Its own history before the fence is missing too.
    scene.source(0, SourceState::Degraded).await;
    assert!(scene.endpoint(0, "doubts").await.as_array().unwrap().contains(&json!("restart")));
    scene.send(&documents, 4..6);
    scene.holds(&documents, 4..6);
    scene.check("goes on", &documents.all()).await;
}

/// vLLM says with the next step's batch that its cache was cleared, and an engine that dies says
/// nothing; its page says that it is another process.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_never_says_that_its_cache_is_gone_is_fenced() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(BLOCK)]).await else { return };
    let documents = Documents::new(6);
    scene.send(&documents, 0..4);
    scene.holds(&documents, 0..4);
    scene.check("before", &documents.all()).await;
    scene.engines[0].pages.restart(1e9 + 0.5);
    scene.send(&documents, 4..5);
    scene.holds(&documents, 4..5);
    scene.check("a reading that differs by rounding", &documents.all()).await;
    scene.engines[0].pages.restart(2e9);
    scene.source(0, SourceState::Degraded).await;
    scene.engines[0].twin.restart();
    scene.check("fenced", &documents.all()).await;
    assert_eq!(scene.metric("wasm_epp_source_resets_total", "reason=\"process\"").await, 1);
    scene.engines[0].publish(&[cleared(), documents.event(5)]);
    scene.holds(&documents, [5]);
    scene.check("said after all", &documents.all()).await;
    scene.source(0, SourceState::Live).await;
}

/// A page that is slower than the events: what the new process has stored since is not void.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_late_voids_nothing_of_the_new_process() {
    let Some(mut scene) = Scene::start(vec![Plan::vllm(BLOCK)]).await else { return };
    let documents = Documents::new(2);
    scene.wait("the page was read", |details| details["endpoints"][0]["ready"] == true).await;
    scene.engines[0].tell("restart");
    let engine = &mut scene.engines[0];
    let batch = engine.release.batch(&[documents.event(0)], 1.5e9, 0);
    engine.publish_json(&batch);
    scene.holds(&documents, [0]);
    scene.check("stored", &documents.all()).await;
    scene.engines[0].pages.restart(1.4e9);
    let scrapes = scene.metric("wasm_epp_scrapes_total", "").await;
    while scene.metric("wasm_epp_scrapes_total", "").await < scrapes + 3 {}
    scene.check("still there", &documents.all()).await;
    assert_eq!(scene.metric("wasm_epp_source_resets_total", "reason=\"process\"").await, 0);
    scene.source(0, SourceState::Live).await;
}
