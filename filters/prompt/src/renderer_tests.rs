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
