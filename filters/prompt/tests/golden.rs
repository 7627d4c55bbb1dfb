//! Byte parity with transformers: every cell of `tests/golden/prompt/expected`.
//!
//! `PROMPT_GOLDEN_TEMPLATES` and `PROMPT_GOLDEN_EXPECTED` name other folders, to try templates that
//! are not committed; see the README there.

#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use prompt::{Api, ModelSpec, Renderer, Request};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn folder(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| golden().join(default), PathBuf::from)
}

/// The tiny model's template and special tokens.
fn tiny_model() -> ModelSpec {
    let path = golden().join("tiny-model/tokenizer_config.json");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let special_tokens: BTreeMap<String, String> = ["bos_token", "eos_token", "pad_token"]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), config[name].as_str()?.to_owned())))
        .collect();
    ModelSpec {
        chat_template: Some(config["chat_template"].as_str().unwrap().to_owned()),
        special_tokens,
        ..ModelSpec::default()
    }
}

fn render(spec: &ModelSpec, body: &[u8]) -> Result<Vec<u8>, String> {
    let renderer = Renderer::new(spec).map_err(|err| format!("{err:?}"))?;
    let request = Request::parse(Api::ChatCompletions, body).map_err(|err| err.to_string())?;
    let prompt = renderer.render(&request).map_err(|err| err.to_string())?;
    Ok(prompt.bytes)
}

/// `None` if the cell is exact, otherwise what differs.
fn compare(expected: Option<&[u8]>, got: &Result<Vec<u8>, String>) -> Option<String> {
    match (expected, got) {
        (None, Err(_)) => None,
        (None, Ok(_)) => Some("the reference refuses, we render".to_owned()),
        (Some(_), Err(err)) => Some(format!("we refuse: {err}")),
        (Some(expected), Ok(got)) if expected == got => None,
        (Some(expected), Ok(got)) => {
            let same = expected.iter().zip(got).take_while(|(a, b)| a == b).count();
            let around = |text: &[u8]| {
                let end = text.len().min(same + 40);
                String::from_utf8_lossy(&text[same.saturating_sub(20)..end]).into_owned()
            };
            Some(format!("byte {same}: expected {:?}, got {:?}", around(expected), around(got)))
        }
    }
}

#[test]
fn every_cell_is_exact() {
    let templates = folder("PROMPT_GOLDEN_TEMPLATES", "prompt/templates");
    let expected = folder("PROMPT_GOLDEN_EXPECTED", "prompt/expected");
    let mut cells = 0;
    let mut differing = Vec::new();
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(&expected).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let cell = path.file_stem().unwrap().to_str().unwrap();
        let (template, conversation) = cell.split_once("__").unwrap();
        let mut spec = tiny_model();
        if template != "tiny-model" {
            let path = templates.join(format!("{template}.jinja"));
            spec.chat_template = Some(std::fs::read_to_string(path).unwrap());
        }
        let body = golden().join(format!("prompt/conversations/{conversation}.json"));
        let got = render(&spec, &std::fs::read(body).unwrap());
        let text = std::fs::read(&path).unwrap();
        let is_text = path.extension().is_some_and(|extension| extension == "txt");
        cells += 1;
        if let Some(difference) = compare(is_text.then_some(text.as_slice()), &got) {
            differing.push(format!("{cell}: {difference}"));
        }
    }
    println!("{} of {cells} cells are exact", cells - differing.len());
    assert!(differing.is_empty(), "\n{}", differing.join("\n"));
    let is_committed = std::env::var_os("PROMPT_GOLDEN_EXPECTED").is_none();
    assert!(!is_committed || cells >= 200, "only {cells} cells found");
}
