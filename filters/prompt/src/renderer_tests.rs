use super::*;
use crate::Normalizer;

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn spec() -> ModelSpec {
    ModelSpec {
        chat_template: Some(CHATML.to_owned()),
        completions_prefix: "<s>".to_owned(),
        normalizer: Normalizer::Nfc,
        ..ModelSpec::default()
    }
}

fn render(spec: &ModelSpec, api: Api, body: &str) -> Result<String, Refusal> {
    let request = Request::parse(api, body.as_bytes()).unwrap();
    let prompt = Renderer::new(spec).unwrap().render(&request)?;
    Ok(String::from_utf8(prompt.bytes).unwrap())
}

fn completion(body: &str, expected: Result<&str, &str>) {
    let got = render(&spec(), Api::Completions, body);
    let got = got.as_deref().map_err(|refusal| refusal.reason());
    assert_eq!(got, expected, "{body}");
}

fn chat_with(template: &str, body: &str, expected: Result<&str, &str>) {
    let spec = ModelSpec {
        chat_template: Some(template.to_owned()),
        special_tokens: [("eos_token".to_owned(), "<|im_end|>".to_owned())].into(),
        ..spec()
    };
    let got = render(&spec, Api::ChatCompletions, body);
    let got = got.as_deref().map_err(|refusal| refusal.reason());
    assert_eq!(got, expected, "{body}");
}

fn chat(more: &str, expected: Result<&str, &str>) {
    let body = format!(r#"{{"messages":[{{"role":"user","content":"hi "}}]{more}}}"#);
    chat_with(CHATML, &body, expected);
}

#[test]
fn completions_get_the_special_prefix_and_the_normal_form() {
    completion(r#"{"prompt":"cafe\u0301"}"#, Ok("<s>café"));
    completion(r#"{"prompt":["one"]}"#, Ok("<s>one"));
    completion(r#"{"prompt":"x","add_special_tokens":false}"#, Ok("x"));
    completion(r#"{"prompt":""}"#, Ok("<s>"));
    completion(r#"{"prompt":"\ud83d\ude00\u0000\""}"#, Ok("<s>😀\0\""));
}

#[test]
fn completions_that_cannot_be_matched_are_refused() {
    completion(r#"{"prompt":[1,2]}"#, Err("token_ids"));
    completion(r#"{"prompt":[[1,2]]}"#, Err("token_ids"));
    completion(r#"{"prompt":["a","b"]}"#, Err("several_prompts"));
    completion(r#"{"prompt":[[1],[2]]}"#, Err("several_prompts"));
    completion(r#"{"prompt":[]}"#, Err("no_prompt"));
    completion(r#"{"prompt_embeds":"AA"}"#, Err("prompt_embeds"));
    completion(r#"{"prompt":"x","prompt_embeds":"AA"}"#, Err("prompt_embeds"));
    completion(r#"{"prompt":"x","truncate_prompt_tokens":10}"#, Err("truncate_prompt_tokens"));
    completion(r#"{"prompt":"x","truncate_prompt_tokens":null}"#, Ok("<s>x"));
}

#[test]
fn chats_render_by_the_template() {
    let user = "<|im_start|>user\nhi <|im_end|>\n";
    let all = format!("{user}<|im_start|>assistant\n");
    chat("", Ok(&all));
    chat(r#","add_generation_prompt":false"#, Ok(user));
    chat(r#","add_special_tokens":true"#, Ok(&format!("<s>{all}")));
    chat(
        r#","add_generation_prompt":false,"continue_final_message":true"#,
        Ok("<|im_start|>user\nhi "),
    );
    // transformers refuses both together, and vLLM's default for the other is true.
    chat(r#","continue_final_message":true"#, Err("continue_final_message"));
}

#[test]
fn chats_that_cannot_be_matched_are_refused() {
    chat(r#","chat_template":"x""#, Err("request_chat_template"));
    chat(r#","truncate_prompt_tokens":-1"#, Err("truncate_prompt_tokens"));
    chat(r#","chat_template_kwargs":{"tokenize":true}"#, Err("reserved_template_kwarg"));
    chat(r#","chat_template_kwargs":{"x":1e40}"#, Err("number"));
    chat(r#","documents":["x"]"#, Err("malformed_message"));
    chat(r#","tools":[]"#, Err("malformed_tool"));
    chat_with(CHATML, r#"{"messages":[]}"#, Err("no_prompt"));
    let no_template = ModelSpec::default();
    let body = r#"{"messages":[{"role":"user","content":"x"}]}"#;
    let err = render(&no_template, Api::ChatCompletions, body).unwrap_err();
    assert_eq!(err.reason(), "no_chat_template");
}

/// Reasons of what cannot be known in the gateway, for every API that has the field.
#[test]
fn what_the_gateway_cannot_know_is_refused_by_name() {
    let check = |api, body: &str, expected: &str| {
        let got = render(&spec(), api, body).map_err(|refusal| refusal.reason());
        assert_eq!(got, Err(expected), "{body}");
    };
    let user = r#""messages":[{"role":"user","content":"x"}]"#;
    let chat = |more: &str, expected| {
        check(Api::ChatCompletions, &format!("{{{user},{more}}}"), expected);
    };
    chat(r#""mm_processor_kwargs":{"a":1}"#, "media_kwargs");
    chat(r#""media_io_kwargs":{"image":{}}"#, "media_kwargs");
    chat(r#""kv_transfer_params":{"prompt_token_ids":[1]}"#, "forwarded_token_ids");
    chat(r#""reasoning_effort":"huge""#, "malformed_message");
    chat(r#""documents":[{"text":1}]"#, "malformed_message");
    check(Api::Completions, r#"{"prompt":"x","suffix":"y"}"#, "suffix");
    check(Api::Completions, r#"{"prompt":"x","mm_processor_kwargs":{}}"#, "media_kwargs");
    let responses = |more: &str, expected| {
        check(Api::Responses, &format!(r#"{{"input":"x",{more}}}"#), expected);
    };
    responses(r#""previous_response_id":"r""#, "previous_response");
    responses(r#""previous_input_messages":[{}]"#, "previous_response");
    responses(r#""prompt":{"id":"p"}"#, "previous_response");
    responses(r#""truncation":"auto""#, "truncate_prompt_tokens");
    responses(r#""truncation":null"#, "truncate_prompt_tokens");
    responses(r#""tools":[{"type":"custom","name":"x"}]"#, "malformed_tool");
    let messages = |content: &str, expected| {
        let body = format!(
            r#"{{"model":"m","max_tokens":1,"messages":[{{"role":"user","content":{content}}}]}}"#
        );
        check(Api::Messages, &body, expected);
    };
    messages(r#"[{"type":"image","source":{}}]"#, "media_part");
    let image = r#"[{"type":"tool_result","tool_use_id":"t","content":[{"type":"image"}]}]"#;
    messages(image, "media_part");
    messages(r#"[{"type":"document"}]"#, "unsupported_item");
    messages(r#"[{"type":"tool_use","id":"","name":"x"}]"#, "malformed_message");
    messages("7", "malformed_message");
    check(Api::Embeddings, r#"{"input":["a","b"]}"#, "several_prompts");
    check(Api::Embeddings, r#"{"input":"a","padding":"max_length"}"#, "truncate_prompt_tokens");
    check(Api::Embeddings, r#"{"input":[{"role":"user","content":"x"}]}"#, "unsupported_item");
    check(Api::Generate, r#"{"token_ids":[1]}"#, "token_ids");
    check(Api::SglangGenerate, r#"{"text":"x","lora_path":"a"}"#, "own_namespace");
    check(Api::SglangGenerate, r#"{"text":"x","extra_key":"a"}"#, "own_namespace");
    check(Api::SglangGenerate, r#"{"text":"x","audio_data":["a"]}"#, "media_part");
    check(Api::SglangGenerate, r#"{"input_embeds":[[0.5]]}"#, "prompt_embeds");
    check(Api::SglangGenerate, r#"{"text":["a","b"]}"#, "several_prompts");
}

#[test]
fn embeddings_and_the_engines_own_apis_render_text() {
    let check = |api, body: &str, expected: &str| {
        assert_eq!(render(&spec(), api, body).as_deref(), Ok(expected), "{body}");
    };
    check(Api::Embeddings, r#"{"input":"x"}"#, "<s>x");
    check(Api::Embeddings, r#"{"input":["x"],"add_special_tokens":false}"#, "x");
    // Unlike a chat, one to embed opens no answer.
    let chat = r#"{"messages":[{"role":"user","content":"x"}]}"#;
    check(Api::Embeddings, chat, "<|im_start|>user\nx<|im_end|>\n");
    check(Api::SglangGenerate, r#"{"text":"x"}"#, "<s>x");
    check(Api::SglangGenerate, r#"{"text":["x"],"add_special_tokens":false}"#, "<s>x");
}

#[test]
fn formats_of_other_code_are_refused_by_name_where_a_template_would_render() {
    use crate::PromptFormat::{Deepseek, Harmony, Inkling, KimiK3, Mistral};
    let formats = [
        (Harmony, "prompt_format_harmony"),
        (Mistral, "prompt_format_mistral"),
        (Deepseek, "prompt_format_deepseek"),
        (KimiK3, "prompt_format_kimi_k3"),
        (Inkling, "prompt_format_inkling"),
    ];
    for (prompt_format, reason) in formats {
        let spec = ModelSpec { prompt_format, ..spec() };
        let check = |api, body: &str| {
            assert_eq!(render(&spec, api, body).unwrap_err().reason(), reason);
        };
        check(Api::ChatCompletions, r#"{"messages":[{"role":"user","content":"x"}]}"#);
        check(Api::Responses, r#"{"input":"x"}"#);
        let messages = r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"x"}]}"#;
        check(Api::Messages, messages);
        let completion = render(&spec, Api::Completions, r#"{"prompt":"x"}"#);
        assert_eq!(completion.as_deref(), Ok("<s>x"));
    }
}

#[test]
fn variables_follow_their_precedence() {
    let template = "{{ eos_token }}|{{ x }}|{{ reasoning_effort }}|{{ enable_thinking }}|{{ documents }}|{{ continue_final_message }}";
    let check = |more: &str, expected: &str| {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"hi"}}]{more}}}"#);
        chat_with(template, &body, Ok(expected));
    };
    check("", "<|im_end|>||||None|");
    check(r#","chat_template_kwargs":{"x":[1,"a"],"eos_token":"E"}"#, "E|[1, 'a']|||None|");
    check(r#","reasoning_effort":"low""#, "<|im_end|>||low|True|None|");
    check(r#","reasoning_effort":"none""#, "<|im_end|>||none|False|None|");
    check(
        r#","reasoning_effort":"low","chat_template_kwargs":{"enable_thinking":false,"reasoning_effort":"high"}"#,
        "<|im_end|>||low|False|None|",
    );
    check(
        r#","chat_template_kwargs":{"documents":[{"t":1}],"continue_final_message":true}"#,
        "<|im_end|>||||[{'t': 1}]|",
    );
}

#[test]
fn a_prompt_much_larger_than_its_body_is_refused() {
    let template = "{% for i in range(10240) %}{{ 'x' * 1024 }}{% endfor %}";
    let body = r#"{"messages":[{"role":"user","content":"hi"}]}"#;
    chat_with(template, body, Err("template_output_too_large"));
}

#[test]
fn deep_values_reach_a_template_without_overflow() {
    let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"hi"}}],"chat_template_kwargs":{{"x":{}}}}}"#,
        deep(120)
    );
    chat_with("{{ x | tojson }}", &body, Ok(&deep(120)));
    chat_with("{{ x }}", &body, Ok(&deep(120)));
}

#[test]
fn a_template_that_does_not_compile_is_an_error() {
    let spec = ModelSpec { chat_template: Some("{% for %}".to_owned()), ..spec() };
    assert_eq!(Renderer::new(&spec).unwrap_err().reason(), "template_syntax");
}

#[test]
fn the_text_rules_and_the_prefixes_meet() {
    let spec = ModelSpec {
        segment_prefix: crate::SegmentPrefix::Each,
        control_prefix: vec![1],
        completions_prefix: "<s>".to_owned(),
        ..ModelSpec::default()
    };
    let request = Request::parse(Api::Completions, br#"{"prompt":"hi"}"#).unwrap();
    let prompt = Renderer::new(&spec).unwrap().render(&request).unwrap();
    assert_eq!(prompt.bytes, b"\xff\x01\0\0\0<s> hi");
}
