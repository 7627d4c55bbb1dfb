//! What else a client may send, and what a stream looks like to it.

use std::rc::Rc;

use serde_json::{Value, json};
use testbed::{EngineOptions, Stand, StandOptions};

use crate::support::{
    BOTH, CHAT, COMPLETIONS, Protocol, assert_fell_back, cases, completion, fallbacks, line, noted,
    picked, prose, received, served, teach,
};
use crate::wire;

const DESTINATION: &str = "x-gateway-destination-endpoint";

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_routed_whatever_else_they_carry() {
    // Tokens come one by one, so that a stream takes a while.
    let flags = vec!["--inter-token-ms".to_owned(), "5".to_owned()];
    let engines = vec![EngineOptions { flags }; 2];
    let stand = Stand::start(StandOptions { engines, ..StandOptions::default() }).await.unwrap();
    cases!(stand;
        a_header_that_is_not_utf8_changes_nothing,
        an_unknown_model_is_the_engines_to_refuse,
        without_a_model_it_is_the_pools_only_one,
        a_clients_own_destination_is_not_obeyed_and_reaches_no_engine,
        a_clients_own_destination_is_not_obeyed_when_nothing_is_picked,
        other_paths_and_methods_pass,
        a_stream_comes_piece_by_piece_and_from_the_holder,
    );
}

async fn a_header_that_is_not_utf8_changes_nothing(stand: Rc<Stand>) {
    for protocol in BOTH {
        for name in ["x-request-id", "x-note", "content-type", "traceparent"] {
            let before = (fallbacks(&stand).await, picked(&stand).await);
            let body = completion(&prose("odd headers", 500));
            let value: &[u8] = b"caf\xe9 \xff\xfe\x80";
            let answer = protocol.send(&stand, COMPLETIONS, &[(name, value)], &body).await;
            served(&stand, &answer, &body);
            assert_eq!(fallbacks(&stand).await, before.0, "{protocol:?} {name}");
            assert_eq!(picked(&stand).await, before.1 + 1, "{protocol:?} {name}");
        }
    }
    let id = stand.pod_scores("caf\u{fffd} \u{fffd}\u{fffd}\u{fffd}").await.unwrap();
    assert!(!id.picked().is_empty(), "{id:?}");
}

async fn an_unknown_model_is_the_engines_to_refuse(stand: Rc<Stand>) {
    for protocol in BOTH {
        let before = fallbacks(&stand).await;
        let body = json!({"model": "none such", "prompt": "hello"}).to_string();
        let answer = protocol.post(&stand, COMPLETIONS, body.as_bytes()).await;
        assert_eq!(answer.status, 404, "{answer:?}");
        received(&stand, &answer, body.as_bytes());
        assert_eq!(line(&stand, &answer).await.reason(), Some("unknown_model"));
        assert_fell_back(&stand, &before, "unknown_model", 1).await;
    }
}

async fn without_a_model_it_is_the_pools_only_one(stand: Rc<Stand>) {
    let body = json!({"prompt": prose("no model", 1000), "max_tokens": 1}).to_string();
    let holder = teach(&stand, body.as_bytes()).await;
    let answer = Protocol::H2.post(&stand, COMPLETIONS, body.as_bytes()).await;
    assert_eq!(served(&stand, &answer, body.as_bytes()), holder);
    assert!(line(&stand, &answer).await.scores().is_some());
}

/// No header by which an endpoint is named, or was, is left for the engine to see.
async fn assert_no_routing_headers(stand: &Stand, engine: &str, answer: &testbed::Answer) {
    let entry = noted(stand, engine, answer).await;
    let headers = entry["headers"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> = headers.iter().filter_map(|pair| pair[0].as_str()).collect();
    assert!(names.contains(&"x-note"), "{names:?}");
    let is_routing = |name: &&&str| name.starts_with("x-gateway-") || name.starts_with("x-prefill");
    assert_eq!(names.iter().find(is_routing), None);
}

async fn a_clients_own_destination_is_not_obeyed_and_reaches_no_engine(stand: Rc<Stand>) {
    let body = completion(&prose("own destination", 2000));
    let holder = teach(&stand, &body).await;
    let others: Vec<String> = stand.engines.iter().map(|engine| engine.http.to_string()).collect();
    let other = others.iter().find(|address| **address != holder).unwrap().as_bytes();
    let ways: [Vec<(&str, &[u8])>; 4] = [
        vec![(DESTINATION, other)],
        vec![("X-Gateway-Destination-Endpoint", other)],
        vec![(DESTINATION, other), ("X-GATEWAY-DESTINATION-ENDPOINT", other), (DESTINATION, b"")],
        vec![
            ("x-gateway-destination-endpoint-subset", other),
            ("x-gateway-destination-endpoint-served", other),
            ("x-prefiller-host-port", other),
            (DESTINATION, b"127.0.0.1:1,\xff"),
        ],
    ];
    for protocol in BOTH {
        for way in &ways {
            let mut headers = way.clone();
            headers.push(("x-note", b"kept"));
            let answer = protocol.send(&stand, COMPLETIONS, &headers, &body).await;
            assert_eq!(served(&stand, &answer, &body), holder, "{protocol:?} {way:?}");
            assert_no_routing_headers(&stand, &holder, &answer).await;
        }
    }
}

/// A request that is left to the proxy's policy goes anywhere: to each engine in the end, whichever
/// the client names.
async fn a_clients_own_destination_is_not_obeyed_when_nothing_is_picked(stand: Rc<Stand>) {
    let body = b"not JSON";
    for named in &stand.engines {
        let named = named.http.to_string();
        let headers: [(&str, &[u8]); 2] = [(DESTINATION, named.as_bytes()), ("x-note", b"kept")];
        let mut went_elsewhere = false;
        // By the policy's draws 64 requests miss an engine once in 2^64 runs.
        for _ in 0..64 {
            let answer = Protocol::H1.send(&stand, COMPLETIONS, &headers, body).await;
            let engine = received(&stand, &answer, body);
            assert_no_routing_headers(&stand, &engine, &answer).await;
            went_elsewhere |= engine != named;
            if went_elsewhere {
                break;
            }
        }
        assert!(went_elsewhere, "64 requests went to {named} as they asked");
    }
}

async fn other_paths_and_methods_pass(stand: Rc<Stand>) {
    let before = (fallbacks(&stand).await, picked(&stand).await);
    let client = stand.client();
    let models = client.get("/v1/models").await.unwrap();
    assert_eq!(models.json().unwrap()["data"][0]["id"], "tiny");
    assert_eq!(client.get("/no/such/path").await.unwrap().status, 404);
    let body = json!({"model": "tiny", "prompt": "hello"}).to_string();
    let answer = Protocol::H2.post(&stand, "/tokenize", body.as_bytes()).await;
    served(&stand, &answer, body.as_bytes());
    let answer = client.send("PUT", COMPLETIONS, &[], body.clone()).await.unwrap();
    assert_eq!(answer.status, 405);
    received(&stand, &answer, body.as_bytes());
    assert_eq!((fallbacks(&stand).await, picked(&stand).await), before);
}

async fn a_stream_comes_piece_by_piece_and_from_the_holder(stand: Rc<Stand>) {
    let prompt = prose("streaming", 1500);
    let mut body = json!({
        "model": "tiny", "messages": [{"role": "user", "content": prompt}], "max_tokens": 40,
    });
    let before = stand.event_batches().await.unwrap();
    let sent = body.to_string().into_bytes();
    let whole = Protocol::H1.post(&stand, CHAT, &sent).await;
    let holder = served(&stand, &whole, &sent);
    stand.settled(&holder, &before).await.unwrap();
    let said = whole.json().unwrap()["choices"][0]["message"]["content"].clone();

    body["stream"] = json!(true);
    let sent = body.to_string().into_bytes();
    let answer = Protocol::H1.post(&stand, CHAT, &sent).await;
    assert_eq!(served(&stand, &answer, &sent), holder);
    assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
    assert_eq!(text_of(&answer.body), said);

    let mut http2 = wire::h2_connect(stand.gateway).await.unwrap();
    let request = wire::h2_request(stand.gateway, CHAT, &[]).unwrap();
    let (response, mut frames) = http2.send_request(request, false).unwrap();
    frames.send_data(sent.clone().into(), true).unwrap();
    let mut response = response.await.unwrap();
    let first = response.body_mut().data().await.unwrap().unwrap();
    assert!(!first.ends_with(b"[DONE]\n\n"), "the stream came in one piece");
    let active = stand.envoy_stat("http.inference.downstream_rq_active").await.unwrap();
    assert_eq!(active, 1, "the stream had ended when its first piece came");
    let mut answer = wire::h2_answer(response).await.unwrap();
    answer.body = [first, answer.body].concat().into();
    assert_eq!(served(&stand, &answer, &sent), holder);
    assert_eq!(text_of(&answer.body), said);
}

/// What the events of a streamed chat say together; the last is the end mark.
fn text_of(events: &[u8]) -> Value {
    let text = String::from_utf8(events.to_vec()).unwrap();
    let mut events: Vec<&str> =
        text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
    assert_eq!(events.pop(), Some("[DONE]"));
    let deltas = events.iter().map(|event| {
        let event: Value = serde_json::from_str(event).unwrap();
        event["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
    });
    deltas.collect::<String>().into()
}
