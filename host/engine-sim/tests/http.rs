//! The HTTP side, through a real client.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use common::{Sim, header, json};
use engine_sim::SimConfig;
use http_body_util::BodyExt;
use serde_json::{Value, json};

/// Forty tokens: two full blocks of 16 and a rest.
fn long_prompt() -> Vec<u32> {
    (1000..1040).collect()
}

#[tokio::test]
async fn an_engine_that_was_not_told_to_never_names_cached_tokens() {
    let config = SimConfig { prompt_tokens_details: false, ..SimConfig::default() };
    let sim = Sim::start(config).await;
    let body = json!({"model": "tiny", "prompt": long_prompt(), "max_tokens": 4});
    sim.post("/v1/completions", &body).await;
    let second = sim.post("/v1/completions", &body).await;
    assert_eq!(header(&second, "x-sim-cached-tokens"), Some("32"));
    assert_eq!(json(&second)["usage"]["prompt_tokens_details"], Value::Null);
}

#[tokio::test]
async fn a_repeated_prompt_is_cached_up_to_its_last_token() {
    let sim = Sim::start(SimConfig::default()).await;
    let body = json!({"model": "tiny", "prompt": long_prompt(), "max_tokens": 4});
    let first = sim.post("/v1/completions", &body).await;
    assert_eq!(first.status(), 200);
    let reply = json(&first);
    assert_eq!(reply["object"], "text_completion");
    assert_eq!(reply["model"], "tiny");
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(
        reply["usage"],
        json!({"prompt_tokens": 40, "completion_tokens": 4, "total_tokens": 44,
               "prompt_tokens_details": null})
    );
    let second = sim.post("/v1/completions", &body).await;
    assert_eq!(json(&second)["usage"]["prompt_tokens_details"]["cached_tokens"], 32);
    assert_eq!(header(&second, "x-sim-cached-tokens"), Some("32"));
    assert_eq!(header(&second, "x-sim-engine"), Some("sim"));
    assert_eq!(json(&second)["choices"], reply["choices"], "the same answer");
    assert_eq!(sim.metric("vllm:prefix_cache_queries_total").await, 80.0);
    assert_eq!(sim.metric("vllm:prefix_cache_hits_total").await, 32.0);

    let skips = json!({"prompt": long_prompt(), "max_tokens": 1, "prompt_logprobs": 0});
    let third = sim.post("/v1/completions", &skips).await;
    assert_eq!(header(&third, "x-sim-cached-tokens"), Some("0"), "prompt_logprobs skips the cache");
}

#[tokio::test]
async fn max_tokens_is_honoured_and_defaults_to_16() {
    let sim = Sim::start(SimConfig::default()).await;
    for (extra, tokens) in [
        (json!({}), 16),
        (json!({"max_tokens": 1}), 1),
        (json!({"max_tokens": 300}), 300),
        (json!({"max_completion_tokens": 3}), 3),
    ] {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let reply = json(&sim.post("/v1/chat/completions", &body).await);
        assert_eq!(reply["usage"]["completion_tokens"], tokens, "{extra}");
        let text = reply["choices"][0]["message"]["content"].as_str().unwrap();
        let back = sim.post("/tokenize", &json!({"prompt": text})).await;
        assert_eq!(json(&back)["count"], tokens, "{text:?}");
    }
}

#[tokio::test]
async fn answers_depend_on_seed_and_prompt_only() {
    let body = |prompt: &str| json!({"prompt": prompt, "max_tokens": 20});
    let mut texts = Vec::new();
    for seed in [1, 1, 2] {
        let sim = Sim::start(SimConfig { seed, ..SimConfig::default() }).await;
        for prompt in ["one", "two"] {
            let reply = json(&sim.post("/v1/completions", &body(prompt)).await);
            texts.push(reply["choices"][0]["text"].clone());
        }
    }
    assert_eq!(texts[0..2], texts[2..4]);
    assert_ne!(texts[0], texts[1]);
    assert_ne!(texts[0], texts[4]);
}

/// The data of each server-sent event.
fn sse(body: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(body).unwrap();
    assert!(text.ends_with("\n\n"));
    let events = text.split_terminator("\n\n");
    events.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
}

#[tokio::test]
async fn streams_say_what_json_says() {
    let sim = Sim::start(SimConfig::default()).await;
    let messages = json!([{"role": "user", "content": "Tell me about caches and queues, please."}]);
    let chat = json!({"messages": messages, "max_tokens": 7});
    let completion = json!({"prompt": long_prompt(), "max_tokens": 7});
    for (path, body) in [("/v1/chat/completions", chat), ("/v1/completions", completion)] {
        let whole = json(&sim.post(path, &body).await);
        for include_usage in [true, false] {
            let mut body = body.clone();
            body["stream"] = true.into();
            if include_usage {
                body["stream_options"] = json!({"include_usage": true});
            }
            let reply = sim.post(path, &body).await;
            assert_eq!(header(&reply, "content-type"), Some("text/event-stream; charset=utf-8"));
            let mut events = sse(reply.body());
            assert_eq!(events.pop().unwrap(), "[DONE]");
            let mut events: Vec<Value> =
                events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
            if include_usage {
                let last = events.pop().unwrap();
                assert_eq!(last["choices"], json!([]));
                assert_eq!(last["usage"]["completion_tokens"], 7);
                assert_eq!(last["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
                let cached = last["usage"]["prompt_tokens_details"]["cached_tokens"].to_string();
                assert_eq!(header(&reply, "x-sim-cached-tokens"), Some(cached.as_str()));
                assert_ne!(cached, "0", "the second time");
            }
            let reasons: Vec<&Value> =
                events.iter().map(|event| &event["choices"][0]["finish_reason"]).collect();
            assert_eq!(reasons.iter().filter(|reason| !reason.is_null()).count(), 1);
            assert_eq!(*reasons[reasons.len() - 1], "length");
            let pieces = events.iter().map(|event| {
                let choice = &event["choices"][0];
                let text = choice.get("text").unwrap_or(&choice["delta"]["content"]);
                text.as_str().unwrap()
            });
            let choice = &whole["choices"][0];
            let expected = choice.get("text").unwrap_or(&choice["message"]["content"]);
            assert_eq!(pieces.collect::<String>(), expected.as_str().unwrap());
            if path == "/v1/chat/completions" {
                assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
                assert_eq!(events.len(), 8);
            }
        }
    }
}

#[tokio::test]
async fn several_prompts_are_requests_of_their_own() {
    let sim = Sim::start(SimConfig::default()).await;
    let body = json!({"prompt": ["one", "two", "three"], "max_tokens": 5});
    let reply = json(&sim.post("/v1/completions", &body).await);
    assert_eq!(reply["choices"].as_array().unwrap().len(), 3);
    assert_eq!(reply["usage"]["completion_tokens"], 15);
    let alone = json!({"prompt": "two", "max_tokens": 5});
    let alone = json(&sim.post("/v1/completions", &alone).await);
    assert_eq!(alone["choices"][0]["text"], reply["choices"][1]["text"]);
}

#[tokio::test]
async fn errors_have_vllms_shape() {
    let config = SimConfig {
        max_model_len: Some(64),
        adapters: vec!["sql".to_owned()],
        ..SimConfig::default()
    };
    let sim = Sim::start(config).await;
    let check = async |path: &str, body: &str, status: u16, kind: &str, words: &str| {
        let reply = sim.send(sim.request("POST", path, body)).await.unwrap();
        let reply = common::whole(reply).await;
        assert_eq!(reply.status(), status, "{body}");
        let error = &json(&reply)["error"];
        assert_eq!(error["type"], kind, "{body}");
        assert_eq!(error["code"], status, "{body}");
        assert!(error["message"].as_str().unwrap().contains(words), "{body}: {error}");
    };
    let (comp, chat) = ("/v1/completions", "/v1/chat/completions");
    let (bad, missing) = ("BadRequestError", "NotFoundError");
    check(comp, r#"{"model": "x", "prompt": "a"}"#, 404, missing, "The model `x` does not exist.")
        .await;
    check(chat, r#"{"model": "x", "messages": []}"#, 404, missing, "`x`").await;
    check(comp, "{", 400, bad, "invalid request body").await;
    check(comp, "{}", 400, bad, "prompt must be").await;
    check(comp, r#"{"prompt": ""}"#, 400, bad, "empty").await;
    check(comp, r#"{"prompt": [1, "a"]}"#, 400, bad, "prompt must be").await;
    check(comp, r#"{"prompt": [99999999]}"#, 400, bad, "99999999 is out of vocabulary").await;
    check(comp, r#"{"prompt": "a", "max_tokens": 0}"#, 400, bad, "at least 1").await;
    check(comp, r#"{"prompt": "a", "max_tokens": 64}"#, 400, bad, "too large").await;
    check(comp, &json!({"prompt": vec![1; 64]}).to_string(), 400, bad, "maximum context").await;
    check(chat, r#"{"messages": "hi"}"#, 400, bad, "").await;
    check("/tokenize", "{}", 400, bad, "expected either").await;
    check("/detokenize", r#"{"tokens": [8003]}"#, 400, bad, "8003").await;
    let reply = sim.post(comp, &json!({"model": "sql", "prompt": "a"})).await;
    assert_eq!(json(&reply)["model"], "sql");
}

/// The answers a real vLLM 0.32 gave for this model folder.
#[tokio::test]
async fn tokenize_agrees_with_vllm() {
    let sim = Sim::start(SimConfig { max_model_len: Some(4096), ..SimConfig::default() }).await;
    let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "return_token_strs": true});
    let tokens = [
        8001, 4315, 198, 1118, 447, 265, 6491, 4375, 13, 8002, 198, 8001, 1785, 198, 2702, 8002,
        198, 8001, 5214, 198,
    ];
    let token_strs = [
        "<|im_start|>",
        "system",
        "Ċ",
        "You",
        "Ġare",
        "Ġa",
        "Ġhelpful",
        "Ġassistant",
        ".",
        "<|im_end|>",
        "Ċ",
        "<|im_start|>",
        "user",
        "Ċ",
        "hi",
        "<|im_end|>",
        "Ċ",
        "<|im_start|>",
        "assistant",
        "Ċ",
    ];
    assert_eq!(
        json(&sim.post("/tokenize", &chat).await),
        json!({"count": 20, "max_model_len": 4096, "tokens": tokens, "token_strs": token_strs})
    );
    let plain = sim.post("/tokenize", &json!({"model": "tiny", "prompt": "hello world"})).await;
    assert_eq!(
        json(&plain),
        json!({"count": 3, "max_model_len": 4096, "tokens": [3432, 78, 4086], "token_strs": null})
    );
    let text = json(&sim.post("/detokenize", &json!({"tokens": tokens})).await);
    let expected = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n\
                    <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(text["prompt"], expected);
    let usage =
        json(&sim.post("/v1/chat/completions", &chat).await)["usage"]["prompt_tokens"].clone();
    assert_eq!(usage, 20);
}

#[tokio::test]
async fn models_version_health_and_metrics() {
    let config = SimConfig {
        adapters: vec!["sql".to_owned()],
        block_size_tokens: 32,
        num_blocks: 99,
        ..SimConfig::default()
    };
    let sim = Sim::start(config).await;
    let models = json(&sim.get("/v1/models").await);
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(models["data"][0]["max_model_len"], 98 * 32);
    assert_eq!(models["data"][1]["id"], "sql");
    assert_eq!(models["data"][1]["parent"], "tiny");
    assert_eq!(json(&sim.get("/version").await)["version"], "0.32.0");
    assert_eq!(sim.get("/health").await.status(), 200);
    assert_eq!(sim.get("/nothing").await.status(), 404);
    let sources = json(&sim.get("/kv_event_sources").await);
    assert_eq!(sources["0"]["endpoint"], *sim.running.kv_events.as_ref().unwrap());
    let page = String::from_utf8(sim.get("/metrics").await.body().to_vec()).unwrap();
    for line in [
        "# TYPE vllm:num_requests_running gauge",
        "vllm:num_requests_running{engine=\"0\",model_name=\"tiny\"} 0.0",
        "vllm:num_requests_waiting{engine=\"0\",model_name=\"tiny\"} 0.0",
        "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"tiny\"} 0.0",
        "# TYPE vllm:prefix_cache_hits_total counter",
        "vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"tiny\"} 0.0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in {page}");
    }
    let info = page.lines().find(|line| line.starts_with("vllm:cache_config_info{")).unwrap();
    assert!(info.contains("block_size=\"32\"") && info.contains("num_gpu_blocks=\"99\""), "{info}");
    let start = page.lines().find(|line| line.starts_with("process_start_time_seconds ")).unwrap();
    assert!(start.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 1.7e9);
}

#[tokio::test]
async fn requests_queue_when_the_engine_is_full_and_leave_with_their_client() {
    // Over a minute of tokens: whoever runs stays until the client leaves.
    let config = SimConfig { max_num_seqs: 1, inter_token_ms: 20.0, ..SimConfig::default() };
    let sim = Sim::start(config).await;
    let body = json!({"prompt": "a", "max_tokens": 5000, "stream": true}).to_string();
    let mut first = sim.send(sim.request("POST", "/v1/completions", &body)).await.unwrap();
    assert_eq!(first.status(), 200, "the headers come with the admission");
    sim.wait_for_metric("vllm:num_requests_running", 1.0).await;
    let second = sim.send(sim.request("POST", "/v1/completions", &body));
    let mut second = Box::pin(second);
    tokio::select! {
        _ = &mut second => panic!("the second request was admitted beside the first"),
        () = sim.wait_for_metric("vllm:num_requests_waiting", 1.0) => {}
    }
    // Steps pass, and the second still waits.
    for _ in 0..5 {
        common::patiently("token", first.frame()).await.unwrap().unwrap();
    }
    assert_eq!(sim.metric("vllm:num_requests_waiting").await, 1.0);
    assert_eq!(sim.metric("vllm:num_requests_running").await, 1.0);
    assert!(sim.metric("vllm:kv_cache_usage_perc").await > 0.0);
    let refused = sim.post("/reset_prefix_cache", &json!({})).await;
    assert_eq!(refused.status(), 503, "blocks are in use");
    drop(first);
    assert_eq!(second.await.unwrap().status(), 200);
    sim.wait_for_metric("vllm:num_requests_running", 0.0).await;
    assert_eq!(sim.metric("vllm:kv_cache_usage_perc").await, 0.0);
}

/// Lower bounds only; how times add up is a unit test of the engine.
#[tokio::test]
async fn prefill_takes_its_time() {
    // 40 tokens at 100/s are 400 ms, the 8 that are not cached the second time 80 ms.
    let config = SimConfig { prefill_tokens_per_s: 100.0, ..SimConfig::default() };
    let sim = Sim::start(config).await;
    let body = json!({"prompt": long_prompt(), "max_tokens": 1});
    for at_least_ms in [400, 80] {
        let start = std::time::Instant::now();
        sim.post("/v1/completions", &body).await;
        assert!(start.elapsed().as_millis() >= at_least_ms);
    }
}
