use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn asked(body: &str) -> Result<String, NoEdit> {
    let edit = ask_for_usage(body.as_bytes())?;
    let sent = edit.apply(body.as_bytes());
    let (take, front) = edit.front(body.as_bytes());
    assert_eq!([front.as_slice(), &body.as_bytes()[take..]].concat(), sent);
    Ok(String::from_utf8(sent).unwrap())
}

#[test]
fn the_option_is_added_and_nothing_else_changes() {
    let check = |body: &str, expected: &str| assert_eq!(asked(body).as_deref(), Ok(expected));
    check(r#"{"stream":true}"#, r#"{"stream_options":{"include_usage":true},"stream":true}"#);
    check(
        " \n{ \"model\" : \"m\",\t\"stream\" : true }\r\n",
        " \n{\"stream_options\":{\"include_usage\":true}, \"model\" : \"m\",\t\"stream\" : true }\r\n",
    );
    check(
        r#"{"stream_options": null, "stream": true}"#,
        r#"{"stream_options": {"include_usage":true}, "stream": true}"#,
    );
    check(
        r#"{"stream":true,"stream_options":{ }}"#,
        r#"{"stream":true,"stream_options":{"include_usage":true }}"#,
    );
    check(
        r#"{"stream":true,"stream_options":{"include_obfuscation":false}}"#,
        r#"{"stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}}"#,
    );
    check(
        r#"{"stream_options":{"include_usage": false },"stream":true}"#,
        r#"{"stream_options":{"include_usage": true },"stream":true}"#,
    );
    check(
        r#"{"stream_options":{"include_usage":null},"stream":true,"x":1.50,"x":"\u00e9"}"#,
        r#"{"stream_options":{"include_usage":true},"stream":true,"x":1.50,"x":"\u00e9"}"#,
    );
}

#[test]
fn what_need_not_or_cannot_be_asked_is_left_alone() {
    let check = |body: &str, expected| assert_eq!(asked(body), Err(expected), "{body}");
    check(r#"{"stream":false}"#, NoEdit::NotStreamed);
    check(r#"{"stream":null}"#, NoEdit::NotStreamed);
    check(r#"{"stream":"true"}"#, NoEdit::NotStreamed);
    check(r#"{"messages":[{"stream":true}]}"#, NoEdit::NotStreamed);
    check(r#"{"stream":true,"stream_options":{"include_usage":true}}"#, NoEdit::Asked);
    let continuous = r#"{"stream":true,"stream_options":{"continuous_usage_stats":true}}"#;
    check(continuous, NoEdit::Continuous);
    for body in [
        "",
        "[]",
        "true",
        "{",
        r#"{"stream":true"#,
        r#"{"stream":true} x"#,
        "[true,null]",
        r#"{"stream":true,"stream":true}"#,
        r#"{"stream":true,"stream_option\u0073":{"include_usage":true}}"#,
        r#"{"stream":true,"stream_options":{"include\u005fusage":true}}"#,
        r#"{"stream":true,"stream_options":null,"stream_options":null}"#,
        r#"{"stream":true,"stream_options":[]}"#,
        r#"{"stream":true,"stream_options":true}"#,
        r#"{"stream":true,"stream_options":{"include_usage":1}}"#,
        r#"{"stream":true,"stream_options":{"include_usage":false,"include_usage":false}}"#,
    ] {
        check(body, NoEdit::NotUnderstood);
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!("\"stream\":true")),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z_]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Read again with a JSON parser, the body differs in the option alone.
    #[test]
    fn the_engine_reads_the_same_request_with_the_option(
        others in proptest::collection::btree_map("[a-z]{1,8}", any_json(), 0..5),
        options in prop_oneof![
            Just(None), Just(Some(json!(null))), Just(Some(json!({}))),
            Just(Some(json!({"include_usage": false}))), Just(Some(json!({"a": [1, {"b": 2}]}))),
        ],
        pretty: bool,
    ) {
        let mut body: serde_json::Map<String, Value> = others.into_iter().collect();
        body.insert("stream".into(), json!(true));
        if let Some(options) = options {
            body.insert("stream_options".into(), options);
        }
        let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) }.unwrap();
        let sent: Value = serde_json::from_str(&asked(&text).unwrap()).unwrap();
        let mut expected = body;
        let options = expected.entry("stream_options").or_insert(json!({}));
        if options.is_null() {
            *options = json!({});
        }
        options["include_usage"] = json!(true);
        prop_assert_eq!(sent, Value::Object(expected));
    }

    #[test]
    fn json_stays_json(bytes in "[\\[\\]{}\",:a1 ]{0,20}|\\PC{0,20}") {
        let bytes = bytes.into_bytes();
        let _ = ask_for_usage(&bytes);
        let framed = [br#"{"stream":true,"stream_options":"#, bytes.as_slice(), b"}"].concat();
        let is_json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).is_ok();
        if let Ok(edit) = ask_for_usage(&framed) && is_json(&framed) {
            prop_assert!(is_json(&edit.apply(&framed)));
        }
    }
}
