//! The truth meter behind real Envoy: what it measures, what of it shows, and that no client sees
//! it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use testbed::{Answer, Client, EngineOptions, Stand, StandOptions, get, wait_until};
use tokio::net::TcpListener;

use crate::doctor::doctor;
use crate::support::{
    BOTH, CHAT, COMPLETIONS, Protocol, cases, completion, counters, line, prose, served, teach,
};
use crate::wire::{self, Parts, chunk};

/// The meter's counters by their short names.
async fn measured(stand: &Stand) -> BTreeMap<String, u64> {
    counters(stand, "wasm_epp_meter_").await
}

/// Waits until `name` has grown by `by` since `before`, as a stream is counted after its end, and
/// gives what has grown.
async fn grown(
    stand: &Stand,
    before: &BTreeMap<String, u64>,
    name: &str,
    by: u64,
) -> BTreeMap<String, u64> {
    let of = |counts: &BTreeMap<String, u64>, name: &str| counts.get(name).copied().unwrap_or(0);
    wait_until(&format!("{name} has grown by {by}"), Duration::from_secs(10), async || {
        let now = measured(stand).await;
        (of(&now, name) >= of(before, name) + by).then(|| {
            let grown = now.iter().map(|(key, value)| (key.clone(), value - of(before, key)));
            grown.filter(|(_, by)| *by > 0).collect()
        })
    })
    .await
    .unwrap()
}

fn meter(config: &str) -> String {
    format!("meter: {{{config}}}\n")
}

fn streamed(prompt: &str, options: Option<Value>) -> Vec<u8> {
    let mut body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 3, "stream": true});
    if let Some(options) = options {
        body["stream_options"] = options;
    }
    body.to_string().into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_engines_are_measured() {
    let options = StandOptions {
        engines: vec![EngineOptions::default(); 2],
        more_config: meter("share: 1, includeUsage: true"),
        ..StandOptions::default()
    };
    let stand = Stand::start(options).await.unwrap();
    cases!(stand;
        a_hit_is_a_right_prediction_and_every_token_is_accounted_for,
        a_stream_is_measured_by_the_usage_it_was_asked_for,
        a_client_that_asks_for_the_usage_gets_it,
        what_is_not_routed_to_its_holder_is_told_apart,
        an_answer_that_is_no_200_is_not_measured,
        a_client_that_leaves_midway_is_not_judged,
    );
}

async fn a_hit_is_a_right_prediction_and_every_token_is_accounted_for(stand: Rc<Stand>) {
    for protocol in BOTH {
        let body = completion(&prose(&format!("{protocol:?} hits"), 3000));
        let before = measured(&stand).await;
        teach(&stand, &body).await;
        let cold = grown(&stand, &before, "answers", 1).await;
        // An engine leaves a miss out of its usage: until it has named a hit, it may be silent.
        let is_first = cold.contains_key("prompt_tokens");
        let before = measured(&stand).await;
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        served(&stand, &answer, &body);
        let warm = grown(&stand, &before, "prompt_tokens", 1).await;
        let usage = answer.json().unwrap()["usage"].clone();
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert!(cached > 500, "{usage}");
        assert_eq!(warm["cached_tokens"], cached);
        assert_eq!(Some(warm["prompt_tokens"]), usage["prompt_tokens"].as_u64());
        assert_eq!(warm["predictions_right"], 1, "{warm:?}");
        assert!(warm["predicted_tokens"] >= cached - 32 - 64, "{warm:?}");
        for counts in [&warm].into_iter().chain(is_first.then_some(&cold)) {
            let parts = ["no_reuse", "not_routed", "state_wrong", "within_tolerance"];
            let part = |name| counts.get(&format!("shortfall_{name}_tokens")).unwrap_or(&0);
            let shortfall: u64 = parts.map(part).into_iter().sum();
            let cached = counts.get("cached_tokens").unwrap_or(&0);
            assert_eq!(cached + shortfall, counts["prompt_tokens"], "{counts:?}");
        }
    }
}

/// The same events but for what differs between two requests.
fn events(answer: &Answer) -> Vec<Value> {
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    let datas = text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap());
    let events = datas.map(|data| match serde_json::from_str::<Value>(data) {
        Ok(mut event) => {
            event["id"] = Value::Null;
            event["created"] = Value::Null;
            event
        }
        Err(_) => Value::from(data),
    });
    events.collect()
}

async fn a_stream_is_measured_by_the_usage_it_was_asked_for(stand: Rc<Stand>) {
    for protocol in BOTH {
        let prompt = prose(&format!("{protocol:?} streams"), 3000);
        let holder = teach(&stand, &completion(&prompt)).await;
        // Name a hit, so that the engine is known to report.
        let answer = protocol.post(&stand, COMPLETIONS, &completion(&prompt)).await;
        assert_eq!(served(&stand, &answer, &completion(&prompt)), holder);
        let body = streamed(&prompt, None);
        let before = measured(&stand).await;
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let counts = grown(&stand, &before, "predictions_right", 1).await;
        assert_eq!((counts["usage_asked"], counts["answers"]), (1, 1), "{counts:?}");

        // The engine itself, unasked.
        let engine = Client::new(holder.parse().unwrap());
        let headers = [("content-type", "application/json")];
        let plain = engine.send("POST", COMPLETIONS, &headers, body).await.unwrap();
        assert_eq!(events(&answer), events(&plain));
        assert_eq!(events(&plain).last(), Some(&json!("[DONE]")));
    }
    let histograms = get(stand.envoy_admin, "/stats?filter=wasm_epp_meter_t").await.unwrap();
    let text = String::from_utf8_lossy(&histograms.body).into_owned();
    for name in ["wasm_epp_meter_ttft_ms", "wasm_epp_meter_tpot_us"] {
        assert!(text.contains(name), "{text}");
    }
}

async fn a_client_that_asks_for_the_usage_gets_it(stand: Rc<Stand>) {
    for protocol in BOTH {
        let prompt = prose(&format!("{protocol:?} asks"), 3000);
        teach(&stand, &completion(&prompt)).await;
        let body = streamed(&prompt, Some(json!({"include_usage": true})));
        let before = measured(&stand).await;
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        served(&stand, &answer, &body);
        let counts = grown(&stand, &before, "answers", 1).await;
        assert!(!counts.contains_key("usage_asked"), "{counts:?}");
        let events = events(&answer);
        let usage = &events[events.len() - 2]["usage"];
        assert!(usage["prompt_tokens"].as_u64().unwrap() > 500, "{events:?}");
    }
}

/// The holder gets no request while it resets connections, so the other one serves from nothing.
async fn what_is_not_routed_to_its_holder_is_told_apart(stand: Rc<Stand>) {
    let body = completion(&prose("elsewhere", 3000));
    let holder = teach(&stand, &body).await;
    let engine = Client::new(holder.parse().unwrap());
    let behave = async |how: &str| {
        let answer = engine.post("/sim/behaviour", &json!({"on_request": how})).await.unwrap();
        assert_eq!(answer.status, 200);
    };
    behave("reset").await;
    let before = measured(&stand).await;
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    assert_ne!(served(&stand, &answer, &body), holder);
    let counts = grown(&stand, &before, "prompt_tokens", 1).await;
    assert!(counts["shortfall_not_routed_tokens"] > 500, "{counts:?}");
    assert!(!counts.contains_key("shortfall_state_wrong_tokens"), "{counts:?}");
    behave("serve").await;
}

async fn an_answer_that_is_no_200_is_not_measured(stand: Rc<Stand>) {
    let before = measured(&stand).await;
    let body = json!({"model": "tiny", "prompt": "x", "max_tokens": 0}).to_string();
    let answer = Protocol::H1.post(&stand, COMPLETIONS, body.as_bytes()).await;
    assert_eq!(answer.status, 400);
    let counts = grown(&stand, &before, "unreadable_status", 1).await;
    assert_eq!(counts.len(), 1, "{counts:?}");
}

async fn a_client_that_leaves_midway_is_not_judged(stand: Rc<Stand>) {
    let before = measured(&stand).await;
    let body = json!({
        "model": "tiny", "prompt": prose("leaving", 800), "max_tokens": 4000, "stream": true,
    });
    let body = body.to_string();
    let length = body.len().to_string();
    let headers: [(&str, &[u8]); 2] =
        [("content-type", b"application/json"), ("content-length", length.as_bytes())];
    let mut stream = wire::h1_begin(stand.gateway, "POST", COMPLETIONS, &headers).await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(body.as_bytes()).await.unwrap();
    // The answer has begun.
    stream.read_exact(&mut [0; 200]).await.unwrap();
    drop(stream);
    let counts = grown(&stand, &before, "unreadable_cut_off", 1).await;
    assert!(!counts.contains_key("answers"), "{counts:?}");
}

const TEXT: &str = "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\\\"usage\\\":{\"}}]}\n\n";
const USAGE: &str = "data: {\"id\":\"1\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// A server in an engine's place that sends the same events in pieces of so many bytes, the usage
/// only to those who ask for it, and keeps what it was sent.
struct Script {
    address: SocketAddr,
    received: Arc<Mutex<Vec<(String, Bytes)>>>,
    piece: Arc<Mutex<usize>>,
}

impl Script {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let script = Self {
            address: listener.local_addr().unwrap(),
            received: Arc::default(),
            piece: Arc::new(Mutex::new(1)),
        };
        let (received, piece) = (Arc::clone(&script.received), Arc::clone(&script.piece));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let (received, piece) = (Arc::clone(&received), Arc::clone(&piece));
                let answer = service_fn(move |request| {
                    answer(request, Arc::clone(&received), *piece.lock().unwrap())
                });
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), answer));
            }
        });
        script
    }
}

/// A body of pieces that are written one by one.
struct Pieces {
    rest: std::vec::IntoIter<Bytes>,
    has_paused: bool,
}

impl Pieces {
    fn of(body: &[u8], piece: usize) -> Self {
        let pieces: Vec<Bytes> = body.chunks(piece).map(Bytes::copy_from_slice).collect();
        Self { rest: pieces.into_iter(), has_paused: false }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // The connection writes what it has when there is nothing more yet.
        self.has_paused = !self.has_paused;
        if self.has_paused {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.rest.next().map(|piece| Ok(Frame::data(piece))))
    }
}

async fn answer(
    request: Request<Incoming>,
    received: Arc<Mutex<Vec<(String, Bytes)>>>,
    piece: usize,
) -> Result<Response<Pieces>, Infallible> {
    if request.method() == http::Method::GET {
        let page = std::fs::read(testbed::root().join("tests/golden/metrics/vllm-metrics.txt"));
        return Ok(Response::new(Pieces::of(&page.unwrap(), usize::MAX)));
    }
    let length = request.headers().get("content-length");
    let length = length.map_or("chunked".to_owned(), |value| value.to_str().unwrap().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked: Value = serde_json::from_slice(&body).unwrap();
    received.lock().unwrap().push((length, body));
    let usage = if asked["stream_options"]["include_usage"] == true { USAGE } else { "" };
    let events = format!("{TEXT}{TEXT}{usage}{DONE}");
    let response = Response::builder().header("content-type", "text/event-stream; charset=utf-8");
    Ok(response.body(Pieces::of(events.as_bytes(), piece)).unwrap())
}

async fn stand_of(script: &Script, config: &str) -> Stand {
    let options = StandOptions {
        engines: Vec::new(),
        others: vec![script.address],
        more_config: meter(config),
        ..StandOptions::default()
    };
    Stand::start(options).await.unwrap()
}

/// Each way a request can come and each cut of its answer: the engine gets the client's bytes with
/// the option in front, the client what an engine sends that nobody asked.
#[tokio::test(flavor = "multi_thread")]
async fn neither_side_sees_more_than_the_option() {
    let script = Script::start().await;
    let stand = stand_of(&script, "share: 1, includeUsage: true").await;
    let body = b"{ \"model\":\"tiny\", \"stream\": true,\n \"messages\":[{\"role\":\"user\",\"content\":\"\\u00e9\"}], \"x\": 1.50 }";
    let sent = [br#"{"stream_options":{"include_usage":true},"#, &body[1..]].concat();
    let expected = format!("{TEXT}{TEXT}{DONE}");
    let mut count = 0;
    for piece in [1, 2, 7, 63, 64, 65, 100, 150, 1000] {
        *script.piece.lock().unwrap() = piece;
        let before = measured(&stand).await;
        let mut answers = Vec::new();
        for protocol in BOTH {
            answers.push((protocol.post(&stand, CHAT, body).await, sent.len().to_string()));
        }
        let chunks: Vec<Vec<u8>> = body.chunks(11).map(chunk).collect();
        let frames: Vec<&[u8]> = body.chunks(11).collect();
        for trailers in [&b""[..], b"x-checksum: 1\r\n"] {
            let end = [&chunk(b""), trailers, b"\r\n"].concat();
            let parts: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).chain([&end[..]]).collect();
            let headers: [(&str, &[u8]); 1] = [("transfer-encoding", b"chunked")];
            let answer = wire::h1(stand.gateway, "POST", CHAT, &headers, &parts).await.unwrap();
            answers.push((answer, "chunked".to_owned()));
            let pairs: [(&str, &[u8]); 1] = [("x-checksum", b"1")];
            let trailers = if trailers.is_empty() { &[][..] } else { &pairs };
            let parts = Parts { data: &frames, trailers };
            let answer = wire::h2(stand.gateway, CHAT, &[], parts).await.unwrap();
            answers.push((answer, "chunked".to_owned()));
        }
        for (answer, length) in answers {
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(String::from_utf8_lossy(&answer.body), expected, "in pieces of {piece}");
            let (received_length, received) = script.received.lock().unwrap()[count].clone();
            count += 1;
            assert_eq!(String::from_utf8_lossy(&received), String::from_utf8_lossy(&sent));
            assert_eq!(received_length, length);
        }
        // It announces nothing, so nothing was predicted; but its usage was found.
        grown(&stand, &before, "unpredicted_no_state", 6).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_option_streams_pass_untouched_and_the_share_can_be_changed() {
    let script = Script::start().await;
    let stand = stand_of(&script, "share: 0").await;
    let body = streamed("x", None);
    let expected = format!("{TEXT}{TEXT}{DONE}");
    let send = async || {
        let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
        assert_eq!(String::from_utf8_lossy(&answer.body), expected);
        let (_, received) = script.received.lock().unwrap().last().unwrap().clone();
        assert_eq!(received, body);
    };
    for _ in 0..20 {
        send().await;
    }
    let admin = Client::new(stand.envoy_admin);
    let path = "/runtime_modify?wasm_epp.meter_share=1000000";
    assert_eq!(admin.send("POST", path, &[], "").await.unwrap().status, 200);
    send().await;
    let counts = grown(&stand, &BTreeMap::new(), "unreadable_no_usage", 1).await;
    assert_eq!(counts.values().sum::<u64>(), 1, "of the first 20 nothing was read: {counts:?}");
}

fn accuracy_of(details: &Value, address: &str) -> Option<Value> {
    let mut endpoints = details["endpoints"].as_array()?.iter();
    let endpoint = endpoints.find(|endpoint| endpoint["address"] == address)?;
    Some(endpoint["accuracy"].clone()).filter(|accuracy| !accuracy.is_null())
}

fn problems(stand: &Stand, address: &str) -> Vec<String> {
    let (_, report) = doctor(stand);
    let findings = report["findings"].as_array().unwrap().iter();
    let of = |finding: &Value| finding["problems"].as_array().unwrap().clone();
    let problems = findings.filter(|finding| finding["name"] == address).flat_map(of);
    problems.map(|problem| problem.as_str().unwrap().to_owned()).collect()
}

/// An engine that forgets its cache without a word is predicted to hold what it does not. Its
/// matches count for less until its predictions are right again.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_predictions_lower_the_prefix_weight_until_they_are_right() {
    let options = StandOptions {
        engines: vec![EngineOptions::default(); 2],
        // What one worker measures, the other one's picker believes.
        workers: 2,
        more_config: meter("share: 1"),
        ..StandOptions::default()
    };
    let stand = Stand::start(options).await.unwrap();
    let body = completion(&prose("a lie", 3000));
    let holder = teach(&stand, &body).await;
    let engine = Client::new(holder.parse().unwrap());
    let ask = async || {
        let before = measured(&stand).await;
        let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
        assert_eq!(served(&stand, &answer, &body), holder);
        let counts = grown(&stand, &before, "prompt_tokens", 1).await;
        (line(&stand, &answer).await.record, counts)
    };
    let (record, _) = ask().await;
    assert!(record["prefix_weight_lowered"].is_null(), "{record}");
    let full = record["totals"][&holder].as_f64().unwrap();
    assert_eq!(problems(&stand, &holder), [""; 0]);

    for _ in 0..8 {
        assert_eq!(engine.post("/sim/forget", &json!({})).await.unwrap().status, 200);
        let (_, counts) = ask().await;
        assert_eq!(counts["predictions_over"], 1, "{counts:?}");
        assert!(counts["shortfall_state_wrong_tokens"] > 500, "{counts:?}");
    }
    // 8 of 10 were too high: the match counts a quarter, and still decides.
    let (record, counts) = ask().await;
    assert_eq!(counts["predictions_right"], 1, "{counts:?}");
    assert_eq!(record["prefix_weight_lowered"], json!({holder.as_str(): 0.25}), "{record}");
    let lowered = record["totals"][&holder].as_f64().unwrap();
    assert!((full - lowered - 3.0 * 0.75).abs() < 0.05, "{full} and {lowered}");
    let name = "wasmcustom.wasm_epp_requests_prefix_weight_lowered_total";
    assert!(stand.envoy_stat(name).await.unwrap() >= 1);
    let expected = "its predictions are wrong: 8 of the last";
    wait_until("the doctor says so", Duration::from_secs(20), async || {
        problems(&stand, &holder).iter().any(|problem| problem.starts_with(expected)).then_some(())
    })
    .await
    .unwrap();
    let page = get(stand.daemon_admin, "/metrics").await.unwrap();
    let page = String::from_utf8_lossy(&page.body).into_owned();
    let weight = page.lines().find(|line| {
        line.starts_with("wasm_epp_prefix_weight_ratio{") && line.contains(holder.as_str())
    });
    assert!(weight.unwrap().ends_with(" 0.25"), "{page}");

    let mut weights = Vec::new();
    for _ in 0..32 {
        let (record, _) = ask().await;
        let weight = record["prefix_weight_lowered"][&holder].as_f64();
        if weights.last() != Some(&weight) {
            weights.push(weight);
        }
    }
    assert_eq!(weights, [Some(0.25), Some(0.5), None]);
    wait_until("the doctor is content", Duration::from_secs(20), async || {
        problems(&stand, &holder).is_empty().then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_never_says_what_was_cached_is_named() {
    let flags = vec!["--no-prompt-tokens-details".to_owned()];
    let options = StandOptions {
        engines: vec![EngineOptions { flags }],
        more_config: meter("share: 1"),
        ..StandOptions::default()
    };
    let stand = Stand::start(options).await.unwrap();
    let body = completion(&prose("silence", 3000));
    let holder = teach(&stand, &body).await;
    for _ in 0..4 {
        let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
        served(&stand, &answer, &body);
    }
    let details = wait_until("four silent hits are known", Duration::from_secs(20), async || {
        let details = stand.readyz().await.ok()?;
        let accuracy = accuracy_of(&details, &holder)?;
        (accuracy["silent"] == 4).then_some(accuracy)
    })
    .await
    .unwrap();
    assert_eq!((&details["answers"], &details["reported"]), (&json!(5), &json!(0)));
    assert_eq!((&details["judged"], &details["prefix_weight_ratio"]), (&json!(0), &json!(1.0)));
    let problems = problems(&stand, &holder);
    assert!(problems[0].contains("--enable-prompt-tokens-details"), "{problems:?}");
    let counts = measured(&stand).await;
    assert_eq!(counts["unpredicted_silent_engine"], 5, "{counts:?}");
    assert!(!counts.contains_key("prompt_tokens"), "unknown is not zero: {counts:?}");
}
