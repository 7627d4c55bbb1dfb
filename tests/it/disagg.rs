//! Prefill on one engine for another, sessions that follow a request to where it was served, and
//! requests that are refused because every engine is busy or gone.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Answer, Client, EngineOptions, Stand, StandOptions, wait_until};
use tokio::task::JoinHandle;

use crate::support::{
    BOTH, COMPLETIONS, Protocol, completion, counters, line, noted, prose, question, received,
    served,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Tokens that an endpoint must lack of a prompt for another one to compute it.
const NON_CACHED: u64 = 200;
/// More requests at an endpoint, and it takes no others.
const MOST_ACTIVE: u64 = 2;
const PREFILLER: &str = "x-prefiller-host-port";
const SESSION: &str = "x-session-id";

/// The first two decode, the others prefill.
async fn start() -> Stand {
    let session = "{strategy: session_id}";
    let routing = format!(
        "routing:\n  refuse: true\n  profiles:\n  - name: decode\n    filters:\n    \
         - {{type: role, parameters: {{role: decode}}}}\n    \
         - {{type: utilization, parameters: {{conditions: [{{metric: active-requests, maxValue: {MOST_ACTIVE}}}]}}}}\n    \
         scorers:\n    - {{type: active-request}}\n    - {{type: session-affinity, weight: 10, parameters: {session}}}\n  \
         - name: prefill\n    filters: [{{type: role, parameters: {{role: prefill}}}}]\n    \
         scorers: [{{type: token-load, parameters: {{queueThresholdTokens: 100000}}}}]\n  \
         profileHandler: {{type: disagg, parameters: {{nonCachedTokens: {NON_CACHED}}}}}\n"
    );
    let flags = ["--inter-token-ms=20", "--max-model-len=100000", "--num-blocks=8192"];
    let engine = EngineOptions { flags: flags.map(str::to_owned).to_vec() };
    let role = |role: &str| format!("labels: {{llm-d.ai/role: {role}}}");
    // Without a role an endpoint decodes.
    let endpoints = vec![role("decode"), "labels: {}".into(), role("prefill"), role("prefill")];
    let options = StandOptions {
        engines: vec![engine; 4],
        endpoints,
        workers: 2,
        more_config: routing,
        ..StandOptions::default()
    };
    Stand::start(options).await.unwrap()
}

fn address(stand: &Stand, engine: usize) -> String {
    stand.engines[engine].http.to_string()
}

/// Requests and tokens in flight by the gateway's last ack.
async fn sums(stand: &Stand) -> (u64, u64) {
    let gateway = stand.readyz().await.unwrap()["gateways"][0].clone();
    let number = |key: &str| gateway[key].as_u64().unwrap();
    (number("in_flight_requests"), number("in_flight_tokens"))
}

async fn until_sums(stand: &Stand, what: &str, expected: (u64, u64)) {
    wait_until(what, PATIENCE, async || (sums(stand).await == expected).then_some(()))
        .await
        .unwrap();
}

fn begin(
    stand: &Stand,
    headers: &[(&str, &str)],
    body: Value,
) -> JoinHandle<anyhow::Result<Answer>> {
    let client = Client::new(stand.gateway);
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let headers: Vec<(String, String)> = headers.iter().map(own).collect();
    tokio::spawn(async move {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        client.send("POST", COMPLETIONS, &headers, body.to_string()).await
    })
}

/// What a decision of now sees in flight. The prompt is too short for another engine.
async fn seen(stand: &Stand, topic: &str) -> BTreeMap<String, u64> {
    let body = question(&prose(topic, 300));
    let answer = Protocol::H2.post(stand, COMPLETIONS, &body).await;
    received(stand, &answer, &body);
    serde_json::from_value(line(stand, &answer).await.record["in_flight"].clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_prefills_for_another_and_who_cannot_be_served_is_told() {
    let mut stand = start().await;
    the_other_engine_is_named_where_too_much_is_missing(&stand).await;
    it_has_the_request_until_the_answer_begins(&stand).await;
    it_has_it_no_longer_when_the_client_leaves(&stand).await;
    a_session_follows_its_request_to_another_endpoint(&stand).await;
    everyone_is_busy(&stand).await;
    a_session_goes_on_elsewhere_and_at_last_nowhere(&mut stand).await;
}

async fn the_other_engine_is_named_where_too_much_is_missing(stand: &Stand) {
    for (i, protocol) in BOTH.repeat(2).into_iter().enumerate() {
        // Four bytes a token: one token short of what it takes, and just that.
        for (bytes, is_named) in [(4 * NON_CACHED - 4, false), (4 * NON_CACHED, true)] {
            let body = question(&prose(&format!("{i} of {bytes}"), bytes as usize));
            // A client cannot name one.
            let forged: [(&str, &[u8]); 1] = [(PREFILLER, b"127.0.0.1:1")];
            let answer = protocol.send(stand, COMPLETIONS, &forged, &body).await;
            let engine = received(stand, &answer, &body);
            assert!(engine == address(stand, 0) || engine == address(stand, 1), "{engine}");
            let record = line(stand, &answer).await.record;
            assert_eq!(
                (&record["profile"], &record["picked"][0]),
                (&json!("decode"), &json!(engine))
            );
            let note = noted(stand, &engine, &answer).await;
            let told: Vec<&str> = note["headers"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|header| header[0] == PREFILLER)
                .filter_map(|header| header[1].as_str())
                .collect();
            if !is_named {
                assert!(told.is_empty() && record["prefill"].is_null(), "{told:?} {record}");
                continue;
            }
            let [prefiller] = told[..] else { panic!("{told:?}") };
            assert!(prefiller == address(stand, 2) || prefiller == address(stand, 3));
            let expected = json!({
                "profile": "prefill", "endpoint": prefiller, "tokens": NON_CACHED,
            });
            assert_eq!(record["prefill"], expected, "{record}");
        }
    }
}

async fn it_has_the_request_until_the_answer_begins(stand: &Stand) {
    // The whole answer comes at once, when the engine has all of it.
    let body = |tokens: u32, is_stream: bool, topic: &str| {
        json!({
            "model": "tiny", "prompt": prose(topic, 3_000), "max_tokens": tokens, "stream": is_stream,
        })
    };
    let whole = begin(stand, &[], body(100, false, "whole"));
    // 3000 bytes are 750 tokens, which both lack.
    until_sums(stand, "both have the request", (2, 1_500)).await;
    let with = seen(stand, "who has it").await;
    let of = |with: &BTreeMap<String, u64>, engines: [usize; 2]| {
        engines.map(|i| with.get(&address(stand, i)).copied().unwrap_or(0)).iter().sum::<u64>()
    };
    assert_eq!((of(&with, [0, 1]), of(&with, [2, 3])), (1, 1), "{with:?}");
    // What is to be prefilled counts: the next one goes to the other.
    let first = with.keys().find(|at| **at == address(stand, 2) || **at == address(stand, 3));
    let next = question(&prose("the next", 3_000));
    let answer = Protocol::H1.post(stand, COMPLETIONS, &next).await;
    received(stand, &answer, &next);
    let record = line(stand, &answer).await.record;
    assert_ne!(record["prefill"]["endpoint"].as_str(), first.map(String::as_str), "{record}");
    assert_eq!(whole.await.unwrap().unwrap().status, 200);
    until_sums(stand, "nobody has it", (0, 0)).await;

    // A stream's answer begins at once, and goes on.
    let stream = begin(stand, &[], body(20_000, true, "stream"));
    until_sums(stand, "the prompt is computed", (1, 750)).await;
    let with = seen(stand, "who streams").await;
    assert_eq!((of(&with, [0, 1]), of(&with, [2, 3])), (1, 0), "{with:?}");
    stream.abort();
    until_sums(stand, "the stream is gone", (0, 0)).await;
}

async fn it_has_it_no_longer_when_the_client_leaves(stand: &Stand) {
    let body = json!({"model": "tiny", "prompt": prose("leaves", 3_000), "max_tokens": 20_000});
    let request = begin(stand, &[], body);
    until_sums(stand, "both have the request", (2, 1_500)).await;
    request.abort();
    until_sums(stand, "the client is gone", (0, 0)).await;
}

async fn behave(stand: &Stand, engine: usize, behaviour: &str) {
    let body = json!({"on_request": behaviour});
    let client = Client::new(stand.engines[engine].http);
    assert_eq!(client.post("/sim/behaviour", &body).await.unwrap().status, 200);
}

/// A request of a session: who served it, and what was decided.
async fn of_session(stand: &Stand, protocol: Protocol, id: &str, topic: &str) -> (String, Value) {
    let body = completion(&prose(topic, 300));
    let headers: [(&str, &[u8]); 1] = [(SESSION, id.as_bytes())];
    let answer = protocol.send(stand, COMPLETIONS, &headers, &body).await;
    (served(stand, &answer, &body), line(stand, &answer).await.record)
}

async fn a_session_follows_its_request_to_another_endpoint(stand: &Stand) {
    let (lost, other) = (address(stand, 0), address(stand, 1));
    behave(stand, 0, "reset").await;
    // One that is sent to the engine that drops it: ties are broken by load, which engines report late,
    // then by who was picked last.
    let mut number = 0;
    let id = wait_until("a request is sent to the engine that drops it", PATIENCE, async || {
        number += 1;
        let name = format!("retried {number}");
        let (engine, record) = of_session(stand, Protocol::H1, &name, &name).await;
        assert_eq!(engine, other, "{record}");
        (record["picked"][0] == lost).then_some(name)
    })
    .await
    .unwrap();
    behave(stand, 0, "serve").await;
    for (i, protocol) in BOTH.repeat(4).into_iter().enumerate() {
        let (engine, record) = of_session(stand, protocol, &id, &format!("follows {i}")).await;
        let bound = &record["scorers"]["session-affinity"];
        assert_eq!((&bound[&other], &bound[&lost]), (&json!(1.0), &json!(0.0)), "{record}");
        assert_eq!((&engine, &record["picked"][0]), (&other, &json!(other)), "{record}");
    }
}

fn dropped(answer: &Answer) -> (u16, &str) {
    (answer.status.as_u16(), answer.header("x-llm-d-request-dropped-reason"))
}

async fn everyone_is_busy(stand: &Stand) {
    let stream = |i: u64| {
        let prompt = prose(&format!("busy {i}"), 400);
        json!({"model": "tiny", "prompt": prompt, "max_tokens": 20_000, "stream": true})
    };
    // One after the other, so that each sees those before it.
    let most = 2 * (MOST_ACTIVE + 1);
    let mut streams = Vec::new();
    for i in 0..most {
        streams.push(begin(stand, &[], stream(i)));
        until_sums(stand, "one more is in flight", (i + 1, 100 * (i + 1))).await;
    }
    for protocol in BOTH {
        let body = completion(&prose("one too many", 300));
        let answer = protocol.post(stand, COMPLETIONS, &body).await;
        assert_eq!(dropped(&answer), (429, "rejected-saturated"), "{answer:?}");
        assert!(!answer.headers.contains_key("x-sim-engine"), "{answer:?}");
        assert_eq!(line(stand, &answer).await.record["refused"], "filtered");
    }
    assert_eq!(sums(stand).await, (most, 100 * most), "what is refused is not in flight");
    streams.iter().for_each(JoinHandle::abort);
    until_sums(stand, "nobody is busy", (0, 0)).await;
    let body = completion(&prose("not too many any more", 300));
    served(stand, &Protocol::H1.post(stand, COMPLETIONS, &body).await, &body);

    for protocol in BOTH {
        // Nobody holds any of it; and what is no request.
        let prefer: [(&str, &[u8]); 1] = [("prefer", b"if-available")];
        let body = completion(&prose(&format!("{protocol:?} held by nobody"), 3_000));
        let answer = protocol.send(stand, COMPLETIONS, &prefer, &body).await;
        assert_eq!(dropped(&answer), (412, ""), "{answer:?}");
        let answer = protocol.send(stand, COMPLETIONS, &[], b"{\"model\":").await;
        assert_eq!(dropped(&answer), (400, ""), "{answer:?}");
    }
    until_sums(stand, "what is refused is not in flight", (0, 0)).await;
    let refused = counters(stand, "wasm_epp_requests_refused_").await;
    for (reason, times) in [("filtered", 2), ("nothing_held", 2), ("body_not_json", 2)] {
        assert_eq!(refused.get(reason), Some(&times), "{refused:?}");
    }
}

async fn a_session_goes_on_elsewhere_and_at_last_nowhere(stand: &mut Stand) {
    let (first, _) = of_session(stand, Protocol::H1, "carol", "carol begins").await;
    let i = stand.engines.iter().position(|engine| engine.http.to_string() == first).unwrap();
    stand.engines[i].process.take().unwrap().kill();
    gone(stand).await;
    let (second, record) = of_session(stand, Protocol::H2, "carol", "carol goes on").await;
    assert_ne!(second, first);
    let bound = |record: &Value, at: &str| record["scorers"]["session-affinity"][at].clone();
    assert_eq!(bound(&record, &second), json!(0.0), "bound to nobody that is there: {record}");
    for (i, protocol) in BOTH.repeat(2).into_iter().enumerate() {
        let topic = format!("carol stays {i}");
        let (engine, record) = of_session(stand, protocol, "carol", &topic).await;
        assert_eq!((&engine, bound(&record, &second)), (&second, json!(1.0)), "{record}");
    }
    for engine in &mut stand.engines {
        if let Some(process) = engine.process.take() {
            process.kill();
        }
    }
    gone(stand).await;
    for protocol in BOTH {
        let body = completion(&prose("nobody is there", 300));
        let answer = protocol.post(stand, COMPLETIONS, &body).await;
        assert_eq!(dropped(&answer), (503, "rejected-no-endpoints"), "{answer:?}");
        assert_eq!(line(stand, &answer).await.record["refused"], "none_ready");
    }
}

/// Waits until the gateway knows of every engine that was stopped.
async fn gone(stand: &Stand) {
    wait_until("the gateway knows who is gone", PATIENCE, async || {
        let details = stand.readyz().await.ok()?;
        let endpoints = details["endpoints"].as_array()?;
        let is_known = |engine: &testbed::Engine| {
            let mut all = endpoints.iter();
            let known = all.find(|known| known["address"] == engine.http.to_string());
            engine.process.is_some() || known.is_some_and(|known| known["ready"] == false)
        };
        let is_pushed = details["gateways"][0]["pending"] == 0;
        (stand.engines.iter().all(is_known) && is_pushed).then_some(())
    })
    .await
    .unwrap();
}
