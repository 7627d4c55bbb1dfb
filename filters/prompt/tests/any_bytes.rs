//! Nothing a client sends makes parsing or rendering panic.

#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use prompt::{Api, ModelSpec, Normalizer, Renderer, Request};
use proptest::prelude::*;

/// Templates of the golden test, which between them use most constructs.
fn renderers() -> Vec<Renderer> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/prompt/templates");
    let mut renderers = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let spec = ModelSpec {
            chat_template: Some(std::fs::read_to_string(entry.unwrap().path()).unwrap()),
            special_tokens: [("eos_token".to_owned(), "<|im_end|>".to_owned())].into(),
            completions_prefix: "<s>".to_owned(),
            normalizer: Normalizer::Nfc,
            ..ModelSpec::default()
        };
        renderers.push(Renderer::new(&spec).unwrap());
    }
    renderers
}

thread_local! {
    static RENDERERS: Vec<Renderer> = renderers();
}

/// Parses and renders; what comes out is text of bounded size.
fn run(body: &[u8]) -> usize {
    let mut rendered = 0;
    for api in Api::ALL {
        let Ok(request) = Request::parse(api, body) else {
            continue;
        };
        let _ = (request.model(), request.cache_salt(), request.token_ids(), request.skips_cache());
        RENDERERS.with(|renderers| {
            for renderer in renderers {
                if let Ok(prompt) = renderer.render(&request) {
                    assert!(std::str::from_utf8(&prompt.bytes).is_ok());
                    assert!(prompt.bytes.len() <= 3 * (8 * body.len() + (1 << 20)) + 3);
                    rendered += 1;
                }
            }
        });
    }
    rendered
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        text().prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::vec((key(), inner), 0..6)
                .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
        ]
    })
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        Just("text".to_owned()),
        Just("function".to_owned()),
        Just("{\"a\": [1.5, \"b\"]}".to_owned()),
        Just("<think>a</think>\nb \u{1f}".to_owned()),
        "[a-z \\n\u{300}\u{1100}\u{1161}]{0,20}",
    ]
}

fn key() -> impl Strategy<Value = String> {
    let words = "type text function name arguments parameters properties content title items";
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    prop_oneof![4 => prop::sample::select(words), 1 => any::<String>()]
}

fn any_message() -> impl Strategy<Value = serde_json::Value> {
    let role = prop::sample::select(vec!["user", "assistant", "system", "tool", "developer", "x"]);
    let content = prop_oneof![3 => text().prop_map(Into::into), 1 => any_json()];
    (role, content, prop::option::of(any_json()), prop::option::of(text())).prop_map(
        |(role, content, tool_calls, reasoning)| {
            serde_json::json!({"role": role, "content": content, "tool_calls": tool_calls,
                "reasoning": reasoning, "tool_call_id": "1"})
        },
    )
}

fn any_chat() -> impl Strategy<Value = serde_json::Value> {
    (
        prop::collection::vec(any_message(), 0..6),
        prop::option::of(prop::collection::vec(any_json(), 0..3)),
        any::<[bool; 3]>(),
        any_json(),
    )
        .prop_map(|(messages, tools, flags, options)| {
            serde_json::json!({"model": "m", "messages": messages, "tools": tools,
                "add_generation_prompt": flags[0], "continue_final_message": flags[1],
                "add_special_tokens": flags[2], "chat_template_kwargs": {"options": options}})
        })
}

proptest! {
    #[test]
    fn any_bytes(body in prop::collection::vec(any::<u8>(), 0..200)) {
        run(&body);
    }

    #[test]
    fn bytes_that_look_like_json(body in "[\\[\\]{}\",:\\\\a-f0-9\u{e9} ]{0,120}") {
        run(body.as_bytes());
        run(format!("{{\"prompt\":{body}}}").as_bytes());
        run(format!("{{\"messages\":[{{\"role\":\"user\",\"content\":{body}}}]}}").as_bytes());
    }

    #[test]
    fn any_fields(chat in any_chat()) {
        run(chat.to_string().as_bytes());
    }

    #[test]
    fn a_body_cut_anywhere(chat in any_chat(), cut in any::<prop::sample::Index>()) {
        let body = chat.to_string();
        run(body.as_bytes().get(..cut.index(body.len())).unwrap());
    }
}

/// Pieces of templates, in any order and nesting.
fn any_template() -> impl Strategy<Value = String> {
    const PIECES: [&str; 44] = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{%-",
        "-%}",
        " ",
        "\n",
        "x",
        "messages",
        "m",
        "m.content",
        "content",
        "for m in messages",
        "endfor",
        "if x",
        "else",
        "endif",
        "set x = ",
        "macro f(a, b=1)",
        "endmacro",
        "generation",
        "endgeneration",
        "raw",
        "endraw",
        "[",
        "]",
        ":",
        "-1",
        "0",
        "'",
        "\"",
        "(",
        ")",
        "{",
        "}",
        " | ",
        "length",
        ".split()",
        " ~ ",
        ", ",
        " is defined",
    ];
    prop_oneof![
        prop::collection::vec(prop::sample::select(&PIECES[..]), 0..40).prop_map(|v| v.concat()),
        // Slices of everything, which minijinja itself would panic at.
        (any::<[Option<i8>; 3]>(), "[a-z\u{e9}]{0,4}").prop_map(|([start, stop, step], text)| {
            let at = |index: Option<i8>| index.map(|i| i.to_string()).unwrap_or_default();
            let slice = format!("[{}:{}:{}]", at(start), at(stop), at(step));
            format!("{{{{ '{text}'{slice} }}}}{{{{ messages{slice} }}}}{{{{ (1, 2, 3){slice} }}}}")
        }),
    ]
}

proptest! {
    #[test]
    fn any_template_text(source in any_template()) {
        let spec = ModelSpec { chat_template: Some(source), ..ModelSpec::default() };
        if let Ok(renderer) = Renderer::new(&spec) {
            let chat = br#"{"messages":[{"role":"user","content":"hi"}]}"#;
            let anthropic = br#"{"model":"m","max_tokens":1,"thinking":{"type":"disabled"},"messages":[{"role":"system","content":"s"}]}"#;
            for (api, body) in [(Api::ChatCompletions, &chat[..]), (Api::Messages, anthropic)] {
                let _ = renderer.render(&Request::parse(api, body).unwrap());
            }
        }
    }
}

/// Guards the properties above against generating nothing that renders.
#[test]
fn a_plain_chat_renders_in_every_template() {
    let body = br#"{"messages":[{"role":"user","content":"hi"}],"chat_template_kwargs":{"date_string":"d"}}"#;
    // As a chat, and as a chat to embed.
    assert_eq!(run(body), 2 * RENDERERS.with(Vec::len));
}
