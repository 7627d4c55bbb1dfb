//! Request bodies, and the prompts they render to.

use prompt::{Api, ModelSpec, Renderer, Request};

thread_local! {
    static RENDERERS: Vec<Renderer> = renderers();
}

/// The templates of the golden test, which between them use most constructs.
fn renderers() -> Vec<Renderer> {
    let templates = concat!(env!("CARGO_MANIFEST_DIR"), "/../golden/prompt/templates");
    let mut paths: Vec<_> = std::fs::read_dir(templates)
        .expect("templates")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| {
            let spec = ModelSpec {
                chat_template: std::fs::read_to_string(path).ok(),
                special_tokens: [("eos_token".to_owned(), "<|im_end|>".to_owned())].into(),
                completions_prefix: "<s>".to_owned(),
                ..ModelSpec::default()
            };
            Renderer::new(&spec).expect("a template")
        })
        .collect()
}

/// A body is parsed and rendered, or refused; and as a template it is compiled and renders, or not.
pub fn render(body: &[u8]) {
    render_as_template(body);
    for api in Api::ALL {
        let Ok(request) = Request::parse(api, body) else { continue };
        let _ = (request.model(), request.cache_salt(), request.token_ids(), request.skips_cache());
        RENDERERS.with(|renderers| {
            for renderer in renderers {
                if let Ok(prompt) = renderer.render(&request) {
                    assert!(std::str::from_utf8(&prompt.bytes).is_ok());
                }
            }
        });
    }
}

fn render_as_template(source: &[u8]) {
    let Ok(source) = std::str::from_utf8(source) else { return };
    let spec = ModelSpec { chat_template: Some(source.to_owned()), ..ModelSpec::default() };
    let Ok(renderer) = Renderer::new(&spec) else { return };
    let body = br#"{"messages":[{"role":"user","content":"hi"}]}"#;
    let request = Request::parse(Api::ChatCompletions, body).expect("a chat");
    let _ = renderer.render(&request);
}
