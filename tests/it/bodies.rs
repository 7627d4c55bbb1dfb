//! Every way a body can arrive: the client gets the engine's answer, the engine the same bytes.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use testbed::{Answer, EngineOptions, Stand, StandOptions, wait_until};
use tokio::io::AsyncWriteExt;

use crate::support::{
    BOTH, COMPLETIONS, assert_fell_back, cases, completion, fallbacks, line, picked, prose,
    received, served,
};
use crate::wire::{self, Parts, chunk};

const CAP: usize = 65_536;
const CHUNKED: (&str, &[u8]) = ("transfer-encoding", b"chunked");

#[tokio::test(flavor = "multi_thread")]
async fn bodies_arrive_whole_however_they_are_sent() {
    let flags = ["--num-blocks", "40000", "--max-model-len", "200000"].map(str::to_owned).to_vec();
    let options = StandOptions {
        engines: vec![EngineOptions { flags }; 2],
        more_config: format!("routing:\n  maxBodyBytes: {CAP}\n"),
        ..StandOptions::default()
    };
    let stand = Stand::start(options).await.unwrap();
    cases!(stand;
        a_body_as_long_as_the_cap_is_read,
        a_body_over_the_cap_of_announced_length_is_left_to_the_proxy,
        a_body_over_the_cap_of_unknown_length_is_left_to_the_proxy_midway,
        many_small_chunks_are_one_body,
        trailers_end_a_body,
        an_upgrade_is_answered,
        a_request_without_a_body_is_the_engines_to_refuse,
        what_is_no_request_is_the_engines_to_refuse,
        a_client_that_leaves_midway_leaves_nothing_behind,
    );
}

/// A completion of exactly `bytes`.
fn body_of(topic: &str, bytes: usize) -> Vec<u8> {
    let overhead = completion("").len();
    let body = completion(&prose(topic, bytes - overhead));
    assert_eq!(body.len(), bytes);
    body
}

async fn chunked(stand: &Stand, chunks: &[Vec<u8>], trailers: &[u8]) -> Answer {
    let end = [&chunk(b""), trailers, b"\r\n"].concat();
    let parts: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).chain([end.as_slice()]).collect();
    wire::h1(stand.gateway, "POST", COMPLETIONS, &[CHUNKED], &parts).await.unwrap()
}

/// The request was served by the endpoint that was picked for it.
async fn assert_picked(stand: &Stand, answer: &Answer, sent: &[u8]) {
    let engine = served(stand, answer, sent);
    let line = line(stand, answer).await;
    assert_eq!(line.picked().first(), Some(&engine), "{line:?}");
    assert_eq!(line.reason(), None);
}

async fn assert_left(stand: &Stand, answer: &Answer, reason: &str) {
    let line = line(stand, answer).await;
    assert_eq!((line.reason(), line.picked().len()), (Some(reason), 0), "{line:?}");
}

async fn a_body_as_long_as_the_cap_is_read(stand: Rc<Stand>) {
    for protocol in BOTH {
        let (body, before) = (body_of("the cap", CAP), fallbacks(&stand).await);
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        assert_picked(&stand, &answer, &body).await;
        assert_eq!(fallbacks(&stand).await, before);
    }
}

async fn a_body_over_the_cap_of_announced_length_is_left_to_the_proxy(stand: Rc<Stand>) {
    for protocol in BOTH {
        let (body, before) = (body_of("one more", CAP + 1), fallbacks(&stand).await);
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        served(&stand, &answer, &body);
        assert_left(&stand, &answer, "body_too_large").await;
        assert_fell_back(&stand, &before, "body_too_large", 1).await;
    }
}

async fn a_body_over_the_cap_of_unknown_length_is_left_to_the_proxy_midway(stand: Rc<Stand>) {
    let (body, before) = (body_of("five times", 5 * CAP), fallbacks(&stand).await);
    let chunks: Vec<Vec<u8>> = body.chunks(9_999).map(chunk).collect();
    let by_chunks = chunked(&stand, &chunks, b"").await;
    let frames: Vec<&[u8]> = body.chunks(9_999).collect();
    let parts = Parts { data: &frames, trailers: &[] };
    let by_frames = wire::h2(stand.gateway, COMPLETIONS, &[], parts).await.unwrap();
    let parts = Parts { data: &frames, trailers: &[("x-checksum", b"1")] };
    let with_trailers = wire::h2(stand.gateway, COMPLETIONS, &[], parts).await.unwrap();
    for answer in [by_chunks, by_frames, with_trailers] {
        served(&stand, &answer, &body);
        assert_left(&stand, &answer, "body_too_large").await;
    }
    assert_fell_back(&stand, &before, "body_too_large", 3).await;
}

async fn many_small_chunks_are_one_body(stand: Rc<Stand>) {
    let body = body_of("small pieces", 3_000);
    let before = fallbacks(&stand).await;
    let chunks: Vec<Vec<u8>> = body.chunks(7).map(chunk).collect();
    let answer = chunked(&stand, &chunks, b"").await;
    assert_picked(&stand, &answer, &body).await;
    let frames: Vec<&[u8]> = body.chunks(7).chain([&b""[..]]).collect();
    let parts = Parts { data: &frames, trailers: &[] };
    let answer = wire::h2(stand.gateway, COMPLETIONS, &[], parts).await.unwrap();
    assert_picked(&stand, &answer, &body).await;
    assert_eq!(fallbacks(&stand).await, before);
}

async fn trailers_end_a_body(stand: Rc<Stand>) {
    let body = body_of("trailers", 3_000);
    let before = fallbacks(&stand).await;
    let chunks: Vec<Vec<u8>> = body.chunks(1_000).map(chunk).collect();
    let answer = chunked(&stand, &chunks, b"x-checksum: 1\r\n").await;
    assert_picked(&stand, &answer, &body).await;
    let frames: Vec<&[u8]> = body.chunks(1_000).collect();
    let parts = Parts { data: &frames, trailers: &[("x-checksum", b"1")] };
    let answer = wire::h2(stand.gateway, COMPLETIONS, &[], parts).await.unwrap();
    assert_picked(&stand, &answer, &body).await;
    assert_eq!(fallbacks(&stand).await, before);
}

/// The engine knows no upgrades, so it answers as if it had not been asked. The body of an upgrade
/// never ends: what counts is that nothing waits for it.
async fn an_upgrade_is_answered(stand: Rc<Stand>) {
    let websocket: [(&str, &[u8]); 2] = [("connection", b"Upgrade"), ("upgrade", b"websocket")];
    let answer = wire::h1(stand.gateway, "GET", COMPLETIONS, &websocket, &[]).await.unwrap();
    assert_eq!(answer.status, 405, "{answer:?}");
    received(&stand, &answer, b"");

    // Of a POST Envoy keeps the body back until the engine has agreed, which ours never does; but
    // the request itself is on its way to an engine, not held by a filter.
    let before = picked(&stand).await;
    let headers = [websocket[0], websocket[1], ("content-length", b"1000")];
    let post = wire::h1_begin(stand.gateway, "POST", COMPLETIONS, &headers).await.unwrap();
    active(&stand, "cluster.pool.upstream_rq_active", 1).await;
    drop(post);
    active(&stand, "cluster.pool.upstream_rq_active", 0).await;
    assert_eq!(picked(&stand).await, before);

    // What Java's client sends with every request: Envoy takes the offer off, the rest is a POST.
    let body = body_of("upgrade", 300);
    let length = body.len().to_string();
    let headers: [(&str, &[u8]); 4] = [
        ("connection", b"Upgrade, HTTP2-Settings"),
        ("upgrade", b"h2c"),
        ("http2-settings", b"AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA"),
        ("content-length", length.as_bytes()),
    ];
    let answer = wire::h1(stand.gateway, "POST", COMPLETIONS, &headers, &[&body]).await.unwrap();
    assert_picked(&stand, &answer, &body).await;
}

async fn a_request_without_a_body_is_the_engines_to_refuse(stand: Rc<Stand>) {
    let before = fallbacks(&stand).await;
    let empty: [(&str, &[u8]); 1] = [("content-length", b"0")];
    let by_length = wire::h1(stand.gateway, "POST", COMPLETIONS, &empty, &[]).await.unwrap();
    let parts = Parts { data: &[], trailers: &[] };
    let by_headers = wire::h2(stand.gateway, COMPLETIONS, &[], parts).await.unwrap();
    for answer in [by_length, by_headers] {
        assert_eq!(answer.status, 400, "{answer:?}");
        received(&stand, &answer, b"");
        assert_left(&stand, &answer, "body_missing").await;
    }
    assert_fell_back(&stand, &before, "body_missing", 2).await;

    // A body that turns out to be empty: its end comes after the headers.
    let before = fallbacks(&stand).await;
    let no_chunk = chunked(&stand, &[], b"").await;
    let parts = Parts { data: &[b""], trailers: &[] };
    let empty_frame = wire::h2(stand.gateway, COMPLETIONS, &[], parts).await.unwrap();
    let only_trailers = chunked(&stand, &[], b"x-checksum: 1\r\n").await;
    for answer in [no_chunk, empty_frame, only_trailers] {
        assert_eq!(answer.status, 400, "{answer:?}");
        received(&stand, &answer, b"");
    }
    assert_fell_back(&stand, &before, "body_not_json", 3).await;
}

async fn what_is_no_request_is_the_engines_to_refuse(stand: Rc<Stand>) {
    let bodies: [(&[u8], &str); 5] = [
        (b"prompt=hello", "body_not_json"),
        (br#"{"model":"tiny","prompt":"cut of"#, "body_not_json"),
        (b"{\"model\":\"tiny\",\"prompt\":\"\xff\xfe\"}", "body_not_utf8"),
        (br#"["tiny"]"#, "body_not_an_object"),
        (br#"{"model":"tiny"}"#, "body_field_missing"),
    ];
    for protocol in BOTH {
        for (body, reason) in bodies {
            let before = fallbacks(&stand).await;
            let answer = protocol.post(&stand, COMPLETIONS, body).await;
            assert_eq!(answer.status, 400, "{answer:?}");
            received(&stand, &answer, body);
            assert_left(&stand, &answer, reason).await;
            assert_fell_back(&stand, &before, reason, 1).await;
        }
    }
}

async fn a_client_that_leaves_midway_leaves_nothing_behind(stand: Rc<Stand>) {
    let (half, over_cap) = (body_of("half", 1_000), body_of("over", 2 * CAP));
    let before = (fallbacks(&stand).await, picked(&stand).await);
    // Closed in a body of known length, in a chunk, and in a frame.
    let length: [(&str, &[u8]); 1] = [("content-length", b"2000")];
    let mut known = wire::h1_begin(stand.gateway, "POST", COMPLETIONS, &length).await.unwrap();
    known.write_all(&half).await.unwrap();
    let mut in_chunk =
        wire::h1_begin(stand.gateway, "POST", COMPLETIONS, &[CHUNKED]).await.unwrap();
    in_chunk.write_all(&chunk(&half)[..500]).await.unwrap();
    let mut http2 = wire::h2_connect(stand.gateway).await.unwrap();
    let request = wire::h2_request(stand.gateway, COMPLETIONS, &[]).unwrap();
    let (_response, mut frames) = http2.send_request(request, false).unwrap();
    frames.send_data(Bytes::from(half), false).unwrap();
    active(&stand, "http.inference.downstream_rq_active", 3).await;
    assert_eq!((fallbacks(&stand).await, picked(&stand).await), before);
    drop((known, in_chunk));
    frames.send_reset(h2::Reason::CANCEL);
    active(&stand, "http.inference.downstream_rq_active", 0).await;

    // And when part of the body is on its way to an engine already.
    let mut over = wire::h1_begin(stand.gateway, "POST", COMPLETIONS, &[CHUNKED]).await.unwrap();
    over.write_all(&chunk(&over_cap)).await.unwrap();
    active(&stand, "cluster.pool.upstream_rq_active", 1).await;
    drop(over);
    active(&stand, "cluster.pool.upstream_rq_active", 0).await;
    active(&stand, "http.inference.downstream_rq_active", 0).await;
    assert_fell_back(&stand, &before.0, "body_too_large", 1).await;

    for protocol in BOTH {
        let body = body_of("afterwards", 3_000);
        let answer = protocol.post(&stand, COMPLETIONS, &body).await;
        assert_picked(&stand, &answer, &body).await;
    }
}

/// Waits until a gauge of Envoy's has this value.
async fn active(stand: &Stand, gauge: &str, value: u64) {
    wait_until(&format!("{gauge} is {value}"), Duration::from_secs(10), async || {
        (stand.envoy_stat(gauge).await.ok()? == value).then_some(())
    })
    .await
    .unwrap();
}
