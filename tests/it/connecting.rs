//! Engines that connect to the daemon, named by their topic.

use std::time::Duration;

use serde_json::json;
use testbed::{Client, EngineOptions, Stand, StandOptions, port, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_connects_is_known_by_its_topic() {
    let events = port().unwrap();
    let options = |name: &str| {
        let http = format!("127.0.0.1:{}", port().unwrap());
        let flags = [
            format!("--http={http}"),
            format!("--kv-events=tcp://127.0.0.1:{events}"),
            "--kv-events-connect".to_owned(),
            format!("--topic=kv@{http}@{name}"),
        ];
        EngineOptions { flags: flags.to_vec() }
    };
    let mut stand = Stand::prepare(StandOptions {
        engines: vec![options("tiny"), options("tiny")],
        engines_connect: true,
        more_config: format!("kvEventsListen: tcp://127.0.0.1:{events}\n"),
        ..StandOptions::default()
    })
    .await
    .unwrap();
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();

    // What is published before a subscription is lost, and a topic is known by its first message.
    let mut n = 0;
    for engine in &stand.engines {
        let address = engine.http.to_string();
        wait_until("the engine is heard", Duration::from_secs(60), async || {
            n += 1;
            let prompt = format!("Call number {n} of many. ").repeat(10);
            let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 1});
            Client::new(engine.http).post("/v1/completions", &body).await.ok()?;
            (stand.event_batches().await.ok()?.get(&address).copied()? > 0).then_some(())
        })
        .await
        .unwrap();
    }

    let prompt = "Whoever connects says who it is. ".repeat(40);
    let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 4});
    let before = stand.event_batches().await.unwrap();
    let first = stand.client().post("/v1/completions", &body).await.unwrap();
    let line = stand.pod_scores(first.header("x-request-id")).await.unwrap();
    let holder = line.picked()[0].clone();
    stand.settled(&holder, &before).await.unwrap();
    let again = stand.client().post("/v1/completions", &body).await.unwrap();
    let line = stand.pod_scores(again.header("x-request-id")).await.unwrap();
    let scores = line.scores().unwrap();
    assert_eq!(scores.keys().collect::<Vec<_>>(), [&holder]);
    assert_eq!(again.header("x-sim-engine"), first.header("x-sim-engine"));
    assert_ne!(again.header("x-sim-cached-tokens"), "0");
}
