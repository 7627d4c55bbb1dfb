use super::*;
use crate::{TAIL_BYTES, Tail};
use proptest::prelude::*;
use serde_json::{Value, json};

fn found(answer: &str) -> Option<(u64, Cached, Option<u64>)> {
    find_usage(answer.as_bytes())
        .map(|usage| (usage.prompt_tokens, usage.cached, usage.output_tokens))
}

/// Ends of answers as vLLM 0.32 and others send them.
#[test]
fn every_spelling() {
    use Cached::{LeftOut, Tokens, Unsaid};
    let vllm = r#"{"id":"cmpl-a8a8","choices":[{"index":0,"text":" DAT dro","finish_reason":"length"}],"service_tier":null,"system_fingerprint":"vllm-0.32.0-2185747b","usage":{"prompt_tokens":80,"total_tokens":83,"completion_tokens":3,"prompt_tokens_details":DETAILS,"completion_tokens_details":null},"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}"#;
    assert_eq!(found(&vllm.replace("DETAILS", "null")), Some((80, LeftOut, Some(3))));
    let details = r#"{"audio_tokens":null,"cached_tokens":64}"#;
    assert_eq!(found(&vllm.replace("DETAILS", details)), Some((80, Tokens(64), Some(3))));
    let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n\
         data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":0}}}\n\ndata: [DONE]\n\n";
    assert_eq!(found(stream), Some((9, Tokens(0), Some(2))));
    let responses = r#"{"type":"response.completed","response":{"tools":[],"usage":{"input_tokens":40,"input_tokens_details":{"cached_tokens":32},"output_tokens":5,"total_tokens":45},"user":null}}"#;
    assert_eq!(found(responses), Some((40, Tokens(32), Some(5))));
    let anthropic = r#"{"type":"message","usage":{"input_tokens":8,"cache_creation_input_tokens":4,"cache_read_input_tokens":32,"output_tokens":5}}"#;
    assert_eq!(found(anthropic), Some((44, Tokens(32), Some(5))));
    let vllm_messages = r#"{"type":"message_delta","usage":{"input_tokens":40,"output_tokens":5}}"#;
    assert_eq!(found(vllm_messages), Some((40, Unsaid, Some(5))));
    let sglang = r#"{"text":"x","meta_info":{"id":"1","finish_reason":{"type":"length"},"prompt_tokens":20,"completion_tokens":4,"cached_tokens":16,"e2e_latency":0.1}}"#;
    assert_eq!(found(sglang), Some((20, Tokens(16), Some(4))));
}

#[test]
fn what_only_looks_like_a_usage_is_passed_over() {
    let real = r#"{"usage" : {"prompt_tokens":1,"completion_tokens":1},"#;
    for decoy in [
        r#""usage":null}"#,
        r#""user":"usage"}"#,
        r#""text":"\"usage\":{\"prompt_tokens\":7}"}"#,
        r#""text":"usage\":{\"prompt_tokens\":7}"}"#,
        r#""metadata":{"usage":{"of":"something else"}}}"#,
        r#""usage":{"prompt_tokens":-7}}"#,
        r#""usage":{"prompt_tokens":7"#,
    ] {
        assert_eq!(
            found(&format!(" {real}{decoy}")),
            Some((1, Cached::LeftOut, Some(1))),
            "{decoy}"
        );
    }
    assert_eq!(found(r#"{"choices":[]}"#), None);
    assert_eq!(found(""), None);
    // The first byte of a tail may be within a string.
    assert_eq!(found(r#""usage":{"prompt_tokens":7}"#), None);
    let many = r#"{"usage":{"n":"#.repeat(100);
    assert_eq!(found(&format!(" {real}{many}")), None, "too many to try");
}

/// Reads the whole answer with a JSON parser, which the meter must not.
fn naive(answer: &[u8], is_stream: bool) -> Option<Value> {
    let usage = |text: &str| serde_json::from_str::<Value>(text).ok()?.get("usage").cloned();
    let text = std::str::from_utf8(answer).ok()?;
    if !is_stream {
        return usage(text).filter(|usage| !usage.is_null());
    }
    let events = text.split("\n\n").filter_map(|event| usage(event.strip_prefix("data: ")?));
    events.filter(|usage| !usage.is_null()).last()
}

/// Text with everything that could be taken for a usage.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just(
            "\"usage\":{\"prompt_tokens\":5,\"prompt_tokens_details\":{\"cached_tokens\":5}}"
                .to_owned()
        ),
        Just("\\\"usage\\\":{".to_owned()),
        Just("\"usage\"".to_owned()),
        Just("data: [DONE]\n\n".to_owned()),
        Just("\\".to_owned()),
        "\\PC{0,40}",
        (0usize..12_000).prop_map(|n| "x".repeat(n)),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

fn any_usage() -> impl Strategy<Value = Value> {
    let cached =
        prop_oneof![Just(Value::Null), (0u64..9000).prop_map(|n| json!({"cached_tokens": n})),];
    (0u64..9000, 0u64..100, cached).prop_map(|(prompt, output, details)| {
        json!({"prompt_tokens": prompt, "completion_tokens": output, "prompt_tokens_details": details})
    })
}

fn any_answer() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let after = prop_oneof![Just(json!(null)), any_text().prop_map(Value::from)];
    let whole = (any_text(), any_usage(), after).prop_map(|(text, usage, after)| {
        // Written by hand, as the order of keys matters here.
        let answer = format!(
            r#"{{"choices":[{{"text":{}}}],"usage":{usage},"after":{after}}}"#,
            json!(text)
        );
        (answer.into_bytes(), false)
    });
    let texts = proptest::collection::vec(any_text(), 0..4);
    let stream = (texts, any_usage(), any::<bool>()).prop_map(|(texts, usage, has_usage)| {
        let mut answer = String::new();
        for text in texts {
            answer += &format!("data: {}\n\n", json!({"choices": [{"text": text}], "usage": null}));
        }
        if has_usage {
            answer += &format!("data: {}\n\n", json!({"choices": [], "usage": usage}));
        }
        (answer.into_bytes().into_iter().chain(*b"data: [DONE]\n\n").collect(), true)
    });
    prop_oneof![whole, stream]
}

proptest! {
    #[test]
    fn the_tail_says_what_the_whole_answer_says(
        (answer, is_stream) in any_answer(),
        cuts in proptest::collection::vec(1usize..3000, 0..40),
        reads_only_ends: bool,
    ) {
        let mut tail = Tail::default();
        let mut rest = answer.as_slice();
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let (chunk, later) = rest.split_at(cut.min(rest.len()));
            rest = later;
            let skipped = if reads_only_ends { chunk.len().saturating_sub(TAIL_BYTES) } else { 0 };
            tail.push(&chunk[skipped..], skipped);
        }
        prop_assert!(tail.bytes().len() <= 2 * TAIL_BYTES);
        prop_assert!(answer.ends_with(tail.bytes()));
        prop_assert_eq!(tail.is_cut(), tail.bytes().len() < answer.len());
        let expected = naive(&answer, is_stream).map(|usage| {
            let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
            Usage {
                prompt_tokens: usage["prompt_tokens"].as_u64().unwrap(),
                cached: cached.map_or(Cached::LeftOut, Cached::Tokens),
                output_tokens: usage["completion_tokens"].as_u64(),
            }
        });
        match find_usage(tail.bytes()) {
            Some(found) => prop_assert_eq!(Some(found), expected),
            // Only what lies before the tail may be missed.
            None => {
                let start = answer.windows(8).rposition(|w| w == b"\"usage\":").unwrap_or(0);
                let is_in_tail = answer.len() - start < TAIL_BYTES;
                prop_assert!(expected.is_none() || !is_in_tail, "{:?} missed", expected);
            }
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes: Vec<u8>) {
        let _ = find_usage(&[b" \"usage\":{", bytes.as_slice()].concat());
    }
}
