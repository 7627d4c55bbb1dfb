//! What tests ask of an engine: to show what it received, to misbehave, to stop.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Sim, header, json};
use engine_sim::SimConfig;
use http_body_util::BodyExt;
use serde_json::{Value, json};

#[tokio::test]
async fn what_was_received_can_be_seen() {
    let sim = Sim::start(SimConfig { name: "engine-7".to_owned(), ..SimConfig::default() }).await;
    let mut request = sim.request("POST", "/v1/completions", r#"{"prompt": "a"}"#);
    request.headers_mut().insert("x-request-id", "r-1".parse().unwrap());
    request.headers_mut().insert("x-gateway-destination-endpoint", "1.2.3.4:5".parse().unwrap());
    let reply = common::whole(sim.send(request).await.unwrap()).await;
    // printf '{"prompt": "a"}' | sha256sum
    let sha = "b4199e33255db273122080f3c56057b131bb9625a9f11f2cdfd0c503fb7c8d61";
    assert_eq!(header(&reply, "x-sim-body-sha256"), Some(sha));
    assert_eq!(header(&reply, "x-sim-engine"), Some("engine-7"));
    let requests = json(&sim.get("/sim/requests").await);
    let [entry] = &requests.as_array().unwrap()[..] else { panic!("{requests}") };
    assert_eq!(entry["path"], "/v1/completions");
    assert_eq!(entry["x-request-id"], "r-1");
    assert_eq!(entry["body_sha256"], header(&reply, "x-sim-body-sha256").unwrap());
    assert_eq!(entry["cached_tokens"], 0);
    assert_eq!(entry["status"], 200);
    let headers = entry["headers"].as_array().unwrap();
    assert!(headers.contains(&json!(["x-gateway-destination-endpoint", "1.2.3.4:5"])), "{entry}");
    for _ in 0..1001 {
        sim.post("/tokenize", &json!({"prompt": ""})).await;
    }
    let requests = json(&sim.get("/sim/requests").await);
    assert_eq!(requests.as_array().unwrap().len(), 1000);
    assert_eq!(requests[0]["path"], "/tokenize", "the oldest ones left");
}

#[tokio::test]
async fn behaviours_over_both_protocols() {
    for http2 in [false, true] {
        let sim = Sim::with_client(SimConfig::default(), http2).await;
        let body = json!({"prompt": "a", "max_tokens": 1});
        let set = async |behaviour: Value| {
            let reply = sim.post("/sim/behaviour", &behaviour).await;
            assert_eq!(reply.status(), 200, "{behaviour}");
        };
        let served = sim.post("/v1/completions", &body).await;
        assert_eq!(served.status(), 200);
        let version = if http2 { http::Version::HTTP_2 } else { http::Version::HTTP_11 };
        assert_eq!(served.version(), version);
        set(json!({"on_request": "status", "status": 529})).await;
        let reply = sim.post("/v1/completions", &body).await;
        assert_eq!(reply.status(), 529);
        assert_eq!(header(&reply, "x-sim-engine"), Some("sim"));
        set(json!({"on_request": "status"})).await;
        assert_eq!(sim.post("/v1/completions", &body).await.status(), 503);
        set(json!({"on_request": "reset"})).await;
        let request = sim.request("POST", "/v1/completions", &body.to_string());
        assert!(sim.send(request).await.is_err(), "no response");
        let requests = json(&sim.get("/sim/requests").await);
        let last = requests.as_array().unwrap().last().unwrap();
        assert_eq!(last["status"], Value::Null, "received, never answered");
        set(json!({"on_request": "serve"})).await;
        assert_eq!(sim.post("/v1/completions", &body).await.status(), 200);
        let bad = sim.post("/sim/behaviour", &json!({"on_request": "explode"})).await;
        assert_eq!(bad.status(), 422);
    }
}

/// What the kernel of a client sees, without a client library in between.
#[tokio::test]
async fn a_reset_is_a_tcp_reset() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let sim = Sim::start(SimConfig::default()).await;
    sim.post("/sim/behaviour", &json!({"on_request": "reset"})).await;
    let mut stream = tokio::net::TcpStream::connect(sim.running.http).await.unwrap();
    let request = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut rest = Vec::new();
    let read = common::patiently("reset", stream.read_to_end(&mut rest)).await;
    assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert!(rest.is_empty());
}

#[tokio::test]
async fn the_ports_are_free_after_a_shutdown() {
    let sim = Sim::start(SimConfig::default()).await;
    let same = SimConfig {
        http: sim.running.http,
        kv_events: sim.running.kv_events.clone(),
        replay: sim.running.replay.clone(),
        ..SimConfig::default()
    };
    sim.post("/v1/completions", &json!({"prompt": "a"})).await;
    // A client in the middle of a stream keeps nothing alive.
    let body = json!({"prompt": "a", "stream": true}).to_string();
    let open = sim.send(sim.request("POST", "/v1/completions", &body)).await.unwrap();
    sim.running.shutdown().await;
    let _ = common::patiently("end of stream", open.into_body().collect()).await;
    let again = Sim::start(same).await;
    assert_eq!(again.metric("vllm:prompt_tokens_total").await, 0.0);
}
