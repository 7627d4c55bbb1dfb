//! What the module renders in Envoy, against what vLLM renders (`tests/golden/prompt`): an engine
//! is taught vLLM's text as a plain completion, and the body that it came from must match it.

use std::rc::Rc;

use serde_json::{Value, json};
use testbed::{Stand, StandOptions, root};

use crate::support::{COMPLETIONS, Protocol, cases, line, prose, received, served, teach};

const BLOCK: u64 = 16;

/// Conversations with a prompt of several strides, of every API that is rendered.
const CELLS: [&str; 14] = [
    "agent-loop",
    "code",
    "kwargs-date",
    "long",
    "multi-turn",
    "numbers",
    "parallel-calls",
    "tool-calls",
    "tools-offered",
    "tools-system",
    "messages.tool-loop",
    "responses.tool-loop",
    "responses.tool-no-strict",
    "reasoning-inline",
];

#[tokio::test(flavor = "multi_thread")]
async fn prompts_in_envoy_are_those_of_the_engine() {
    let options = StandOptions { token_id_prompts: true, ..StandOptions::default() };
    let stand = Stand::start(options).await.unwrap();
    cases!(stand;
        bodies_match_the_text_that_vllm_renders,
        answers_of_the_other_apis_say_what_was_cached,
        prompts_of_the_apis_that_are_not_rendered,
        what_cannot_be_known_is_routed_by_load_with_its_reason,
    );
}

fn golden(path: &str) -> Value {
    let path = root().join("tests/golden/prompt").join(path);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Path and body of a committed conversation.
fn request(cell: &str) -> (&'static str, Value) {
    let (path, file) = match cell.split_once('.') {
        Some(("messages", name)) => ("/v1/messages", format!("messages/{name}")),
        Some((_, name)) => ("/v1/responses", format!("responses/{name}")),
        None => ("/v1/chat/completions", cell.to_owned()),
    };
    let mut body = golden(&format!("conversations/{file}.json"));
    body["model"] = json!("tiny");
    body["max_tokens"] = json!(1);
    body["max_output_tokens"] = json!(1);
    // Conversations begin alike; each is to match its own text only.
    body["cache_salt"] = json!(cell);
    body.as_object_mut().unwrap().remove("stream");
    (path, body)
}

fn cached_blocks(answer: &testbed::Answer) -> u64 {
    answer.header("x-sim-cached-tokens").parse::<u64>().unwrap() / BLOCK
}

async fn bodies_match_the_text_that_vllm_renders(stand: Rc<Stand>) {
    let expected = golden("expected/tiny-model.json");
    for cell in CELLS {
        let text = expected[cell].as_str().expect(cell);
        // The tiny model has no prefix that it stands for.
        let text = text.strip_prefix("<|bos|>").unwrap_or(text);
        let taught = json!({
            "model": "tiny", "prompt": text, "max_tokens": 1, "cache_salt": cell,
            "add_special_tokens": false,
        });
        let holder = teach(&stand, taught.to_string().as_bytes()).await;

        let (path, body) = request(cell);
        let body = body.to_string();
        let answer = Protocol::H1.post(&stand, path, body.as_bytes()).await;
        assert_eq!(served(&stand, &answer, body.as_bytes()), holder, "{cell}");
        let line = line(&stand, &answer).await;
        assert_eq!(line.record["prompt_bytes"], text.len(), "{cell}: {line:?}");
        let scores = line.scores().expect(cell);
        assert_eq!(scores.keys().collect::<Vec<_>>(), [&holder], "{cell}: {line:?}");
        let (ours, theirs) = (scores[&holder], cached_blocks(&answer));
        assert!(
            ours > 0 && ours.abs_diff(theirs) <= 2,
            "{cell}: {ours} blocks matched, {theirs} cached"
        );
    }
}

async fn answers_of_the_other_apis_say_what_was_cached(stand: Rc<Stand>) {
    let prompt = prose("usage", 900);
    let messages = json!([{"role": "user", "content": prompt}]);
    let of_messages = json!({"model": "tiny", "max_tokens": 2, "messages": messages});
    let of_responses = json!({"model": "tiny", "max_output_tokens": 2, "input": messages});
    let answer_of = async |path: &str, body: &Value| {
        let body = body.to_string();
        let before = stand.event_batches().await.unwrap();
        let answer = Protocol::H2.post(&stand, path, body.as_bytes()).await;
        let holder = served(&stand, &answer, body.as_bytes());
        (answer, holder, before)
    };
    let (_, holder, before) = answer_of("/v1/messages", &of_messages).await;
    stand.settled(&holder, &before).await.unwrap();
    let (answer, again, _) = answer_of("/v1/messages", &of_messages).await;
    assert_eq!(again, holder);
    let usage = answer.json().unwrap()["usage"].clone();
    assert_eq!(usage["cache_read_input_tokens"].as_u64().unwrap() / BLOCK, cached_blocks(&answer));
    // The same conversation by another API is the same prompt.
    let (answer, again, _) = answer_of("/v1/responses", &of_responses).await;
    assert_eq!(again, holder);
    let usage = answer.json().unwrap()["usage"]["input_tokens_details"].clone();
    let cached = usage["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached / BLOCK, cached_blocks(&answer));
    assert!(cached > 100, "{cached} tokens cached");
}

/// The simulated engines do not have these APIs: they answer 404, after the router chose.
async fn prompts_of_the_apis_that_are_not_rendered(stand: Rc<Stand>) {
    let prompt = prose("plain", 1500);
    let ids: Vec<u32> = (100..400).collect();
    let text = json!({"model": "tiny", "prompt": prompt, "max_tokens": 1}).to_string();
    let tokens = json!({"model": "tiny", "prompt": ids, "max_tokens": 1}).to_string();
    let holds_text = teach(&stand, text.as_bytes()).await;
    let holds_ids = teach(&stand, tokens.as_bytes()).await;
    let cases = [
        ("/v1/embeddings", json!({"model": "tiny", "input": prompt}), &holds_text),
        ("/v1/embeddings", json!({"model": "tiny", "input": [ids]}), &holds_ids),
        ("/generate", json!({"text": prompt, "sampling_params": {}}), &holds_text),
        ("/generate?x=1", json!({"input_ids": ids}), &holds_ids),
        ("/inference/v1/generate", json!({"token_ids": ids, "sampling_params": {}}), &holds_ids),
    ];
    for (path, body, holder) in cases {
        let body = body.to_string();
        let answer = Protocol::H1.post(&stand, path, body.as_bytes()).await;
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        assert_eq!(&received(&stand, &answer, body.as_bytes()), holder, "{path}");
        let scores = line(&stand, &answer).await.scores().expect(path);
        assert!(scores[holder] >= 15, "{path}: {scores:?}");
    }
}

async fn what_cannot_be_known_is_routed_by_load_with_its_reason(stand: Rc<Stand>) {
    let cases = [
        ("/v1/responses", json!({"input": "x", "previous_response_id": "r"}), "previous_response"),
        (
            "/v1/messages",
            json!({"max_tokens": 1, "messages": [{"role": "user", "content":
                [{"type": "image", "source": {"type": "url", "url": "x"}}]}]}),
            "media_part",
        ),
        (
            COMPLETIONS,
            json!({"prompt": "x", "truncate_prompt_tokens": 5}),
            "truncate_prompt_tokens",
        ),
        ("/v1/embeddings", json!({"input": ["a", "b"]}), "several_prompts"),
    ];
    for (path, mut body, reason) in cases {
        body["model"] = json!("tiny");
        let body = body.to_string();
        let answer = Protocol::H1.post(&stand, path, body.as_bytes()).await;
        received(&stand, &answer, body.as_bytes());
        let line = line(&stand, &answer).await;
        assert!(!line.picked().is_empty(), "{path}: {line:?}");
        assert_eq!(line.record["unmatched"], reason, "{path}: {line:?}");
    }
}
