use std::path::PathBuf;

use model::ModelFolder;
use prompt::{Api, Renderer};
use serde_json::Value;

use super::*;

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(path)
}

fn tiny() -> ModelFolder {
    ModelFolder::load(&golden("tiny-model")).unwrap()
}

#[test]
fn what_a_real_engine_tokenized_is_what_we_render() {
    let model = tiny();
    let renderer = Renderer::new(&model.spec).unwrap();
    let text = std::fs::read_to_string(golden("tokenize/real-vllm.jsonl")).unwrap();
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        // As text: the order of a tool's keys reaches the prompt.
        let body = record["body"].as_str().unwrap();
        let is_chat = body.contains("\"messages\"");
        let api = if is_chat { Api::ChatCompletions } else { Api::Completions };
        let ours = renderer.render(&Request::parse(api, body.as_bytes()).unwrap()).unwrap();
        let theirs: Vec<u32> = serde_json::from_value(record["tokens"].clone()).unwrap();
        assert_eq!(difference("recorded", &ours.bytes, &theirs, &model.tokens), None, "{line}");
    }
    assert_eq!(text.lines().count(), 4);
}

#[test]
fn the_first_byte_that_differs_is_said() {
    let model = tiny();
    // "hello world" by a real engine.
    let theirs = [3432, 78, 4086];
    let check = |ours: &str, expected: Option<(usize, &str, &str)>| {
        let found = difference("p", ours.as_bytes(), &theirs, &model.tokens);
        let found = found.as_ref().map(|d| (d.at, d.ours.as_str(), d.theirs.as_str()));
        assert_eq!(found, expected, "{ours}");
    };
    check("hello world", None);
    check("hello worms", Some((9, "\"ms\"", "\"ld\"")));
    check("hello", Some((5, "its end", "\" world\"")));
    check("hello world\n", Some((11, "\"\\n\"", "its end")));
    check("", Some((0, "its end", "\"hello world\"")));
    let long = format!("hello world{}", "x".repeat(60));
    let shown = format!("\"{}\"…", "x".repeat(48));
    check(&long, Some((11, &shown, "its end")));
    let unknown = difference("p", b"hello", &[3432, 78, 4_000_001], &model.tokens).unwrap();
    assert_eq!((unknown.at, unknown.ours.as_str()), (5, "its end"));
    assert_eq!(unknown.theirs, "token 4000001, which the model's files do not have");
}

#[test]
fn each_probe_is_a_request_that_the_tiny_model_renders() {
    let renderer = Renderer::new(&tiny().spec).unwrap();
    for probe in probes::all("tiny") {
        let body = probe.body.to_string();
        let request = Request::parse(probe.api, body.as_bytes()).unwrap();
        assert!(!renderer.render(&request).unwrap().bytes.is_empty(), "{}", probe.name);
    }
}
