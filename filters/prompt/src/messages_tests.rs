use minijinja::value::Rest;

use super::*;

/// Normalises `messages`; the expected text is `json.dumps` of what transformers hands to Jinja.
fn check_as(messages: &str, format: ContentFormat, developer: bool, expected: Result<&str, &str>) {
    let json: Vec<Json<'_>> = serde_json::from_str(messages).unwrap();
    let form = Form { format, knows_developer: developer, typed: true };
    let got = normalise(&json, form).map(|conversation| {
        let values: Value = conversation.iter().map(Message::to_value).collect();
        crate::tojson::tojson(&values, Rest(Vec::new())).unwrap().to_string()
    });
    let got = got.as_deref().map_err(|refusal| refusal.reason());
    assert_eq!(got, expected, "{messages}");
}

fn check(messages: &str, expected: Result<&str, &str>) {
    check_as(messages, ContentFormat::String, true, expected);
}

#[test]
fn content_becomes_a_string() {
    check(
        r#"[{"content":"x","role":"user","junk":1}]"#,
        Ok(r#"[{"role": "user", "content": "x"}]"#),
    );
    check(r#"[{"role":"user","content":null}]"#, Ok(r#"[{"role": "user", "content": ""}]"#));
    check(r#"[{"role":"user"}]"#, Ok(r#"[{"role": "user", "content": ""}]"#));
    check(
        r#"[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":""},"b",{"type":"text","text":null},{"type":"refusal","refusal":"c"}]}]"#,
        Ok(r#"[{"role": "user", "content": "a\nb\nc"}]"#),
    );
}

#[test]
fn content_stays_parts_where_the_template_loops_over_them() {
    let check = |m: &str, expected: &str| check_as(m, ContentFormat::OpenAi, true, Ok(expected));
    check(
        r#"[{"role":"user","content":"x"}]"#,
        r#"[{"role": "user", "content": [{"type": "text", "text": "x"}]}]"#,
    );
    check(r#"[{"role":"user","content":null}]"#, r#"[{"role": "user", "content": []}]"#);
    check(
        r#"[{"role":"user","content":[{"type":"input_text","text":"a"},{"type":"text","text":""}]}]"#,
        r#"[{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]}]"#,
    );
    check(
        r#"[{"role":"tool","tool_call_id":"1","content":[{"type":"text","text":"a"},{"type":"text","text":""}]}]"#,
        r#"[{"role": "tool", "content": "a\n", "tool_call_id": "1"}]"#,
    );
}

#[test]
fn parts_that_are_no_text_are_refused() {
    let part = |part: &str, reason| {
        check(&format!(r#"[{{"role":"user","content":[{part}]}}]"#), Err(reason));
    };
    part(r#"{"type":"image_url","image_url":{"url":"x"}}"#, "media_part");
    part(r#"{"type":"input_audio","input_audio":{}}"#, "media_part");
    part(r#"{"type":"video_url"}"#, "media_part");
    part(r#"{"type":"prompt_embeds"}"#, "media_part");
    part(r#"{"type":"hologram"}"#, "unknown_part");
    part(r#"{"type":"tool_reference","name":"x"}"#, "unknown_part");
    part(r#"{"text":"x"}"#, "unknown_part");
    part("7", "unknown_part");
    part(r#"{"type":"text","text":"x","uuid":"u"}"#, "malformed_message");
    part(r#"{"type":"text","text":7}"#, "malformed_message");
    check(r#"[{"role":"user","content":7}]"#, Err("malformed_message"));
}

#[test]
fn tool_call_arguments_become_objects() {
    let call = |arguments: &str, expected: &str| {
        check(
            &format!(
                r#"[{{"role":"assistant","tool_calls":[{{"id":"1","type":"function","function":{{"name":"f"{arguments}}}}}]}}]"#
            ),
            Ok(&format!(
                r#"[{{"role": "assistant", "content": "", "tool_calls": [{{"id": "1", "function": {{"arguments": {expected}, "name": "f"}}, "type": "function"}}]}}]"#
            )),
        );
    };
    call(r#","arguments":"{\"b\":1,\"a\":[2.0]}""#, r#"{"b": 1, "a": [2.0]}"#);
    call(r#","arguments":{"x":null}"#, r#"{"x": null}"#);
    call(r#","arguments":"""#, "{}");
    call(r#","arguments":"{\"cut\":""#, "{}");
    call(r#","arguments":"[1]""#, "{}");
}

#[test]
fn known_keys_of_tool_calls_come_first_in_the_order_of_their_types() {
    let messages = r#"[{"role":"assistant","tool_calls":[{"index":0,"function":{"z":1,"name":"f","arguments":"{}","a":2},"type":"function","id":"1"}]}]"#;
    check(
        messages,
        Ok(
            r#"[{"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {"arguments": {}, "name": "f", "z": 1, "a": 2}, "type": "function", "index": 0}]}]"#,
        ),
    );
}

#[test]
fn arguments_beyond_our_parser_are_refused_not_guessed() {
    let refused = |arguments: &str| {
        let quoted = serde_json::to_string(arguments).unwrap();
        check(
            &format!(
                r#"[{{"role":"assistant","tool_calls":[{{"id":"1","type":"function","function":{{"name":"f","arguments":{quoted}}}}}]}}]"#
            ),
            Err("tool_arguments"),
        );
    };
    refused(r#"{"x":NaN}"#);
    refused(r#"{"x":"\ud800"}"#);
    refused(r#"{"x":"\ud800\n"}"#);
    refused(&format!("{}{}", "{\"x\":".repeat(200), "}".repeat(200)));
    refused(r#"{"x":1e999}"#);
}

#[test]
fn malformed_tool_calls_are_refused() {
    let refused = |calls: &str| {
        check(
            &format!(r#"[{{"role":"assistant","tool_calls":{calls}}}]"#),
            Err("malformed_message"),
        );
    };
    refused("7");
    refused("[7]");
    refused(r#"[{"type":"custom","function":{}}]"#);
    refused("[{}]");
    refused(r#"[{"type":"function","function":{"name":"f","arguments":"{}"}}]"#);
    refused(r#"[{"id":"1","function":{"name":"f","arguments":"{}"}}]"#);
    refused(r#"[{"id":"1","type":"function","function":{"name":"f"}}]"#);
    refused(r#"[{"id":"1","type":"function","function":{"name":"f","arguments":null}}]"#);
    refused(r#"[{"id":"1","type":"function","function":{"arguments":"{}"}}]"#);
}

#[test]
fn other_keys_of_parts_reach_templates_that_want_parts() {
    let messages = r#"[{"role":"user","content":[{"type":"text","text":"a","cache_control":{"x":1},"name":"n"}]}]"#;
    check(messages, Ok(r#"[{"role": "user", "content": "a"}]"#));
    check_as(
        messages,
        ContentFormat::OpenAi,
        true,
        Ok(
            r#"[{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"x": 1}}]}]"#,
        ),
    );
}

#[test]
fn assistant_and_tool_fields_are_kept_in_order() {
    check(
        r#"[{"reasoning_content":"r","role":"assistant","content":"c","name":"n","tool_calls":[]}]"#,
        Ok(
            r#"[{"thinking": "r", "role": "assistant", "content": "c", "reasoning": "r", "reasoning_content": "r", "name": "n"}]"#,
        ),
    );
    check(
        r#"[{"role":"user","content":"c","reasoning":"r","tool_call_id":"x","tool_calls":[1],"name":7}]"#,
        Ok(r#"[{"role": "user", "content": "c"}]"#),
    );
    check(
        r#"[{"role":"tool","content":"c","tool_call_id":"x","name":"n"}]"#,
        Ok(r#"[{"role": "tool", "content": "c", "tool_call_id": "x", "name": "n"}]"#),
    );
}

#[test]
fn a_billing_header_is_dropped_from_system_texts() {
    check(
        r#"[{"role":"system","content":"x-anthropic-billing-header: cch=1;\nBe brief."},{"role":"user","content":"x-anthropic-billing-header"}]"#,
        Ok(
            r#"[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x-anthropic-billing-header"}]"#,
        ),
    );
    check(
        r#"[{"role":"system","content":[{"type":"text","text":"x-anthropic-billing-header: 1"},{"type":"text","text":"a"}]}]"#,
        Ok(r#"[{"role": "system", "content": "a"}]"#),
    );
}

#[test]
fn developers_become_system_where_the_template_has_no_such_role() {
    let check = |m: &str, developer, expected: &str| {
        check_as(m, ContentFormat::String, developer, Ok(expected));
    };
    let first = r#"[{"role":"developer","content":"d"},{"role":"user","content":"u"}]"#;
    check(
        first,
        true,
        r#"[{"role": "developer", "content": "d"}, {"role": "user", "content": "u"}]"#,
    );
    check(
        first,
        false,
        r#"[{"role": "system", "content": "d"}, {"role": "user", "content": "u"}]"#,
    );
    check(
        r#"[{"role":"system","content":"s"},{"role":"user","content":"u"},{"role":"developer","content":"d"}]"#,
        false,
        r#"[{"role": "system", "content": "s\n\nd"}, {"role": "user", "content": "u"}]"#,
    );
    // Without a developer message, system messages stay where they are.
    check(
        r#"[{"role":"user","content":"u"},{"role":"system","content":"s"}]"#,
        false,
        r#"[{"role": "user", "content": "u"}, {"role": "system", "content": "s"}]"#,
    );
}
