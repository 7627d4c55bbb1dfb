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
    check("/v1/responses", Some(Api::Responses));
    check("/v1/messages?beta=true", Some(Api::Messages));
    check("/v1/messages/count_tokens", None);
    check("/v1/embeddings", Some(Api::Embeddings));
    check("/inference/v1/generate", Some(Api::Generate));
    check("/generate", Some(Api::SglangGenerate));
    // A pool behind a path prefix.
    check("/pools/a/v1/messages", Some(Api::Messages));
    check("/a/inference/v1/generate", Some(Api::Generate));
    check("/a/generate", Some(Api::SglangGenerate));
    check("/v1/generate", None);
    check("/v1/images/generate", None);
    check("/v1/proxy/v1/completions", None);
    check("/regenerate", None);
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

#[test]
fn every_api_says_what_its_bodies_lack() {
    let check = |api, body: &str, expected: Result<(), (&str, &str)>| {
        let got = Request::parse(api, body.as_bytes()).map(drop);
        let got = got.map_err(|err| (err.reason(), err.to_string()));
        let got = got
            .as_ref()
            .map_err(|(reason, text)| (*reason, text.split(' ').nth(1).unwrap_or_default()));
        assert_eq!(got.copied(), expected, "{body}");
    };
    let missing = |field| Err(("body_field_missing", field));
    let wrong = |field| Err(("body_field_wrong_type", field));
    check(Api::Responses, "{}", missing("input"));
    check(Api::Responses, r#"{"input":7}"#, wrong("input"));
    check(Api::Responses, r#"{"input":"x","instructions":[]}"#, wrong("instructions"));
    check(Api::Responses, r#"{"input":"x","reasoning":"high"}"#, wrong("reasoning"));
    check(Api::Responses, r#"{"input":"x"}"#, Ok(()));
    let messages = r#"{"model":"m","max_tokens":1,"messages":[]}"#;
    check(Api::Messages, messages, Ok(()));
    check(Api::Messages, r#"{"max_tokens":1,"messages":[]}"#, missing("model"));
    check(Api::Messages, r#"{"model":"","max_tokens":1,"messages":[]}"#, wrong("model"));
    check(Api::Messages, r#"{"model":"m","messages":[]}"#, missing("max_tokens"));
    check(Api::Messages, r#"{"model":"m","max_tokens":1,"messages":{}}"#, wrong("messages"));
    check(
        Api::Messages,
        r#"{"model":"m","max_tokens":1,"messages":[],"system":1}"#,
        wrong("system"),
    );
    check(Api::Embeddings, "{}", missing("input"));
    check(Api::Embeddings, r#"{"input":[[1]]}"#, Ok(()));
    check(Api::Embeddings, r#"{"messages":[{}]}"#, wrong("messages"));
    check(Api::Generate, r#"{"token_ids":"x"}"#, wrong("token_ids"));
    check(Api::Generate, "{}", missing("token_ids"));
    check(Api::SglangGenerate, "{}", missing("input_ids"));
    check(Api::SglangGenerate, r#"{"text":{}}"#, wrong("text"));
    check(Api::SglangGenerate, r#"{"text":"x"}"#, Ok(()));
    // Flags of other APIs are no fields of these.
    check(Api::Messages, r#"{"model":"m","max_tokens":1,"messages":[],"echo":"maybe"}"#, Ok(()));
}

#[test]
fn token_ids_of_every_api() {
    let check = |api, body: &str, expected: Option<&[u32]>| {
        let request = Request::parse(api, body.as_bytes()).unwrap();
        assert_eq!(request.token_ids().as_deref(), expected, "{body}");
    };
    check(Api::Generate, r#"{"token_ids":[3,1,2]}"#, Some(&[3, 1, 2]));
    check(Api::Generate, r#"{"token_ids":[3],"features":{"mm_hashes":{}}}"#, None);
    check(Api::Generate, r#"{"token_ids":[3],"content_parts":[{}]}"#, None);
    check(Api::Generate, r#"{"token_ids":[-1]}"#, None);
    check(Api::Generate, r#"{"token_ids":[4294967296]}"#, None);
    check(Api::Generate, r#"{"token_ids":[]}"#, None);
    check(Api::SglangGenerate, r#"{"input_ids":[1,2]}"#, Some(&[1, 2]));
    check(Api::SglangGenerate, r#"{"input_ids":[[1,2]]}"#, Some(&[1, 2]));
    check(Api::SglangGenerate, r#"{"input_ids":[[1],[2]]}"#, None);
    check(Api::SglangGenerate, r#"{"input_ids":[1],"image_data":["x"]}"#, None);
    check(Api::SglangGenerate, r#"{"input_ids":[1],"lora_path":"a"}"#, None);
    check(Api::SglangGenerate, r#"{"text":"x","input_ids":[1]}"#, None);
    check(Api::Embeddings, r#"{"input":[7,8]}"#, Some(&[7, 8]));
    check(Api::Embeddings, r#"{"input":["a"]}"#, None);
    check(
        Api::Completions,
        r#"{"prompt":[7],"kv_transfer_params":{"prompt_token_ids":[1]}}"#,
        None,
    );
    check(Api::Completions, r#"{"prompt":[7],"kv_transfer_params":{"remote_port":1}}"#, Some(&[7]));
}

#[test]
fn requests_that_read_no_cache_of_the_other_apis() {
    let check = |api, body: &str, expected: bool| {
        let request = Request::parse(api, body.as_bytes()).unwrap();
        assert_eq!(request.skips_cache(), expected, "{body}");
    };
    check(Api::Generate, r#"{"token_ids":[1],"sampling_params":{"prompt_logprobs":1}}"#, true);
    check(Api::Generate, r#"{"token_ids":[1],"sampling_params":{"logprobs":1}}"#, false);
    let skips = r#"{"token_ids":[1],"sampling_params":{"skip_reading_prefix_cache":true}}"#;
    check(Api::Generate, skips, true);
    check(Api::SglangGenerate, r#"{"text":"x","return_logprob":true}"#, false);
    let from_start = r#"{"text":"x","return_logprob":true,"logprob_start_len":0}"#;
    check(Api::SglangGenerate, from_start, true);
    let output_only = r#"{"text":"x","return_logprob":true,"logprob_start_len":-1}"#;
    check(Api::SglangGenerate, output_only, false);
    check(Api::SglangGenerate, r#"{"text":"x","logprob_start_len":0}"#, false);
    check(Api::Embeddings, r#"{"input":"x","prompt_logprobs":1}"#, false);
}
