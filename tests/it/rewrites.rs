//! Requests that go to another model than they ask for, and answers that name the one asked for.

use std::rc::Rc;

use serde_json::{Value, json};
use testbed::{Answer, EngineOptions, PoolOptions, Stand, StandOptions};

use crate::support::{BOTH, CHAT, COMPLETIONS, Protocol, cases, counters, line, noted, prose};
use crate::wire::{self, Parts, chunk};

/// "pool" serves tiny, "second" serves small.
fn two_pools() -> StandOptions {
    let rules = "modelRewrites:\n\
        - {match: [{model: chat-latest}, {model: \"caf\\u00e9\"}], targets: [{model: tiny, weight: 3}, {model: small, weight: 1}]}\n\
        - {match: [{model: only-small}], targets: [{model: small}]}\n";
    StandOptions {
        engines: vec![EngineOptions::default(); 2],
        more_pools: vec![PoolOptions {
            name: "second".into(),
            model: "small".into(),
            engines: vec![EngineOptions::default(); 1],
            ..PoolOptions::default()
        }],
        more_config: rules.into(),
        ..StandOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rewritten_models_are_asked_of_engines_and_not_seen_by_clients() {
    let stand = Stand::start(two_pools()).await.unwrap();
    cases!(stand;
        an_answer_names_the_model_that_was_asked_for,
        a_stream_names_it_in_every_event,
        requests_share_by_weight,
        however_the_body_comes_it_arrives_whole,
        what_is_not_rewritten_is_left_alone,
        a_client_cannot_mark_its_own_request,
    );
}

/// The engine that answered, and what it got of the body's length: not the client's.
fn engine_of(stand: &Stand, answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{answer:?}");
    let number: usize =
        answer.header("x-sim-engine").strip_prefix("engine-").unwrap().parse().unwrap();
    stand.engines[number].http.to_string()
}

async fn rewritten(stand: &Stand) -> u64 {
    stand.envoy_stat("wasmcustom.wasm_epp_requests_rewritten_total").await.unwrap()
}

async fn an_answer_names_the_model_that_was_asked_for(stand: Rc<Stand>) {
    for protocol in BOTH {
        for (path, more) in [
            (COMPLETIONS, json!({"prompt": prose("names", 300), "max_tokens": 2})),
            (CHAT, json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2})),
        ] {
            let before = rewritten(&stand).await;
            let mut body = more;
            body["model"] = json!("only-small");
            let sent = body.to_string();
            let answer = protocol.post(&stand, path, sent.as_bytes()).await;
            let engine = engine_of(&stand, &answer);
            assert_eq!(engine, stand.engines[2].http.to_string());
            let got: Value = serde_json::from_slice(&answer.body).unwrap();
            assert_eq!(got["model"], "only-small");
            assert!(got["usage"]["prompt_tokens"].as_u64() > Some(0), "{got}");
            // The engine got the target, and a body that differs from the client's in it alone.
            let target =
                crate::support::sha256(sent.replace("\"only-small\"", "\"small\"").as_bytes());
            assert_eq!(answer.header("x-sim-body-sha256"), target);
            let entry = noted(&stand, &engine, &answer).await;
            let headers = entry["headers"].as_array().cloned().unwrap_or_default();
            let of = |name: &str| headers.iter().find(|pair| pair[0] == name).map(|pair| &pair[1]);
            assert_eq!(of("x-llm-d-model-name-rewrite"), Some(&json!("small")), "{headers:?}");
            assert!(
                !headers.iter().any(|pair| pair[0].as_str().unwrap().starts_with("x-wasm-epp"))
            );
            assert_eq!(line(&stand, &answer).await.record["model"], "small");
            assert_eq!(rewritten(&stand).await, before + 1);
        }
    }
}

async fn a_stream_names_it_in_every_event(stand: Rc<Stand>) {
    for protocol in BOTH {
        let body = json!({
            "model": "only-small", "messages": [{"role": "user", "content": prose("streams", 400)}],
            "max_tokens": 12, "stream": true, "stream_options": {"include_usage": true},
        });
        let answer = protocol.post(&stand, CHAT, body.to_string().as_bytes()).await;
        engine_of(&stand, &answer);
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        assert_eq!(events.last(), Some(&"data: [DONE]"), "{text}");
        assert!(events.len() >= 12, "{text}");
        for event in &events[..events.len() - 1] {
            let event: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(event["model"], "only-small", "{text}");
        }
        // The same of the engine itself, but for the name and what tells two answers apart.
        let mut direct = body.clone();
        direct["model"] = json!("small");
        let client = testbed::Client::new(stand.engines[2].http);
        let direct = client.post(CHAT, &direct).await.unwrap();
        let direct = String::from_utf8(direct.body.to_vec()).unwrap();
        assert_eq!(events.len(), direct.split_terminator("\n\n").count());
    }
}

/// 3 to 1 of 240: expected 180, and five standard deviations of sqrt(240 * 3/16) to each side.
async fn requests_share_by_weight(stand: Rc<Stand>) {
    let mut tiny = 0;
    for i in 0..240 {
        let body = json!({"model": "chat-latest", "prompt": format!("share {i}"), "max_tokens": 1});
        let answer = BOTH[i % 2].post(&stand, COMPLETIONS, body.to_string().as_bytes()).await;
        let engine = engine_of(&stand, &answer);
        let got: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(got["model"], "chat-latest");
        tiny += u32::from(engine != stand.engines[2].http.to_string());
    }
    println!("{tiny} of 240 went to the target of weight 3 of 4");
    assert!((146..=214).contains(&tiny), "{tiny}");
}

/// In pieces, with trailers or without, of a model whose name is written with an escape.
async fn however_the_body_comes_it_arrives_whole(stand: Rc<Stand>) {
    for (bytes, piece) in [(300, 7), (40_000, 1_000), (500_000, 99_999)] {
        let prompt = prose(&format!("{bytes} whole"), bytes);
        let body = format!(r#"{{"prompt":"{prompt}", "model" : "caf\u00e9","max_tokens":0}}"#);
        let expected = ["tiny", "small"]
            .map(|model| crate::support::sha256(body.replace(r"caf\u00e9", model).as_bytes()));
        let body = body.as_bytes();
        let mut answers = vec![Protocol::H1.post(&stand, COMPLETIONS, body).await];
        for trailers in [&b""[..], b"x-checksum: 1\r\n"] {
            let end = [&chunk(b""), trailers, b"\r\n"].concat();
            let chunks: Vec<Vec<u8>> = body.chunks(piece).map(chunk).chain([end]).collect();
            let parts: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let chunked: [(&str, &[u8]); 1] = [("transfer-encoding", b"chunked")];
            let answer = wire::h1(stand.gateway, "POST", COMPLETIONS, &chunked, &parts).await;
            answers.push(answer.unwrap());
        }
        let frames: Vec<&[u8]> = body.chunks(piece).collect();
        let with: [(&str, &[u8]); 1] = [("x-checksum", b"1")];
        for trailers in [&[][..], &with[..]] {
            let parts = Parts { data: &frames, trailers };
            answers.push(wire::h2(stand.gateway, COMPLETIONS, &[], parts).await.unwrap());
        }
        for (i, answer) in answers.iter().enumerate() {
            let got = answer.header("x-sim-body-sha256");
            assert!(expected.iter().any(|hash| hash == got), "{bytes} bytes, {i}: {answer:?}");
        }
    }
}

async fn what_is_not_rewritten_is_left_alone(stand: Rc<Stand>) {
    let restored = async || counters(&stand, "wasm_epp_answers_").await;
    for protocol in BOTH {
        let before = (rewritten(&stand).await, restored().await);
        let body = json!({"model": "tiny", "prompt": prose("alone", 300), "max_tokens": 1});
        let answer = protocol.post(&stand, COMPLETIONS, body.to_string().as_bytes()).await;
        let engine = crate::support::served(&stand, &answer, body.to_string().as_bytes());
        let got: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(got["model"], "tiny");
        assert!(!answer.header("content-length").is_empty(), "nothing looked at it");
        let entry = noted(&stand, &engine, &answer).await;
        assert!(!entry["headers"].to_string().contains("rewrite"), "{entry}");
        assert_eq!((rewritten(&stand).await, restored().await), before);
    }
}

async fn a_client_cannot_mark_its_own_request(stand: Rc<Stand>) {
    let before = counters(&stand, "wasm_epp_answers_").await;
    for protocol in BOTH {
        let headers: [(&str, &[u8]); 2] =
            [("x-wasm-epp-rewritten", b"1"), ("x-llm-d-model-name-rewrite", b"small")];
        let body = json!({"model": "tiny", "prompt": prose("marks", 300), "max_tokens": 1});
        let body = body.to_string().into_bytes();
        let answer = protocol.send(&stand, COMPLETIONS, &headers, &body).await;
        let engine = crate::support::served(&stand, &answer, &body);
        let entry = noted(&stand, &engine, &answer).await;
        assert!(!entry["headers"].to_string().contains("rewrit"), "{entry}");
    }
    assert_eq!(counters(&stand, "wasm_epp_answers_").await, before);
}
