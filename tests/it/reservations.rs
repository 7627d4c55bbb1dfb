//! What is in flight is seen by every worker and by the other gateway, and is nothing again however
//! requests end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::{
    Answer, Client, EngineOptions, Sibling, Stand, StandOptions, get, pod_scores, wait_until,
};

use crate::support::{COMPLETIONS, completion, prose, question};

const PATIENCE: Duration = Duration::from_secs(20);
/// Time between two tokens of an engine, so that a request of many is long in flight.
const TOKEN_MS: u64 = 20;
const LONG_TOKENS: u64 = 5_000;

/// A stand of three workers whose daemon feeds two gateways.
async fn two_gateways() -> (Stand, Sibling) {
    let flags = [format!("--inter-token-ms={TOKEN_MS}")];
    let options = StandOptions {
        engines: vec![EngineOptions { flags: flags.to_vec() }; 3],
        workers: 3,
        more_config: "gateways:\n- {name: gw-0, feed: \"unix:feed.sock\"}\n- {name: gw-1, feed: \"unix:feed-1.sock\"}\n".into(),
        ..StandOptions::default()
    };
    let mut stand = Stand::prepare(options).await.unwrap();
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    let second = stand.start_sibling(1, 2).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    (stand, second)
}

/// Requests and tokens that a gateway has in flight, as its last ack said.
async fn in_flight(stand: &Stand, gateway: usize) -> (u64, u64) {
    let gateway = stand.readyz().await.unwrap()["gateways"][gateway].clone();
    let number = |key: &str| gateway[key].as_u64().unwrap();
    (number("in_flight_requests"), number("in_flight_tokens"))
}

async fn until(stand: &Stand, what: &str, is: impl Fn((u64, u64)) -> bool) -> (u64, u64) {
    wait_until(what, PATIENCE, async || {
        let sums = in_flight(stand, 0).await;
        is(sums).then_some(sums)
    })
    .await
    .unwrap()
}

fn long(prompt: &str) -> Value {
    json!({"model": "tiny", "prompt": prompt, "max_tokens": LONG_TOKENS, "stream": true})
}

/// In flight by endpoint as a decision of the gateway with this log weighed it.
async fn weighed(log: &Path, answer: &Answer) -> BTreeMap<String, u64> {
    let line = pod_scores(log, answer.header("x-request-id")).await.unwrap();
    serde_json::from_value(line.record["in_flight"].clone()).unwrap()
}

/// A request that engines refuse at once: it leaves nothing behind but its line.
async fn probe(client: &Client, topic: &str) -> Answer {
    let body = question(&prose(topic, 500));
    let headers = [("content-type", "application/json")];
    client.send("POST", COMPLETIONS, &headers, body).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_is_known_everywhere_and_ends_with_the_requests() {
    let (stand, second) = two_gateways().await;
    success(&stand).await;
    client_disconnects(&stand).await;
    retry_and_local_reply(&stand).await;
    every_worker_sees_it(&stand).await;
    the_other_gateway_sees_it(&stand, &second).await;
    an_engine_that_dies(stand).await;
}

async fn zero(stand: &Stand, after: &str) {
    until(stand, &format!("nothing is in flight after {after}"), |sums| sums == (0, 0)).await;
}

async fn success(stand: &Stand) {
    let client = stand.client();
    let prompt = prose("success", 3000);
    let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 40});
    let task = tokio::spawn(async move { client.post(COMPLETIONS, &body).await.unwrap() });
    let (requests, tokens) =
        until(stand, "a request is in flight", |(requests, _)| requests > 0).await;
    // 3000 bytes at the four bytes per token that are assumed of a prompt nobody holds.
    assert_eq!((requests, tokens), (1, 750));
    assert_eq!(task.await.unwrap().status, 200);
    zero(stand, "success").await;
    let answer = probe(&stand.client(), "an error").await;
    assert_eq!(answer.status, 400);
    zero(stand, "an error of the engine").await;
}

async fn client_disconnects(stand: &Stand) {
    let mut tasks = Vec::new();
    for i in 0..12 {
        let client = Client::new(stand.gateway);
        let body = long(&prose(&format!("disconnect {i}"), 1000));
        tasks.push(tokio::spawn(async move { client.post(COMPLETIONS, &body).await }));
    }
    let (_, tokens) = until(stand, "twelve are in flight", |(requests, _)| requests == 12).await;
    assert_eq!(tokens, 12 * 250);
    for task in &tasks {
        task.abort();
    }
    zero(stand, "clients that went away").await;
}

async fn behave(engine: SocketAddr, behaviour: &Value) {
    assert_eq!(Client::new(engine).post("/sim/behaviour", behaviour).await.unwrap().status, 200);
}

async fn retry_and_local_reply(stand: &Stand) {
    let moved =
        async || stand.envoy_stat("wasmcustom.wasm_epp_requests_moved_total").await.unwrap();
    // Two of three drop what they get; the third answers slowly.
    for engine in &stand.engines[1..] {
        behave(engine.http, &json!({"on_request": "reset"})).await;
    }
    let before = moved().await;
    let mut tasks = Vec::new();
    for i in 0..6 {
        let client = Client::new(stand.gateway);
        let body = long(&prose(&format!("retry {i}"), 1000));
        tasks.push(tokio::spawn(async move { client.post(COMPLETIONS, &body).await }));
    }
    let served = stand.engines[0].http.to_string();
    let log = stand.envoy_log();
    wait_until("the requests are where they are served", PATIENCE, async || {
        let seen = weighed(&log, &probe(&stand.client(), "who has them").await).await;
        (seen == BTreeMap::from([(served.clone(), 6)])).then_some(())
    })
    .await
    .unwrap();
    assert!(moved().await > before, "some were sent to another first");
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    zero(stand, "retries").await;

    behave(stand.engines[0].http, &json!({"on_request": "reset"})).await;
    for i in 0..4 {
        let body = completion(&prose(&format!("nobody serves {i}"), 1000));
        let headers = [("content-type", "application/json")];
        let answer = stand.client().send("POST", COMPLETIONS, &headers, body).await.unwrap();
        assert_eq!(answer.status, 503, "the proxy answers itself");
        assert_eq!(answer.header("x-sim-engine"), "");
    }
    zero(stand, "local replies").await;
    for engine in &stand.engines {
        behave(engine.http, &json!({"on_request": "serve"})).await;
    }
    // Outlier detection may have ejected them for what they did.
    wait_until("every engine is served from again", Duration::from_secs(60), async || {
        let page = get(stand.envoy_admin, "/clusters").await.ok()?;
        let text = String::from_utf8_lossy(&page.body).into_owned();
        (!text.contains("/failed_outlier_check")).then_some(())
    })
    .await
    .unwrap();
}

async fn every_worker_sees_it(stand: &Stand) {
    let client = Client::new(stand.gateway);
    let body = long(&prose("seen by all", 1000));
    let task = tokio::spawn(async move { client.post(COMPLETIONS, &body).await });
    until(stand, "one is in flight", |(requests, _)| requests == 1).await;
    // A connection each, so that they spread over the workers.
    for i in 0..12 {
        let answer = probe(&Client::new(stand.gateway), &format!("worker {i}")).await;
        let seen = weighed(&stand.envoy_log(), &answer).await;
        assert_eq!(seen.values().sum::<u64>(), 1, "connection {i}: {seen:?}");
    }
    let rows = stand.readyz().await.unwrap()["gateways"][0]["rows"].clone();
    assert!(rows.as_array().unwrap().len() > 1, "several workers took part: {rows}");
    task.abort();
    zero(stand, "one client").await;
}

async fn the_other_gateway_sees_it(stand: &Stand, second: &Sibling) {
    let other = Client::new(second.gateway);
    let seen = async |topic: &str| {
        let sent = Instant::now();
        let seen = weighed(&second.log, &probe(&other, topic).await).await;
        (sent, seen.values().sum::<u64>())
    };
    let mut delays = Vec::new();
    for round in 0..7 {
        wait_until("the other gateway sees nothing", PATIENCE, async || {
            (seen("before").await.1 == 0).then_some(())
        })
        .await
        .unwrap();
        let client = Client::new(stand.gateway);
        let body = long(&prose(&format!("other gateway {round}"), 1000));
        let started = Instant::now();
        let task = tokio::spawn(async move { client.post(COMPLETIONS, &body).await });
        let at = wait_until("the other gateway sees it", PATIENCE, async || {
            let (sent, requests) = seen("after").await;
            (requests == 1).then_some(sent)
        })
        .await
        .unwrap();
        delays.push(at - started);
        task.abort();
    }
    delays.sort_unstable();
    eprintln!("seen by the other gateway after {delays:?}");
    assert!(delays[3] <= Duration::from_millis(100), "{delays:?}");
    zero(stand, "seven clients").await;
}

async fn an_engine_that_dies(mut stand: Stand) {
    let mut tasks = Vec::new();
    for i in 0..6 {
        let client = Client::new(stand.gateway);
        let body = long(&prose(&format!("engine death {i}"), 1000));
        tasks.push(tokio::spawn(async move { client.post(COMPLETIONS, &body).await }));
    }
    until(&stand, "six are in flight", |(requests, _)| requests == 6).await;
    for engine in &mut stand.engines {
        engine.process.take().unwrap().kill();
    }
    zero(&stand, "the engines' death").await;
    for task in tasks {
        // Cut, or ended by the proxy: either way over.
        drop(task.await.unwrap());
    }
}
