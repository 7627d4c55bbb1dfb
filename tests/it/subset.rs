//! The subset hint, written into dynamic metadata by a stock filter in front of intake; and which
//! endpoint answers name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{Answer, Client, EngineOptions, PoolOptions, Stand, StandOptions, wait_until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{
    BOTH, COMPLETIONS, Protocol, SERVED, assert_fell_back, cases, completion, counters, fallbacks,
    line, noted, picked, prose, received, served,
};
use crate::wire::{self, Parts, chunk};

/// Header that the test's filter turns into the hint: a `google.protobuf.Value` in base64.
const HINT: &str = "x-test-hint";
const DROPPED: &str = "x-llm-d-request-dropped-reason";

#[tokio::test(flavor = "multi_thread")]
async fn requests_stay_within_their_subset_and_answers_say_where_they_are_from() {
    let flags = vec!["--inter-token-ms=2".to_owned()];
    let liar = PoolOptions {
        name: "liar".into(),
        model: "liar".into(),
        others: vec![liar().await],
        ..PoolOptions::default()
    };
    let options = StandOptions {
        engines: vec![EngineOptions { flags }; 4],
        more_pools: vec![liar],
        more_config: "routing: {maxBodyBytes: 50000}\n".into(),
        ..StandOptions::default()
    };
    let mut stand = Stand::prepare(options).await.unwrap();
    stand.render().unwrap();
    hint_from_header(&stand);
    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    stand.wait_engines_ready().await.unwrap();
    cases!(stand;
        a_string_or_a_list_restricts_the_candidates,
        the_holder_is_not_asked_if_it_is_not_among_them,
        an_empty_hint_is_answered_here,
        a_hint_without_an_endpoint_of_the_model_is_answered_here,
        what_is_no_hint_changes_nothing,
        requests_without_a_decision_stay_within_it_too,
        a_retry_stays_within_it,
        nothing_is_left_in_flight,
        a_stream_says_where_it_is_from,
        an_engines_own_header_is_replaced,
        a_client_does_not_choose,
        an_answer_of_the_proxys_own_names_no_endpoint,
    );
}

/// A server that says by itself, twice, who served.
async fn liar() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                // The end of the test's body, or of the head of a request for metrics.
                while !(seen.ends_with(b"}") || seen.ends_with(b"\r\n\r\n") && seen[0] == b'G') {
                    if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let answer = format!(
                    "HTTP/1.1 200 OK\r\n{SERVED}: 9.9.9.9:9\r\n{SERVED}: again\r\n\
                     connection: close\r\ncontent-length: 0\r\n\r\n"
                );
                // A client that has gone needs no answer.
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

/// Puts a stock filter in front of intake that writes the hint.
fn hint_from_header(stand: &Stand) {
    let file = stand.rendered().join("envoy.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let filter = json!({
        "name": "hint",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config",
            "request_rules": [{
                "header": HINT,
                "on_header_present": {
                    "metadata_namespace": "envoy.lb.subset_hint",
                    "key": "x-gateway-destination-endpoint-subset",
                    "type": "PROTOBUF_VALUE",
                    "encode": "BASE64",
                },
                "remove": true,
            }],
        },
    });
    let at = text.find("- name: intake\n").expect("intake in the chain");
    let indent = &text[text[..at].rfind('\n').unwrap() + 1..at];
    let changed = format!("{}- {filter}\n{indent}{}", &text[..at], &text[at..]);
    std::fs::write(&file, changed).unwrap();
}

/// Bytes of a `google.protobuf.Value`, after its definition in `struct.proto`.
fn value(value: &Value) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        let mut out = vec![number << 3 | 2];
        let mut length = bytes.len();
        while length >= 0x80 {
            out.push(length as u8 | 0x80);
            length >>= 7;
        }
        out.push(length as u8);
        [out, bytes.to_vec()].concat()
    };
    match value {
        Value::String(text) => field(3, text.as_bytes()),
        Value::Array(items) => {
            let items: Vec<Vec<u8>> =
                items.iter().map(|item| field(1, &self::value(item))).collect();
            field(6, &items.concat())
        }
        Value::Number(number) => {
            [&[2 << 3 | 1][..], &number.as_f64().unwrap().to_le_bytes()].concat()
        }
        other => panic!("not needed here: {other}"),
    }
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = |three: &[u8]| {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - three.len()));
        let digit = |i: usize| match i <= three.len() {
            true => DIGITS[(bits >> (18 - 6 * i) & 63) as usize] as char,
            false => '=',
        };
        (0..4).map(digit).collect::<String>()
    };
    bytes.chunks(3).map(digits).collect()
}

async fn hinted(stand: &Stand, protocol: Protocol, hint: &Value, body: &[u8]) -> Answer {
    let hint = base64(&value(hint));
    protocol.send(stand, COMPLETIONS, &[(HINT, hint.as_bytes())], body).await
}

fn addresses(stand: &Stand) -> Vec<String> {
    stand.engines.iter().map(|engine| engine.http.to_string()).collect()
}

async fn refused(stand: &Stand) -> BTreeMap<String, u64> {
    counters(stand, "wasm_epp_requests_refused_").await
}

async fn a_string_or_a_list_restricts_the_candidates(stand: Rc<Stand>) {
    let all = addresses(&stand);
    let (a, b) = (all[1].as_str(), all[3].as_str());
    let cases = [
        (json!(a), vec![a]),
        (json!([b]), vec![b]),
        (json!(format!("{a}, {b}")), vec![a, b]),
        (json!([a, b, "10.255.255.1:1"]), vec![a, b]),
        (json!([12345, format!("{b},{a}")]), vec![a, b]),
    ];
    for protocol in BOTH {
        for (hint, allowed) in &cases {
            let allowed: BTreeSet<String> = allowed.iter().map(|text| (*text).to_owned()).collect();
            let mut seen = BTreeSet::new();
            for i in 0..6 {
                let body = completion(&prose(&format!("{i} {protocol:?} {hint}"), 600));
                let answer = hinted(&stand, protocol, hint, &body).await;
                seen.insert(served(&stand, &answer, &body));
                // What scorers were given, and where retries would go.
                let line = line(&stand, &answer).await;
                let scored = line.record["totals"].as_object().unwrap().keys().cloned();
                assert_eq!(scored.collect::<BTreeSet<_>>(), allowed, "{line:?}");
                assert_eq!(line.picked().len(), 3);
                assert!(line.picked().iter().all(|address| allowed.contains(address)), "{line:?}");
            }
            // Without a prefix they are taken in turn.
            assert_eq!(seen, allowed, "{protocol:?} {hint}");
        }
    }
}

async fn the_holder_is_not_asked_if_it_is_not_among_them(stand: Rc<Stand>) {
    let body = completion(&prose("held elsewhere", 3000));
    let holder = crate::support::teach(&stand, &body).await;
    let other = addresses(&stand).into_iter().find(|address| *address != holder).unwrap();
    let question = crate::support::question(&prose("held elsewhere", 3000));
    let answer = hinted(&stand, Protocol::H2, &json!([other]), &question).await;
    assert_eq!(received(&stand, &answer, &question), other);
    let answer = hinted(&stand, Protocol::H1, &json!([other, holder]), &question).await;
    assert_eq!(received(&stand, &answer, &question), holder);
}

/// A 503 of the gateway's own.
fn assert_refused(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.header(DROPPED), "rejected-no-endpoints", "{answer:?}");
    assert!(!answer.headers.contains_key("x-sim-engine"), "{answer:?}");
    assert!(!answer.headers.contains_key(SERVED), "{answer:?}");
    assert_eq!(answer.header("content-type"), "text/plain");
}

/// Sends the request in every way a body may come, and asserts that it was refused for `reason`.
async fn assert_refused_however_sent(stand: &Stand, hint: &Value, reason: &str) {
    let body = completion(&prose("refused", 3000));
    let before = (refused(stand).await, fallbacks(stand).await, picked(stand).await);
    let mut times = 0;
    let mut check = |answer: Answer| {
        assert_refused(&answer);
        times += 1;
    };
    for protocol in BOTH {
        check(hinted(stand, protocol, hint, &body).await);
    }
    let encoded = base64(&value(hint));
    let chunked: [(&str, &[u8]); 2] =
        [("transfer-encoding", b"chunked"), (HINT, encoded.as_bytes())];
    for trailers in [&b""[..], b"x-checksum: 1\r\n"] {
        let end = [&chunk(b""), trailers, b"\r\n"].concat();
        let chunks: Vec<Vec<u8>> = body.chunks(700).map(chunk).chain([end]).collect();
        let parts: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
        check(wire::h1(stand.gateway, "POST", COMPLETIONS, &chunked, &parts).await.unwrap());
    }
    let frames: Vec<&[u8]> = body.chunks(700).collect();
    for trailers in [&[][..], &[("x-checksum", &b"1"[..])]] {
        let parts = Parts { data: &frames, trailers };
        check(wire::h2(stand.gateway, COMPLETIONS, &chunked[1..], parts).await.unwrap());
    }
    let mut expected = before.0;
    *expected.entry(reason.into()).or_default() += times;
    assert_eq!(refused(stand).await, expected);
    assert_eq!((fallbacks(stand).await, picked(stand).await), (before.1, before.2));
}

async fn an_empty_hint_is_answered_here(stand: Rc<Stand>) {
    for hint in [json!(""), json!([]), json!([""]), json!([7]), json!(" , ")] {
        assert_refused_however_sent(&stand, &hint, "subset_empty").await;
    }
    // Also what intake does not wait for.
    let before = refused(&stand).await["subset_empty"];
    let empty = base64(&value(&json!([])));
    let headers: [(&str, &[u8]); 1] = [(HINT, empty.as_bytes())];
    let get = wire::h1(stand.gateway, "GET", "/v1/models", &headers, &[]).await.unwrap();
    assert_refused(&get);
    let large = completion(&prose("too large", 60_000));
    for protocol in BOTH {
        assert_refused(&protocol.send(&stand, COMPLETIONS, &headers, b"").await);
        assert_refused(&protocol.send(&stand, COMPLETIONS, &headers, &large).await);
        assert_refused(&protocol.send(&stand, COMPLETIONS, &headers, b"no JSON").await);
    }
    let frames: Vec<&[u8]> = large.chunks(9_999).collect();
    let parts = Parts { data: &frames, trailers: &[] };
    assert_refused(&wire::h2(stand.gateway, COMPLETIONS, &headers, parts).await.unwrap());
    assert_eq!(refused(&stand).await["subset_empty"], before + 8);
}

async fn a_hint_without_an_endpoint_of_the_model_is_answered_here(stand: Rc<Stand>) {
    let port = stand.engines[0].http.port();
    for hint in [json!("10.255.255.1:1"), json!(["127.0.0.1", format!("localhost:{port}")])] {
        assert_refused_however_sent(&stand, &hint, "subset_without_candidate").await;
    }
}

async fn what_is_no_hint_changes_nothing(stand: Rc<Stand>) {
    let name = "wasmcustom.wasm_epp_mishaps_subset_unreadable_total";
    let before = (refused(&stand).await, picked(&stand).await);
    for (i, protocol) in (1..).zip(BOTH) {
        let body = completion(&prose("a number", 600));
        let answer = hinted(&stand, protocol, &json!(12345), &body).await;
        served(&stand, &answer, &body);
        assert_eq!(stand.envoy_stat(name).await.unwrap(), i);
        // A client's own header is none.
        let own: [(&str, &[u8]); 1] = [("x-gateway-destination-endpoint-subset", b"")];
        let answer = protocol.send(&stand, COMPLETIONS, &own, &body).await;
        served(&stand, &answer, &body);
    }
    assert_eq!((refused(&stand).await, picked(&stand).await), (before.0, before.1 + 4));
}

/// By the policy's draws 12 requests would all go to one of four engines once in 4^12 runs.
async fn requests_without_a_decision_stay_within_it_too(stand: Rc<Stand>) {
    let all = addresses(&stand);
    let hint = base64(&value(&json!([all[2]])));
    let headers: [(&str, &[u8]); 1] = [(HINT, hint.as_bytes())];
    let unknown = json!({"model": "none such", "prompt": "x"}).to_string();
    for (body, reason) in
        [(&b"not JSON"[..], "body_not_json"), (unknown.as_bytes(), "unknown_model")]
    {
        let before = fallbacks(&stand).await;
        for protocol in BOTH {
            for _ in 0..6 {
                let answer = protocol.send(&stand, COMPLETIONS, &headers, body).await;
                assert_eq!(received(&stand, &answer, body), all[2]);
            }
        }
        assert_fell_back(&stand, &before, reason, 12).await;
    }
    for _ in 0..12 {
        let models = wire::h1(stand.gateway, "GET", "/v1/models", &headers, &[]).await.unwrap();
        assert_eq!((models.status.as_u16(), models.header(SERVED)), (200, all[2].as_str()));
    }
}

async fn behave(stand: &Stand, i: usize, what: &str) {
    let engine = Client::new(stand.engines[i].http);
    let behaviour = json!({"on_request": what});
    assert_eq!(engine.post("/sim/behaviour", &behaviour).await.unwrap().status, 200);
}

/// Two attempts more than there are endpoints: none goes to another.
async fn a_retry_stays_within_it(stand: Rc<Stand>) {
    let all = addresses(&stand);
    behave(&stand, 0, "status").await;
    for protocol in BOTH {
        let body = completion(&prose(&format!("{protocol:?} retries"), 600));
        let answer = hinted(&stand, protocol, &json!([all[0]]), &body).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(answer.header(SERVED), all[0], "the engine's own answer");
        let entry = noted(&stand, &all[0], &answer).await;
        assert_eq!(entry["x-request-id"], answer.header("x-request-id"));
        for (i, engine) in stand.engines.iter().enumerate().skip(1) {
            let list = testbed::get(engine.http, "/sim/requests").await.unwrap().json().unwrap();
            let id = answer.header("x-request-id");
            let is_here = list.as_array().unwrap().iter().any(|entry| entry["x-request-id"] == id);
            assert!(!is_here, "engine {i} was asked too");
        }
        // Not so where another one is allowed.
        let answer = hinted(&stand, protocol, &json!([all[0], all[1]]), &body).await;
        assert_eq!(served(&stand, &answer, &body), all[1]);
    }
    behave(&stand, 0, "serve").await;
}

async fn nothing_is_left_in_flight(stand: Rc<Stand>) {
    wait_until("nothing is in flight", Duration::from_secs(10), async || {
        let details = stand.readyz().await.ok()?;
        (details["gateways"][0]["in_flight_requests"] == 0).then_some(())
    })
    .await
    .unwrap();
    let body = completion(&prose("afterwards", 600));
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    served(&stand, &answer, &body);
    assert_eq!(line(&stand, &answer).await.record["in_flight"], json!({}));
}

async fn a_stream_says_where_it_is_from(stand: Rc<Stand>) {
    for protocol in BOTH {
        let prompt = prose(&format!("{protocol:?} stream"), 600);
        let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 20, "stream": true});
        let body = body.to_string();
        let answer = protocol.post(&stand, COMPLETIONS, body.as_bytes()).await;
        assert!(answer.header("content-type").starts_with("text/event-stream"), "{answer:?}");
        let engine = served(&stand, &answer, body.as_bytes());
        assert_eq!(line(&stand, &answer).await.picked()[0], engine);
    }
}

async fn an_engines_own_header_is_replaced(stand: Rc<Stand>) {
    for protocol in BOTH {
        let body = json!({"model": "liar", "prompt": "x"}).to_string();
        let answer = protocol.post(&stand, COMPLETIONS, body.as_bytes()).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let named: Vec<_> = answer.headers.get_all(SERVED).iter().collect();
        let text = std::fs::read_to_string(stand.config_file()).unwrap();
        let [named] = named.as_slice() else { panic!("{answer:?}") };
        assert!(text.contains(&format!("address: {}, model: liar", named.to_str().unwrap())));
    }
}

/// By a conformance suite's header, where no suite is configured. By the policy's draws 24 requests would all go to
/// one of four engines once in 4^24 runs.
async fn a_client_does_not_choose(stand: Rc<Stand>) {
    let all = addresses(&stand);
    let headers: [(&str, &[u8]); 1] = [("test-epp-endpoint-selection", all[2].as_bytes())];
    let mut seen = BTreeSet::new();
    for _ in 0..24 {
        let models = wire::h1(stand.gateway, "GET", "/v1/models", &headers, &[]).await.unwrap();
        assert!(!models.headers.contains_key("x-conformance-test-served-endpoint"), "{models:?}");
        seen.insert(models.header(SERVED).to_owned());
    }
    assert!(seen.len() > 1, "{seen:?}");
}

async fn an_answer_of_the_proxys_own_names_no_endpoint(stand: Rc<Stand>) {
    let all = addresses(&stand);
    behave(&stand, 0, "reset").await;
    for protocol in BOTH {
        let body = completion(&prose("reset", 600));
        let answer = hinted(&stand, protocol, &json!(all[0]), &body).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(!answer.headers.contains_key("x-sim-engine"), "{answer:?}");
        assert!(!answer.headers.contains_key(SERVED), "{answer:?}");
    }
    behave(&stand, 0, "serve").await;
}
