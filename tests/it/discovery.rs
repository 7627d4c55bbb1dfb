//! Pods come, are not ready for a while, and go, while requests flow.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use testbed::{ApiServer, EngineOptions, Stand, StandOptions, get, port, wait_until};

use crate::support::{COMPLETIONS, Protocol, completion, line, prose, served, teach};

const LIMIT: Duration = Duration::from_secs(60);

/// A stand of three engines on addresses of their own and the same ports, as pods have them, whose endpoints
/// are told by the server.
async fn stand(server: &ApiServer) -> (Stand, [String; 3]) {
    let ports = [port().unwrap(), port().unwrap(), port().unwrap()];
    let [http, events, replay] = ports;
    let options = |i: u8| EngineOptions {
        flags: vec![
            format!("--http=127.0.0.{i}:{http}"),
            format!("--kv-events=tcp://127.0.0.{i}:{events}"),
            format!("--replay=tcp://127.0.0.{i}:{replay}"),
        ],
    };
    let discovery = format!(
        "{{kubernetes: {{apiServer: \"http://{}\", namespace: inference, selector: {{app: vllm}}, \
         targetPorts: [{http}]}}, endpoint: {{kvEventsPort: {events}, replayPort: {replay}}}}}",
        server.address
    );
    let stand = Stand::prepare(StandOptions {
        engines: vec![options(2), options(3), options(4)],
        discovery: Some(discovery),
        more_config: "gateways:\n- {name: gw-0, feed: \"unix:feed.sock\", resources: envoy}\n"
            .into(),
        ..StandOptions::default()
    })
    .await
    .unwrap();
    (stand, [2, 3, 4].map(|i| format!("127.0.0.{i}:{http}")))
}

/// Waits until the daemon knows these endpoints, ready or not, the gateway has acked it, and its cluster has the
/// ready ones.
async fn known(stand: &Stand, expected: &[(&String, bool)]) {
    let expected: BTreeMap<String, bool> =
        expected.iter().map(|(address, ready)| ((*address).clone(), *ready)).collect();
    let ready: BTreeSet<String> =
        expected.iter().filter(|(_, ready)| **ready).map(|(address, _)| address.clone()).collect();
    wait_until(&format!("{expected:?}"), LIMIT, async || {
        let details = stand.readyz().await.ok()?;
        let endpoints = details["endpoints"].as_array()?.iter();
        let found: BTreeMap<String, bool> = endpoints
            .map(|e| (e["address"].as_str().unwrap_or_default().to_owned(), e["ready"] == true))
            .collect();
        let is_pushed = details["gateways"].as_array()?.iter().all(|g| g["pending"] == 0);
        (found == expected && is_pushed && hosts(stand).await? == ready).then_some(())
    })
    .await
    .unwrap();
}

/// Hosts of the pool's cluster by Envoy.
async fn hosts(stand: &Stand) -> Option<BTreeSet<String>> {
    let clusters = get(stand.envoy_admin, "/clusters?format=json").await.ok()?.json().ok()?;
    let pool = clusters["cluster_statuses"].as_array()?.iter().find(|c| c["name"] == "pool")?;
    let hosts = pool["host_statuses"].as_array().into_iter().flatten().map(|host| {
        let address = &host["address"]["socket_address"];
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{}:{}", text(&address["address"]), text(&address["port_value"]))
    });
    Some(hosts.collect())
}

/// Who serves `count` prompts that nobody has seen.
async fn serving(stand: &Stand, topic: &str, count: usize) -> BTreeSet<String> {
    let mut engines = BTreeSet::new();
    for i in 0..count {
        let body = completion(&prose(&format!("{topic} {i}"), 400));
        let answer = Protocol::H1.post(stand, COMPLETIONS, &body).await;
        engines.insert(served(stand, &answer, &body));
    }
    engines
}

fn set(addresses: &[&String]) -> BTreeSet<String> {
    addresses.iter().map(|address| (*address).clone()).collect()
}

/// A prompt that this endpoint has read, and that the gateway knows of.
async fn taught(stand: &Stand, topic: &str, by: &String) -> Vec<u8> {
    for i in 0..64 {
        let body = completion(&prose(&format!("{topic} {i}"), 1_500));
        if teach(stand, &body).await == *by {
            return body;
        }
    }
    panic!("{by} reads nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_come_get_traffic_and_pods_that_leave_get_none() {
    let server = ApiServer::start().await.unwrap();
    let (mut stand, [a, b, c]) = stand(&server).await;
    let ip = |address: &String| address.split(':').next().unwrap().to_owned();
    server.pod("a", &ip(&a), true);
    server.pod("b", &ip(&b), true);
    stand.render().unwrap();
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    known(&stand, &[(&a, true), (&b, true)]).await;
    assert_eq!(serving(&stand, "two pods", 12).await, set(&[&a, &b]));

    // One is not ready: nothing goes there, what it holds is remembered.
    let body = taught(&stand, "a readiness probe that fails", &b).await;
    server.pod("b", &ip(&b), false);
    known(&stand, &[(&a, true), (&b, false)]).await;
    assert_eq!(serving(&stand, "one is not ready", 12).await, set(&[&a]));
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    assert_eq!(served(&stand, &answer, &body), a, "also what only the other holds");
    server.pod("b", &ip(&b), true);
    known(&stand, &[(&a, true), (&b, true)]).await;
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    let scores = line(&stand, &answer).await.scores().unwrap();
    assert!(scores[&b] > 0, "{scores:?}");

    // A new one gets traffic, and its events are followed.
    server.pod("c", &ip(&c), true);
    known(&stand, &[(&a, true), (&b, true), (&c, true)]).await;
    let body = taught(&stand, "a pod that has just come", &c).await;
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    assert_eq!(served(&stand, &answer, &body), c);
    assert_ne!(answer.header("x-sim-cached-tokens"), "0");

    // One is to be deleted: it is out while it is still there.
    server.delete("c");
    known(&stand, &[(&a, true), (&b, true), (&c, false)]).await;
    assert_eq!(serving(&stand, "one is leaving", 12).await, set(&[&a, &b]));
    server.remove("c");
    known(&stand, &[(&a, true), (&b, true)]).await;

    // Another pod has its address, and what was known of the first is not said of it.
    stand.restart_engine(2).unwrap();
    server.pod("c-2", &ip(&c), true);
    known(&stand, &[(&a, true), (&b, true), (&c, true)]).await;
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    served(&stand, &answer, &body);
    let decided = line(&stand, &answer).await;
    assert_eq!((decided.reason(), decided.picked().len()), (None, 3), "{:?}", decided.record);
    assert_eq!(decided.scores().unwrap_or_default().get(&c), None, "{:?}", decided.record);
    let next = taught(&stand, "the next pod at that address", &c).await;
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &next).await;
    assert_eq!(served(&stand, &answer, &next), c);
    assert_ne!(answer.header("x-sim-cached-tokens"), "0");
}
