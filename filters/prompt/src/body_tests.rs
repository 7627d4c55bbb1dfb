use super::*;

fn chat(body: &str) -> Result<Request<'_>, BodyError> {
    Request::parse(Api::ChatCompletions, body.as_bytes())
}

fn completion(body: &str) -> Result<Request<'_>, BodyError> {
    Request::parse(Api::Completions, body.as_bytes())
}

#[test]
fn a_path_is_matched_exactly_without_its_query() {
    let check = |path: &str, expected| assert_eq!(Api::from_path(path.as_bytes()), expected);
    check("/v1/completions", Some(Api::Completions));
    check("/v1/chat/completions?api-version=1", Some(Api::ChatCompletions));
    check("/v1/chat/completions/", None);
    check("/v1/chat/completions/render", None);
    check("/V1/completions", None);
    check("/v1/completions#x", None);
    check("", None);
    check("?", None);
}

#[test]
fn bodies_that_are_no_requests_say_why() {
    let check = |body: &str, reason: &str, text: &str| {
        let err = chat(body).unwrap_err();
        assert_eq!(err.reason(), reason, "{body}");
        assert!(err.to_string().contains(text), "{body}: {err}");
    };
    check("", "body_not_json", "EOF");
    check("{\"messages\":[]", "body_not_json", "EOF");
    check("{\"messages\":[]} x", "body_not_json", "trailing");
    check("{\"model\":\"\\ud800\",\"messages\":[]}", "body_not_json", "hex escape");
    check("[]", "body_not_an_object", "object");
    check("\"messages\"", "body_not_an_object", "object");
    check("{}", "body_field_missing", "messages");
    check("{\"messages\":null}", "body_field_missing", "messages");
    check("{\"messages\":{}}", "body_field_wrong_type", "messages");
    check("{\"messages\":[{}]}", "body_field_wrong_type", "messages");
    check("{\"messages\":[{\"role\":1}]}", "body_field_wrong_type", "messages");
    check("{\"messages\":[],\"model\":7}", "body_field_wrong_type", "model");
    check("{\"messages\":[],\"cache_salt\":7}", "body_field_wrong_type", "cache_salt");
    check("{\"messages\":[],\"tools\":{}}", "body_field_wrong_type", "tools");
    check("{\"messages\":[],\"documents\":{}}", "body_field_wrong_type", "documents");
    check(
        "{\"messages\":[],\"chat_template_kwargs\":[]}",
        "body_field_wrong_type",
        "chat_template_kwargs",
    );
    check(
        "{\"messages\":[],\"add_generation_prompt\":\"maybe\"}",
        "body_field_wrong_type",
        "add_generation_prompt",
    );
    assert_eq!(completion("{}").unwrap_err(), BodyError::MissingField { field: "prompt" });
    assert_eq!(completion("{\"prompt\":1}").unwrap_err(), BodyError::WrongType { field: "prompt" });
}

#[test]
fn bytes_that_are_not_utf8_are_located() {
    let err = Request::parse(Api::Completions, b"{\"prompt\":\"\xff\"}").unwrap_err();
    assert_eq!(err, BodyError::NotUtf8 { offset: 11 });
    assert_eq!(err.reason(), "body_not_utf8");
}

#[test]
fn deep_nesting_is_an_error_and_not_an_overflow() {
    let deep = format!("{{\"messages\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(chat(&deep).unwrap_err().reason(), "body_not_json");
    let ignored =
        format!("{{\"x\":{}{},\"messages\":[]}}", "[".repeat(100_000), "]".repeat(100_000));
    // serde_json skips a value without recursion.
    assert!(chat(&ignored).is_ok());
}

#[test]
fn the_last_of_duplicate_fields_wins() {
    let request = chat(r#"{"model":1,"messages":1,"model":"b","messages":[]}"#).unwrap();
    assert_eq!(request.model(), Some("b"));
}

#[test]
fn model_and_salt_are_borrowed_and_optional() {
    let request = completion(r#"{"prompt":"x","model":"m","cache_salt":"s"}"#).unwrap();
    assert_eq!((request.model(), request.cache_salt()), (Some("m"), Some("s")));
    let request = completion(r#"{"prompt":"x","model":null}"#).unwrap();
    assert_eq!((request.model(), request.cache_salt()), (None, None));
}

#[test]
fn unrenderable_requests_still_parse() {
    for body in [
        r#"{"model":"m","prompt":[1,2,3]}"#,
        r#"{"model":"m","prompt":["a","b"]}"#,
        r#"{"model":"m","prompt_embeds":"AAAA"}"#,
    ] {
        assert_eq!(completion(body).unwrap().model(), Some("m"), "{body}");
    }
    let image = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#;
    assert_eq!(chat(image).unwrap().model(), Some("m"));
}

#[test]
fn prompt_logprobs_and_echo_skip_the_cache() {
    let c = |more: &str, expected: bool| {
        let body = format!("{{\"prompt\":\"x\"{more}}}");
        assert_eq!(completion(&body).unwrap().skips_cache(), expected, "{more}");
    };
    c("", false);
    c(",\"prompt_logprobs\":null", false);
    c(",\"prompt_logprobs\":0", true);
    c(",\"echo\":true", false);
    c(",\"logprobs\":1", false);
    c(",\"echo\":true,\"logprobs\":1", true);
    c(",\"echo\":true,\"logprobs\":null", false);
    let m = |more: &str, expected: bool| {
        let body = format!("{{\"messages\":[]{more}}}");
        assert_eq!(chat(&body).unwrap().skips_cache(), expected, "{more}");
    };
    m("", false);
    m(",\"logprobs\":true,\"top_logprobs\":5", false);
    m(",\"prompt_logprobs\":1", true);
    m(",\"echo\":true", true);
    m(",\"echo\":true,\"top_logprobs\":null", false);
}

#[test]
fn flags_are_read_as_pydantic_reads_them() {
    let c = |value: &str, expected: Result<bool, ()>| {
        let body = format!("{{\"messages\":[],\"continue_final_message\":{value}}}");
        let got = chat(&body).map(|r| r.continue_final_message).map_err(|_| ());
        assert_eq!(got, expected, "{value}");
    };
    c("true", Ok(true));
    c("1", Ok(true));
    c("\"False\"", Ok(false));
    c("null", Err(()));
    c("2", Err(()));
}
